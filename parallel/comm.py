"""Every collective of farside. A group is always named; a group of one rank costs nothing.

The differentiable ones are typed by ``spmd_types``: on an axis a tensor is Replicate (R: equal values, gradients still
to be summed), Invariant (I: equal values, equal gradients), Varying (V, or Shard(dim)) or Partial (P: to be summed).
Low precision is summed in fp32.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
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


def broadcast(tensor: Tensor, source: int, group: Group) -> Tensor:
    """In place: rank ``source``'s values on every rank; returns the tensor."""
    if size(group) > 1:
        dist.broadcast(tensor, group=group, group_src=source)
    return tensor


def broadcast_object(value: Any, group: Group, source: int = 0) -> Any:
    """Rank ``source``'s value on every rank. Pickles: only between our own ranks."""
    if size(group) == 1:
        return value
    values = [value if rank(group) == source else None]
    dist.broadcast_object_list(values, group=group, group_src=source)
    return values[0]


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """This process as rank 0 of ranks that exist in name only: collectives return at once, with nothing meant by
    what they return. For the types of a layout (``farside.parallel.types``)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier(group: Group) -> None:
    if size(group) > 1:
        dist.barrier(group=group)


def _at_least_fp32(tensor: Tensor) -> dict[str, Any]:
    """spmd_types' options for a sum of low-precision tensors."""
    if tensor.dtype.itemsize >= 4:
        return {}
    return {"op_dtype": torch.float32, "out_dtype": tensor.dtype}


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """Shard(dim) -> R: the shards of all ranks along ``dim``, for ranks that go on to use the whole differently.

    Backward: reduce-scatter, Partial -> Shard(dim).
    """
    if size(group) == 1:
        return x
    return spmd.all_gather(x, group, src=spmd.S(dim), dst=spmd.R, backward_options=_at_least_fp32(x))


def gather_alike(x: Tensor, dim: int, group: Group) -> Tensor:
    """Shard(dim) -> I: as ``gather``, for ranks that go on to do the same with the whole. Backward: a slice."""
    if size(group) == 1:
        return x
    return spmd.all_gather(x, group, src=spmd.S(dim), dst=spmd.I)


def sum_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """Partial -> Shard(dim): the sum over ranks, cut along ``dim``. Backward: all-gather, Shard(dim) -> R.

    What a rank computed from its part of a sum is Varying until here; while types are checked, it is declared Partial.
    """
    if size(group) == 1:
        return x
    if spmd.TYPE_CHECKING:
        x = spmd.reinterpret(x, group, src=spmd.V, dst=spmd.P)
    return spmd.reduce_scatter(x, group, src=spmd.P, dst=spmd.S(dim), **_at_least_fp32(x))


def max_(tensor: Tensor, group: Group) -> Tensor:
    """All-reduce in place by maximum; returns the tensor."""
    if size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def send(tensor: Tensor, to: int, group: Group) -> "Arriving":
    """Starts to send to rank ``to`` of the group; wait for it before the group goes down."""
    assert group is not None
    tensor = tensor.contiguous()
    work = dist.isend(tensor, group=group, group_dst=to)
    assert work is not None
    return Arriving([tensor], [], [work])


def receive(into: Tensor, source: int, group: Group) -> Tensor:
    """Fills ``into`` with what rank ``source`` of the group sends; returns it."""
    dist.recv(into, group=group, group_src=source)
    return into


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
