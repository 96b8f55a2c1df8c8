"""Every collective of farside. A group is always named; a group of one rank costs nothing.

The differentiable ones are typed by ``spmd_types``: on an axis a tensor is Replicate (R: equal values, gradients still
to be summed), Invariant (I: equal values, equal gradients), Varying (V, or Shard(dim)) or Partial (P: to be summed).
Low precision is summed in fp32.
"""

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
    """Partial -> Shard(dim): the sum over ranks, cut along ``dim``. Backward: all-gather, Shard(dim) -> R."""
    if size(group) == 1:
        return x
    return spmd.reduce_scatter(x, group, src=spmd.P, dst=spmd.S(dim), **_at_least_fp32(x))


def max_(tensor: Tensor, group: Group) -> Tensor:
    """All-reduce in place by maximum; returns the tensor."""
    if size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor
