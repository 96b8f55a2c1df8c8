"""PPO's critic: golden advantages, the value loss against a loop, and its gradient however the batch is cut."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from farside.configs.errors import UserError
from farside.configs.schema import Algorithm, CheckpointConfig, Config, ParallelConfig, RlConfig
from farside.data.batch import Batch
from farside.parallel.box import Box
from farside.parallel.mesh import ParallelDims
from farside.rl.algorithms.ppo import estimates, gae, value_loss
from farside.rl.algorithms.registry import make_algorithm
from farside.rl.critic import Critic, saved
from farside.rl.experience import Experience
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.base import EngineState
from farside.train.engine.native import NativeEngine
from farside.train.model.heads import TokenOutputs
from tests.ranks import Rank, RankPool
from tests.rl.policy import tensor
from tests.train.models import SMALL, random_batch, small_config

LAYOUTS = {"dp": ParallelConfig(dp_shard=2), "cp": ParallelConfig(cp=2), "tp": ParallelConfig(tp=2)}


@pytest.mark.parametrize(("decay", "golden"), [(0.95, [0.751, 0.58, 0.4]), (1.0, [0.8, 0.6, 0.4])])
def test_golden_gae(decay: float, golden: list[float]) -> None:
    values = tensor(0.2, 0.4, 0.6, 9.0)[None]
    counted = torch.tensor([[True, True, True, False]])
    advantages, returns = gae(tensor(0, 0, 1, 0)[None], values, counted, 1.0, decay)
    assert advantages[0].tolist() == pytest.approx([*golden, 0], rel=0, abs=1e-12)
    wanted = [a + v for a, v in zip(golden, (0.2, 0.4, 0.6))]
    assert returns[0].tolist() == pytest.approx([*wanted, 0], rel=0, abs=1e-12)


def test_golden_ppo() -> None:
    """Two answers of two tokens to one problem, the first right; the critic knew of the second token."""
    values = torch.tensor([[0.5, 1.0], [0.5, 0.0]], dtype=torch.float64)
    counted, kl = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.float64)
    seen = Experience(tensor(1, 0)[None], counted[:1], counted, list, kl, values)
    config = RlConfig(algorithm=Algorithm.ppo)
    advantages, returns = estimates(seen, config)
    assert advantages.tolist() == [[0.5, 0.0], [-0.5, 0.0]]
    assert returns.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    found = make_algorithm(config).advantages(seen)
    assert found.flatten().tolist() == pytest.approx([2**0.5, 0, -(2**0.5), 0], rel=0, abs=1e-12)
    one_step, _ = estimates(replace(seen, values_NT=values - 0.1), RlConfig(gae_lambda=0.0, gamma=0.5))
    wanted = [0.5 * 0.9 - 0.4, 1 - 0.9, 0.5 * -0.1 - 0.4, 0.1]
    assert one_step.flatten().tolist() == pytest.approx(wanted, rel=0, abs=1e-12)
    taken, _ = estimates(replace(seen, kl_NT=kl + 0.25), config)  # what the reward takes for distance, token by token
    assert taken.flatten().tolist() == pytest.approx([0.0, -0.25, -1.0, -0.25], rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "explained"), [([1, 2, 4], 1.0), ([5, 6, 8], 1.0), ([3, 3, 3], 0.0), ([0.5, 1, 2], 0.75)]
)
def test_explained_variance(values: list[float], explained: float) -> None:
    """Whatever has no weight does not count; ``packed`` over two batches."""
    row = lambda *numbers: tensor(*numbers)[None]  # noqa: E731
    zeros = torch.zeros(1, 2, dtype=torch.long)
    first, second = {"returns": row(1, 2), "old_values": row(*values[:2])}, {"returns": row(4, 99)}
    second["old_values"] = row(values[2], torch.nan)
    batches = [
        Batch(zeros, zeros, row(*weights), zeros, zeros, extras)
        for weights, extras in (((1, 1), first), ((1, 0), second))
    ]
    critic = Critic(Config(), None, list)  # type: ignore[arg-type]
    assert critic.explained_variance(batches) == pytest.approx(explained, rel=0, abs=1e-12)


def scalar_engine(layout: ParallelConfig, place: Rank, head: str, seed: int) -> NativeEngine:
    config = replace(small_config(SMALL), parallel=layout)
    config.train.seed = seed
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"), head)


def policy_and_critic(place: Rank, folder: Path, layout: ParallelConfig, seed: int, updates: int) -> EngineState:
    """What both hold after some updates of the critic and another number of the policy, or what they resume from."""
    policy, critic = scalar_engine(layout, place, "lm", seed), scalar_engine(layout, place, "scalar", seed + 1)
    store = CheckpointStore(folder, CheckpointConfig(), policy.mesh.world, {"model": "test"})
    whole = saved(policy, critic)
    for _ in range(updates):
        batch = random_batch(3, 8, 12)
        batch = replace(batch, extras={name: torch.zeros_like(batch.weights) for name in ("old_values", "returns")})
        critic.forward_backward([batch], value_loss(9.0), batch.weight)
        critic.step(1e-2)
    if updates:
        store.save(whole, 4, {"rope": policy.rope.record()})
        store.finish()
    else:
        assert store.resume(whole) is not None
    assert critic.optimizer.updates == (updates or 3)
    assert policy.optimizer.updates == 0
    return replace(whole.state_dict(), model={})


def test_a_checkpoint_holds_the_critic_on_any_mesh(ranks: RankPool, tmp_path: Path) -> None:
    alone, tp = ParallelConfig(), ParallelConfig(tp=2)
    written = policy_and_critic(Rank(0, 1), tmp_path, alone, 0, 3)
    read = policy_and_critic(Rank(0, 1), tmp_path, alone, 9, 0)
    assert written.optimizer.keys() == read.optimizer.keys()
    assert "critic.score.weight" in read.optimizer
    assert "critic.exp_avg.score.weight" in read.optimizer
    for name, piece in written.optimizer.items():
        assert torch.equal(piece.values, read.optimizer[name].values), name
    parts = ranks.run(policy_and_critic, 2, tmp_path, tp, 9, 0)
    for part in parts:
        for name, piece in part.optimizer.items():
            assert torch.equal(piece.values, written.optimizer[name].values[piece.box.within(Box.whole(piece.whole))])
    names = [name for part in parts for name in part.optimizer]
    assert set(names) == set(written.optimizer)
    assert names.count("critic.updates") == 1


def test_a_checkpoint_without_a_critic_is_refused(tmp_path: Path) -> None:
    policy = scalar_engine(ParallelConfig(), Rank(0, 1), "lm", 0)
    store = CheckpointStore(tmp_path, CheckpointConfig(), policy.mesh.world, {"model": "test"})
    store.save(policy, 4, {})
    store.finish()
    critic = scalar_engine(ParallelConfig(), Rank(0, 1), "scalar", 0)
    with pytest.raises(UserError, match="began without a critic"):
        store.resume(saved(policy, critic))


NUMBERS = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6)


@given(tokens=NUMBERS, gamma=st.floats(0, 1), decay=st.floats(0, 1))
def test_gae_is_a_sum_of_errors(tokens: list[tuple[float, float]], gamma: float, decay: float) -> None:
    rewards, values = (list(column) for column in zip(*tokens))
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following)]
    counted = torch.ones(1, len(tokens), dtype=torch.bool)
    found, _ = gae(tensor(*rewards)[None], tensor(*values)[None], counted, gamma, decay)
    for t in range(len(tokens)):
        slow = sum((gamma * decay) ** (s - t) * deltas[s] for s in range(t, len(tokens)))
        assert found[0, t].item() == pytest.approx(slow, rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope", "cut"),
    [
        (0.5, 0.5, 1.0, 0.125, -0.5, 0),
        (0.9, 0.5, 1.0, 0.5 * 0.3**2, 0.0, 1),  # moved further than .2 toward the return: held back
        (0.1, 0.5, 1.0, 0.5 * 0.9**2, -0.9, 0),  # moved away: pays in full
    ],
)
def test_value_loss(value: float, old: float, target: float, loss: float, slope: float, cut: int) -> None:
    values = torch.tensor([[value, torch.nan]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 2, dtype=torch.long)
    extras = {"old_values": tensor(old, torch.inf)[None], "returns": tensor(target, torch.nan)[None]}
    batch = Batch(zeros, zeros, tensor(1, 0)[None], zeros, zeros, extras)
    result = value_loss(0.2)(TokenOutputs(values=values), batch)
    assert result.total.item() == pytest.approx(loss, rel=0, abs=1e-12)
    assert torch.autograd.grad(result.total, values)[0].tolist()[0] == pytest.approx([slope, 0], rel=0, abs=1e-12)
    assert result.metrics["value_clip_share"].item() == cut


def critic_gradients(place: Rank, layout: ParallelConfig, rows: int) -> tuple[float, dict[str, Tensor]]:
    config = replace(small_config(SMALL), parallel=layout)
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    engine = NativeEngine(config, mesh, torch.device("cpu"), "scalar")
    whole = random_batch(7, 8, 12)
    generator = torch.Generator().manual_seed(1)
    old, target = torch.randn(2, *whole.tokens.shape, generator=generator, dtype=torch.float64)
    whole = replace(whole, extras={"old_values": old, "returns": target})
    share = 8 // mesh.dp_size
    batches = []
    for first in range(mesh.dp_rank * share, (mesh.dp_rank + 1) * share, rows):
        part = slice(first, min(first + rows, (mesh.dp_rank + 1) * share))
        cut = {name: value[part] for name, value in vars(whole).items() if name != "extras"}
        batches.append(Batch(**cut, extras={name: value[part] for name, value in whole.extras.items()}))
    outputs = engine.forward_backward(batches, value_loss(0.5), whole.weight)
    return outputs.loss.item(), {name: value.clone() for name, value in engine.named_gradients()}


@pytest.mark.parametrize("axis", ["", *(pytest.param(axis, marks=pytest.mark.slow) for axis in LAYOUTS)])
def test_the_cut_changes_nothing(ranks: RankPool, axis: str) -> None:
    loss, wanted = critic_gradients(Rank(0, 1), ParallelConfig(), 8)
    found = (
        ranks.run(critic_gradients, 2, LAYOUTS[axis], 3)
        if axis
        else [critic_gradients(Rank(0, 1), ParallelConfig(), 3)]
    )
    for other, gradients in found:
        assert other == pytest.approx(loss, rel=0, abs=1e-10)
        assert max(value.abs().max() for value in wanted.values()) > 1e-3
        for name, value in wanted.items():
            assert (gradients[name] - value).abs().max() <= 1e-10, name
