"""Countdown: reach a target from given numbers, each used once; with traces that search or go straight."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice, permutations, product
from typing import Any

from farside.data.chat import END, END_THINK, THINK
from farside.rl.tasks.dataset import DatasetTask
from farside.rl.types import Prompt

OPERATIONS = "+-*"
MAX_DRAWS = 10_000
"""Numbers and operations drawn for one problem before the settings are called impossible."""
MAX_ORDERS = 10_000
"""Calculations that a systematic search looks at, those that it has tried in another order among them. Four numbers
with + - * have 648."""
TOKEN = re.compile(r"[0-9]+|[-+*()]")
PRECEDENCE = {"+": 1, "-": 1, "*": 2}


class CountdownDataset:
    """Item i asks for ``target`` from numbers in 1..largest: "3,5,7=26?", the numbers sorted.

    Sorted, because the split is a hash of the question: one problem in two orders would be in both. A problem is drawn
    from a solution that a calculator finds from left to right, so that there is one: ((a . b) . c) . d.

    Args:
        least, most: how many numbers, drawn evenly for each item.
        largest: of the numbers.
        largest_target: targets lie in 1..largest_target.
        operations: a choice of + - *.
        seed: items are functions of all settings but size, and of the index.
        size: number of items; problems repeat when it exceeds their number.
    """

    def __init__(
        self, least: int, most: int, largest: int, largest_target: int, operations: str, seed: int, size: int
    ) -> None:
        self.least, self.most, self.largest, self.largest_target = least, most, largest, largest_target
        self.operations, self.seed, self.size = operations, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises ValueError: the settings leave no problem, or hardly any."""
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size}")
        settings = (self.least, self.most, self.largest, self.largest_target, self.operations, self.seed)
        draw = random.Random(f"countdown {settings} {index}")
        count = draw.randint(self.least, self.most)
        for _ in range(MAX_DRAWS):
            numbers = [draw.randint(1, self.largest) for _ in range(count)]
            operations = draw.choices(self.operations, k=count - 1)
            target = running(numbers, operations)[-1]
            if 1 <= target <= self.largest_target:
                question = f"{','.join(map(str, sorted(numbers)))}={target}?"
                answer = expression(numbers, operations)
                return {"question": question, "answer": answer, "metadata": {}, "difficulty": count}
        raise ValueError(f"countdown: no target within 1..{self.largest_target} in {MAX_DRAWS} draws")

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1.0 if the answer computes the target from exactly the given numbers; else 0.0.

        The answer is an expression with the usual precedence of + - * and parentheses. Its numbers are compared before
        anything is computed, so that no answer can cost more than reading it.
        """
        numbers, target = parse_question(entry["question"])
        tokens = tokenise(answer or "", longest=8 * len(entry["question"]))
        if Counter(token for token in tokens if token.isdigit()) != Counter(map(str, numbers)):
            return 0.0
        return 1.0 if evaluate(tokens) == target else 0.0


class CountdownTask(DatasetTask):
    """Countdown with traces; verdicts need no child process."""

    score_is_cheap = True
    step_separator = " "

    def __init__(
        self,
        dataset: CountdownDataset,
        search_share: float,
        steps_share: float,
        tries: int,
        systematic: bool,
        operations: str,
    ) -> None:
        super().__init__("countdown", dataset)
        self.search_share, self.steps_share, self.tries, self.operations = search_share, steps_share, tries, operations
        self.systematic = systematic

    def trace(self, prompt: Prompt, seed: int) -> str:
        """A worked answer that searches, that computes the answer, or that shows no work; drawn from ``seed`` and the
        question.

        >>> 3,5,7=26?: search "3+5=8*7=56 7-5=2*3=6 3*7=21+5=26" (0 to ``tries`` different wrong tries before the right
        one, evenly), steps "3*7=21+5=26", or nothing between the think marks. Then 3*7+5.

        With ``systematic`` a search goes through the ``attempts`` in their order until one is right. Problems where
        that takes more than ``tries`` wrong ones get steps.

        >>> 1,4,6=3?: "6+4=10+1=11 6+4=10-1=9 6-4=2+1=3", then 6-4+1.
        """
        draw = random.Random(f"trace {seed} {prompt.question}")
        share = draw.random()
        tokens = [token for token in tokenise(prompt.answer) if token not in "()"]
        numbers, operations = [int(token) for token in tokens[0::2]], tokens[1::2]
        scratch: list[str] = []
        if share < self.search_share and self.systematic:
            scratch, numbers, operations = self._search(prompt.question) or (scratch, numbers, operations)
        elif share < self.search_share:
            scratch = self._wrong_tries(prompt, draw)
        if share < self.search_share + self.steps_share:
            scratch = [*scratch, chain(numbers, operations)]
        return f"{THINK}{' '.join(scratch)}{END_THINK}{expression(numbers, operations)}{END}"

    def _search(self, question: str) -> tuple[list[str], list[int], list[str]] | None:
        """(wrong tries, numbers and operations of the right one), unless there are more than ``tries`` wrong ones."""
        numbers, target = parse_question(question)
        wrong: list[str] = []
        for tried, operations in islice(attempts(numbers, self.operations), self.tries + 1):
            if running(tried, operations)[-1] == target:
                return wrong, tried, operations
            wrong.append(chain(tried, operations))
        return None

    def _wrong_tries(self, prompt: Prompt, draw: random.Random) -> list[str]:
        numbers, target = parse_question(prompt.question)
        tries: list[str] = []
        wanted = draw.randint(0, self.tries)
        for _ in range(20 * wanted):  # a few problems have fewer wrong tries than wanted
            operations = draw.choices(self.operations, k=len(numbers) - 1)
            draw.shuffle(numbers)
            tried = chain(numbers, operations)
            if running(numbers, operations)[-1] != target and tried not in tries:
                tries.append(tried)
            if len(tries) == wanted:
                break
        return tries


def running(numbers: Sequence[int], operations: Sequence[str]) -> list[int]:
    """A calculator's display from left to right: [3, 7, 5], ["*", "+"] -> [3, 21, 26]."""
    values = [numbers[0]]
    for operation, number in zip(operations, numbers[1:], strict=True):
        values.append(_apply(operation, values[-1], number))
    return values


def attempts(numbers: Sequence[int], operations: str) -> Iterator[tuple[list[int], list[str]]]:
    """The calculations from left to right that use all numbers, in a fixed order: the largest numbers first, the last
    operation changing fastest. Of those that differ by the order of summands or factors only the first comes."""
    seen: set[tuple[object, ...]] = set()
    orders = permutations(sorted(numbers, reverse=True))
    everything = ((order, chosen) for order in orders for chosen in product(operations, repeat=len(numbers) - 1))
    for order, chosen in islice(everything, MAX_ORDERS):
        terms = zip(("*" if chosen[:1] == ("*",) else "+", *chosen), order)
        runs = tuple(tuple(sorted(run)) for _, run in groupby(terms, key=lambda term: term[0] == "*"))
        if runs not in seen:
            seen.add(runs)
            yield list(order), list(chosen)


def chain(numbers: Sequence[int], operations: Sequence[str]) -> str:
    """The calculation with its display: "3*7=21+5=26"."""
    steps = zip(operations, numbers[1:], running(numbers, operations)[1:], strict=True)
    return str(numbers[0]) + "".join(f"{operation}{number}={value}" for operation, number, value in steps)


def expression(numbers: Sequence[int], operations: Sequence[str]) -> str:
    """The same calculation as an expression, with the parentheses it needs: "(3+7)*5"."""
    text, sums = str(numbers[0]), False
    for operation, number in zip(operations, numbers[1:], strict=True):
        text = f"({text})" if sums and operation == "*" else text
        text, sums = f"{text}{operation}{number}", operation != "*"
    return text


def parse_question(question: str) -> tuple[list[int], int]:
    """(numbers, target) of "A,B,C=T?".

    Raises:
        ValueError: the question is not of that form.
    """
    match = re.fullmatch(r"([0-9]+(?:,[0-9]+)*)=([0-9]+)\?", question)
    if not match:
        raise ValueError(f'not a countdown problem: {question!r}, expected "A,B,C=T?"')
    return [int(number) for number in match[1].split(",")], int(match[2])


def tokenise(text: str, longest: int = 1000) -> list[str]:
    """Numbers, operations and parentheses; nothing at all if there is more than white space between them, or
    more than ``longest`` characters."""
    tokens = TOKEN.findall(text) if len(text) <= longest else []
    return tokens if "".join(tokens) == "".join(text.split()) else []


def evaluate(tokens: Sequence[str]) -> int | None:
    """The value of an infix expression, or None if it is none (Dijkstra's shunting yard; no unary minus)."""
    values: list[int] = []
    waiting: list[str] = []

    def apply_down_to(precedence: int) -> None:
        while waiting and waiting[-1] != "(" and PRECEDENCE[waiting[-1]] >= precedence:
            right, left = values.pop(), values.pop()
            values.append(_apply(waiting.pop(), left, right))

    operand_next = True
    for token in tokens:
        if (token.isdigit() or token == "(") != operand_next:
            return None
        if token.isdigit():
            values.append(int(token))
            operand_next = False
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            apply_down_to(0)
            if not waiting:
                return None
            waiting.pop()
        else:
            apply_down_to(PRECEDENCE[token])
            waiting.append(token)
            operand_next = True
    if operand_next or "(" in waiting:
        return None
    apply_down_to(0)
    return values[0]


def _apply(operation: str, left: int, right: int) -> int:
    return left + right if operation == "+" else left - right if operation == "-" else left * right
