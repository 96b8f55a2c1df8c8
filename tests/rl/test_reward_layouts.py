"""Reward models train under every layout: gradients do not depend on how a batch is cut or spread over ranks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from farside.configs.schema import ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.rl.reward.feed import ShuffledFeed
from farside.rl.reward.model import bradley_terry_loss
from farside.rl.reward.pairs import Pair, pair_batch
from farside.rl.reward.process import Labelled, process_loss, step_batch
from farside.rl.types import Completion, Prompt
from farside.train.engine.native import NativeEngine
from farside.train.loss import LossFn
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, small_config

ITEMS, BOUND = 8, 1e-10
ONE = ParallelConfig()
LAYOUTS = {
    "dp": ParallelConfig(dp_shard=2),
    "cp": ParallelConfig(cp=2),
    "tp": ParallelConfig(tp=2),
    "pp": ParallelConfig(pp=2),
}
KINDS = ("outcome", "process")
Gradients = tuple[float, float, dict[str, Tensor]]


def answers(count: int) -> list[Completion]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda low, high, size: torch.randint(low, high, (size,), generator=generator).tolist()  # noqa: E731
    items = []
    for number in range(count):
        length = draw(1, 8, 1)[0]
        prompt = draw(0, 37, 2 + number % 3)
        items.append(Completion(Prompt(number, "", ""), prompt, draw(0, 37, length), [0.0] * length, "", False, 0))
    return items


def material(kind: str) -> tuple[list[Any], Callable[[Sequence[Any]], Batch], LossFn]:
    if kind == "outcome":
        found = answers(2 * ITEMS)
        pairs = [Pair(*two) for two in zip(found[0::2], found[1::2])]
        return pairs, pair_batch, partial(bradley_terry_loss, margin=0.3)
    steps = []
    for item in answers(ITEMS):
        last = len(item.tokens) - 1
        ends = sorted({last // 2, last})
        steps.append(Labelled(item, ends, [0.75, 0.0][-len(ends) :]))
    return steps, step_batch, process_loss


def gradients(place: Rank, layout: ParallelConfig, kind: str, micro: int) -> Gradients:
    """(loss, accuracy, whole gradients) of a step on all items, of which a data-parallel rank has its share."""
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    config = small_config(SMALL)
    config.parallel = layout
    engine = NativeEngine(config, mesh, torch.device("cpu"), head="scalar")
    items, collate, loss_fn = material(kind)
    feed = ShuffledFeed(items, collate, "items", ITEMS, micro, 0, mesh.dp_rank, mesh.dp_size)
    total = sum(batch.weight for batch in ShuffledFeed(items, collate, "items", ITEMS, ITEMS, 0, 0, 1).step(0))
    outputs = engine.forward_backward(feed.step(0), loss_fn, total)
    found = {name: value.clone() for name, value in engine.named_gradients()}
    return outputs.loss.item(), outputs.metrics["accuracy"].item(), found


def assert_same(found: Gradients, wanted: Gradients) -> None:
    assert found[:2] == pytest.approx(wanted[:2], rel=0, abs=BOUND)
    assert max(value.abs().max() for value in wanted[2].values()) > 1e-3
    assert wanted[2]["score.weight"].abs().max() > 1e-3
    for name, value in wanted[2].items():
        assert (found[2][name] - value).abs().max() <= BOUND, name


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches(kind: str) -> None:
    whole = gradients(Rank(0, 1), ONE, kind, ITEMS)
    for micro in (3, 1):
        assert_same(gradients(Rank(0, 1), ONE, kind, micro), whole)


@pytest.mark.parametrize("axis", LAYOUTS)
def test_two_ranks(ranks: RankPool, axis: str) -> None:
    for kind in KINDS:
        whole = gradients(Rank(0, 1), ONE, kind, ITEMS)
        for found in ranks.run(gradients, 2, LAYOUTS[axis], kind, 2):
            assert_same(found, whole)
