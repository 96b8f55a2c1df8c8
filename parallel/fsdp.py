"""Fully sharded data parallel (FSDP2) with sum semantics.

The loss is already divided by the weight of the whole global batch, so gradients are sums over ranks: the
library's default, an average, would be wrong by the number of ranks.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

from farside.parallel import comm
from farside.parallel.mesh import Mesh

SUMMED_AXES = ("dp", "cp")
"""Axes of the mesh over which FSDP2, applied as below, sums gradients."""


def apply_fsdp(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    exact: Iterable[nn.Module],
    mesh: Mesh,
    dtype: torch.dtype | None = None,
    reshard: bool = True,
) -> None:
    """Shards each block and then the rest of the model over dp_shard x cp, in place; dp_replicate copies of that.

    dtype: type that weights are gathered and used in; those of the modules ``exact``, and all shards, keep their own.
    Gradients are added up, over micro-batches and over ranks, in at least float32. reshard: free the gathered weights
    of a block between its forward and its backward pass.
    """
    if mesh.tokens is None or mesh.device_mesh is None:
        return
    device_mesh = mesh.device_mesh["dp_replicate", "fsdp"] if mesh.dims.dp_replicate > 1 else mesh.device_mesh["fsdp"]
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=device_mesh, mp_policy=policy, reshard_after_forward=reshard)
    for module in exact:
        fully_shard(module, mesh=device_mesh, reshard_after_forward=False)
    fully_shard(model, mesh=device_mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # both: the setters do not recurse, and a factor alone takes a path gloo lacks (PREMUL_SUM)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def set_gradient_sync(model: nn.Module, sync: bool) -> None:
    """With ``sync`` false, backward accumulates unsharded gradients without communication."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(sync)


def reshard(model: nn.Module) -> None:
    """Frees gathered weights, which are stale once the shards have been written to."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's shard; the tensor itself when it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. Collective when sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_full_(target: Tensor, value: Tensor) -> None:
    """Writes a whole tensor, given alike on every rank, into a sharded or plain one; no communication."""
    local(target).copy_(shard_of(value.to(device=target.device, dtype=target.dtype), target))


def shard_of(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as ``parameter`` is; no communication."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


def gather_shards(shards: dict[str, Tensor], shapes: dict[str, torch.Size], group: comm.Group) -> dict[str, Tensor]:
    """Whole tensors from FSDP2's row shards, in one all-gather for all of them. Collective.

    FSDP2 cuts rows as torch.chunk does: ceil(rows / ranks) each, the last ranks fewer or none. Shards are padded
    to equal size for the exchange.
    """
    ranks = comm.size(group)
    if ranks == 1:
        return dict(shards)
    rows = {name: -(-shape[0] // ranks) for name, shape in shapes.items()}
    padded = [F.pad(shard, (0, 0, 0, rows[name] - shard.shape[0])).flatten() for name, shard in shards.items()]
    gathered = comm.all_gather(torch.cat(padded), group).view(ranks, -1)
    whole, offset = {}, 0
    for name, shape in shapes.items():
        size = rows[name] * shape[1]
        whole[name] = gathered[:, offset : offset + size].reshape(ranks * rows[name], shape[1])[: shape[0]]
        offset += size
    return whole
