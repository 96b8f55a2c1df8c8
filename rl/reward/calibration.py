"""Whether probabilities mean what they say: reliability tables and the expected calibration error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10


def calibration(probabilities: Sequence[float], right: Sequence[bool], bins: int = BINS) -> dict[str, Any]:
    """Bins of equal width over 0..1: where "80 %" is said, how often is it so?

    Returns {"error": expected calibration error, the mean over samples of |share right - mean probability| of their bin
    (Guo et al., arXiv 1706.04599, section 2), "bins": [{"said", "right", "count"}] of those that are not empty}.
    """
    said_N, right_N = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=np.float64)
    which_N = np.minimum((said_N * bins).astype(int), bins - 1)
    table = []
    for number in range(bins):
        inside_N = which_N == number
        if inside_N.any():
            said, share = float(said_N[inside_N].mean()), float(right_N[inside_N].mean())
            table.append({"said": said, "right": share, "count": int(inside_N.sum())})
    error = sum(row["count"] * abs(row["right"] - row["said"]) for row in table) / len(said_N)
    return {"error": error, "bins": table}


def pair_calibration(margins: Sequence[float]) -> dict[str, Any]:
    """Of a Bradley-Terry model, from r_chosen - r_rejected of pairs: it says that one answer of two is better with
    probability sigmoid(|margin|), and is right where the margin is positive."""
    margin_N = np.asarray(margins, dtype=np.float64)
    return calibration((0.5 * (1 + np.tanh(np.abs(margin_N) / 2))).tolist(), (margin_N > 0).tolist())
