"""Bugs to plant in the product, as context managers for a rank of the pool or a worker of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from farside.configs.schema import Dtype
from farside.parallel import fsdp
from farside.parallel.context import ring
from farside.parallel.plan import ShardTable
from farside.train.engine.native import NativeEngine
from farside.train.engine.weights import Weights


@contextmanager
def norm_gradients_not_summed() -> Iterator[None]:
    """Megatron-LM#1464: gradients of norms stay each tensor-parallel rank's share."""
    with patch.object(ShardTable, "sum_partial_gradients", lambda self, gradients: None):
        yield


@contextmanager
def norm_gradients_not_summed_beside_shards() -> Iterator[None]:
    """The same where parameters are sharded too: neither axis alone shows it."""
    original = ShardTable.sum_partial_gradients

    def partly(self: ShardTable, gradients: Any) -> None:
        if self.mesh.fsdp is None:
            original(self, gradients)

    with patch.object(ShardTable, "sum_partial_gradients", partly):
        yield


@contextmanager
def weighted(factor: Callable[[NativeEngine, int], float]) -> Iterator[None]:
    """The global weight times factor(engine, micro-batches): loss and gradients become that much smaller."""
    original = NativeEngine.forward_backward

    def wrong(self: NativeEngine, microbatches: Any, loss_fn: Any, total_weight: float) -> Any:
        return original(self, microbatches, loss_fn, total_weight * factor(self, len(microbatches)))

    with patch.object(NativeEngine, "forward_backward", wrong):
        yield


def averaged_over_ranks() -> Any:
    """The sum over data-parallel ranks taken for a mean once more."""
    return weighted(lambda engine, count: engine.mesh.dp_size)


def averaged_over_microbatches() -> Any:
    return weighted(lambda engine, count: count)


def wrong_in_float32() -> Any:
    return weighted(lambda engine, count: 1.1 if engine.config.train.dtype is Dtype.float32 else 1.0)


@contextmanager
def ring_without_reduction() -> Iterator[None]:
    """dK and dV that come home from the ring are not added."""
    original = ring.RingAttention.backward

    def wrong(ctx: Any, grad: torch.Tensor) -> Any:
        with patch.object(torch, "_foreach_add_", lambda *tensors: None):
            return original(ctx, grad)

    with patch.object(ring.RingAttention, "backward", staticmethod(wrong)):
        yield


@contextmanager
def tied_gradient_lost() -> Iterator[None]:
    """What the last pipeline stage knows of the shared embedding never reaches the first."""

    def wrong(self: Weights) -> None:
        self.table.sum_partial_gradients(self.gradients())

    with patch.object(Weights, "complete_gradients", wrong):
        yield


@contextmanager
def second_replica_drifts() -> Iterator[None]:
    """One replica, not the first, ends with weights of its own."""
    original = NativeEngine.step

    def wrong(self: NativeEngine, lr: float) -> Any:
        stats = original(self, lr)
        if not self.mesh.is_first_replica:
            with torch.no_grad():
                fsdp.local(self.weights.owned["model.norm.weight"]).mul_(1.001)
        return stats

    with patch.object(NativeEngine, "step", wrong):
        yield


@contextmanager
def formula_of_half_the_bytes() -> Iterator[None]:
    original = ring.bytes_sent

    def wrong(*arguments: Any) -> Any:
        return tuple({name: count // 2 for name, count in sent.items()} for sent in original(*arguments))

    with patch.object(ring, "bytes_sent", wrong):
        yield
