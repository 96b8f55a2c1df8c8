"""Choosing one of n answers to a problem: by a reward model, by majority, by both."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farside.rl.reward.model import Opinion
from farside.rl.tasks.dataset import extract_answer
from farside.rl.types import Completion, Mark, Verdict


@dataclass(frozen=True)
class Candidate:
    """One answer: what it says in the end ("" if nothing), and whether that is right."""

    answer: str
    right: bool

    @classmethod
    def of(cls, item: Completion, verdict: Verdict) -> "Candidate":
        return cls(extract_answer(item.text)[0], verdict.mark is Mark.correct)


def by_majority(candidates: Sequence[Candidate]) -> int:
    """Index of the first candidate that says what most say (self-consistency, arXiv 2203.11171); silence is no vote."""
    return by_weighted_vote(candidates, [1.0] * len(candidates))


def by_score(scores: Sequence[float]) -> int:
    """Index of the first of the highest."""
    return max(range(len(scores)), key=lambda index: scores[index])


def by_weighted_vote(candidates: Sequence[Candidate], weights: Sequence[float]) -> int:
    """Index of the first candidate whose answer has the most weight (Math-Shepherd, arXiv 2312.08935, section 3.4)."""
    votes: dict[str, float] = defaultdict(float)
    for candidate, weight in zip(candidates, weights):
        votes[candidate.answer] += weight
    return by_score([votes[candidate.answer] if candidate.answer else -1.0 for candidate in candidates])


def values_of(opinions: Sequence[Opinion]) -> dict[str, list[float]]:
    """What a judge's opinions give to choose by: the score of whole answers, or their steps' lowest and product."""
    if any(opinion.steps is None for opinion in opinions):
        return {"score": [opinion.raw for opinion in opinions]}
    probabilities = [[share for _, share in opinion.steps or []] for opinion in opinions]
    return {
        "min": [min(shares) for shares in probabilities],
        "product": [math.prod(shares) for shares in probabilities],
    }


def accuracies(
    groups: Sequence[Sequence[Candidate]], values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, float]:
    """Share of problems solved by every way to choose among a problem's candidates.

    values: name -> of each group's candidates. "one": the mean over candidates, "any": some candidate is right (the
    bound); each of the values' names: the highest; "vote_<name>": votes with probabilities as weights.
    """
    found = {
        "one": [sum(candidate.right for candidate in group) / len(group) for group in groups],
        "any": [float(any(candidate.right for candidate in group)) for group in groups],
        "majority": [float(group[by_majority(group)].right) for group in groups],
    }
    for name, of_groups in values.items():
        found[name] = [float(group[by_score(of_group)].right) for group, of_group in zip(groups, of_groups)]
        if name != "score":
            found[f"vote_{name}"] = [
                float(group[by_weighted_vote(group, of_group)].right) for group, of_group in zip(groups, of_groups)
            ]
    return {name: sum(shares) / len(shares) for name, shares in found.items()}
