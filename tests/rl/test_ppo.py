"""PPO's critic: golden advantages, the value loss against a loop, and its gradient however the batch is cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from farside.configs.schema import ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.rl.algorithms.ppo import gae, value_loss
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
