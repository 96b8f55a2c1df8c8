"""Every collective of farside. A group is always named; a group of one rank costs nothing.

FSDP2 brings its own reductions. The typed differentiable collectives of tensor parallelism will stand beside these.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
"""None stands for the group of this rank alone (no process group was needed)."""


def size(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def rank(group: Group) -> int:
    return 0 if group is None else dist.get_rank(group)


def sum_(tensor: Tensor, group: Group) -> Tensor:
    """All-reduce in place; returns the tensor."""
    if size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def sum_floats(values: list[float], group: Group, device: torch.device) -> list[float]:
    """Sum of Python floats over the group, in float64."""
    if size(group) == 1:
        return list(values)
    return sum_(torch.tensor(values, dtype=torch.float64, device=device), group).tolist()


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """Equal-sized tensors of all ranks, concatenated along dim 0 in rank order."""
    if size(group) == 1:
        return tensor
    gathered = tensor.new_empty(size(group) * tensor.shape[0], *tensor.shape[1:])
    _count("all_gather", tensor.nbytes * (size(group) - 1))
    dist.all_gather_single(gathered, tensor.contiguous(), group=group)
    return gathered


def gather_objects(value: Any, group: Group) -> list[Any]:
    """The value of every rank, in rank order. Pickles: only between our own ranks."""
    if size(group) == 1:
        return [value]
    values: list[Any] = [None] * size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast_object(value: Any, group: Group) -> Any:
    """Rank 0's value on every rank. Pickles: only between our own ranks."""
    if size(group) == 1:
        return value
    values = [value if rank(group) == 0 else None]
    dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def barrier(group: Group) -> None:
    if size(group) > 1:
        dist.barrier(group=group)


# Context parallelism. Bytes are counted as every rank sends them on a ring or pairwise, without the backend's headers.

_counts: list[Counter[str]] = []


@contextmanager
def count_bytes() -> Iterator[Counter[str]]:
    """Counts the bytes that this rank sends inside the block, by the name of the collective.

    Covers all_gather, reduce_scatter, all_to_all and shift, with their backwards. One list per process, because
    autograd runs backwards in threads of its own.
    """
    counter: Counter[str] = Counter()
    _counts.append(counter)
    try:
        yield counter
    finally:
        _counts.remove(counter)


def _count(name: str, sent: int) -> None:
    for counter in _counts:
        counter[name] += sent


@dataclass(frozen=True)
class Arriving:
    """Tensors under way. Holds what is being sent: it must live until the transfer is over."""

    sent: Sequence[Tensor]
    received: Sequence[Tensor]
    works: Sequence[dist.Work]

    def wait(self) -> Sequence[Tensor]:
        for work in self.works:
            work.wait()
        return self.received


def shift(tensors: Sequence[Tensor], group: Group) -> Arriving:
    """Starts to send to the next rank of the ring and to receive, of the same shapes, from the one before."""
    assert group is not None
    following, before = (rank(group) + 1) % size(group), (rank(group) - 1) % size(group)
    tensors = [tensor.contiguous() for tensor in tensors]
    received = [torch.empty_like(tensor) for tensor in tensors]
    operations = [dist.P2POp(dist.isend, tensor, group=group, group_peer=following) for tensor in tensors]
    operations += [dist.P2POp(dist.irecv, tensor, group=group, group_peer=before) for tensor in received]
    _count("shift", sum(tensor.nbytes for tensor in tensors))
    return Arriving(tensors, received, dist.batch_isend_irecv(operations))


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """Sum over the ranks; rank r keeps the r-th of equal parts along dim 0."""
    if size(group) == 1:
        return tensor
    part = tensor.new_empty(tensor.shape[0] // size(group), *tensor.shape[1:])
    _count("reduce_scatter", part.nbytes * (size(group) - 1))
    dist.reduce_scatter_single(part, tensor.contiguous(), group=group)
    return part


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def spmd_typecheck(out: Tensor, *, tensor: Tensor, group: Group) -> None:
        from spmd_types import V, rules

        assert group is not None
        rules.all_to_all(tensor, group, src=V, dst=V, out=out)

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        tensor = tensor.contiguous()
        received = torch.empty_like(tensor)
        _count("all_to_all", tensor.nbytes // size(group) * (size(group) - 1))
        dist.all_to_all_single(received, tensor, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(grad, ctx.group), None


def all_to_all(tensor: Tensor, group: Group) -> Tensor:
    """Differentiable: part r of dim 0 goes to rank r, part r of the result came from there. dim 0: as many as ranks."""
    return tensor if size(group) == 1 else _AllToAll.apply(tensor, group)


# Typing rules of autograd functions that live elsewhere. ``spmd_types`` calls them while it checks types, and only then
# is it imported. Local reading: on every mesh axis a tensor is Replicate, Invariant, Varying or Partial.


def type_attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, group: Group) -> None:
    """Attention over a context: on its axis queries, keys, values and output vary. Elsewhere it is a local operation
    that is not linear in q, k, and so takes no Partial."""
    from spmd_types import V, assert_type, rules

    if group is not None:
        for tensor in (q, k, v):
            assert_type(tensor, {group: V})
    rules.einsum("blhd,bmkd,bmkd->blhd", q, k, v, out=out)


def type_ignored(*tensors: Tensor) -> None:
    """Arguments that hold plans, not values."""
    from spmd_types import rules

    rules.ignore(*tensors)


def type_permutation(out: Tensor, tensor: Tensor, order: Tensor) -> None:
    """A local permutation of dim 1: linear, so it takes any type."""
    from spmd_types import rules

    type_ignored(order)
    rules.einsum("b_...->b_...", tensor, linear_in=(0,), out=out)
