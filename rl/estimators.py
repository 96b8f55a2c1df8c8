"""What many sampled answers to one problem tell. Pure functions of counts and texts.

n samples of a problem, c of them right.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that of k samples drawn from the n without replacement at least one is right: 1 - C(n-c, k) / C(n, k).

    The unbiased estimate of 1 - (1 - p)^k (Chen et al., arXiv 2107.03374, eq. 1). Raises ValueError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n}: there must be at least k samples, and no more right ones")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_right(answers: Sequence[str], right: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right (self-consistency, arXiv 2203.11171); of equals the one given first.

    answers: as texts; an empty one (none was given, or it could not be judged) has no vote. Without votes: False.
    """
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return False
    elected = max(votes, key=lambda answer: votes[answer])  # the first of equals: a Counter keeps the order
    return right[answers.index(elected)]


def maj_at_k(answers: Sequence[str], right: Sequence[bool], k: int) -> float:
    """Share of majorities of k answers that are right, over the n // k disjoint runs of k samples.

    Samples are independent, so that the mean is unbiased; what is left over takes no part. Raises ValueError if there
    are fewer than k.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} of {len(answers)} samples: there must be at least k")
    firsts = range(0, len(answers) - k + 1, k)
    return float(np.mean([majority_right(answers[i : i + k], right[i : i + k]) for i in firsts]))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of ranks, equals sharing their mean rank. None where one side is constant."""
    ranks = np.stack([_ranks(x), _ranks(y)])
    centred = ranks - ranks.mean(1, keepdims=True)
    spread = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / spread if spread else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def bin_edges(values: Sequence[int], bins: int) -> list[int]:
    """Whole numbers from 0 to above the largest value: at most ``bins`` bins of equal width, each [edge, next)."""
    top = max(values, default=0) + 1
    width = math.ceil(top / bins)
    return list(range(0, top + width, width))


def accuracy_by_bin(values: Sequence[int], right: Sequence[bool], edges: Sequence[int]) -> list[dict[str, float | int]]:
    """Per bin [from, to): how many values, how many of them right."""
    place = np.digitize(values, edges) - 1
    hits = np.asarray(right, dtype=bool)
    return [
        {"from": low, "to": high, "answers": int((place == i).sum()), "right": int(hits[place == i].sum())}
        for i, (low, high) in enumerate(itertools.pairwise(edges))
    ]


def level_order(level: str) -> tuple[float, str]:
    """To sort levels of difficulty by: numbers first, as numbers; then words."""
    try:
        return float(level), ""
    except ValueError:
        return float("inf"), level
