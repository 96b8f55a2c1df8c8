"""What an engine owes its callers on any layout, beside equal numbers: types, fresh weights, no leaks."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from farside.configs.schema import Config, Dtype, ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.parallel.pipeline import Pipeline
from farside.train.engine.native import NativeEngine
from farside.train.loss import WeightedSum, lm_loss
from farside.train.model.heads import TokenOutputs
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, InMemory, attend_within, random_batch, small_config

ALONE = Rank(0, 1)


def make_engine(place: Rank, layout: ParallelConfig, dtype: Dtype, head: str) -> NativeEngine:
    config: Config = small_config(replace(SMALL, num_hidden_layers=4), dtype)
    config.parallel = layout
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"), head)


def float_batch(length: int = 12) -> Batch:
    batch = random_batch(0, 4, length)
    return replace(batch, weights=batch.weights.float())


def sum_of_values(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
    assert outputs.values is not None
    return WeightedSum((outputs.values * batch.weights).sum())


def scalars(place: Rank, layout: ParallelConfig) -> tuple[Tensor, Tensor]:
    """Values of bf16 training, and the head's gradient, of which ranks along dp sum what each has."""
    engine, batch = make_engine(place, layout, Dtype.bfloat16, "scalar"), float_batch()
    values = engine.token_outputs([batch])[0].values
    engine.forward_backward([batch], sum_of_values, batch.weight * layout.dp_shard)
    assert values is not None
    return values, dict(engine.named_gradients())["score.weight"]


@pytest.mark.parametrize(
    ("layout", "equal"),
    [
        (ParallelConfig(dp_shard=2), True),
        (ParallelConfig(pp=2), True),
        (ParallelConfig(dp_shard=2, pp=2), True),
        (ParallelConfig(cp=2), False),  # attention in two parts rounds otherwise
        (ParallelConfig(tp=2), False),
    ],
    ids=["dp", "pp", "dp-pp", "cp", "tp"],
)
def test_a_scalar_head_of_bf16_training_is_fp32(ranks: RankPool, layout: ParallelConfig, equal: bool) -> None:
    wanted, gradient_wanted = scalars(ALONE, ParallelConfig())
    assert wanted.dtype == gradient_wanted.dtype == torch.float32
    assert not torch.equal(wanted, wanted.bfloat16().float())
    for values, gradient in ranks.run(scalars, layout.ranks, layout):
        assert values.dtype == gradient.dtype == torch.float32
        assert (values - wanted).abs().max() <= (0.0 if equal else 0.05)
        assert (gradient - gradient_wanted).norm() <= (1e-6 if equal else 0.02) * gradient_wanted.norm()


def test_the_copy_that_judges_has_the_scalar_head_of_the_engine() -> None:
    engine, batch = make_engine(ALONE, ParallelConfig(), Dtype.bfloat16, "scalar"), float_batch()
    judge = engine.replica()
    judged = judge(batch.tokens, batch.positions, batch.labels, attend_within(batch.doc_ids)).values
    assert judge.computed == torch.bfloat16
    assert torch.equal(judged, engine.token_outputs([batch])[0].values)


def after_loading(place: Rank, layout: ParallelConfig) -> tuple[Tensor, Tensor]:
    """Outputs with new weights, of an engine that has computed with others and of a new one."""
    used, new = (make_engine(place, layout, Dtype.float64, "lm") for _ in range(2))
    batch = random_batch(0, 4, 12)
    used.token_outputs([batch])
    other = InMemory({name: 1.5 * value for name, value in used.named_weights()})
    found = []
    for engine in (used, new):
        engine.load_weights(other)
        found.append(engine.token_outputs([batch])[0].logprobs)
    return found[0], found[1]


@pytest.mark.parametrize("layout", [ParallelConfig(dp_shard=2), ParallelConfig(dp_shard=2, pp=2)], ids=["dp", "dp-pp"])
def test_loaded_weights_are_used_at_once(ranks: RankPool, layout: ParallelConfig) -> None:
    for used, new in ranks.run(after_loading, layout.ranks, layout):
        assert torch.equal(used, new)


def kept(place: Rank) -> list[int]:
    """Pipelines alive after batches of ever other lengths."""
    layout, found = ParallelConfig(pp=2), []
    engine = make_engine(place, layout, Dtype.float32, "lm")
    for length in range(8, 13):
        batch = float_batch(length)
        engine.token_outputs([batch])
        engine.forward_backward([batch], lm_loss, batch.weight)
        engine.step(1e-3)
        gc.collect()
        found.append(sum(isinstance(thing, Pipeline) for thing in gc.get_objects()))
    return found


def test_rows_of_ever_other_lengths_leave_no_buffers(ranks: RankPool) -> None:
    assert ranks.run(kept, 2) == [[1] * 5] * 2


def test_a_second_call_before_the_step_is_refused() -> None:
    engine, batch = make_engine(ALONE, ParallelConfig(), Dtype.float64, "lm"), random_batch(0, 2, 8)
    engine.forward_backward([batch], lm_loss, batch.weight)
    with pytest.raises(AssertionError, match="one call a step"):
        engine.forward_backward([batch], lm_loss, batch.weight)
    engine.step(1e-3)
    engine.forward_backward([batch], lm_loss, batch.weight)
