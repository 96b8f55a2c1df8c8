"""How often each document comes, so that long ones make up more of the tokens than they do in the text.

Long-context training wants long documents, but not other domains: within every source the classes of length are
weighed anew while the source keeps its share of tokens (Fu et al., arXiv 2402.10171, section 3, who raise the
documents over 4,096 tokens from 30 % to 70 % of each source).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from farside.configs.errors import UserError

MOST_REPEATS = 5.0
"""A class comes at most this many times as often as in the text: few long documents must not be learnt by heart."""
MOST_EPOCHS = 8
"""Epochs that one plan covers at most, so that documents which come less than once an epoch all have their turn."""


@dataclass(frozen=True)
class Reading:
    """times [N]: how often a plan holds each document; epochs: the tokens of a plan over those of the text."""

    times: np.ndarray
    epochs: float
    shares: dict[int, float]
    """Class (its least length in tokens) -> share of the plan's tokens."""


def weigh(lengths_N: np.ndarray, asked: Mapping[int, float], rng: np.random.Generator, name: str) -> Reading:
    """asked: least length of a class -> its share of tokens, to the next class; none asked: every document once.

    Shares of classes without documents, or beyond MOST_REPEATS, go to the others. Raises UserError if the source
    ``name`` has no document of any class asked for.
    """
    if not asked:
        return Reading(np.ones(len(lengths_N), dtype=np.int64), 1, {})
    bounds = sorted(asked)
    class_N = np.searchsorted(bounds, lengths_N, side="right") - 1  # -1: shorter than any class
    tokens_C = np.array([lengths_N[class_N == number].sum() for number in range(len(bounds))], dtype=np.float64)
    factors_C = _factors(tokens_C, np.array([asked[bound] for bound in bounds]), float(lengths_N.sum()))
    if not factors_C.any():
        raise UserError(f"data.lengths: source {name!r} has no document of a length asked for; ask for shorter ones")
    epochs = min(MOST_EPOCHS, math.ceil(1 / factors_C[factors_C > 0].min()))
    times_N = np.zeros(len(lengths_N), dtype=np.int64)
    for number, factor in enumerate(factors_C):
        members = rng.permutation(np.flatnonzero(class_N == number))
        # rounded along a random order: the class gets its number of readings to within one document
        times_N[members] = np.diff(np.floor(np.arange(len(members) + 1) * factor * epochs + 0.5)).astype(np.int64)
    # with every class at its most, a plan holds less than as many times the text
    all_at_most = bool((factors_C[factors_C > 0] == MOST_REPEATS).all())
    given = float((factors_C * tokens_C).sum() / lengths_N.sum()) if all_at_most else 1.0
    read = np.array([(lengths_N * times_N)[class_N == number].sum() for number in range(len(bounds))])
    return Reading(times_N, epochs * given, {bound: float(share) for bound, share in zip(bounds, read / read.sum())})


def _factors(tokens_C: np.ndarray, asked_C: np.ndarray, total: float) -> np.ndarray:
    """Readings of each class an epoch, [C]; together they give ``total`` tokens unless all are at their most."""
    open_C = (tokens_C > 0) & (asked_C > 0)
    factors_C = np.zeros(len(tokens_C))
    left = total
    while open_C.any():
        shares_C = np.where(open_C, asked_C, 0.0) / asked_C[open_C].sum()
        wanted_C = np.divide(left * shares_C, tokens_C, out=np.zeros(len(tokens_C)), where=open_C)
        over_C = wanted_C > MOST_REPEATS
        if not over_C.any():
            return np.where(open_C, wanted_C, factors_C)
        factors_C[over_C] = MOST_REPEATS
        left = max(0.0, left - MOST_REPEATS * tokens_C[over_C].sum())
        open_C &= ~over_C
    return factors_C
