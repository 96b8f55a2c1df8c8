"""What a training loop is given: batches, and what to do besides training every so many steps."""

from dataclasses import dataclass
from typing import Protocol

from farside.configs.stages import Stage
from farside.data.batch import Batch
from farside.train.engine.base import Engine


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


class ReplicaHook:
    """Compares the weights of ranks that hold the same (train.guard.compare_replicas), between saves, which do so
    too."""

    def __init__(self, engine: Engine, every: int) -> None:
        self.engine, self.every = engine, every

    def __call__(self, info: StepInfo) -> None:
        self.engine.check_replicas()

    def rewind(self, step: int) -> None:
        """Nothing was written."""
