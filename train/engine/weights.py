"""This rank's parameters by canonical name, and what ranks must tell each other about theirs.

Three things are left to do after a backward pass, because the model knows nothing of ranks: gradients of parameters
that tensor-parallel ranks hold whole are partial sums; an embedding that is also the output matrix lies in two pipeline
stages; and a name may live on another stage altogether.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from farside.parallel import comm, fsdp
from farside.parallel.pipeline import last_rank
from farside.parallel.plan import ShardTable
from farside.train.model.transformer import Transformer


class Weights:
    """owned: parameters that this rank updates. copies: a tied output matrix on the last stage; its gradient goes to
    the embedding on the first stage, and the updated values come back."""

    def __init__(self, parts: list[Transformer], table: ShardTable, schedule: str) -> None:
        self.parts, self.table, self.group = parts, table, table.mesh.pp
        self.owned: dict[str, nn.Parameter] = {}
        self.copies: dict[str, nn.Parameter] = {}
        for part in parts:
            for name, parameter in part.named_parameters():
                is_copy = part.part.last and not part.part.first and "embed_tokens" in name
                (self.copies if is_copy else self.owned)[name] = parameter
        self.last_rank = last_rank(schedule, comm.size(self.group)) if self.group else 0
        names = comm.gather_objects(list(self.owned), self.group)
        self.owner = {name: rank for rank, held in enumerate(names) for name in held}
        copied = comm.gather_objects(list(self.copies), self.group)
        self.tied = [name for held in copied for name in held]

    def everywhere(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter here, copies included."""
        yield from self.owned.items()
        yield from self.copies.items()

    def gradients(self) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in self.owned.items() if parameter.grad is not None}

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """From what autograd left to the gradient of the one global loss. Collective."""
        for name in self.tied:
            copy, owned = self.copies.get(name), self.owned.get(name)
            sent = None if copy is None else _local_gradient(copy)
            like = None if owned is None else _local_gradient(owned)
            arrived = self._carry(sent, self.last_rank, like, self.owner[name])
            if like is not None:
                like.add_(arrived)
        self.table.sum_partial_gradients(self.gradients())

    @torch.no_grad()
    def finish_step(self) -> None:
        """Brings copies up to date and clears gradients. Collective."""
        for name in self.tied:
            copy, owned = self.copies.get(name), self.owned.get(name)
            sent = None if owned is None else fsdp.local(owned.detach())
            like = None if copy is None else fsdp.local(copy.detach())
            arrived = self._carry(sent, self.owner[name], like, self.last_rank)
            if like is not None:
                like.copy_(arrived)
        for _, parameter in self.everywhere():
            parameter.grad = None

    def _carry(self, sent: Tensor | None, source: int, like: Tensor | None, target: int) -> Any:
        """A tensor from one stage's rank to another's; None on ranks that do not receive."""
        if source == target:
            return sent
        if sent is not None:
            comm.send(sent, target, self.group).wait()
        if like is not None:
            return comm.receive(torch.empty_like(like), source, self.group)
        return None

    def whole(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by canonical name in the model's order, on every rank, from those that each owner holds, one
        at a time. Collective."""
        like = next(iter(tensors.values()))
        for name, shape in self.table.shapes.items():
            if name in tensors:
                value = self.table.full(name, tensors[name])
            else:
                value = torch.empty(shape, dtype=like.dtype, device=like.device)
            yield name, comm.broadcast(value.contiguous(), self.owner[name], self.group)

    def from_last_stage(self, value: Any) -> Any:
        return comm.broadcast_object(value, self.group, self.last_rank)


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return fsdp.local(parameter.grad)
