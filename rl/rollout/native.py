"""Rollouts with our own decoder, in this process, in the training precision: no train-inference mismatch."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from farside.configs.schema import RepetitionConfig, RlConfig
from farside.data.order import rng
from farside.data.tokenizer import Tokenizer
from farside.rl.overthinking import thinking_tokens
from farside.rl.rollout.flight import Draft, Flight
from farside.rl.types import Completion, Prompt
from farside.train.inference.decoder import Decoder
from farside.train.inference.generate import Request, decode
from farside.train.inference.repetition import NO_LOOPS, ends_in_loop
from farside.train.model.transformer import Transformer


class NativeRollout:
    """Implements ``Rollout`` over an unsharded copy of the policy.

    A sample's random numbers are a function of (seed, step at which it began, prompt index), so that it does not depend
    on how prompts are spread over ranks, and a resumed run draws what the uninterrupted one drew.
    slots: answers decoded at once; None: all.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        step: int = 0,
        slots: int | None = None,
        repetition: RepetitionConfig = NO_LOOPS,
    ) -> None:
        self.decoder, self.tokenizer, self.step = Decoder.of(model), tokenizer, step
        self.slots, self.repetition = slots, repetition

    @classmethod
    def of(cls, config: RlConfig, model: Transformer, tokenizer: Tokenizer, step: int = 0) -> "NativeRollout":
        """As RL's settings have it."""
        return cls(model, tokenizer, step, config.rollout_batch, config.repetition)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], step: int) -> None:
        self.decoder.load(weights)
        self.step = step

    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        assert temperature > 0 or samples == 1, "greedy decoding gives one sample"
        flights = [Flight.start(prompt, samples, self.step) for prompt in prompts]
        self.extend(flights, max_new_tokens, max_new_tokens, temperature, seed)
        return [item for flight in flights for item in self.completions(flight)]

    def extend(self, flights: Sequence[Flight], budget: int, max_new_tokens: int, temperature: float, seed: int) -> int:
        drafts: list[Draft] = []
        requests: list[Request] = []
        for flight in flights:
            prompt = self._begin(flight.prompt)
            draws = [None] * len(flight.drafts)
            if temperature > 0:
                generator = rng(seed, "rollout", flight.started, flight.prompt.index)
                draws = generator.random((len(flight.drafts), max_new_tokens))  # type: ignore[assignment]
            for draft, numbers in zip(flight.drafts, draws):
                had = len(draft.tokens)
                draft.done = draft.done or had >= max_new_tokens  # the limit may be lower than when it began
                if not draft.done:
                    drafts.append(draft)
                    limit = min(budget, max_new_tokens - had)
                    requests.append(
                        Request(prompt + draft.tokens, limit, None if numbers is None else numbers[had:], had)
                    )
        if not requests:
            return 0
        run = decode(self.decoder, requests, self.tokenizer.end, temperature or 1.0, self.slots, self.repetition)
        for draft, answer in zip(drafts, run.answers, strict=True):
            draft.extend(answer.tokens, answer.logprobs, self.step)
            loops = ends_in_loop(draft.tokens, self.repetition)
            draft.done = not answer.truncated or loops or len(draft.tokens) >= max_new_tokens
        return run.steps

    def _begin(self, prompt: Prompt) -> list[int]:
        """What the answer continues."""
        return self.tokenizer.encode_prompt(prompt.question) + self.tokenizer.encode(prompt.begun)

    def completions(self, flight: Flight) -> list[Completion]:
        prompt_tokens = self._begin(flight.prompt)
        return [
            Completion(
                prompt=flight.prompt,
                prompt_tokens=prompt_tokens,
                tokens=draft.tokens,
                logprobs=draft.logprobs,
                text=self.tokenizer.decode(draft.tokens),
                truncated=draft.tokens[-1] != self.tokenizer.end,
                policy_step=draft.segments[-1].policy_step,
                segments=list(draft.segments) if len(draft.segments) > 1 else [],
                thinking=thinking_tokens(draft.tokens, self.tokenizer),
            )
            for draft in flight.drafts
        ]
