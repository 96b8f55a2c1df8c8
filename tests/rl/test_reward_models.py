"""Scores of whole answers: Bradley-Terry by hand, calibration, rewards from scores, choosing among answers."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from farside.configs.schema import ScoreNorm
from farside.data.batch import Batch
from farside.rl.reward.best_of import Candidate, accuracies, by_majority, by_weighted_vote, values_of
from farside.rl.reward.calibration import calibration, pair_calibration
from farside.rl.reward.model import Opinion, bradley_terry_loss
from farside.rl.reward.normalise import ScoreNormaliser, squashed
from farside.train.model.heads import TokenOutputs
from tests.rl.policy import tensor


def pair_outputs(scores: Tensor) -> tuple[TokenOutputs, Batch]:
    """Answers of two tokens whose values have the given mean; a pair weighs 1."""
    values = torch.stack([scores - 1, scores + 1, torch.full_like(scores, 9.0)], 1)
    weights = torch.tensor([0.25, 0.25, 0.0], dtype=torch.float64).expand_as(values)
    zeros = torch.zeros(values.shape, dtype=torch.long)
    return TokenOutputs(values=values), Batch(zeros, zeros, weights, zeros, zeros)


def test_bradley_terry_with_a_margin() -> None:
    """Llama 2, eq. 2, by hand: differences 1 and -0.5, margin 0.7."""
    outputs, batch = pair_outputs(tensor(2.0, 1.0, 0.25, 0.75).requires_grad_())
    plain, with_margin = (bradley_terry_loss(outputs, batch, margin) for margin in (0.0, 0.7))
    wanted = [sum(math.log1p(math.exp(-(d - margin))) for d in (1.0, -0.5)) for margin in (0.0, 0.7)]
    assert plain.total.item() == pytest.approx(wanted[0], abs=1e-12)
    assert with_margin.total.item() == pytest.approx(wanted[1], abs=1e-12)
    assert with_margin.metrics["accuracy"].item() == 1.0, "one of two pairs; the margin moves the loss, not the order"
    assert outputs.values is not None
    (gradient,) = torch.autograd.grad(with_margin.total, outputs.values)
    pull = 1 / (1 + math.exp(1.0 - 0.7))  # sigmoid(margin - difference)
    assert gradient.sum(1)[:2].tolist() == pytest.approx([-pull, pull], abs=1e-12)


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.93, 0.91, 0.15, 1.0, 0.0], [True, True, False, False, True, False])
    top, low = (0.95 + 0.93 + 0.91 + 1.0) / 4, [0.0, 0.15]
    assert [row["count"] for row in found["bins"]] == [1, 1, 4]
    assert found["bins"][2] == {"said": pytest.approx(top), "right": 0.75, "count": 4}
    assert found["error"] == pytest.approx((4 * (top - 0.75) + sum(low)) / 6, abs=1e-12)


def test_pairs_are_calibrated_by_the_side_that_is_believed() -> None:
    """log 4: four to one for the right answer; -log 4: as sure of the wrong one."""
    found = pair_calibration([math.log(4)] * 4 + [-math.log(4)])
    assert found["error"] == pytest.approx(0.0, abs=1e-12), "says 80 %, is right in 4 of 5"
    assert pair_calibration([-math.log(4)])["error"] == pytest.approx(0.8, abs=1e-12)


def normaliser(kind: ScoreNorm, clip: float | None = None) -> ScoreNormaliser:
    return ScoreNormaliser(kind, 1.0, 2.0, clip, lambda values: values)


def test_scores_are_standardised_clipped_and_squashed() -> None:
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    assert squashed(5.0, 1.0, 2.0) == pytest.approx(sigmoid(2.0), abs=1e-15)
    assert squashed(5.0, 1.0, 2.0, clip=1.5) == pytest.approx(sigmoid(1.5), abs=1e-15)
    assert squashed(-1e9, 0.0, 1e-6) == 0.0, "no overflow"
    assert normaliser(ScoreNorm.held_out)([1.0, 3.0]) == pytest.approx([0.5, sigmoid(1.0)])
    batch = normaliser(ScoreNorm.batch)
    batch([100.0, -7.0])
    assert batch([2.0, 4.0]) == pytest.approx([sigmoid(-1.0), sigmoid(1.0)]), "of these samples alone"


def test_running_statistics_are_those_of_all_samples_and_survive_a_checkpoint() -> None:
    running = normaliser(ScoreNorm.running)
    running([1e6 + 1.0, 1e6 + 4.0])
    again = ScoreNormaliser(ScoreNorm.running, 1.0, 2.0, None, lambda values: values, running.record())
    scores = running([1e6 + 7.0])
    assert again([1e6 + 7.0]) == scores
    assert running.record()[:2] == [3.0, 1e6 + 4.0]
    assert running.record()[2] == pytest.approx(18.0, abs=1e-9)
    assert scores == pytest.approx([1 / (1 + math.exp(-3.0 / math.sqrt(6.0)))], abs=1e-9)


def test_statistics_of_two_ranks() -> None:
    """Each rank's sums and its peer's: as if one had seen all four samples."""
    sums: list[list[float]] = [[4.0, 10.0], [5.0]]
    normalise = ScoreNormaliser(ScoreNorm.batch, 0.0, 1.0, None, lambda values: sums.pop(0))
    assert normalise([2.5]) == [0.5]
    assert normalise.record() == [4.0, 2.5, 5.0]


def test_choosing_among_answers_by_hand() -> None:
    group = [Candidate("1", False), Candidate("2", True), Candidate("1", False), Candidate("", False)]
    assert by_majority(group) == 0
    assert by_majority([Candidate("", False), Candidate("", False), Candidate("2", True)]) == 2, "silence is no vote"
    assert by_weighted_vote(group, [0.2, 0.9, 0.2, 1.0]) == 1
    opinions = [Opinion(-1.0, [(0, 0.5), (1, 0.5)]), Opinion(0.0, [(0, 0.3), (1, 0.95)])]
    values = values_of(opinions)
    assert values == {"min": [0.5, 0.3], "product": [0.25, pytest.approx(0.285)]}
    assert values_of([Opinion(-1.0), Opinion(2.0)]) == {"score": [-1.0, 2.0]}
    other = [Candidate("3", True), Candidate("3", True), Candidate("4", False), Candidate("5", False)]
    scores = [[0.2, 0.9, 0.2, 0.1], [0.3, 0.3, 0.7, 0.1]]
    found = accuracies([group, other], {"min": scores})
    assert found == {"one": 3 / 8, "any": 1.0, "majority": 0.5, "min": 0.5, "vote_min": 0.5}
    assert "vote_score" not in accuracies([group], {"score": [[1.0, 2.0, 3.0, 4.0]]})


def test_margin_is_a_loss_of_the_loop() -> None:
    """As the training builds it: a LossFn of outputs and batch."""
    outputs, batch = pair_outputs(tensor(1.0, 1.0))
    assert partial(bradley_terry_loss, margin=1.0)(outputs, batch).total.item() == pytest.approx(math.log1p(math.e))
