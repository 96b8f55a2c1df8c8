"""Group advantages and the clipped loss against closed forms."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from farside.rl.advantage import EPS, group_normalised
from farside.rl.kl import kl_estimates
from farside.rl.loss import clipped_objective
from tests.rl.policy import tensor, weighed


def advantages(rewards: list[list[float]], valid: list[list[bool]] | None = None, eps: float = EPS) -> Tensor:
    reward_PG = torch.tensor(rewards, dtype=torch.float64)
    valid_PG = torch.tensor(valid) if valid else torch.ones_like(reward_PG, dtype=torch.bool)
    return group_normalised(reward_PG, valid_PG, eps)


def test_golden_group() -> None:
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    got = advantages([[1, 0, 0, 1]])
    torch.testing.assert_close(got, expected * torch.tensor([[1, -1, -1, 1.0]]).double(), rtol=0, atol=1e-12)
    assert round(expected, 6) == 0.866024
    unregularised = advantages([[1, 0, 0, 1]], eps=0.0)
    assert abs(unregularised[0, 0].item() - math.sqrt(0.75)) < 1e-12


def test_groups_are_normalised_on_their_own() -> None:
    both = advantages([[1, 0, 0, 1], [10, 0, 0, 0]])
    torch.testing.assert_close(both[:1], advantages([[1, 0, 0, 1]]), rtol=0, atol=0)
    torch.testing.assert_close(both[1:], advantages([[10, 0, 0, 0]]), rtol=0, atol=0)
    assert abs(both.sum(1)).max() < 1e-12


@pytest.mark.parametrize("garbage", [0.0, 1e30, math.nan, math.inf, -math.inf])
def test_invalid_samples_do_not_count_and_get_zero(garbage: float) -> None:
    got = advantages([[1, garbage, 0, 0, 1, garbage]], [[True, False, True, True, True, False]])
    kept = advantages([[1, 0, 0, 1]])[0]
    assert got[0, [1, 5]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(got[0, [0, 2, 3, 4]], kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        ([0.1] * 8, [True] * 8),
        ([1 / 3] * 7, [True] * 7),
        ([1, 0, 0, 0], [True, False, False, False]),
        ([math.nan] * 4, [False] * 4),
        ([1, 1, 0, 0], [True, True, False, False]),
        ([1.0], [True]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_that_tell_nothing_give_exactly_zero(
    rewards: list[float], valid: list[bool], dtype: torch.dtype
) -> None:
    got = group_normalised(torch.tensor([rewards], dtype=dtype), torch.tensor([valid]))
    assert got.dtype == dtype
    assert (got == 0).all()


def test_advantage_rejects_what_it_would_misread() -> None:
    with pytest.raises(ValueError, match="P, G"):
        group_normalised(torch.zeros(4), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        group_normalised(torch.zeros(1, 4), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "cut"),
    [
        (1.5, 1.0, -1.2, 0.0, 1.0),  # golden: clipped from above, no gradient
        (1.5, -1.0, 1.5, 1.5, 0.0),  # golden: a bad token grew likelier: full penalty
        (0.5, 1.0, -0.5, -0.5, 0.0),
        (0.5, -1.0, 0.8, 0.0, 1.0),
        (1.1, 1.0, -1.1, -1.1, 0.0),
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.5, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_cases(ratio: float, advantage: float, value: float, slope: float, cut: float) -> None:
    logprobs = tensor(-1.0 + math.log(ratio)).requires_grad_()
    loss, metrics = weighed(clipped_objective(0.2, 0.2), logprobs, tensor(-1.0), tensor(advantage), tensor(1.0))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert abs(loss.item() - value) < 1e-12
    assert abs(gradient.item() - slope) < 1e-12  # d rho / d logprob = rho
    assert metrics["clip_share"].item() == cut
    assert abs(metrics["ratio"].item() - ratio) < 1e-12
    assert abs(metrics["kl"].item() - (ratio - 1 - math.log(ratio))) < 1e-12


def test_bounds_are_separate() -> None:
    arguments = (tensor(math.log(1.5), math.log(0.5)), tensor(0.0, 0.0), tensor(1.0, -1.0), tensor(1.0, 1.0))
    assert abs(weighed(clipped_objective(0.2, 0.28), *arguments)[0].item() - (-1.28 + 0.8)) < 1e-12
    assert abs(weighed(clipped_objective(0.4, 0.2), *arguments)[0].item() - (-1.2 + 0.6)) < 1e-12


def test_sum_carries_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantage = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    loss, metrics = weighed(clipped_objective(0.2, 0.28), logprobs, old, advantage, weights)
    slow, share = 0.0, 0.0
    for i in range(4):
        for t in range(6):
            rho = math.exp(logprobs[i, t] - old[i, t])
            a, w = advantage[i, t].item(), weights[i, t].item()
            slow -= w * min(rho * a, min(max(rho, 0.8), 1.28) * a)
            share += w * ((a > 0 and rho > 1.28) or (a < 0 and rho < 0.8))
    assert abs(loss.item() - slow) < 1e-12
    assert abs(metrics["clip_share"].item() - share) < 1e-12
    parts = [weighed(clipped_objective(0.2, 0.28), logprobs[i], old[i], advantage[i], weights[i])[0] for i in range(4)]
    assert abs(torch.stack(parts).sum().item() - loss.item()) < 1e-12


@pytest.mark.parametrize("garbage", [1e4, math.nan, math.inf, -math.inf])
def test_tokens_of_weight_zero_are_nothing_at_all(garbage: float) -> None:
    logprobs = tensor(-1.0, garbage, -2.0).requires_grad_()
    loss, metrics = weighed(
        clipped_objective(0.2, 0.2),
        logprobs,
        tensor(-1.1, 0.0, -2.2),
        tensor(1.0, garbage, -1.0),
        tensor(0.5, 0.0, 0.5),
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    short = tensor(-1.0, -2.0).requires_grad_()
    expected, _ = weighed(clipped_objective(0.2, 0.2), short, tensor(-1.1, -2.2), tensor(1.0, -1.0), tensor(0.5, 0.5))
    (short_gradient,) = torch.autograd.grad(expected, short)
    assert loss.item() == expected.item()
    assert gradient.tolist() == [short_gradient[0].item(), 0.0, short_gradient[1].item()]
    assert all(math.isfinite(value.item()) and not value.requires_grad for value in metrics.values())


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    old, advantage, weights = torch.randn(3, 3, 8, generator=generator, dtype=torch.float64)
    shift = 0.6 * torch.randn(3, 8, generator=generator, dtype=torch.float64)  # both sides of both clips
    logprobs = (old + shift).requires_grad_()
    loss = partial(weighed, clipped_objective(0.2, 0.28))
    assert torch.autograd.gradcheck(lambda x: loss(x, old, advantage, weights)[0], logprobs)
    gradient = torch.autograd.grad(loss(logprobs, old, advantage, weights)[0], logprobs)[0]
    assert (gradient == 0).any()
    assert (gradient != 0).any()


def test_no_gradient_reaches_old_logprobs_or_advantages() -> None:
    old, advantage = tensor(-1.0).requires_grad_(), tensor(1.0).requires_grad_()
    loss, _ = weighed(clipped_objective(0.2, 0.2), tensor(-1.0).requires_grad_(), old, advantage, tensor(1.0))
    loss.backward()
    assert old.grad is None
    assert advantage.grad is None


def test_kl_golden() -> None:
    k1, k2, k3 = kl_estimates(tensor(-1.0), tensor(-1.5))
    assert abs(k1.item() - 0.5) < 1e-12
    assert abs(k2.item() - 0.125) < 1e-12
    assert abs(k3.item() - (math.exp(-0.5) - 0.5)) < 1e-12
    assert round(k3.item(), 6) == 0.106531


def test_k1_and_k3_are_unbiased() -> None:
    p, q = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.5, 0.3)
    exact = (p * (p / q).log()).sum()
    k1, _, k3 = kl_estimates(p.log(), q.log())
    torch.testing.assert_close((p * k1).sum(), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close((p * k3).sum(), exact, rtol=0, atol=1e-12)
    assert (k3 >= 0).all()


def test_loss_rejects_bad_bounds_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"clip_low=1\.5"):
        clipped_objective(1.5, 0.2)
    with pytest.raises(ValueError, match="one shape"):
        weighed(clipped_objective(0.2, 0.2), tensor(1, 2), tensor(1, 2), tensor(1), tensor(1, 2))
