"""A task over a file of problems with reference answers, judged by equivalence."""

from functools import cached_property
from pathlib import Path

from farside.data.chat import END, END_THINK, THINK
from farside.rl.reward.equivalence import judge, judge_quickly
from farside.rl.tasks.dataset import extract_answer
from farside.rl.tasks.files import FileTask
from farside.rl.tasks.formats import Format, Problem, to_problem
from farside.rl.tasks.rows import read_rows
from farside.rl.types import Mark, Prompt, Verdict


class ProblemTask(FileTask[Problem]):
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
