"""Whether an answer means the same as a reference: text, then exact numbers, then math-verify.

``judge`` may hang or exhaust memory on hostile answers: callers run it in a killable process (see
verifier.py). Kept apart from verifier.py so that tasks can import it without a cycle.
"""

import re
from fractions import Fraction
from typing import Any

from farside.rl.types import Mark, Verdict

MAX_ANSWER = 1_000
"""Characters of a final answer (or four times the reference, if longer): beyond is wrong, unread."""
MAX_DIGITS = 4_000
"""Characters of a plain number: Python refuses to convert beyond 4,300 digits."""

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:/0*[1-9][0-9]*)?")
INTEGER = re.compile(r"[+-]?[0-9]+")
OPERATOR = re.compile(r"[+*^!|×÷·⋅−∗]|[\w)}]\s*-|[\w)}]\s*\(")
COMMAND = re.compile(r"\\([A-Za-z]+)")
NUMBER_COMMANDS = {
    "boxed",
    "text",
    "textbf",
    "mathrm",
    "mbox",
    "left",
    "right",
    "quad",
    "frac",
    "dfrac",
    "tfrac",
}
r"""LaTeX that may dress up a number; anything else (\times, \sqrt, \binom ...) computes one."""
FRACTION = re.compile(r"/|\\[dt]?frac")
DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")
INEQUALITY = re.compile(r"[<>≤≥]|\\(?:[lg]t|[lg]e(?:q|qslant)?)(?![a-zA-Z])")
RANGE = re.compile(INEQUALITY.pattern + r"|[(\[]")
PERCENT = re.compile(r"\s*\\?%")
MONEY = re.compile(r"\\\$|^\$(?=[0-9.,]+$)")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def judge(reference: str, answer: str) -> Verdict:
    """Judges an extracted answer against a reference answer, both plain text or LaTeX without delimiters.

    1. Equal text after whitespace normalisation is correct. Dollar signs of money are ignored.
    2. Two plain numbers (integer, decimal, fraction) are compared as exact rationals: 0.333 is not 1/3. 50% is 0.5,
       and where one side has the percent sign it is 50 too: a question may have said "in percent".
    3. Arithmetic left to do is wrong where the reference is a plain number: "37+48" echoes the question.
    4. math-verify 0.9 decides the rest, as one LaTeX expression: several boxed answers form a set, and a
       sentence must put its answer in a box. It ignores units, and the order of a list without parentheses.

    Raises:
        ValueError: the reference is empty or math-verify cannot read it.
        Exception: whatever math-verify or sympy raises. No exception means "wrong".
    """
    verdict = judge_quickly(reference, answer)
    return verdict or _math_verify(*(_without_signs(_normalise(text)) for text in (reference, answer)))


def judge_quickly(reference: str, answer: str) -> Verdict | None:
    """What ``judge`` says where reading both is enough (1 to 3), else None. Raises ValueError: no reference."""
    reference, answer = _normalise(reference), _normalise(answer)
    if not reference:
        raise ValueError("the reference answer is empty")
    if not answer:
        return Verdict(Mark.wrong, "no answer")
    if answer == reference:
        return Verdict(Mark.correct)
    if len(answer) > max(MAX_ANSWER, 4 * len(reference)):
        return Verdict(Mark.wrong, f"answer of {len(answer)} characters")
    reference, of_hundred = _number_text(reference)
    if (expected := plain_number(reference)) is not None:
        whole = INTEGER.fullmatch(reference) is not None and not of_hundred
        if _leaves_arithmetic(_without_signs(answer), whole):
            return Verdict(Mark.wrong, "arithmetic left to do")
        answer, got_of_hundred = _number_text(answer)
        if (got := plain_number(answer)) is not None:
            same = got == expected or Fraction(100) ** (got_of_hundred - of_hundred) * expected == got
            return Verdict(Mark.correct) if same else Verdict(Mark.wrong, "another number")
    return None


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal or fraction in ASCII digits; None for anything else."""
    if len(text) > MAX_DIGITS or not NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.partition("/")
    return Fraction(top.removesuffix(".")) / int(bottom or 1)


def warm_up() -> None:
    """Imports math-verify and builds its tables (about 0.5 s), so that no sample's deadline pays for it."""
    _math_verify("x", "y")


def _normalise(text: str) -> str:
    return " ".join(text.replace("\N{MINUS SIGN}", "-").split())


def _number_text(text: str) -> tuple[str, bool]:
    """(the text of a number without box, dollar and percent sign, whether it had a percent sign)."""
    box = BOXED.fullmatch(text)
    text = (box[1] if box else text).strip()
    return _without_signs(text).strip(), PERCENT.search(text) is not None


def _without_signs(text: str) -> str:
    """Money's and percent's signs mean nothing to math-verify, or that the line ends there."""
    return MONEY.sub("", PERCENT.sub("", text))


def _leaves_arithmetic(answer: str, whole: bool) -> bool:
    answer = answer.rpartition("\\boxed")[2]  # prose before a box may hold any sign
    answer = DEGREES.sub("", answer).removeprefix("+")
    if OPERATOR.search(answer) or not NUMBER_COMMANDS.issuperset(COMMAND.findall(answer)):
        return True
    # An unreduced fraction is a number, but not where a whole one is asked for: "170/2" echoes a division.
    return whole and FRACTION.search(answer) is not None


def _math_verify(reference: str, answer: str) -> Verdict:
    if INEQUALITY.search(reference) and not RANGE.search(answer):
        return Verdict(Mark.wrong, "no range")  # math-verify takes the two ends for the interval between them
    # Imported here: sympy costs 0.4 s, and most verdicts never need it.
    from math_verify import verify

    expected, got = _parse(reference), _parse(answer)
    if not expected:
        raise ValueError(f"math-verify cannot read the reference answer {reference[:80]!r}")
    if not got:
        return Verdict(Mark.wrong, "cannot be read as an answer")
    # timeout_seconds=None: its timeout is SIGALRM, which fails outside the main thread and swallows real
    # timeouts as "wrong". The deadline is the pool's. Errors must surface for the same reason.
    same = verify(expected, got, timeout_seconds=None, raise_on_error=True)
    return Verdict(Mark.correct) if same else Verdict(Mark.wrong, "not equivalent")


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Only LaTeX: its plain-expression reader takes any number inside the text ("85**0" would be read as 85).
    wrapped = text if "\\boxed" in text else f"${text.replace('$', '')}$"
    return list(parse(wrapped, [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True))
