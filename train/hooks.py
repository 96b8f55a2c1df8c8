"""What a training loop is given: batches, and what to do besides training every so many steps."""

from dataclasses import dataclass
from typing import Protocol

from farside.configs.stages import Stage
from farside.data.batch import Batch


@dataclass(frozen=True)
class StepInfo:
    """What hooks see after a step. step counts from 1."""

    step: int
    stage: Stage


class Feed(Protocol):
    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of the stage's step ``step`` (from 0)."""
        ...


class Hook(Protocol):
    every: int

    def __call__(self, info: StepInfo) -> None: ...

    def rewind(self, step: int) -> None:
        """The run has gone back to ``step``: what was written after it will come again."""
        ...
