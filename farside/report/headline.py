"""The number by which runs of one kind are compared, and their learning curve: one place for sweeps and reports."""

import math
from dataclasses import dataclass
from typing import Any

from farside.report.numbers import is_number, number, percent
from farside.report.overview import green_of
from farside.report.read import Row, Run, mapping, mean, numbers_of

LAST = 20
"""Steps whose mean is called the final loss: one step alone is noise."""


@dataclass(frozen=True)
class Metric:
    """name: a column's title; short: the same where there is little room; better: 1 higher, -1 lower is better."""

    name: str
    short: str
    better: int
    share: bool = False

    def text(self, value: Any) -> str:
        return percent(value) if self.share else number(value)


VALIDATION = Metric("validation loss", "val. loss", -1)
LOSS = Metric("loss", "loss", -1)
ACCURACY = Metric("held-out accuracy", "accuracy", 1, share=True)
PAIRS = Metric("held-out pairs in order", "pairs", 1, share=True)
GREEN = Metric("green needle cells", "green", 1)
SOLVED = Metric("problems solved", "solved", 1, share=True)
OF_COMMAND = {
    "train": VALIDATION,
    "sft": LOSS,
    "reward": PAIRS,
    "rl": ACCURACY,
    "run": ACCURACY,
    "eval niah": GREEN,
    "eval math": SOLVED,
}
"""Command -> what its sweep is judged by."""


def rows_of(run: Run) -> list[Row]:
    """The steps of the phase that a curve shows: pretraining of a whole job, else the only one there is."""
    return run.rows("pretrain") or next(iter(run.metrics.values()), [])


def final_loss(rows: list[Row]) -> float | None:
    """Mean of the last steps' losses; not a number if the last one is not: the run diverged. None without steps."""
    if not rows or "loss" not in rows[-1]:
        return None
    if not is_number(rows[-1]["loss"]):
        return math.nan
    return mean(numbers_of(rows[-LAST:], "loss"))


def validation_loss(run: Run) -> float | None:
    """Mean over the sources after pretraining."""
    losses = [value for value in mapping(run.summary("pretrain"), "validation_loss").values() if is_number(value)]
    return mean(losses)


def measure(run: Run, metric: Metric) -> float | None:
    """The run's value; None if it has none (yet)."""
    value: Any = None
    if metric is VALIDATION:
        value = validation_loss(run)
    elif metric is LOSS:
        value = final_loss(rows_of(run))
    elif metric is PAIRS:
        value = run.summary("reward").get("held_out_accuracy")
    elif metric is ACCURACY:
        value = run.summary("rl").get("held_out_accuracy_after")
    elif metric is GREEN and run.grids:
        value = green_of(run.grids[-1])[0]
    elif metric is SOLVED and run.maths:
        value = run.maths[-1].get("greedy")
    return value if is_number(value) else None
