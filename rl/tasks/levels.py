"""Several data sets as one, each a level of difficulty."""

from collections.abc import Callable, Sequence
from typing import Any

from farside.configs.schema import TaskConfig
from farside.rl.tasks.dataset import Dataset


class LeveledDataset:
    """Item i is item i // n of level i % n + 1 of n levels, which ``difficulty`` names."""

    def __init__(self, levels: Sequence[Dataset]) -> None:
        self.levels = levels

    def __len__(self) -> int:
        return min(len(level) for level in self.levels) * len(self.levels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        within, level = divmod(index, len(self.levels))
        return {**self.levels[level][within], "difficulty": level + 1}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return self.level_of(entry).score_answer(answer, entry)

    def level_of(self, entry: dict[str, Any]) -> Dataset:
        return self.levels[entry["difficulty"] - 1]


def leveled(config: TaskConfig, make: Callable[[str, dict[str, Any]], Dataset]) -> Dataset:
    """The data set that sft.task.options and levels ask for. make: from (the key to name in an error, options)."""
    if not config.levels:
        return make("options", config.options)
    return LeveledDataset(
        [make(f"levels.{place}", config.options | level) for place, level in enumerate(config.levels)]
    )
