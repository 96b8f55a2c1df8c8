"""What tasks over files share: problems read when first asked for, and a split that cannot leak."""

from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from farside.configs.errors import UserError
from farside.data.order import epoch_item, fold
from farside.rl.tasks.dataset import check_split
from farside.rl.tasks.split import is_held_out, normalised
from farside.rl.types import Task


class HasQuestion(Protocol):
    @property
    def question(self) -> str: ...


P = TypeVar("P", bound=HasQuestion)


class FileTask(Generic[P]):
    """Without ``held_out`` a problem's side is decided by its text. With it, a problem is held out if that file has it,
    in whatever spelling: its twins in the other file are never trained on.
    """

    longest_seconds = 0.0
    step_separator = "\n"

    def __init__(self, name: str, path: Path, held_out: Path | None, seed: int) -> None:
        self.name, self.path, self.held_out_path, self.seed = name, path, held_out, seed

    def read(self, key: str, path: Path) -> list[P]:
        raise NotImplementedError

    @cached_property
    def splits(self) -> dict[str, list[P]]:
        """Problems by split; the verifier's child, which needs no problems, never reads them."""
        problems = self.read("task.name", self.path)
        if self.held_out_path is None:
            sides = [is_held_out(problem.question) for problem in problems]
        else:
            held_out = self.read("task.held_out", self.held_out_path)
            texts = {normalised(problem.question) for problem in held_out}
            problems = [problem for problem in problems if normalised(problem.question) not in texts]
            sides = [False] * len(problems) + [True] * len(held_out)
            problems += held_out
        return {
            "train": [problem for problem, side in zip(problems, sides) if not side],
            "held_out": [problem for problem, side in zip(problems, sides) if side],
        }

    def problems(self, split: str) -> list[P]:
        """Raises UserError: the split, "train" or "held_out", has none."""
        if not (problems := self.splits[split]):
            fix = "name a file of them with task.held_out" if split == "held_out" else "name another file"
            raise UserError(f"task.name={self.name}: {self.path} leaves no {split} problem; {fix}")
        return problems

    def problem(self, split: str, index: int) -> tuple[int, P]:
        """(place, problem): every problem of the split once an epoch, in an order of the seed's."""
        check_split(split, index)
        problems = self.problems(split)
        place = epoch_item(index, len(problems), fold("problems", self.seed, split))
        return place, problems[place]


def distinct(task: Task, split: str, wanted: int) -> int:
    """``wanted``, or how many problems a task over files has, if those are fewer: past them they come again."""
    return min(wanted, len(task.problems(split))) if isinstance(task, FileTask) else wanted
