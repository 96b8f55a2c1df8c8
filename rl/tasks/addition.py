"""Sums of two natural numbers, with worked answers in three lengths."""

import random
from typing import Any

from farside.data.chat import END, END_THINK, THINK
from farside.rl.tasks.dataset import DatasetTask
from farside.rl.types import Prompt


class AdditionDataset:
    """Item i is a sum of two natural numbers of exactly ``digits`` digits (0-9 for one digit), unpadded.

    Args:
        digits: digits of each summand, at least 1.
        seed: items are functions of (digits, least, seed, index).
        size: number of items; problems repeat when it exceeds their number.
        least: if given, an item's digits are drawn evenly from least..digits.
    """

    def __init__(self, digits: int, seed: int, size: int, least: int | None = None) -> None:
        if not 1 <= (digits if least is None else least) <= digits:
            raise ValueError(f"digits must be at least 1, is {digits if least is None else f'{least} to {digits}'}")
        if size < 1:
            raise ValueError(f"size must be at least 1, is {size}")
        self.digits, self.least = digits, digits if least is None else least
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size}")
        # Seeding with a string hashes it whole, the same on every Python: near seeds give unrelated items.
        draw = random.Random(f"addition {self.digits} {self.seed} {index}")
        # Nothing is drawn where there is no choice: sums of one length stay what they were before there were several.
        digits = self.digits if self.least == self.digits else draw.randint(self.least, self.digits)
        low = 10 ** (digits - 1) if digits > 1 else 0
        a, b = (draw.randrange(low, 10**digits) for _ in range(2))
        return {"question": f"{a}+{b}=?", "answer": str(a + b), "metadata": {}, "difficulty": digits}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1.0 if the answer is the sum in plain ASCII digits, leading zeros allowed; else 0.0.

        No expression is evaluated: an answer such as "37+48" would be the question's echo. Compared as text,
        so that a million digits cost no more than reading them.
        """
        if not answer:
            return 0.0
        return 1.0 if (answer.lstrip("0") or "0") == entry["answer"] else 0.0


class AdditionTask(DatasetTask):
    """Addition with traces; verdicts need no child process."""

    score_is_cheap = True
    step_separator = " "

    def __init__(self, dataset: AdditionDataset, full_share: float, compact_share: float) -> None:
        super().__init__("addition", dataset)
        self.full_share, self.compact_share = full_share, compact_share

    def trace(self, prompt: Prompt, seed: int) -> str:
        """A worked answer: full, compact or without scratch work, drawn from ``seed`` and the question.

        >>> 37+48: full "7+8=15 3+4+1=8", compact "15 8", or nothing between the think marks.
        """
        share = random.Random(f"trace {seed} {prompt.question}").random()
        if share < self.full_share:
            scratch = " ".join(f"{terms}={total}" for terms, total in columns(prompt.question))
        elif share < self.full_share + self.compact_share:
            scratch = " ".join(str(total) for _, total in columns(prompt.question))
        else:
            scratch = ""
        return f"{THINK}{scratch}{END_THINK}{prompt.answer}{END}"


def columns(question: str) -> list[tuple[str, int]]:
    """Column additions of "A+B=?" from the right: (terms, sum) such as ("3+4+1", 8), the carry last.

    Raises:
        ValueError: the question is not of that form.
    """
    a, plus, rest = question.partition("+")
    b, mark, tail = rest.partition("=?")
    if not (plus and mark and not tail and a.isdigit() and b.isdigit()):
        raise ValueError(f'not an addition problem: {question!r}, expected "A+B=?"')
    width = max(len(a), len(b))
    carry = 0
    result = []
    for x, y in zip(reversed(a.zfill(width)), reversed(b.zfill(width))):
        terms = f"{x}+{y}+1" if carry else f"{x}+{y}"
        total = int(x) + int(y) + carry
        result.append((terms, total))
        carry = total // 10
    return result
