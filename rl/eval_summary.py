"""The numbers of ``farside eval math`` from judged answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from farside.configs.schema import MathConfig
from farside.rl.estimators import accuracy_by_bin, bin_edges, level_order, maj_at_k, pass_at_k, rank_correlation
from farside.rl.tasks.dataset import extract_answer
from farside.rl.types import Mark

GREEDY = 0
"""As a sample's number; samples count from 1."""
BINS = 12
"""Of lengths, at most."""


@dataclass(frozen=True)
class Answer:
    """One judged answer: a line of math.jsonl. budget: the thinking that was allowed; None: no limit. efficiency: of a
    greedy answer without limit, the share of its tokens up to the first right answer in it."""

    problem: int
    difficulty: str
    sample: int
    budget: int | None
    question: str
    reference: str
    text: str
    verdict: str
    detail: str
    length: int
    thinking: int
    efficiency: float | None = None

    @property
    def right(self) -> bool:
        return self.verdict == Mark.correct.value

    @property
    def vote(self) -> str:
        """What it says, for the majority; nothing where it could not be judged."""
        return "" if self.verdict == Mark.error.value else extract_answer(self.text)[0]


def share(answers: Sequence[Answer]) -> float:
    """Right ones of all. A verdict that is an error counts as not solved: it never raises a number."""
    return sum(answer.right for answer in answers) / len(answers)


def grouped(answers: Sequence[Answer]) -> list[list[Answer]]:
    """By problem."""
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.problem, []).append(answer)
    return list(groups.values())


def mean(values: Iterator[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def summarise(answers: Sequence[Answer], config: MathConfig) -> dict[str, Any]:
    """The numbers of math.json from every answer."""
    greedy = [answer for answer in answers if answer.sample == GREEDY and answer.budget is None]
    sampled = [answer for answer in answers if answer.sample != GREEDY]
    votes = [([a.vote for a in group], [a.right for a in group]) for group in grouped(sampled)]
    ks = [k for k in config.k if k <= config.samples]
    lengths, thoughts = ([getattr(a, key) for a in sampled or greedy] for key in ("length", "thinking"))
    solved = [answer.right for answer in sampled or greedy]
    return {
        "greedy": share(greedy),
        "sampled": share(sampled) if sampled else None,
        "pass_at_k": {str(k): mean(pass_at_k(len(right), sum(right), k) for _, right in votes) for k in ks},
        "maj_at_k": {str(k): mean(maj_at_k(*vote, k) for vote in votes) for k in ks},
        "error_share": sum(a.verdict == Mark.error.value for a in answers) / len(answers),
        "difficulty": by_difficulty(greedy, sampled),
        **how_thinking_grows(greedy),
        "outcome_efficiency": mean(a.efficiency for a in greedy if a.efficiency is not None),
        "lengths": accuracy_by_bin(lengths, solved, bin_edges(lengths, BINS)),
        "thinking": accuracy_by_bin(thoughts, solved, bin_edges(thoughts, BINS)),
        "budgets": [forced(answers, greedy, budget) for budget in config.budgets],
    }


def by_difficulty(greedy: Sequence[Answer], sampled: Sequence[Answer]) -> list[dict[str, Any]]:
    """A row a level, in the levels' order: numbers as numbers."""
    rows = []
    for level in sorted({answer.difficulty for answer in greedy}, key=level_order):
        own, drawn = ([a for a in answers if a.difficulty == level] for answers in (greedy, sampled))
        rows.append(
            {
                "difficulty": level,
                "problems": len(own),
                "greedy": share(own),
                "sampled": share(drawn) if drawn else None,
                "thinking_tokens": mean(float(a.thinking) for a in own),
            }
        )
    return rows


def how_thinking_grows(greedy: Sequence[Answer]) -> dict[str, float | None]:
    """Spearman's correlation of a problem's difficulty and its thinking tokens; None unless levels are numbers."""
    levels = [level_order(answer.difficulty)[0] for answer in greedy]
    numbers = all(level < float("inf") for level in levels)
    thoughts = [float(answer.thinking) for answer in greedy]
    return {"thinking_difficulty_correlation": rank_correlation(levels, thoughts) if numbers else None}


def forced(answers: Sequence[Answer], greedy: Sequence[Answer], budget: int) -> dict[str, Any]:
    own = [answer for answer in answers if answer.budget == budget]
    return {
        "budget": budget,
        "accuracy": share(own),
        "thinking_tokens": mean(float(a.thinking) for a in own),
        "cut_share": sum(a.thinking > budget for a in greedy) / len(greedy),
    }
