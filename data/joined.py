"""Several arrays read as one, without a copy of them in memory."""

from collections.abc import Sequence

import numpy as np


class Joined:
    """arrays, one behind the other: as long as all, and stretches of it."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list(arrays)
        self.ends = np.cumsum([len(array) for array in self.arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, stretch: slice) -> np.ndarray:
        """tokens [start:stop], both given and inside."""
        assert 0 <= stretch.start <= stretch.stop <= len(self)
        parts: list[np.ndarray] = []
        for array, end in zip(self.arrays, self.ends.tolist()):
            begin = end - len(array)
            if stretch.start < end and stretch.stop > begin:
                parts.append(array[max(0, stretch.start - begin) : stretch.stop - begin])
        return np.concatenate(parts) if parts else self.arrays[0][:0]
