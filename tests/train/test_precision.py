"""train.dtype=bfloat16: bf16 products over fp32 weights, whose gradients add up in fp32."""

import pytest
import torch
from torch import Tensor

from farside.configs.schema import Config, Dtype, OptimConfig, OptimKind, ParallelConfig
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.train.models import logits_of, random_batch, small_config

MESH = ParallelDims.resolve(ParallelConfig(), 1).build("cpu")


def make_engine(dtype: Dtype = Dtype.bfloat16, head: str = "lm", optim: OptimConfig | None = None) -> NativeEngine:
    config: Config = small_config(dtype=dtype)
    config.optim = optim or config.optim
    return NativeEngine(config, MESH, torch.device("cpu"), head)


def float_batch(seed: int, rows: int = 4) -> Batch:
    batch = random_batch(seed, rows, 12)
    return Batch(**{**vars(batch), "weights": batch.weights.float()})


def gradients(engine: NativeEngine, batches: list[Batch], total: float) -> dict[str, Tensor]:
    engine.forward_backward(batches, lm_loss, total)
    found = {name: p.grad.clone() for name, p in engine.model.named_parameters() if p.grad is not None}
    engine.model.zero_grad(set_to_none=True)
    return found


def test_products_are_bf16_and_everything_kept_is_fp32() -> None:
    engine, batch = make_engine(), float_batch(0)
    seen: set[torch.dtype] = set()
    block = engine.model.model.layers["1"]
    block.mlp.gate_proj.register_forward_hook(lambda module, given, result: seen.update({given[0].dtype, result.dtype}))
    outputs = engine.token_outputs([batch])[0]
    assert seen == {torch.bfloat16}
    assert outputs.logprobs is not None
    assert outputs.logprobs.dtype == torch.float32
    engine.forward_backward([batch], lm_loss, batch.weight)
    engine.step(1e-3)
    state = engine.state_dict()
    assert {piece.values.dtype for piece in [*state.model.values(), *state.optimizer.values()]} == {torch.float32}
    values = make_engine(head="scalar").token_outputs([batch])[0].values
    assert values is not None
    assert values.dtype == torch.float32


def test_loss_and_gradients_are_those_of_fp32_to_the_precision_of_bf16() -> None:
    batch = float_batch(1)
    exact, rounded = make_engine(Dtype.float32), make_engine()
    losses = [engine.forward_backward([batch], lm_loss, batch.weight).loss.item() for engine in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    for (name, one), other in zip(exact.model.named_parameters(), rounded.model.parameters()):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.dtype == torch.float32
        assert (other.grad - one.grad).norm() <= 0.06 * one.grad.norm(), name


def test_micro_batches_add_up_in_fp32() -> None:
    """The accumulated gradient is the fp32 sum of the single ones; a sum in bf16 would be off by 2^-9."""
    engine, batches = make_engine(), [float_batch(seed, 2) for seed in range(4)]
    total = sum(batch.weight for batch in batches)
    together = gradients(engine, batches, total)
    singly = [gradients(engine, [batch], total) for batch in batches]
    for name, gradient in together.items():
        wanted = sum(single[name].double() for single in singly)
        assert (gradient.double() - wanted).norm() <= 1e-6 * wanted.norm(), name
        in_bf16 = sum(single[name].bfloat16() for single in singly)
        assert (in_bf16.double() - wanted).norm() > 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("kind", OptimKind)
def test_updates_far_below_a_bf16_step_are_not_lost(kind: OptimKind) -> None:
    engine, batch = make_engine(optim=OptimConfig(kind=kind, weight_decay=0.0)), float_batch(2)
    before = dict(engine.named_weights())
    before = {name: value.clone() for name, value in before.items()}
    for _ in range(3):
        engine.forward_backward([batch], lm_loss, batch.weight)
        engine.step(1e-6)
    for name, value in engine.named_weights():
        moved = (value - before[name]).abs().max().item()
        assert 0 < moved < 2e-5, name
        if value.ndim == 1:  # norm weights are 1, where bf16 has steps of 2^-8
            assert (value.bfloat16() == before[name].bfloat16()).all()


def test_the_decoding_replica_rounds_weights_as_training_does() -> None:
    engine = make_engine()
    tokens = torch.randint(37, (2, 9), generator=torch.Generator().manual_seed(0))
    replica = engine.replica()
    assert {p.dtype for p in replica.parameters()} == {torch.bfloat16}
    assert torch.equal(logits_of(replica, tokens), logits_of(engine.model, tokens))
