"""The seam between the loop and whatever generates: native now, vLLM and asynchronous engines later."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from farside.data.tokenizer import Tokenizer
from farside.rl.rollout.flight import Flight
from farside.rl.types import Completion, Prompt


class Rollout(Protocol):
    tokenizer: Tokenizer

    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """``samples`` completions per prompt, a prompt's together; temperature 0 decodes greedily."""
        ...

    def extend(self, flights: Sequence[Flight], budget: int, max_new_tokens: int, temperature: float, seed: int) -> int:
        """Goes on with answers under way, in place, by at most ``budget`` tokens each, the whole answer having at most
        ``max_new_tokens``. Returns the steps of decoding that it took."""
        ...

    def completions(self, flight: Flight) -> list[Completion]:
        """Of a group that is done."""
        ...

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], step: int) -> None:
        """Whole weights by canonical name; ``step`` names the policy's version."""
        ...
