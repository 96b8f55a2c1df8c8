"""Rollouts with our own decoder, in this process, in the training precision: no train-inference mismatch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from farside.configs.schema import RepetitionConfig
from farside.data.order import rng
from farside.data.tokenizer import Tokenizer
from farside.rl.overthinking import thinking_tokens
from farside.rl.types import Completion, Prompt
from farside.train.engine.native import sync_weights
from farside.train.inference.generate import NO_LOOPS, generate
from farside.train.model.transformer import Transformer


class NativeRollout:
    """Implements ``Rollout`` over an unsharded copy of the policy.

    A sample's random numbers are a function of (seed, policy step, prompt index), so that it does not depend on
    how prompts are spread over ranks, and a resumed run draws what the uninterrupted one drew.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, step: int = 0, repetition: RepetitionConfig = NO_LOOPS
    ) -> None:
        self.model, self.tokenizer, self.step, self.repetition = model, tokenizer, step, repetition

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], step: int) -> None:
        sync_weights(self.model, weights)
        self.step = step

    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        encoded = [self.tokenizer.encode_prompt(p.question) + self.tokenizer.encode(p.begun) for p in prompts]
        uniforms = None
        if temperature > 0:
            draws = [
                rng(seed, "rollout", self.step, prompt.index).random((samples, max_new_tokens)) for prompt in prompts
            ]
            uniforms = torch.from_numpy(np.stack(draws))
        assert uniforms is not None or samples == 1, "greedy decoding gives one sample"
        answers = generate(
            self.model, encoded, max_new_tokens, self.tokenizer.end, uniforms, temperature or 1.0, self.repetition
        )
        return [
            Completion(
                prompt=prompts[number // samples],
                prompt_tokens=encoded[number // samples],
                tokens=answer.tokens,
                logprobs=answer.logprobs,
                text=self.tokenizer.decode(answer.tokens),
                truncated=answer.truncated,
                policy_step=self.step,
                thinking=thinking_tokens(answer.tokens, self.tokenizer.think, self.tokenizer.end_think),
            )
            for number, answer in enumerate(answers)
        ]
