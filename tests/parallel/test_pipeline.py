"""Schedules over small stages against one process; which layers go where."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from farside.parallel.pipeline import Pipeline, run_forward, split_layers, stage_numbers, stages_per_rank
from tests.ranks import Rank, RankPool

B, T, E, LAYERS = 2, 3, 5, 8


class Part(nn.Module):
    """Some of LAYERS products, with an input and an output by number."""

    def __init__(self, layers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(layer): nn.Linear(E, E, bias=False, dtype=torch.float64) for layer in layers})
        self.first, self.last = 0 in layers, LAYERS - 1 in layers
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(int(name.split(".")[1]))
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        if self.first:
            x = data(int(number))
        for layer in self.layers.values():
            x = x + torch.tanh(layer(x))
        return x.sum(-1) if self.last else x


def data(number: int) -> Tensor:
    return torch.randn(B, T, E, generator=torch.Generator().manual_seed(100 + number), dtype=torch.float64)


def loss_of(output: Tensor, number: int) -> Tensor:
    return (output * (number + 1)).square().sum()


def alone(count: int) -> tuple[float, dict[str, Tensor]]:
    part = Part(range(LAYERS))
    loss = sum(loss_of(part(torch.zeros(1), torch.tensor(number)), number) for number in range(count))
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in part.named_parameters() if p.grad is not None}


def together(place: Rank, schedule: str, count: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses by forward_backward and by forward alone, where the last stage is, and this rank's gradients."""
    ranges = split_layers(LAYERS, stages_per_rank(schedule) * place.world_size, 0.0)
    parts = [Part(ranges[stage]) for stage in stage_numbers(schedule, place.world_size, place.rank)]
    found: list[float] = []

    def loss(outputs: tuple[Tensor, ...], number: int) -> Tensor:
        value = loss_of(outputs[0], number)
        found.append(value.item())
        return value

    activation = torch.empty(B, T, E, dtype=torch.float64)
    output = torch.empty(B, T, dtype=torch.float64)
    pipeline = Pipeline(parts, schedule, torch.distributed.group.WORLD, count, activation, (output,))
    passed = run_forward(parts, schedule, torch.distributed.group.WORLD, count, activation)
    before = [loss_of(outputs[0], number).item() for number, outputs in enumerate(passed)]
    pipeline.forward_backward(loss)
    gradients = {name: p.grad for part in parts for name, p in part.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return found, before, gradients  # type: ignore[return-value]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
@pytest.mark.parametrize("ranks_used", [2, 4])
def test_losses_and_gradients_equal_one_process(ranks: RankPool, schedule: str, ranks_used: int) -> None:
    count = 2 * ranks_used
    loss, wanted = alone(count)
    results = ranks.run(together, ranks_used, schedule, count)
    gradients = {name: value for _, _, part in results for name, value in part.items()}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= 1e-12 * wanted[name].norm(), name
    (losses,) = [found for found, _, _ in results if found]
    (before,) = [found for _, found, _ in results if found]
    assert len(losses) == len(before) == count
    assert sum(losses) == pytest.approx(loss, rel=1e-13)
    assert sum(before) == pytest.approx(loss, rel=1e-13)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 6))
def test_layers_are_split_once_each_and_evenly(layers: int, stages: int, head: float) -> None:
    if layers < stages:
        with pytest.raises(ValueError, match="every stage needs one"):
            split_layers(layers, stages, head)
        return
    ranges = split_layers(layers, stages, head)
    assert [layer for part in ranges for layer in part] == list(range(layers))
    assert min(map(len, ranges)) >= 1
    busiest = max(len(part) + head * (number == stages - 1) for number, part in enumerate(ranges))
    assert busiest <= best(layers, stages, head) + 1e-6


def best(layers: int, stages: int, head: float) -> float:
    """Least busiest stage, by trying every size of the last one."""
    if stages == 1:
        return layers + head
    return min(max(last + head, -(-(layers - last) // (stages - 1))) for last in range(1, layers - stages + 2))


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert [len(part) for part in split_layers(8, 4, 0.0)] == [2, 2, 2, 2]
    assert [len(part) for part in split_layers(8, 4, 2.0)] == [3, 2, 2, 1]
