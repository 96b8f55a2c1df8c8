"""Where a run stands, beside its tensors."""

from dataclasses import dataclass, fields
from typing import Any

from farside.configs.stages import Stage


@dataclass
class Progress:
    """What a checkpoint stores beside tensors: data cursors are functions of ``step`` and ``left_out``."""

    step: int = 0
    tokens: int = 0
    trained_length: int = 0
    """Longest sample ever trained on, parents included."""
    left_out: int = 0
    """Batches of this stage that the run has gone back and round: step k takes the stage's batch k + left_out."""
    rewinds: int = 0
    guard: dict[str, Any] | None = None
    hooks_due: bool = False
    """The run was stopped in the midst of the step's hooks: they are called again."""

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Progress":
        """From a checkpoint's state; what an older farside did not store has its default."""
        return cls(**{item.name: state[item.name] for item in fields(cls) if item.name in state})

    def record(self, stage: Stage) -> dict[str, Any]:
        return {**vars(self), "stage": stage.name, "rope": stage.rope.record()}


class Diverged(RuntimeError):
    """Steps are bad in a row, and going back to a checkpoint has not helped or is not possible."""
