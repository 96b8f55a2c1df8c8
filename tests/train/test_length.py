"""Ways to keep less of a long sequence: MLPs in chunks, inputs of blocks in host memory. They change no gradient."""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from farside.configs.errors import UserError
from farside.configs.schema import Config, DataConfig, Dtype, ModelConfig, ParallelConfig, Recompute, TrainConfig
from farside.configs.stages import pretrain_stages
from farside.parallel.mesh import ParallelDims
from farside.parallel.tensor import WholeTensors
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from farside.train.model import mlp
from farside.train.model.offload import CpuTransfer, Fetched, Offload
from tests.train.models import random_batch, small_config
from tests.train.test_wrap import NORMED, WIDE, gradients

CPU = torch.device("cpu")


def engine_of(model: ModelConfig = NORMED, dtype: Dtype = Dtype.float64, **keys: object) -> NativeEngine:
    """keys: of ``TrainConfig``."""
    config = small_config(model, dtype)
    config.train = replace(config.train, **keys)
    return NativeEngine(config, ParallelDims.resolve(ParallelConfig(), 1).build("cpu"), CPU)


# Chunked MLPs.


def random_mlp(model: ModelConfig) -> mlp.MLP:
    layer, generator = mlp.MLP(model, WholeTensors()), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return layer


@given(tokens=some.integers(0, 30), chunk=some.integers(1, 40), frozen=some.booleans())
def test_chunks_equal_the_whole(tokens: int, chunk: int, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    layer = random_mlp(NORMED).double()
    x = torch.randn(2, tokens, NORMED.hidden_size, generator=generator).double()
    out_gradient = torch.randn(x.shape, generator=generator).double().transpose(0, 1).contiguous().transpose(0, 1)
    results = []
    for layer.chunk in (0, chunk):
        x_NE = x.clone().requires_grad_(not frozen)
        layer.zero_grad()
        out = layer(x_NE)
        out.backward(out_gradient)
        results.append([out.detach(), *(p.grad for p in layer.parameters()), *([] if frozen else [x_NE.grad])])
    for wanted, found in zip(*results, strict=True):
        assert close(found, wanted)


def close(found: Tensor, wanted: Tensor, bound: float = 1e-12) -> bool:
    return bool((found - wanted).norm() <= bound * wanted.norm())


@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_gradients_of_a_model_with_chunked_mlps(recompute: Recompute, chunk: int) -> None:
    batch = random_batch(0, 4, 12)
    loss, wanted = gradients(engine_of(), batch)
    found_loss, found = gradients(engine_of(activation_checkpointing=recompute, mlp_chunk=chunk), batch)
    assert found_loss == pytest.approx(loss, rel=1e-14)
    assert found.keys() == wanted.keys(), "wrapping must not rename parameters"
    for name, gradient in wanted.items():
        assert close(found[name], gradient), name


def test_weights_in_bfloat16_gather_their_gradients_in_float32() -> None:
    """FSDP2 hands weights over in bf16: a sum of 64 chunks in that type would lose what one product keeps."""
    layer = random_mlp(WIDE)
    x_NE, out_gradient = torch.randn(2, 512, WIDE.hidden_size, generator=torch.Generator().manual_seed(0))

    def gradient(dtype: torch.dtype, chunk: int) -> Tensor:
        layer.chunk = chunk
        layer.zero_grad()
        layer.to(dtype)(x_NE.to(dtype)).backward(out_gradient.to(dtype))
        assert layer.down_proj.weight.grad is not None
        return layer.down_proj.weight.grad.double()

    layer.to(torch.bfloat16)  # the same rounded weights for all
    exact, whole, chunked = gradient(torch.float64, 0), gradient(torch.bfloat16, 0), gradient(torch.bfloat16, 8)
    assert (chunked - exact).norm() <= 1.1 * (whole - exact).norm()


def test_recomputed_blocks_leave_a_chunked_mlp_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full recomputation stops before the MLP, which its own backward pass computes again: no work is done thrice."""
    filled = []
    right = mlp.fill
    monkeypatch.setattr(mlp, "fill", lambda *arguments: (filled.append(1), right(*arguments)))
    gradients(engine_of(activation_checkpointing=Recompute.full, mlp_chunk=5), random_batch(0, 4, 12))
    assert len(filled) == NORMED.num_hidden_layers


def peak_bytes(engine: NativeEngine, length: int) -> int:
    """Most that one row's forward and backward pass has allocated at a time."""
    batch = random_batch(0, 1, length)
    gc.collect()  # what others left must not be freed while we count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.forward_backward([batch], lm_loss, batch.weight)
    results = profiler.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


@pytest.mark.slow
def test_peak_memory_is_linear_in_length_and_each_way_keeps_less() -> None:
    ways = {
        "none": engine_of(WIDE),
        "selective": engine_of(WIDE, activation_checkpointing=Recompute.selective),
        "full": engine_of(WIDE, activation_checkpointing=Recompute.full),
        "full, chunks": engine_of(WIDE, activation_checkpointing=Recompute.full, mlp_chunk=16),
    }
    grown = {}
    for way, engine in ways.items():
        short, long = peak_bytes(engine, 128), peak_bytes(engine, 256)
        assert long <= 2.05 * short, f"{way}: {short} bytes for 128 tokens, {long} for 256"
        grown[way] = long - short
    assert grown["selective"] < 0.9 * grown["none"]
    assert grown["full"] < 0.5 * grown["selective"]
    assert grown["full, chunks"] < 0.75 * grown["full"]


# Inputs of blocks in host memory.


class Watched(CpuTransfer):
    """Host memory that the profiler does not see, and a record of what went where."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.sent: list[Tensor] = []

    def send(self, x: Tensor) -> Tensor:
        self.seen.append(("send", len(self.sent)))
        self.sent.append(torch.from_numpy(x.detach().numpy().copy()))
        return self.sent[-1]

    def fetch(self, host: Tensor) -> Fetched:
        (number,) = (number for number, other in enumerate(self.sent) if other is host)
        self.seen.append(("fetch", number))
        return Fetched(host.clone(), lambda: self.seen.append(("wait", number)))


def watched(monkeypatch: pytest.MonkeyPatch, layers: int) -> tuple[NativeEngine, Watched]:
    transfer = Watched()
    monkeypatch.setattr("farside.train.model.wrap.offload_to_host", lambda device: Offload(transfer))
    model = replace(NORMED, num_hidden_layers=layers)
    return engine_of(model, activation_checkpointing=Recompute.full, offload_activations=True), transfer


def test_offloaded_gradients_are_equal_bit_for_bit() -> None:
    batch = random_batch(0, 4, 12)
    loss, wanted = gradients(engine_of(activation_checkpointing=Recompute.full), batch)
    found_loss, found = gradients(engine_of(activation_checkpointing=Recompute.full, offload_activations=True), batch)
    assert found_loss == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_the_input_of_the_block_before_comes_while_one_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, transfer = watched(monkeypatch, 3)
    gradients(engine, random_batch(0, 4, 12))
    put = [("send", 0), ("send", 1), ("send", 2)]
    assert transfer.seen == [
        *put,
        *[("fetch", 2), ("fetch", 1), ("wait", 2)],
        *[("fetch", 0), ("wait", 1), ("wait", 0)],
    ], "each fetched once, the next one before the computation waits for its own"


def kept_bytes(engine: NativeEngine) -> int:
    """What the forward pass leaves allocated for the backward pass."""
    _, items = engine._items([random_batch(0, 4, 64)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        (outputs,) = engine.stages.forward(items)
    assert outputs.logprobs is not None
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_what_stays_on_the_device_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    (shallow, _), (deep, transfer) = watched(monkeypatch, 2), watched(monkeypatch, 6)
    kept = kept_bytes(shallow), kept_bytes(deep)
    assert len(transfer.sent) == 6
    assert abs(kept[1] - kept[0]) < 0.1 * transfer.sent[0].nbytes


# What cannot be.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train: replace(train, mlp_chunk=-1), "train.mlp_chunk = -1; give tokens at once, or 0 for all"),
        (lambda train: replace(train, loss_chunk=0), "train.loss_chunk = 0; give at least 1"),
        (lambda train: replace(train, offload_activations=True), "set train.activation_checkpointing=full"),
    ],
)
def test_what_cannot_be_is_one_line(change: Callable[[TrainConfig], TrainConfig], message: str) -> None:
    config = Config(data=DataConfig(mixture={"en": 1.0}))
    pretrain_stages(config)
    with pytest.raises(UserError, match=message) as error:
        pretrain_stages(replace(config, train=change(config.train)))
    assert "\n" not in str(error.value)
