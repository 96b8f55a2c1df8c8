"""Free-running decoding with a KV cache, greedy or sampled, on one process.

A fixed number of slots: a finished answer leaves its slot to the next request in line (Orca's continuous batching,
OSDI 2022). What requests share is computed once. Left out: paging. Shapes: P prompts, N rows, E model dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from farside.configs.schema import RepetitionConfig
from farside.train.inference.cache import KVCache, Prefixes
from farside.train.inference.decoder import Decoder
from farside.train.inference.repetition import NO_LOOPS, LoopDetector
from farside.train.inference.sampling import choose
from farside.train.model.transformer import Transformer

PREFILL_TOKENS = 1 << 15
"""Of prompts computed at once, padding included, unless one alone is longer."""


@dataclass(frozen=True)
class Request:
    """prefix: what to continue, a prompt and the ``begun`` first tokens of its answer. limit: new tokens at most.

    draws: a number in [0, 1) for each new token: its inverse-CDF draw. None decodes greedily.
    """

    prefix: list[int]
    limit: int
    draws: np.ndarray | None = None
    begun: int = 0

    @property
    def answer(self) -> list[int]:
        """What there is of it."""
        return self.prefix[len(self.prefix) - self.begun :]


@dataclass(frozen=True)
class Generated:
    """tokens after the prompt, with the stop token if it came; their log-probabilities at temperature 1, in nats."""

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass
class _Row:
    """A request in a slot."""

    number: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Decoding:
    """Requests on their way through the slots, in their order. To be used under ``torch.inference_mode``.

    slots: answers decoded at once; None: all. Results depend on it only by rounding.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[Request],
        stop_token: int,
        temperature: float = 1.0,
        slots: int | None = None,
        repetition: RepetitionConfig = NO_LOOPS,
    ) -> None:
        self.loops = LoopDetector(repetition)
        self.decoder, self.stop_token, self.temperature = decoder, stop_token, temperature
        self.waiting = [_Row(number, request) for number, request in enumerate(requests)][::-1]
        self.answers = [Generated([], [], True)] * len(requests)
        self.steps = 0
        """Forward passes over one token a row, the choice from the prompts' last tokens being the first."""
        self.rows: list[_Row] = []
        self.slots = min(slots or len(requests), len(requests))
        capacity = max(len(request.prefix) + request.limit for request in requests)
        decoder.reserve(capacity)
        self.cache = KVCache(decoder.config, self.slots, capacity, decoder.embed_VE)
        self.shared: tuple[list[int], Prefixes, Tensor] | None = None
        """The last prompt with its last hidden state, while requests that share it wait."""
        self.x_NE = decoder.embed_VE[:0]
        self._fill()

    def step(self) -> None:
        """One token more for every row."""
        self.steps += 1
        token_N, logprob_N = choose(self.decoder.logits(self.x_NE), self._draws(), self.temperature)
        for row, token, logprob in zip(self.rows, token_N.tolist(), logprob_N.tolist()):
            row.tokens.append(token)
            row.logprobs.append(logprob)
        ended = [
            number
            for number, (row, loops) in enumerate(zip(self.rows, self.loops.step(token_N)))
            if loops or row.tokens[-1] == self.stop_token or len(row.tokens) == row.request.limit
        ]
        if ended:
            token_N = self._leave(ended, token_N)
        self.x_NE = self.x_NE[:0]
        if self.rows:
            step = self.cache.append(len(self.rows))
            self.x_NE = self.decoder.hidden(token_N, step.positions_N, step.attend)
        self._fill()

    def _draws(self) -> Tensor | None:
        if self.rows[0].request.draws is None:
            return None
        numbers = [row.request.draws[len(row.tokens)] for row in self.rows]  # type: ignore[index]
        return torch.tensor(numbers, dtype=torch.float64, device=self.decoder.device)

    def _leave(self, ended: list[int], token_N: Tensor) -> Tensor:
        """Ends rows; the last ones move into their slots. Returns the tokens of those that stay."""
        for number in ended:
            row = self.rows[number]
            self.answers[row.number] = Generated(row.tokens, row.logprobs, row.tokens[-1] != self.stop_token)
        kept = len(self.rows) - len(ended)
        holes = [number for number in ended if number < kept]
        movers = sorted(set(range(kept, len(self.rows))) - set(ended))
        order = list(range(kept))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.rows = [self.rows[number] for number in order]
        self.loops.select(order)
        if movers:
            self.cache.move(movers, holes)
        return token_N[torch.tensor(order, dtype=torch.long, device=token_N.device)]

    def _fill(self) -> None:
        """Requests in line into free slots."""
        while self.waiting and len(self.rows) < self.slots:
            entering, which, prompts = self._next()
            if self.shared is not None and prompts == [self.shared[0]]:
                _, prefixes, x_PE = self.shared
            else:
                prefixes, x_PE = self._prefill(prompts)
            self.cache.put(len(self.rows), prefixes, which, [len(row.request.prefix) for row in entering])
            self.x_NE = torch.cat((self.x_NE, x_PE[torch.tensor(which, device=x_PE.device)]))
            self.rows += entering
            self.loops.enter([row.request.answer for row in entering])
            self.shared = None
            if self.waiting and self.waiting[-1].request.prefix == prompts[-1]:
                self.shared = prompts[-1], prefixes.only(which[-1]), x_PE[which[-1]][None]

    def _next(self) -> tuple[list[_Row], list[int], list[list[int]]]:
        """Those that enter together, which prompt each has, and the prompts: requests in line share them."""
        entering: list[_Row] = []
        which: list[int] = []
        prompts: list[list[int]] = []
        while self.waiting and len(self.rows) + len(entering) < self.slots:
            prefix = self.waiting[-1].request.prefix
            if not prompts or prefix != prompts[-1]:
                longest = max(map(len, [*prompts, prefix]))
                known = self.shared is not None and prompts == [self.shared[0]]
                if prompts and (known or longest * (len(prompts) + 1) > PREFILL_TOKENS):
                    break
                prompts.append(prefix)
            entering.append(self.waiting.pop())
            which.append(len(prompts) - 1)
        return entering, which, prompts

    def _prefill(self, prompts: Sequence[list[int]]) -> tuple[Prefixes, Tensor]:
        """Keys and values of prompts, and the hidden state [P, E] of each one's last token."""
        device, longest = self.decoder.device, max(map(len, prompts))
        padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        positions = torch.arange(longest, device=device).expand_as(padded)
        prefixes = Prefixes(len(prompts), longest)
        x_NE = self.decoder.hidden(padded.flatten(), positions.flatten(), prefixes.attend)
        ends = [number * longest + len(prompt) - 1 for number, prompt in enumerate(prompts)]
        return prefixes, x_NE[torch.tensor(ends, device=device)]


@torch.inference_mode()
def decode(
    decoder: Decoder,
    requests: Sequence[Request],
    stop_token: int,
    temperature: float = 1.0,
    slots: int | None = None,
    repetition: RepetitionConfig = NO_LOOPS,
) -> Decoding:
    """Answers every request until ``stop_token``, a loop of tokens or its limit: ``answers`` of what is returned, in
    their order."""
    run = Decoding(decoder, requests, stop_token, temperature, slots, repetition)
    while run.rows:
        run.step()
    return run


def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop_token: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> list[Generated]:
    """Continues every prompt until ``stop_token`` or ``max_new_tokens``.

    uniforms: None decodes greedily; otherwise [P, samples, max_new_tokens] numbers in [0, 1), one a sampled
    token: its inverse-CDF draw. So a sample depends on its own numbers only, not on its neighbours.
    Returns P·samples results, a prompt's samples together.
    """
    requests = [
        Request(prompt, max_new_tokens, draws)
        for number, prompt in enumerate(prompts)
        for draws in ([None] if uniforms is None else uniforms[number].cpu().numpy())
    ]
    return decode(Decoder.of(model), requests, stop_token, temperature).answers


def stream(
    model: Transformer,
    prompt: list[int],
    max_new_tokens: int,
    stop_token: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Iterator[int]:
    """The tokens that ``generate`` gives for one prompt, as they come; without the stop token.

    generator: None decodes greedily; otherwise the source of one uniform number a token, on the CPU.
    """
    draws = None if generator is None else torch.rand(max_new_tokens, generator=generator).numpy()
    with torch.inference_mode():
        run = Decoding(Decoder.of(model), [Request(prompt, max_new_tokens, draws)], stop_token, temperature)
    (row,) = run.rows
    while run.rows:
        with torch.inference_mode():  # entered anew: a generator must not leave it on for its caller
            run.step()
        if row.tokens[-1] != stop_token:
            yield row.tokens[-1]
