"""Golden values of every algorithm in fp64, and slow twins of what golden values do not reach."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from farside.configs.errors import UserError
from farside.configs.schema import (
    Algorithm,
    Config,
    Correction,
    CorrectionConfig,
    CriticConfig,
    KlConfig,
    KlEstimator,
    MirrorBaseline,
    RepetitionConfig,
    RlConfig,
)
from farside.rl.advantage import group_normalised, log_partition, process_normalised, rewards_to_go
from farside.rl.algorithms.base import Normalisation
from farside.rl.algorithms.registry import ALGORITHMS, make_algorithm
from farside.rl.correction import corrected, correction_weights
from farside.rl.experience import Experience
from farside.rl.kl import with_kl
from farside.rl.loss import Objective, clipped_objective
from farside.rl.shaping import overlong_penalty
from farside.rl.train import check_algorithm
from tests.rl.policy import tensor, weighed

EXACT = 1e-12
SQRT_THIRD = math.sqrt(1 / 3)


def seen(rewards: list[list[float]], lengths: list[int], valid: list[bool] | None = None) -> Experience:
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    valid_N = torch.ones(rewards_PG.numel(), dtype=torch.bool) if valid is None else torch.tensor(valid)
    counted = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]) & valid_N[:, None]
    zeros = torch.zeros(counted.shape).double()
    return Experience(rewards_PG, valid_N.view_as(rewards_PG), counted, list, zeros, values_NT=zeros)


def advantages(name: Algorithm, rewards: list[float], **settings: object) -> list[float]:
    """One-token answers of one group."""
    config = RlConfig(algorithm=name, **settings)  # type: ignore[arg-type]
    return make_algorithm(config).advantages(seen([rewards], [1] * len(rewards)))[:, 0].tolist()


def close(found: list[float], wanted: list[float]) -> None:
    assert found == pytest.approx(wanted, rel=0, abs=EXACT)


def test_every_name_has_an_algorithm() -> None:
    assert set(ALGORITHMS) == set(Algorithm)
    assert Config().rl.algorithm is Algorithm.grpo


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (Algorithm.grpo, 0.5 / (SQRT_THIRD + 1e-6)),  # 0.866024
        (Algorithm.ppo, 1.0),  # of a critic that expects nothing
        (Algorithm.dapo, 0.5 / (SQRT_THIRD + 1e-6)),
        (Algorithm.gspo, 0.5 / (SQRT_THIRD + 1e-6)),
        (Algorithm.dr_grpo, 0.5),
        (Algorithm.k15, 0.5),
        (Algorithm.k2, 0.5),
        (Algorithm.rloo, 2 / 3),
        (Algorithm.reinforce_pp, 1.0),
        (Algorithm.reinforce_pp_baseline, 1.0),
    ],
)
def test_golden_advantages(name: Algorithm, size: float) -> None:
    close(advantages(name, [1, 0, 0, 1]), [size, -size, -size, size])
    assert advantages(name, [0.1] * 4) == [0.0] * 4


@pytest.mark.parametrize(("tau", "golden"), [(1.0, 0.620115), (0.1, 0.930690), (10.0, 0.512495)])
def test_golden_log_partition(tau: float, golden: float) -> None:
    expected = tau * math.log((1 + math.exp(1 / tau)) / 2)
    assert round(expected, 6) == golden
    rewards = torch.tensor([[1, 0, 0, 1, 7]], dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False]])
    assert log_partition(rewards, valid, tau).item() == pytest.approx(expected, abs=EXACT)
    found = advantages(Algorithm.k15, [1, 0, 0, 1], tau=tau, mirror_baseline=MirrorBaseline.log_partition)
    close(found, [1 - expected, -expected, -expected, 1 - expected])
    assert log_partition(rewards, valid, 1e9).item() == pytest.approx(0.5, abs=1e-6), "the mean, in the limit"


def test_golden_mirror_descent() -> None:
    """r = [1, 0], log-ratios of whole answers [.2, -.1], tau = .5; answers of two tokens and of one."""
    logprobs = torch.tensor([[-0.85, -1.95], [-1.1, 0.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.5], [1, 0]], dtype=torch.float64)
    a = torch.tensor([[0.5, 0.5], [-0.5, 0]], dtype=torch.float64)
    squared = make_algorithm(RlConfig(algorithm=Algorithm.k2, tau=0.5)).objective
    total, metrics = weighed(squared, logprobs, old, a, weights)
    assert (total / 2).item() == pytest.approx(0.18125, abs=EXACT)
    assert metrics["drift"].item() == pytest.approx(0.2**2 + 0.1**2, abs=EXACT)
    (gradient,) = torch.autograd.grad(total / 2, logprobs)
    close(gradient.flatten().tolist(), [-0.2, -0.2, 0.225, 0])
    total, _ = weighed(make_algorithm(RlConfig(algorithm=Algorithm.k15, tau=0.5)).objective, logprobs, old, a, weights)
    (gradient,) = torch.autograd.grad(-total / 2, logprobs)
    close(gradient.flatten().tolist(), [0.2, 0.2, -0.225, 0])  # -(gradient of k2) / (2 tau) = eq. 3


def test_golden_sequence_ratio() -> None:
    old = tensor(-1.0, -1.0, -1.0)
    logprobs = (old + tensor(0.1, -0.2, 0.3)).requires_grad_()
    total, metrics = weighed(
        clipped_objective(0.2, 0.2, whole=True), logprobs, old, tensor(1, 1, 1), tensor(1, 1, 1) / 3
    )
    assert round(metrics["ratio"].item(), 6) == 1.068939
    assert total.item() == pytest.approx(-math.exp(0.2 / 3), abs=EXACT)
    (gradient,) = torch.autograd.grad(total, logprobs)
    close(gradient.tolist(), [-math.exp(0.2 / 3) / 3] * 3)
    own = make_algorithm(RlConfig(algorithm=Algorithm.gspo)).objective
    assert weighed(own, logprobs, old, tensor(1, 1, 1), tensor(1, 1, 1) / 3)[0].item() == pytest.approx(-1.0004)


@pytest.mark.parametrize(("ratio", "a", "value", "slope"), [(5.0, -1.0, 3.0, 0.0), (2.0, -1.0, 2.0, 2.0)])
def test_golden_dual_clip(ratio: float, a: float, value: float, slope: float) -> None:
    logprobs = tensor(math.log(ratio)).requires_grad_()
    total, metrics = weighed(clipped_objective(0.2, 0.2, 3.0), logprobs, tensor(0.0), tensor(a), tensor(1.0))
    assert total.item() == pytest.approx(value, abs=EXACT)
    assert torch.autograd.grad(total, logprobs)[0].item() == pytest.approx(slope, abs=EXACT)
    assert metrics["clip_share"].item() == float(slope == 0)


def test_golden_clip_bounds() -> None:
    """DAPO clips higher above, unless told otherwise."""
    arguments = (tensor(1.0), tensor(0.0), tensor(1.0), tensor(1.0))
    for settings, bound in (({}, 1.28), ({"clip_high": 0.5}, 1.5)):
        objective = make_algorithm(RlConfig(algorithm=Algorithm.dapo, **settings)).objective  # type: ignore[arg-type]
        assert weighed(objective, *arguments)[0].item() == pytest.approx(-bound, abs=EXACT)


def test_golden_overlong_shaping() -> None:
    found = [overlong_penalty(length, 100, 20) for length in (1, 80, 85, 90, 100, 130)]
    close(found, [0, 0, -0.25, -0.5, -1, -1])
    assert overlong_penalty(100, 100, 0) == 0


def test_golden_process_advantages() -> None:
    rewards, ends = torch.tensor([[1, 0], [1, 1]], dtype=torch.float64), torch.tensor([[0, 1], [0, 1]])
    found = process_normalised(rewards, ends, 2, eps=0.0)
    close(found.flatten().tolist(), [-1, -1.5, 1, 0.5])
    # steps of several tokens, one answer without a second step
    longer = process_normalised(rewards, torch.tensor([[1, 3], [2, -1]]), 5, eps=0.0)
    r = group_normalised(tensor(1, 0, 1)[None], torch.ones(1, 3, dtype=torch.bool), 0.0)[0].tolist()
    close(longer[0].tolist(), [r[0] + r[1]] * 2 + [r[1]] * 2 + [0])
    close(longer[1].tolist(), [r[2]] * 3 + [0] * 2)


def test_golden_normalisations() -> None:
    lengths, valid = torch.tensor([2, 5, 3]), torch.tensor([True, True, False])
    expected = {
        Normalisation.sample_mean: ([1 / 2, 1 / 5, 0], [1, 1, 0]),
        Normalisation.token_mean: ([1, 1, 0], [2, 5, 0]),
        Normalisation.constant_length: ([1 / 8, 1 / 8, 0], [1, 1, 0]),
    }
    for kind, (weights, shares) in expected.items():
        found = kind.weights(lengths, valid, 8)
        close(found[0].tolist(), weights)
        close(found[1].tolist(), shares)


def test_rloo_is_reinforce_on_whole_answers() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.5, 0.5], [1, 0]], dtype=torch.float64)
    a = torch.tensor([[0.4, 0.4], [-0.4, 0]], dtype=torch.float64)
    total, _ = weighed(make_algorithm(RlConfig(algorithm=Algorithm.rloo)).objective, logprobs, logprobs, a, weights)
    assert total.item() == pytest.approx(-0.4 * -3.0 + 0.4 * -0.5, abs=EXACT)
    close(torch.autograd.grad(total, logprobs)[0].flatten().tolist(), [-0.4, -0.4, 0.4, 0])


def test_reinforce_pp_twin() -> None:
    """Token by token: returns with KL, then one mean and variance over the whole batch."""
    experience = seen([[1, 0.3], [0, 2]], [3, 1, 2, 3], [True, True, False, True])
    kl = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    experience = replace(experience, kl_NT=kl)
    lengths, rewards = {0: 3, 1: 1, 3: 3}, experience.rewards_PG.flatten().tolist()
    for name, group_means in (("reinforce_pp", [0, 0, 0, 0]), ("reinforce_pp_baseline", [0.65, 0.65, 2, 2])):
        slow = {}
        for sample, length in lengths.items():
            for t in range(length):
                reward = rewards[sample] - group_means[sample]
                slow[sample, t] = reward - sum(kl[sample, s].item() for s in range(t, length))
        mean = sum(slow.values()) / len(slow)
        std = math.sqrt(sum((value - mean) ** 2 for value in slow.values()) / len(slow))
        found = make_algorithm(RlConfig(algorithm=Algorithm[name])).advantages(experience)
        for sample in range(4):
            for t in range(3):
                wanted = (slow[sample, t] - mean) / std if (sample, t) in slow else 0.0
                assert found[sample, t].item() == pytest.approx(wanted, abs=EXACT), (name, sample, t)


def test_kl_in_the_reward_lowers_the_outcome() -> None:
    experience = replace(seen([[1, 0, 0, 1]], [2, 1, 2, 2]), kl_NT=torch.full((4, 2), 0.05, dtype=torch.float64))
    experience = replace(experience, kl_NT=torch.where(experience.counted_NT, experience.kl_NT, 0.0))
    found = make_algorithm(RlConfig(algorithm=Algorithm.dr_grpo)).advantages(experience)
    outcomes = [0.9, -0.05, -0.1, 0.9]
    mean = sum(outcomes) / 4
    close(found[:, 0].tolist(), [value - mean for value in outcomes])
    assert found[1, 1] == 0


def test_rewards_to_go() -> None:
    close(rewards_to_go(tensor(1, 2, 4)[None], 0.5)[0].tolist(), [3, 4, 4])


@pytest.mark.parametrize(("kind", "value", "slope"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", None, None)])
def test_kl_in_the_loss(kind: str, value: float | None, slope: float | None) -> None:
    config = KlConfig(weight=0.1, estimator=KlEstimator[kind])
    logprobs = tensor(-1.0).requires_grad_()
    zero: Objective = lambda tokens: (0.0 * tokens.logprobs, {})  # noqa: E731
    total, metrics = weighed(
        with_kl(zero, config), logprobs, tensor(-1.0), tensor(0.0), tensor(1.0), ref_logprobs=tensor(-1.5)
    )
    assert total.item() == pytest.approx(0.1 * (math.exp(-0.5) - 0.5 if value is None else value), abs=EXACT)
    expected = 0.1 * (1 - math.exp(-0.5) if slope is None else slope)
    assert torch.autograd.grad(total, logprobs)[0].item() == pytest.approx(expected, abs=EXACT)
    assert round(metrics["ref_kl"].item(), 6) == 0.106531


def test_corrections() -> None:
    sampler = tensor(-1, -1, -1, -1)
    old = sampler + tensor(0.4, 1.0, 3.0, 1.5).log()
    close(correction_weights(Correction.tis, old, sampler, 0.5, 2.0).tolist(), [0.4, 1, 2, 1.5])
    close(correction_weights(Correction.icepop, old, sampler, 0.5, 2.0).tolist(), [0, 1, 0, 1.5])
    a, weights = tensor(1, 1, -1, 1), tensor(1, 1, 1, 1)
    logprobs = (old + tensor(0.1, 0.1, 0.1, 0.1)).requires_grad_()
    for kind, factors in ((Correction.tis, [0.4, 1, 2, 1.5]), (Correction.icepop, [0, 1, 0, 1.5])):
        objective = corrected(clipped_objective(0.2, 0.2), CorrectionConfig(kind, 0.5, 2.0))
        total, metrics = weighed(objective, logprobs, old, a, weights, sampler_logprobs=sampler)
        rho = math.exp(0.1)
        assert total.item() == pytest.approx(rho * (-factors[0] - factors[1] + factors[2] - factors[3]), abs=EXACT)
        assert metrics["correction"].item() == pytest.approx(sum(factors), abs=EXACT)
        ratios = (0.4, 1.0, 3.0, 1.5)
        assert metrics["mismatch_kl"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), abs=EXACT)


def twin(
    name: Algorithm, config: RlConfig, rows: list[list[tuple[list[float], list[float], list[float], list[float]]]]
) -> float:
    """Σ weight * loss by the papers' formulae, answer by answer and token by token. Answers: (new, old, A, weight)."""
    low, high = {Algorithm.gspo: (3e-4, 4e-4), Algorithm.dapo: (0.2, 0.28)}.get(name, (0.2, 0.2))
    total = 0.0
    for new, old, a, weight in (answer for row in rows for answer in row):
        x = sum(new) - sum(old)
        whole = math.exp(x / len(new))
        for t in range(len(new)):
            if name is Algorithm.rloo:
                loss = -a[t] * sum(new)
            elif name is Algorithm.k15:
                loss = -(a[t] * x - config.tau / 2 * x * x)
            elif name is Algorithm.k2:
                loss = (a[t] - config.tau * x) ** 2
            else:
                rho = whole if name is Algorithm.gspo else math.exp(new[t] - old[t])
                loss = -min(rho * a[t], min(max(rho, 1 - low), 1 + high) * a[t])
            total += weight[t] * loss
    return total


NUMBER = st.floats(-2, 2)
TOKEN = st.tuples(NUMBER, NUMBER, NUMBER, st.floats(0.1, 2))
ROWS = st.lists(st.lists(st.lists(TOKEN, min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=3)


@pytest.mark.parametrize("name", Algorithm)
@given(rows=ROWS, prompt=st.integers(0, 2), room=st.integers(0, 3))
def test_losses_against_loops(
    name: Algorithm, rows: list[list[list[tuple[float, ...]]]], prompt: int, room: int
) -> None:
    """Answers of several tokens, several a row, each behind a prompt, rows padded."""
    config = RlConfig(algorithm=name, tau=0.3)
    answers = [[tuple(map(list, zip(*answer))) for answer in row] for row in rows]
    size = max(sum(len(answer) + prompt for answer in row) for row in rows) + room
    flat = torch.full((5, len(rows), size), math.nan, dtype=torch.float64)
    flat[3], flat[4] = 0.0, -1.0  # what weighs nothing may hold anything
    for number, row in enumerate(rows):
        at = 0
        for document, answer in enumerate(row):
            flat[4, number, at : at + prompt + len(answer)] = document
            at += prompt
            flat[:4, number, at : at + len(answer)] = torch.tensor(answer, dtype=torch.float64).T
            at += len(answer)
    new, old, a, weights, docs = flat
    new.requires_grad_()
    total, metrics = weighed(make_algorithm(config).objective, new, old, a, weights, docs.long())
    expected = twin(name, config, answers)  # type: ignore[arg-type]
    assert total.item() == pytest.approx(expected, rel=EXACT, abs=1e-11)
    assert all(math.isfinite(value.item()) for value in metrics.values())
    (gradient,) = torch.autograd.grad(total, new)
    assert (gradient[weights == 0] == 0).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clip_low": 1.5}, r"rl\.clip_low=1\.5"),
        ({"clip_dual": 0.5}, r"rl\.clip_dual=0\.5"),
        ({"algorithm": Algorithm.k15, "clip_high": 0.3}, r"rl\.clip_\*: rl\.algorithm=k15 clips no ratio"),
        ({"algorithm": Algorithm.rloo, "updates_per_step": 2}, r"rl\.algorithm=rloo has no ratio"),
        ({"algorithm": Algorithm.rloo, "partial_tokens": 8}, r"rl\.algorithm=rloo has no ratio"),
        ({"repetition": RepetitionConfig(penalty=1.0, longest_period=0)}, r"rl\.repetition\.penalty: no loops"),
        ({"eval_prompts": 0}, r"rl\.eval_prompts = 0; give at least 1"),
        ({"eval_every": -1}, r"rl\.eval_every = -1; give at least 0"),
        ({"max_new_tokens": 0}, r"rl\.max_new_tokens = 0; give at least 1"),
        ({"micro_batch_size": 0}, r"rl\.micro_batch_size = 0; give at least 1"),
        ({"steps": 0}, r"rl\.steps = 0; give at least 1"),
        ({"tau": 0.0}, r"rl\.tau = 0\.0; give more than 0"),
        ({"updates_per_step": 0}, r"rl\.updates_per_step = 0; give at least 1"),
        ({"overlong_cache": 99}, r"rl\.overlong_cache = 99 is above rl\.max_new_tokens"),
        ({"temperature_end": 0.0}, r"rl\.temperature_end = 0\.0"),
        ({"gae_lambda": 1.5}, r"rl\.gae_lambda = 1\.5; give 0 to 1"),
        ({"critic": CriticConfig(clip=0)}, r"rl\.critic: clip = 0"),
        ({"kl": KlConfig(weight=-1)}, r"rl\.kl\.weight = -1"),
        ({"correction": CorrectionConfig(low=3.0)}, r"rl\.correction: low = 3\.0"),
        (
            {"algorithm": Algorithm.rloo, "correction": CorrectionConfig(kind=Correction.icepop)},
            r"rl\.correction\.kind=icepop corrects token by token, but rl\.algorithm=rloo has one loss an answer",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_algorithm(RlConfig(**settings))  # type: ignore[arg-type]
    check_algorithm(RlConfig())
    check_algorithm(RlConfig(algorithm=Algorithm.rloo, partial_tokens=8, learn_old_segments=False))


def test_garbage_in_tokens_without_weight_stays_out_of_every_sum() -> None:
    garbage = tensor(math.nan, -1.0, math.inf)
    for name in Algorithm:
        logprobs = garbage.clone().requires_grad_()
        objective = make_algorithm(RlConfig(algorithm=name)).objective
        total, _ = weighed(objective, logprobs, garbage + 0.1, garbage, tensor(0, 1, 0))
        gradient: Tensor = torch.autograd.grad(total, logprobs)[0]
        assert math.isfinite(total.item())
        assert gradient.isfinite().all()
