"""Replay in RL: one loss over completions and replayed samples, however both are cut and spread; its samples' order."""

from dataclasses import dataclass, replace

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import Config, OptimKind, ParallelConfig
from farside.configs.stages import replay_stage
from farside.data.batch import Batch
from farside.parallel import comm
from farside.parallel.mesh import ParallelDims
from farside.rl.loss import clipped_objective
from farside.rl.objective import rl_loss
from farside.rl.replay import Replay
from farside.train.engine.native import NativeEngine
from farside.train.loss import LossFn, WeightedSum, lm_loss
from farside.train.model.heads import TokenOutputs
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, random_batch, small_config

COMPLETIONS, REPLAYED, WEIGHT = 8, 4, 0.3
CLIPPED = clipped_objective(0.2, 0.2)


def completions(seed: int) -> Batch:
    """Rows whose weights sum to 1, as policy_batches makes them, or to 0 where the verifier erred."""
    batch = random_batch(seed, COMPLETIONS, 10)
    generator = torch.Generator().manual_seed(seed)
    weights = batch.weights / batch.weights.sum(1, keepdim=True).clamp(min=1e-9)
    draw = lambda: torch.randn(weights.shape, generator=generator, dtype=weights.dtype)  # noqa: E731
    return replace(batch, weights=weights, extras={"advantages": draw(), "old_logprobs": draw() - 3.0})


def rows_of(batch: Batch, rows: slice) -> Batch:
    cut = {name: value[rows] for name, value in vars(batch).items() if name != "extras"}
    return Batch(**cut, extras={name: value[rows] for name, value in batch.extras.items()})


def cut(batch: Batch, pieces: int, rank: int, size: int) -> list[Batch]:
    """This rank's rows in ``pieces`` micro-batches."""
    share = len(batch.tokens) // size
    rows = share // pieces
    return [rows_of(batch, slice(first, first + rows)) for first in range(rank * share, (rank + 1) * share, rows)]


class Fixed:
    """A feed of one batch's rows."""

    def __init__(self, pieces: int, rank: int, size: int) -> None:
        self.pieces, self.rank, self.size = pieces, rank, size

    def step(self, step: int) -> list[Batch]:
        return cut(random_batch(50 + step, REPLAYED, 14), self.pieces, self.rank, self.size)


@dataclass(frozen=True)
class Seen:
    losses: list[float]
    metrics: dict[str, float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


def make_engine(rank: int, size: int) -> NativeEngine:
    config = small_config(replace(SMALL, num_key_value_heads=1, qk_norm=True))
    config.optim.kind = OptimKind.muon
    mesh = ParallelDims.resolve(ParallelConfig(1, size), size).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"), entropy=True)


def train(place: Rank, pieces: int) -> Seen:
    """Two steps of what the RL loop does with completions and replay."""
    engine = make_engine(place.rank, place.world_size)
    replay = Replay(Fixed(pieces, place.rank, place.world_size), WEIGHT)
    losses, norms = [], []
    for step in range(2):
        mine = cut(completions(step), pieces, place.rank, place.world_size)
        replayed = replay.step(step)
        sums = [sum(batch.weight for batch in part) for part in (mine, replayed)]
        valid, total = comm.sum_floats(sums, engine.mesh.dp, engine.device)
        batches = [*mine, *replay.weighed(replayed, valid, total)]
        outputs = engine.forward_backward(batches, rl_loss(CLIPPED, replay.weight), valid * (1 + replay.weight))
        losses.append(outputs.loss.item())
        norms.append(engine.step(1e-2).grad_norm.item())
    metrics = {name: value.item() for name, value in outputs.metrics.items()}
    return Seen(losses, metrics, norms, dict(engine.named_weights()))


def assert_same(found: Seen, wanted: Seen) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=0, abs=1e-12)
    assert found.norms == pytest.approx(wanted.norms, rel=0, abs=1e-12)
    assert found.metrics == pytest.approx(wanted.metrics, rel=0, abs=1e-12)
    for name, value in wanted.weights.items():
        assert (found.weights[name] - value).abs().max() <= 1e-9, name


def test_cut_and_ranks_change_nothing(ranks: RankPool) -> None:
    alone = train(Rank(0, 1), 1)
    assert_same(train(Rank(0, 1), 4), alone)
    for pieces in (1, 2):
        for seen in ranks.run(train, 2, pieces):
            assert_same(seen, alone)


def test_loss_is_the_weighted_mean_of_both() -> None:
    """Slow twin: the policy's mean per sample plus WEIGHT times the mean over replayed tokens, over 1 + WEIGHT."""
    engine, policy, text = make_engine(0, 1), completions(0), random_batch(50, REPLAYED, 14)
    alone = engine.forward_backward([policy], rl_loss(CLIPPED), policy.weight)
    plain = make_engine(0, 1).forward_backward([text], lm_loss, text.weight)
    seen = train(Rank(0, 1), 1)
    expected = (alone.loss.item() + WEIGHT * plain.loss.item()) / (1 + WEIGHT)
    assert seen.losses[0] == pytest.approx(expected, abs=1e-9)
    engine = make_engine(0, 1)
    (weighed,) = Replay(Fixed(1, 0, 1), WEIGHT).weighed([text], policy.weight, text.weight)
    both = engine.forward_backward([policy, weighed], rl_loss(CLIPPED, WEIGHT), policy.weight * (1 + WEIGHT))
    for name in ("policy_loss", "kl", "ratio", "entropy", "clip_share"):
        assert both.metrics[name].item() == pytest.approx(alone.metrics[name].item(), abs=1e-9), name
    assert both.metrics["replay_loss"].item() == pytest.approx(plain.loss.item(), abs=1e-9)


def test_an_entropy_bonus_follows_the_entropy() -> None:
    """Slow twin: the gradient with the bonus is the gradient without it less weight times the mean entropy's."""

    def gradient(loss: LossFn) -> tuple[float, dict[str, torch.Tensor]]:
        engine = make_engine(0, 1)
        value = engine.forward_backward([policy], loss, policy.weight).loss.item()
        return value, {name: gradient.clone() for name, gradient in engine.named_gradients()}

    def entropy(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        assert outputs.entropy is not None
        return WeightedSum((batch.weights * outputs.entropy).sum(), {})

    policy = completions(0)
    (bare, d_bare), (mean, d_mean) = gradient(rl_loss(CLIPPED)), gradient(entropy)
    both, d_both = gradient(rl_loss(CLIPPED, entropy_weight=0.3))
    assert both == pytest.approx(bare - 0.3 * mean, abs=1e-12)
    for name, value in d_both.items():
        assert (value - (d_bare[name] - 0.3 * d_mean[name])).abs().max() <= 1e-12, name


def test_without_replay_nothing_is_added() -> None:
    replay = Replay(None, 0.7)
    assert (replay.weight, replay.step(3), replay.weighed([], 5.0, 0.0)) == (0.0, [], [])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"samples": 3}, "stage 'rl.replay': global_batch_size = 3 does not divide over 2"),
        ({"mixture": {}}, "stage 'rl.replay': mixture"),
        ({"weight": 0.0}, "rl.replay.weight = 0.0; give more than 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], told: str) -> None:
    config = Config()
    config.parallel.dp_shard = 2
    config.data.mixture = {"en": 1.0}
    config.rl.replay = replace(config.rl.replay, **{"samples": 2, "mixture": {"en": 1.0}, **settings})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=told.split(";")[0].replace("(", r"\(")):
        replay_stage(config)
