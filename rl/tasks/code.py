"""Code as answers: a model's Python program, run against a problem's tests in the sandbox."""

import ast
import re
import time
from dataclasses import dataclass
from pathlib import Path

from farside.configs.errors import UserError
from farside.data.chat import END, END_THINK, SPECIAL_TOKENS, THINK
from farside.rl.reward.sandbox import GRACE_SECONDS, Outcome, Sandbox
from farside.rl.tasks.code_tests import DRIVER, Tests, read_tests, results, same_output, same_value
from farside.rl.tasks.dataset import extract_answer
from farside.rl.tasks.files import FileTask
from farside.rl.tasks.formats import ANY, Fields
from farside.rl.tasks.rows import Row, read_rows
from farside.rl.types import Mark, Prompt, Verdict

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
MAX_VALUE = 10_000
"""Characters of a returned value, or four times the expected one's: beyond is wrong, unread."""
MAX_PROGRAM = 100_000
"""Characters of a program; a longer one is wrong, unread."""


@dataclass(frozen=True)
class CodeProblem:
    question: str
    tests: Tests
    solution: str = ""
    difficulty: float | str | None = None


class CodeTask(FileTask[CodeProblem]):
    """Programs with tests; see farside.rl.types.Task.

    A program that fails, crashes, runs over its time or over its memory is wrong; an error is the sandbox's own fault.

    Raises:
        UserError: the sandbox does not work here as asked.
    """

    def __init__(self, name: str, path: Path, held_out: Path | None, seed: int, sandbox: Sandbox) -> None:
        super().__init__(name, path, held_out, seed)
        if reason := sandbox.check():
            fix = (
                "allow user namespaces, or set task.code_isolated=false, which leaves files and network open "
                "(docs/tasks.md)"
                if sandbox.isolated
                else "mend that"
            )
            raise UserError(f"task.name={name}: {reason}; {fix}")
        self.sandbox = sandbox
        self.longest_seconds = sandbox.seconds + GRACE_SECONDS

    def read(self, key: str, path: Path) -> list[CodeProblem]:
        return [to_code_problem(where, row) for where, row in read_rows(key, path)]

    def prompt(self, split: str, index: int) -> Prompt:
        place, problem = self.problem(split, index)
        level = {} if problem.difficulty is None else {"difficulty": problem.difficulty}
        return Prompt(index, problem.question, problem.solution, {"item": place, "split": split} | level)

    def trace(self, prompt: Prompt, seed: int) -> str:
        """The set's solution. Raises UserError: it has none."""
        if not prompt.answer:
            raise UserError(f"task.name={self.name}: no solution to {prompt.question[:40]!r} to show; add them")
        return f"{THINK}{END_THINK}```python\n{prompt.answer}\n```{END}"

    def decide(self, prompt: Prompt, text: str) -> Verdict | None:
        return self._program(text)[1]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Correct if all tests pass. Detail of a wrong one: "test 2 of 3: ..." and what happened."""
        program, verdict = self._program(text)
        if verdict:
            return verdict
        problem = self.splits[prompt.metadata["split"]][prompt.metadata["item"]]
        if problem.question != prompt.question:
            raise RuntimeError(f"task {self.name}: its file changed, so that the tests are unknown")
        fault = (
            self._functions(program, problem.tests) if problem.tests.function else self._prints(program, problem.tests)
        )
        return Verdict(Mark.wrong, fault) if fault else Verdict(Mark.correct)

    def _program(self, text: str) -> tuple[str, Verdict | None]:
        """(program, "") or ("", verdict)."""
        answer, fault = extract_answer(text)
        if fault:
            return "", Verdict(Mark.wrong, fault)
        program = program_of(answer)
        if len(program) > MAX_PROGRAM or "\0" in program:
            return "", Verdict(Mark.wrong, f"no program: {len(program)} characters")
        return program, None

    def _prints(self, program: str, tests: Tests) -> str:
        """What went wrong, or nothing. The tests share the time."""
        deadline = time.monotonic() + self.sandbox.seconds
        for number, test in enumerate(tests.printed, start=1):
            left = deadline - time.monotonic()
            if left <= 0:
                return f"test {number} of {len(tests.printed)}: timeout after {self.sandbox.seconds:.1f} s"
            outcome = self.sandbox.run(program, test.given, left)
            fault = outcome.detail or ("" if same_output(outcome.output, test.expected) else "another output")
            if fault:
                return f"test {number} of {len(tests.printed)}: {fault}"
        return ""

    def _functions(self, program: str, tests: Tests) -> str:
        """What went wrong, or nothing. One process makes all calls."""
        arguments = [test.arguments for test in tests.returned]
        asked = repr({"function": tests.function, "arguments": arguments})
        outcome = self.sandbox.run(DRIVER, asked, answer__py=program)
        return compare_results(tests, outcome)


def compare_results(tests: Tests, outcome: Outcome) -> str:
    """The first test that did not give what it should, or nothing."""
    found = results(outcome.output)
    count = len(tests.returned)
    for number, test in enumerate(tests.returned, start=1):
        if number > len(found):
            return f"test {number} of {count}: {outcome.detail or 'no result'}"
        if len(found[number - 1]) > max(MAX_VALUE, 4 * len(repr(test.expected))):
            return f"test {number} of {count}: a value of {len(found[number - 1])} characters"
        try:
            value = ast.literal_eval(found[number - 1])
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return f"test {number} of {count}: no plain value"
        if not same_value(value, test.expected):
            return f"test {number} of {count}: another value"
    return ""


def program_of(answer: str) -> str:
    """The last fenced block of Python, or the whole answer without one."""
    blocks = FENCED.findall(answer)
    return blocks[-1] if blocks else answer


def to_code_problem(where: str, row: Row) -> CodeProblem:
    """A row as a problem. Raises UserError naming the row and the fix."""
    fields = Fields(where, row)
    question = fields.text(("question", "problem", "prompt", "text"))
    if not question:
        raise UserError(f"{where} has no question (fields: {fields.names()}); name it question or problem")
    solution = fields.text(("solution", "code", "canonical_solution"))
    for mark in SPECIAL_TOKENS:
        if mark in question + solution:
            raise UserError(f"{where} holds {mark}, a mark of the chat format; remove it")
    return CodeProblem(question, read_tests(where, row), solution, fields.level(ANY.difficulty))
