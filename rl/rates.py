"""Success rates that forget: of many things at once, as right answers over samples."""

from collections.abc import Mapping

import numpy as np


class Rates:
    """[N] counts of right answers and of samples, the older the less."""

    def __init__(self, size: int) -> None:
        self.right, self.count = np.zeros(size), np.zeros(size)

    def add(self, right_N: np.ndarray, count_N: np.ndarray, memory: float) -> None:
        """Of what has new samples, the earlier ones count ``memory`` times what they did."""
        kept_N = np.where(count_N > 0, memory, 1.0)
        self.right = kept_N * self.right + right_N
        self.count = kept_N * self.count + count_N

    def rates(self, guess_N: np.ndarray | float = 0.0) -> np.ndarray:
        """guess_N: weighs as much as one sample."""
        return (self.right + guess_N) / (self.count + 1.0)

    def record(self) -> dict[str, list[float]]:
        """Number -> [right, count], of what has been sampled."""
        return {str(n): [self.right[n].item(), self.count[n].item()] for n in np.flatnonzero(self.count)}

    def restore(self, record: Mapping[str, list[float]]) -> None:
        """What lies past the end is left out."""
        for number, (right, count) in record.items():
            if int(number) < len(self.count):
                self.right[int(number)], self.count[int(number)] = right, count
