"""How micro-batches go through the model: at once, or through the stages of a pipeline.

Shapes: B batch, L sequence of this context-parallel rank, T = L/tp tokens between the blocks, E model dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from farside.parallel import comm, fsdp
from farside.parallel.pipeline import Pipeline, last_rank, run_forward, stages_per_rank
from farside.train.model.heads import TokenOutputs
from farside.train.model.transformer import Attend, Transformer

ItemLoss = Callable[[TokenOutputs, int], Tensor]
"""(outputs of this rank's tokens, number of the micro-batch) -> the scalar to differentiate."""


@dataclass(frozen=True)
class Item:
    """A micro-batch as this rank computes it: its tokens [B, L] with positions ([1, L] if all rows have the same), and
    flat numbers of those that are looked at (None: all)."""

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    counted: Tensor | None
    attend: Attend


class Stages(Protocol):
    def forward_backward(self, items: Sequence[Item], loss: ItemLoss) -> None:
        """Leaves summed gradients in the parameters. ``loss`` is called where the model ends."""
        ...

    def forward(self, items: Sequence[Item]) -> list[TokenOutputs]:
        """Outputs of every item, on every rank."""
        ...

    def reshard(self) -> None:
        """After parameters have been written to: frees what was gathered of them."""
        ...


class Whole:
    """The model in one piece."""

    def __init__(self, model: Transformer, entropy: bool) -> None:
        self.model, self.entropy = model, entropy

    def outputs(self, item: Item) -> TokenOutputs:
        return self.model(item.tokens, item.positions, item.labels, item.attend, self.entropy, item.counted)

    def forward_backward(self, items: Sequence[Item], loss: ItemLoss) -> None:
        for number, item in enumerate(items):
            fsdp.set_gradient_sync(self.model, number + 1 == len(items))
            loss(self.outputs(item), number).backward()

    def forward(self, items: Sequence[Item]) -> list[TokenOutputs]:
        return [self.outputs(item) for item in items]

    def reshard(self) -> None:
        fsdp.reshard(self.model)


class StageModule(nn.Module):
    """A part of the model as a pipeline calls it: the activation comes from the stage before, the rest by number."""

    def __init__(self, part: Transformer, entropy: bool) -> None:
        super().__init__()
        self.part, self.entropy = part, entropy
        self.items: Sequence[Item] = ()

    def forward(self, x: Tensor, number: Tensor) -> Tensor | tuple[Tensor, ...]:
        item = self.items[int(number)]
        x_BTE = self.part.hidden(item.tokens if self.part.part.first else x, item.positions, item.attend)
        if not self.part.part.last:
            return x_BTE
        outputs = self.part.outputs(x_BTE, item.labels, self.entropy, item.counted)
        return tuple(outputs.present.values())


class Staged:
    """The model in pipeline stages. modules: this rank's, in the order of ``stage_numbers``."""

    def __init__(self, modules: Sequence[StageModule], schedule: str, group: comm.Group, tp: int) -> None:
        self.modules, self.schedule, self.group, self.tp = list(modules), schedule, group, tp
        self.total = stages_per_rank(schedule) * comm.size(group)
        self.last_rank = last_rank(schedule, comm.size(group))
        self.pipeline: tuple[tuple[int, torch.Size], Pipeline] | None = None

    def forward_backward(self, items: Sequence[Item], loss: ItemLoss) -> None:
        pp = comm.size(self.group)
        count = max(self.total, -(-len(items) // pp) * pp)
        nothing = replace(items[0], counted=torch.empty(0, dtype=torch.long, device=items[0].tokens.device))
        activation = self._hold([*items, *[nothing] * (count - len(items))])

        def of_item(outputs: tuple[Tensor, ...], number: int) -> Tensor:
            if number < len(items):
                return loss(self._named(outputs), number)
            return sum(output.sum() for output in outputs) * 0.0  # type: ignore[return-value]

        self._pipeline_of(count, items[0].tokens, activation).forward_backward(of_item)

    def forward(self, items: Sequence[Item]) -> list[TokenOutputs]:
        activation = self._hold(items)
        results = run_forward(self.modules, self.schedule, self.group, len(items), activation)
        if not results:  # the last stage is another rank's
            results = [tuple(self._output_like(items[0].tokens) for _ in self._names()) for _ in items]
        return [
            self._named(tuple(comm.broadcast(output.contiguous(), self.last_rank, self.group) for output in outputs))
            for outputs in results
        ]

    def _hold(self, items: Sequence[Item]) -> Tensor:
        """Lets the stages find these by number; returns what an activation between them looks like."""
        shape, part = items[0].tokens.shape, self.modules[0].part
        assert all(item.tokens.shape == shape for item in items), "stages exchange activations of one shape"
        for module in self.modules:
            module.items = items
        sizes = shape[0], shape[1] // self.tp, part.config.hidden_size
        return torch.empty(sizes, dtype=part.computed, device=items[0].tokens.device)

    def _pipeline_of(self, count: int, tokens: Tensor, activation: Tensor) -> Pipeline:
        """The schedule for so many micro-batches. Only the newest is kept: each has its own buffers, and in RL rows
        have another length in nearly every iteration."""
        key = count, tokens.shape
        if self.pipeline is None or self.pipeline[0] != key:
            self.pipeline = None
            outputs = tuple(self._output_like(tokens) for _ in self._names())
            self.pipeline = key, Pipeline(self.modules, self.schedule, self.group, count, activation, outputs)
        return self.pipeline[1]

    def reshard(self) -> None:
        for module in self.modules:
            fsdp.reshard(module)

    def _output_like(self, tokens: Tensor) -> Tensor:
        dtype = torch.promote_types(self.modules[0].part.computed, torch.float32)
        return torch.empty(tokens.shape, dtype=dtype, device=tokens.device)

    def _names(self) -> list[str]:
        if self.modules[0].part.head == "scalar":
            return ["values"]
        return ["logprobs", "entropy"] if self.modules[0].entropy else ["logprobs"]

    def _named(self, outputs: tuple[Tensor, ...]) -> TokenOutputs:
        return TokenOutputs(**dict(zip(self._names(), outputs, strict=True)))
