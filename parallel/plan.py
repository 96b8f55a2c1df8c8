"""Which parameter is cut how over the tensor-parallel ranks, as data keyed by canonical name.

Two cuts make up what a rank holds: tensor parallelism takes its part of ``dim``, then FSDP2 takes rows of that.
``ShardTable`` undoes and redoes both; initial values, optimizers, checkpoints and export read it and nothing else.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel import comm, fsdp
from farside.parallel.box import Box, Piece
from farside.parallel.mesh import ONE_RANK, Mesh

TENSOR_PLAN = (
    ("*.q_proj.weight", 0),
    ("*.k_proj.weight", 0),
    ("*.v_proj.weight", 0),
    ("*.o_proj.weight", 1),
    ("*.gate_proj.weight", 0),
    ("*.up_proj.weight", 0),
    ("*.down_proj.weight", 1),
    ("*embed_tokens.weight", 0),
    ("lm_head.weight", 0),
)
"""Name pattern -> the dimension of the whole parameter that tensor parallelism cuts; every rank holds the others
whole."""


def tensor_dim(name: str) -> int | None:
    return next((dim for pattern, dim in TENSOR_PLAN if fnmatch.fnmatchcase(name, pattern)), None)


def part(whole: int, size: int) -> int:
    """Of ``whole`` rows cut over ``size`` ranks, how many each holds; the last rank's surplus is padding."""
    return -(-whole // size)


@dataclass(frozen=True)
class ShardTable:
    """shapes: canonical name -> shape of the whole, unsharded parameter."""

    shapes: Mapping[str, torch.Size]
    mesh: Mesh = ONE_RANK

    def full(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a parameter (or of a moment that is cut like it). Collective when sharded."""
        return self._join(name, fsdp.full(tensor))

    def box(self, name: str) -> Box:
        """What this rank holds of the whole; padding is no part of it."""
        whole, dim, size = self.shapes[name], tensor_dim(name), comm.size(self.mesh.tp)
        offset, shape = [0] * len(whole), list(whole)
        if dim is not None and size > 1:
            shape[dim] = part(whole[dim], size)
            offset[dim] = comm.rank(self.mesh.tp) * shape[dim]
        if comm.size(self.mesh.fsdp) > 1:  # rows as torch.chunk cuts them
            rows = part(shape[0], comm.size(self.mesh.fsdp))
            start = min(comm.rank(self.mesh.fsdp) * rows, shape[0])
            offset[0], shape[0] = offset[0] + start, min(rows, shape[0] - start)
        held = (max(0, min(count, n - first)) for first, count, n in zip(offset, shape, whole))
        return Box(tuple(offset), tuple(held))

    def pieces(self, tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
        """What this rank is to save of tensors that it holds parts of: over all ranks, every element once. Views."""
        writers, pieces = self._writers(tensors), {}
        here = (self.mesh.replica, comm.rank(self.mesh.tp))
        for name, tensor in tensors.items():
            replica, tp_rank = writers[name]
            box = self.box(name)
            if box.numel and here == (replica, here[1] if tp_rank is None else tp_rank):
                # padding is at the end of what a rank holds
                values = fsdp.local(tensor.detach())[tuple(slice(count) for count in box.shape)]
                pieces[name] = Piece(self.shapes[name], box, values)
        return pieces

    def _writers(self, names: Iterable[str]) -> dict[str, tuple[int, int | None]]:
        """Of the ranks that hold the same, the one that saves it: (dp_replicate rank, tp rank or None: each its own).
        The largest first to whoever has least, so that all write about as much; alike on all ranks that hold it."""
        replicas, size = range(self.mesh.dims.dp_replicate), comm.size(self.mesh.tp)
        load = {(replica, tp_rank): 0 for replica in replicas for tp_rank in range(size)}
        found: dict[str, tuple[int, int | None]] = {}
        for name in sorted(names, key=lambda name: (-self.shapes[name].numel(), name)):
            if self.is_cut(name):
                replica = min(replicas, key=lambda replica: load[replica, 0])
                found[name] = replica, None
                for tp_rank in range(size):
                    load[replica, tp_rank] += self.shapes[name].numel() // size
            else:
                found[name] = replica, tp_rank = min(load, key=lambda place: load[place])
                load[replica, tp_rank] += self.shapes[name].numel()
        return found

    @torch.no_grad()
    def load_(self, name: str, target: Tensor, read: Callable[[Box], Tensor]) -> None:
        """Fills a sharded or plain tensor with its box of a whole that ``read`` gives; no communication."""
        box, held = self.box(name), fsdp.local(target)
        if held.shape != box.shape:
            held.zero_()  # what is left after the copy is padding
        if box.numel:
            held[tuple(slice(count) for count in box.shape)].copy_(read(box))

    def copy_full_(self, name: str, target: Tensor, value: Tensor) -> None:
        """Writes the whole value, given alike on every rank, into a sharded or plain tensor; no communication."""
        fsdp.copy_full_(target, self.tensor_part(name, value))

    def shard_of(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a whole value, cut as ``parameter`` is; no communication."""
        return fsdp.shard_of(self.tensor_part(name, value), parameter)

    def tensor_part(self, name: str, whole: Tensor) -> Tensor:
        """This tensor-parallel rank's part of a whole value, padded with zeros to equal size."""
        dim, size = tensor_dim(name), comm.size(self.mesh.tp)
        if dim is None or size == 1:
            return whole
        rows = part(whole.shape[dim], size)
        padding = rows * size - whole.shape[dim]
        if padding:
            whole = F.pad(whole, (0, 0) * (whole.ndim - 1 - dim) + (0, padding))
        return whole.narrow(dim, comm.rank(self.mesh.tp) * rows, rows)

    def _join(self, name: str, piece: Tensor) -> Tensor:
        dim = tensor_dim(name)
        if dim is None or comm.size(self.mesh.tp) == 1:
            return piece
        joined = comm.all_gather(piece.movedim(dim, 0), self.mesh.tp).movedim(0, dim)
        return joined.narrow(dim, 0, self.shapes[name][dim]).contiguous()

    def gather(self, shards: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from local shards, in one all-gather an axis for all of them. Collective."""
        pieces = fsdp.gather_shards(shards, {name: self._part_shape(name) for name in shards}, self.mesh.fsdp)
        cut = [name for name in pieces if self.is_cut(name)]
        if not cut:
            return pieces
        flat = comm.all_gather(torch.cat([pieces[name].flatten() for name in cut]), self.mesh.tp)
        for name, parts in zip(
            cut,
            zip(*(rank.split([pieces[name].numel() for name in cut]) for rank in flat.chunk(comm.size(self.mesh.tp)))),
        ):
            dim = tensor_dim(name)
            assert dim is not None
            whole = torch.cat([piece.view(self._part_shape(name)) for piece in parts], dim)
            pieces[name] = whole.narrow(dim, 0, self.shapes[name][dim])
        return pieces

    def _part_shape(self, name: str) -> torch.Size:
        shape, dim = list(self.shapes[name]), tensor_dim(name)
        if dim is not None:
            shape[dim] = part(shape[dim], comm.size(self.mesh.tp))
        return torch.Size(shape)

    def is_cut(self, name: str) -> bool:
        """Whether tensor-parallel ranks hold different parts, rather than the same whole."""
        return comm.size(self.mesh.tp) > 1 and tensor_dim(name) is not None

    def is_summed(self, name: str) -> bool:
        """Whether ``sum_partial_gradients`` completes its gradient."""
        return comm.size(self.mesh.tp) > 1 and not self.is_cut(name)

    def types(self, name: str) -> dict[str, str]:
        """The parameter's type per mesh axis, by who is to sum its gradients: V, nobody (ranks hold different parts);
        R, the engine after the backward pass; I, nobody although ranks hold the same."""
        by_fsdp = {axis: "R" if axis in fsdp.SUMMED_AXES else "I" for axis in ("dp", "cp")}
        return {**by_fsdp, "tp": "V" if self.is_cut(name) else "R" if self.is_summed(name) else "I"}

    @torch.no_grad()
    def sum_partial_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Completes the gradients of parameters that every tensor-parallel rank holds whole: each rank's is the part
        that its tokens or heads gave. One all-reduce for all of them, in place."""
        if comm.size(self.mesh.tp) == 1:
            return
        partial = [fsdp.local(gradient) for name, gradient in gradients.items() if self.is_summed(name)]
        flat = comm.sum_(torch.cat([gradient.flatten() for gradient in partial]), self.mesh.tp)
        for gradient, total in zip(partial, flat.split([gradient.numel() for gradient in partial])):
            gradient.copy_(total.view_as(gradient))

    def square_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Sum of squares over all parameters of the model, each counted once, in float64; alike on all ranks."""
        mine = [
            fsdp.local(gradient)
            for name, gradient in gradients.items()
            if self.is_cut(name) or comm.rank(self.mesh.tp) == 0
        ]
        device = next(iter(gradients.values())).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        if mine and self.mesh.is_first_replica:
            total += torch.stack([norm.double() ** 2 for norm in torch._foreach_norm(mine)]).sum()
        return comm.sum_(total, self.mesh.world)
