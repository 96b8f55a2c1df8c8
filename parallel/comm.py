"""Every collective of farside. A group is always named; a group of one rank costs nothing.

None here is differentiable yet: FSDP2 brings its own reductions. The typed differentiable collectives of
tensor and context parallelism will stand beside these.
"""

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
