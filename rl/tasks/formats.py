"""Rows of mathematics sets as problems: which field means what, and answers out of solutions."""

import re
from dataclasses import dataclass
from typing import Any

from farside.configs.errors import UserError
from farside.data.chat import SPECIAL_TOKENS
from farside.rl.tasks.rows import Row

LETTERS = "ABCDEFGH"
LETTERED = re.compile(r"\s*[(（]?[A-H][)）.．、:：]")
"""An option that already says its letter: "(A) 3", "A. 3"."""
LEVEL = re.compile(r"(?:level\s*)?([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """Names of fields, the first that a row has counts; case matters only where two fields differ by it alone.

    passage: stands before the question. options: a list; else fields A, B, C ... are options where there are any.
    answer: the reference itself; else it is the last boxed expression of the solution, or what follows its "####".
    """

    question: tuple[str, ...]
    answer: tuple[str, ...] = ("answer",)
    solution: tuple[str, ...] = ()
    difficulty: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    passage: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    whole_up_to: int | None = None
    """The answer must be a whole number from 0 to this."""


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    solution: str = ""
    difficulty: float | str | None = None
    subject: str = ""


ANY = Format(
    question=("problem", "question", "prompt"),
    answer=("answer", "final_answer", "label", "target"),
    solution=("solution", "analysis", "explanation", "rationale"),
    difficulty=("difficulty", "level"),
    subject=("subject", "type", "category", "domain"),
    passage=("passage",),
    options=("options", "choices"),
)
FORMATS = {
    "jsonl": ANY,
    "datasets": ANY,
    # multiple choice in fields A to D with an explanation, or a plain question and answer
    "middle_school": Format(("question",), ("answer",), ("explanation",), ("level", "difficulty"), ("subject",)),
    # a passage, options in a list and the letter in "label"; without options the answer
    "college_entrance": Format(
        question=("question",),
        answer=("label", "answer"),
        solution=("analysis", "solution"),
        difficulty=("score", "difficulty"),
        subject=("category", "subject"),
        passage=("passage",),
        options=("options",),
    ),
    "graduate_entrance": Format(
        question=("question", "problem"),
        answer=("answer",),
        solution=("analysis", "solution"),
        difficulty=("difficulty", "score"),
        subject=("subject",),
        options=("options",),
    ),
    # Hendrycks et al. 2021 (arXiv 2103.03874): "Level 3", the answer boxed in the solution
    "math": Format(("problem",), (), ("solution",), ("level",), ("type", "subject")),
    # Gao et al. 2024 (arXiv 2410.07985): difficulty 1 to 10 in halves, domains as a list
    "omni_math": Format(("problem",), ("answer",), ("solution",), ("difficulty",), ("domain",)),
    "aime": Format(
        question=("problem", "question"), solution=("solution",), difficulty=("number",), whole_up_to=999
    ),
}  # fmt: skip
"""Task names before the colon: jsonl and datasets take whatever names they know."""


def to_problem(form: Format, where: str, row: Row) -> Problem:
    """A row as a problem. Raises UserError naming the row, what is wrong and the fix."""
    fields = Fields(where, row)
    question = fields.text(form.question)
    if not question:
        raise UserError(f"{where} has no question (fields: {fields.names()}); name it {' or '.join(form.question)}")
    solution = fields.text(form.solution)
    given = fields.text(form.answer)
    answer = marked_answer(given) or given or marked_answer(solution)
    if "####" in given:  # work and answer in one field
        solution = solution or given.rpartition("####")[0].strip()
    if not answer:
        wanted = [f"a field {' or '.join(form.answer)}"] if form.answer else []
        wanted += [r"a \boxed{...} in its " + " or ".join(form.solution)] if form.solution else []
        raise UserError(f"{where} has no answer (fields: {fields.names()}); give it {', or '.join(wanted)}")
    if form.whole_up_to is not None and not (re.fullmatch("[0-9]{1,9}", answer) and int(answer) <= form.whole_up_to):
        raise UserError(f"{where}: the answer {answer[:40]!r} is no whole number from 0 to {form.whole_up_to}; mend it")
    options = fields.options(form.options)
    if options and not set(answer) <= set(LETTERS[: len(options)]):
        raise UserError(f"{where}: the answer {answer[:40]!r} is none of {LETTERS[: len(options)]}; mend it")
    question = "\n".join(part for part in (fields.text(form.passage), question, *options) if part)
    problem = Problem(question, answer, solution, fields.level(form.difficulty), fields.text(form.subject))
    for mark in SPECIAL_TOKENS:
        if mark in question + answer + solution:
            raise UserError(f"{where} holds {mark}, a mark of the chat format; remove it")
    return problem


def marked_answer(text: str) -> str:
    """The last boxed expression, or else what follows the last "####" (GSM8K's mark); empty without either."""
    box = last_boxed(text)
    return text.rpartition("####")[2].strip() if box is None and "####" in text else box or ""


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...}, its braces balanced; None without one."""
    boxes = [box.end() for box in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    if not boxes:
        return None
    start, depth = boxes[-1], 1
    for place in range(start, len(text)):
        if text[place - 1] != "\\" or text[place - 2 : place] == "\\\\":
            depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return None


class Fields:
    """A row's fields by name; case matters only where two differ by it alone."""

    def __init__(self, where: str, row: Row) -> None:
        self.where, self.row = where, row
        self.values = {name.casefold(): value for name, value in row.items()} | row

    def names(self) -> str:
        return ", ".join(sorted(map(str, self.row))[:8]) or "none"

    def first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """(name, value) of the first field that holds something; ("", None) without one."""
        found = next((name for name in names if self.values.get(name) not in (None, "", [])), "")
        return found, self.values.get(found)

    def text(self, names: tuple[str, ...]) -> str:
        """A list of texts is joined: letters as they are, else by commas. Raises UserError: it is neither."""
        name, value = self.first(names)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = "".join(value) if all(len(item) == 1 for item in value) else ", ".join(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if name and not isinstance(value, str):
            raise UserError(
                f"{self.where}: field {name!r} is no text but {type(value).__name__}; mend or remove the row"
            )
        text = value if name else ""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
            raise UserError(f"{self.where}: field {name!r} holds half a character; mend or remove the row") from error
        return text.strip()

    def options(self, names: tuple[str, ...]) -> list[str]:
        """The choices, each with its letter. Raises UserError: they are no list."""
        _, options = self.first(names)
        if options is None:
            options = []
            for letter in LETTERS:
                if self.values.get(letter) is None:
                    break
                options.append(self.values[letter])
        if not isinstance(options, list) or len(options) > len(LETTERS):
            raise UserError(f"{self.where}: its options are no list of at most {len(LETTERS)}; mend or remove the row")
        texts = [str(option).strip() for option in options]
        return [text if LETTERED.match(text) else f"{letter}. {text}" for letter, text in zip(LETTERS, texts)]

    def level(self, names: tuple[str, ...]) -> float | str | None:
        """A number ("Level 3" is 3) or a word."""
        _, value = self.first(names)
        if value is None or isinstance(value, bool | list | dict):
            return None
        if isinstance(value, str) and not (match := LEVEL.fullmatch(value.strip())):
            return value.strip()
        number = float(match[1] if isinstance(value, str) and match else value)
        return int(number) if number.is_integer() else number
