"""What a reward model could learn from format alone: the baseline that its accuracy has to beat.

A logistic regression on lengths and symbol counts of a completion. It sees how an answer looks, never which
digits stand where, so that it cannot do arithmetic: pairs it ranks right are no evidence of a model that
checks the work.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farside.data.chat import END, END_THINK, THINK
from farside.rl.types import Completion

Sample = str | Completion
Pair = tuple[Sample, Sample]
"""(right, wrong)"""

FEATURES = ("length", "has_think", "scratch_length", "answer_length", "digits", "plus", "equals", "truncated")
L2 = 1e-2
"""Ridge on standardised features, per pair: keeps separable data finite."""
MAX_NEWTON_STEPS = 50


def features(sample: Sample) -> NDArray[np.float64]:
    """[8] in the order of ``FEATURES``.

    ``length`` is in tokens for a Completion and in characters for text; other lengths are in characters.
    """
    text = sample if isinstance(sample, str) else sample.text
    body, end, _ = text.partition(END)
    scratch, closed, answer = body.rpartition(END_THINK)
    if not closed and THINK in body:
        scratch, answer = body, ""
    scratch = scratch.rpartition(THINK)[2]
    values = (
        len(text) if isinstance(sample, str) else len(sample.tokens),
        THINK in body,
        len(scratch),
        len(answer.strip()),
        sum(character in "0123456789" for character in body),
        body.count("+"),
        body.count("="),
        not end if isinstance(sample, str) else sample.truncated,
    )
    return np.array(values, dtype=np.float64)


def differences(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """[pairs, 8]: features of the right completion minus those of the wrong one."""
    return np.array([features(right) - features(wrong) for right, wrong in pairs]).reshape(len(pairs), len(FEATURES))


def fit(difference_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [F] minimising mean softplus(-w.d / scale) + L2/2 |w|^2, by Newton's method; deterministic.

    No intercept: swapping a pair must flip its score. Returned in units of the raw features.
    """
    scale_F = np.sqrt((difference_NF**2).mean(0))
    scale_F[scale_F == 0] = 1.0  # a feature that never differs: its weight stays 0
    x_NF = difference_NF / scale_F
    w_F = np.zeros(x_NF.shape[1])
    loss = _loss(x_NF, w_F)
    for _ in range(MAX_NEWTON_STEPS):
        p_N = 0.5 * (1 - np.tanh(x_NF @ w_F / 2))  # sigmoid(-margin), without overflow
        gradient_F = -(x_NF.T @ p_N) / len(x_NF) + L2 * w_F
        if np.abs(gradient_F).max() < 1e-10:
            break
        hessian_FF = (x_NF.T * (p_N * (1 - p_N))) @ x_NF / len(x_NF) + L2 * np.eye(len(w_F))
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        size = 1.0
        while (stepped := _loss(x_NF, w_F - size * step_F)) > loss and size > 1e-6:
            size /= 2  # Newton may overshoot far from the minimum
        w_F, loss = w_F - size * step_F, stepped
    return w_F / scale_F


def pairwise_accuracy(train_pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> float:
    """Share of test pairs whose right completion scores higher, after fitting on the training pairs.

    A pair that format cannot tell apart counts one half.

    Raises:
        ValueError: no training or no test pairs.
    """
    if not train_pairs or not test_pairs:
        raise ValueError(f"need pairs to train and to test, have {len(train_pairs)} and {len(test_pairs)}")
    margin_N = differences(test_pairs) @ fit(differences(train_pairs))
    return float(((margin_N > 0) + 0.5 * (margin_N == 0)).mean())


def _loss(x_NF: NDArray[np.float64], w_F: NDArray[np.float64]) -> float:
    return float(np.logaddexp(0.0, -(x_NF @ w_F)).mean() + L2 / 2 * (w_F @ w_F))
