"""The seam between the loop and whatever generates: native now, vLLM and asynchronous engines later."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from farside.rl.types import Completion, Prompt


class Rollout(Protocol):
    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """``samples`` completions per prompt, a prompt's together; temperature 0 decodes greedily."""
        ...

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], step: int) -> None:
        """Whole weights by canonical name; ``step`` names the policy's version."""
        ...
