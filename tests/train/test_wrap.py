"""Recomputation changes memory and nothing else; compilation changes rounding and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from farside.configs.errors import UserError
from farside.configs.schema import Dtype, ModelConfig, ParallelConfig, Recompute
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.train.models import SMALL, random_batch, small_config

NORMED = replace(SMALL, qk_norm=True)
WIDE = replace(SMALL, hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_key_value_heads=4, head_dim=16)
"""Proportions of a Llama, so that what a block keeps is typical."""


def make_engine(
    recompute: Recompute,
    dtype: Dtype = Dtype.float64,
    compile: bool = False,
    model: ModelConfig = NORMED,
    mlp_chunk: int = 0,
) -> NativeEngine:
    config = small_config(model, dtype)
    config.train.mlp_chunk = mlp_chunk
    config.train.activation_checkpointing, config.train.compile = recompute, compile
    return NativeEngine(config, ParallelDims.resolve(ParallelConfig(), 1).build("cpu"), torch.device("cpu"))


def gradients(engine: NativeEngine, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    outputs = engine.forward_backward([batch], lm_loss, batch.weight)
    found = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(engine.model.parameters()))
    return outputs.loss.item(), found


@pytest.mark.parametrize("recompute", [Recompute.selective, Recompute.full])
def test_recomputed_gradients_are_equal_bit_for_bit(recompute: Recompute) -> None:
    batch = random_batch(0, 4, 12)
    loss, wanted = gradients(make_engine(Recompute.none), batch)
    found_loss, found = gradients(make_engine(recompute), batch)
    assert found_loss == loss
    assert found.keys() == wanted.keys(), "wrapping must not rename parameters"
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


def kept_bytes(recompute: Recompute) -> int:
    """What the forward pass leaves allocated for the backward pass."""
    engine = make_engine(recompute, model=WIDE)
    _, items = engine._items([random_batch(0, 4, 256)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        (outputs,) = engine.stages.forward(items)
    assert outputs.logprobs is not None
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_each_kind_keeps_less_than_the_one_before() -> None:
    none, selective, full = (kept_bytes(kind) for kind in (Recompute.none, Recompute.selective, Recompute.full))
    assert selective < 0.85 * none
    assert full < 0.2 * none


@pytest.mark.slow  # the first use of inductor builds its headers: up to a minute
@pytest.mark.parametrize("mlp_chunk", [0, 7])
@pytest.mark.parametrize("recompute", Recompute)
def test_compiled_blocks_equal_eager_ones_to_rounding(recompute: Recompute, mlp_chunk: int) -> None:
    batch = random_batch(1, 3, 16)
    loss, wanted = gradients(make_engine(Recompute.none, Dtype.float32), batch)
    found_loss, found = gradients(make_engine(recompute, Dtype.float32, compile=True, mlp_chunk=mlp_chunk), batch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_without_a_compiler_the_key_and_the_fix_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    from farside.train.model import wrap

    def none_found() -> str:
        raise InvalidCxxCompiler

    assert wrap.get_cpp_compiler is cpp_builder.get_cpp_compiler
    monkeypatch.setattr(wrap, "get_cpp_compiler", none_found)
    with pytest.raises(UserError, match=r"train.compile: no C\+\+ compiler found; install g\+\+"):
        make_engine(Recompute.none, compile=True)
