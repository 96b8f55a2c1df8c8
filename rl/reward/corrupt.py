"""Worked answers in which the first wrong step is known, because we made it: no policy and no verifier is needed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from farside.data.chat import END, END_THINK, THINK
from farside.data.tokenizer import Tokenizer
from farside.rl.reward.process import Labelled
from farside.rl.reward.steps import StepFinder
from farside.rl.tasks.addition import AdditionTask
from farside.rl.types import Completion, Prompt, Task


@dataclass(frozen=True)
class Worked:
    """steps of the thinking, the answer after it, and which of them all (the answer is the last) is the first that is
    wrong; None: all are right."""

    steps: list[str]
    answer: str
    wrong: int | None


def corrupted(task: Task, prompt: Prompt, seed: int) -> Worked:
    """The task's worked answer with a mistake in one step, each equally likely, or in none, as likely as in any one.

    Addition goes on from its mistake as if it were none, as a policy would. Of other tasks a digit is changed and the
    rest stands; a trace without any digit stays right.
    """
    draw = random.Random(f"corrupt {seed} {prompt.question}")
    if isinstance(task, AdditionTask):
        return wrong_columns(prompt.question, draw)
    thinking, _, answer = task.trace(prompt, seed).removeprefix(THINK).removesuffix(END).rpartition(END_THINK)
    parts = [step for step in thinking.split(task.step_separator) if step.strip()] + [answer]
    wrong = _pick([index for index, part in enumerate(parts) if any(map(str.isdigit, part))], draw)
    if wrong is not None:
        parts[wrong] = _other_digit(parts[wrong], draw)
    return Worked(parts[:-1], parts[-1], wrong)


def wrong_columns(question: str, draw: random.Random) -> Worked:
    """Column addition of "A+B=?", the mistake being a wrong sum, a carry forgotten or invented, a digit copied wrongly
    (the sum then agrees with it), or columns all right and an answer that does not follow from them."""
    a, b = question.removesuffix("=?").split("+")
    width = max(len(a), len(b))
    wrong = _pick(list(range(width + 1)), draw)
    steps, digits, carry = [], "", 0
    for column, (x, y) in enumerate(zip(map(int, reversed(a.zfill(width))), map(int, reversed(b.zfill(width))))):
        slip = draw.choice(("sum", "carry", "copy")) if column == wrong else ""
        if slip == "carry":
            carry = 1 - carry
        if slip == "copy":
            x = (x + draw.randrange(1, 10)) % 10
        total = x + y + carry
        if slip == "sum":
            total = draw.choice([other for other in range(20) if other != total])
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        digits, carry = str(total % 10) + digits, total // 10
    answer = (f"1{digits}" if carry else digits).lstrip("0") or "0"
    return Worked(steps, _other_digit(answer, draw) if wrong == width else answer, wrong)


def _pick(places: list[int], draw: random.Random) -> int | None:
    return draw.choice([*places, None])


def _other_digit(text: str, draw: random.Random) -> str:
    place = draw.choice([index for index, character in enumerate(text) if character.isdigit()])
    digit = str((int(text[place]) + draw.randrange(1, 10)) % 10)
    return text[:place] + digit + text[place + 1 :]


def labelled(work: Worked, prompt: Prompt, separator: str, tokenizer: Tokenizer) -> Labelled:
    """As an answer of which every step before the mistake is right, and none from it on."""
    text = f"{THINK}{separator.join(work.steps)}{END_THINK}{work.answer}{END}"
    tokens = tokenizer.encode(text)
    item = Completion(prompt, tokenizer.encode_prompt(prompt.question), tokens, [0.0] * len(tokens), text, False, -1)
    ends = StepFinder(tokenizer, separator).ends(tokens)
    assert len(ends) == len(work.steps) + 1, f"steps of {text!r} end inside its tokens"
    first = len(ends) if work.wrong is None else work.wrong
    return Labelled(item, ends, [float(index < first) for index in range(len(ends))])


def corrupted_answers(task: Task, tokenizer: Tokenizer, split: str, count: int, seed: int) -> Iterator[Labelled]:
    """Of problems 0..count-1 of a split."""
    for index in range(count):
        prompt = task.prompt(split, index)
        yield labelled(corrupted(task, prompt, seed), prompt, task.step_separator, tokenizer)
