"""A task over a file of problems with reference answers, judged by equivalence."""

from functools import cached_property
from pathlib import Path

from farside.configs.errors import UserError
from farside.data.chat import END, END_THINK, THINK
from farside.data.order import epoch_item, fold
from farside.rl.reward.equivalence import judge, judge_quickly
from farside.rl.tasks.dataset import check_split, extract_answer
from farside.rl.tasks.formats import Format, Problem, to_problem
from farside.rl.tasks.rows import read_rows
from farside.rl.tasks.split import is_held_out, normalised
from farside.rl.types import Mark, Prompt, Verdict


class FileTask:
    """What tasks over files share: rows, read when the first is asked for, and their split.

    Without ``held_out`` a problem's side is decided by its text. With it, a problem is held out if that file has it,
    in whatever spelling: its twins in the other file are never trained on.
    """

    def __init__(self, name: str, path: Path, held_out: Path | None, seed: int) -> None:
        self.name, self.path, self.held_out_path, self.seed = name, path, held_out, seed

    def read(self, key: str, path: Path) -> list[Problem]:
        raise NotImplementedError

    @cached_property
    def splits(self) -> dict[str, list[Problem]]:
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

    def problem(self, split: str, index: int) -> tuple[int, Problem]:
        """(place, problem): every problem of the split once an epoch, in an order of the seed's.

        Raises:
            UserError: the split has no problem.
        """
        check_split(split, index)
        problems = self.splits[split]
        if not problems:
            fix = "name a file of them with task.held_out" if split == "held_out" else "name another file"
            raise UserError(f"task.name={self.name}: {self.path} leaves no {split} problem; {fix}")
        place = epoch_item(index, len(problems), fold("problems", self.seed, split))
        return place, problems[place]


class ProblemTask(FileTask):
    """Mathematics with reference answers; see farside.rl.types.Task."""

    def __init__(self, name: str, form: Format, path: Path, held_out: Path | None, seed: int) -> None:
        super().__init__(name, path, held_out, seed)
        self.form = form

    def read(self, key: str, path: Path) -> list[Problem]:
        return [to_problem(self.form, where, row) for where, row in read_rows(key, path)]

    def prompt(self, split: str, index: int) -> Prompt:
        place, problem = self.problem(split, index)
        facts = {"item": place, "difficulty": problem.difficulty, "subject": problem.subject or None}
        return Prompt(
            index, problem.question, problem.answer, {key: fact for key, fact in facts.items() if fact is not None}
        )

    def trace(self, prompt: Prompt, seed: int) -> str:
        """The set's solution, where it has one, and the answer."""
        return f"{THINK}{self.solutions.get(prompt.question, '')}{END_THINK}{prompt.answer}{END}"

    @cached_property
    def solutions(self) -> dict[str, str]:
        return {problem.question: problem.solution for side in self.splits.values() for problem in side}

    def decide(self, prompt: Prompt, text: str) -> Verdict | None:
        """The verdict where equal text or plain numbers decide it, else None."""
        answer, fault = extract_answer(text)
        return Verdict(Mark.wrong, fault) if fault else judge_quickly(prompt.answer, answer)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        answer, fault = extract_answer(text)
        return Verdict(Mark.wrong, fault) if fault else judge(prompt.answer, answer)
