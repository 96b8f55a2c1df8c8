"""How micro-batches go through the model: at once, or through the stages of a pipeline.

Shapes: B batch, L sequence of this context-parallel rank, T = L/tp tokens between the blocks, E model dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from farside.parallel import comm, fsdp
from farside.parallel.pipeline import Pipeline, last_rank, stages_per_rank
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
        self.pipelines: dict[tuple[int, torch.Size], Pipeline] = {}

    def forward_backward(self, items: Sequence[Item], loss: ItemLoss) -> None:
        pipeline, _ = self._prepare(items)

        def of_item(outputs: tuple[Tensor, ...], number: int) -> Tensor:
            if number < len(items):
                return loss(self._named(outputs), number)
            return sum(output.sum() for output in outputs) * 0.0  # type: ignore[return-value]

        pipeline.forward_backward(of_item)

    def forward(self, items: Sequence[Item]) -> list[TokenOutputs]:
        pipeline, filled = self._prepare(items)
        found = [output for outputs in pipeline.forward() for output in outputs]
        names = self._names()
        if not found:
            first = filled[0].tokens
            found = [self._output_like(first) for _ in range(len(names) * len(filled))]
        found = [comm.broadcast(output.contiguous(), self.last_rank, self.group) for output in found]
        grouped = [tuple(found[start : start + len(names)]) for start in range(0, len(found), len(names))]
        return [self._named(outputs) for outputs in grouped[: len(items)]]

    def _prepare(self, items: Sequence[Item]) -> tuple[Pipeline, list[Item]]:
        """The schedule for these items, and the items filled up to as many as it needs with ones that count nothing."""
        shape, pp = items[0].tokens.shape, comm.size(self.group)
        assert all(item.tokens.shape == shape for item in items), "stages exchange activations of one shape"
        count = max(self.total, -(-len(items) // pp) * pp)
        nothing = replace(items[0], counted=torch.empty(0, dtype=torch.long, device=items[0].tokens.device))
        filled = [*items, *[nothing] * (count - len(items))]
        for module in self.modules:
            module.items = filled
        if (count, shape) not in self.pipelines:
            part = self.modules[0].part
            rows, length = shape
            activation = torch.empty(
                rows, length // self.tp, part.config.hidden_size, dtype=part.computed, device=items[0].tokens.device
            )
            outputs = tuple(self._output_like(items[0].tokens) for _ in self._names())
            self.pipelines[count, shape] = Pipeline(self.modules, self.schedule, self.group, count, activation, outputs)
        return self.pipelines[count, shape], filled

    def _output_like(self, tokens: Tensor) -> Tensor:
        dtype = torch.promote_types(self.modules[0].part.computed, torch.float32)
        return torch.empty(tokens.shape, dtype=dtype, device=tokens.device)

    def _names(self) -> list[str]:
        if self.modules[0].part.head == "scalar":
            return ["values"]
        return ["logprobs", "entropy"] if self.modules[0].entropy else ["logprobs"]

    def _named(self, outputs: tuple[Tensor, ...]) -> TokenOutputs:
        return TokenOutputs(**dict(zip(self._names(), outputs, strict=True)))
