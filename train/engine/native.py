"""The native engine: our model under tensor, context, pipeline and data parallelism, AdamW or Muon."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from farside.configs.rope import Rope
from farside.configs.schema import Config
from farside.data.batch import Batch
from farside.parallel import comm
from farside.parallel.box import Stored
from farside.parallel.context.build import build
from farside.parallel.context.documents import Documents
from farside.parallel.mesh import Mesh
from farside.parallel.replicas import check_replicas
from farside.train.engine.base import EngineState, Judge, Outputs, StepStats, never
from farside.train.engine.parallelize import parallelize
from farside.train.engine.stages import Item
from farside.train.loss import LossFn
from farside.train.model.heads import TokenOutputs
from farside.train.model.init import initialise
from farside.train.model.transformer import Transformer
from farside.train.optim.build import Optimizer, clip_gradients
from farside.train.precision import COMPUTED, STORED


class NativeEngine:
    """Implements ``Engine``. head: "lm" or "scalar"; entropy: whether token outputs carry it."""

    def __init__(
        self, config: Config, mesh: Mesh, device: torch.device, head: str = "lm", entropy: bool = False
    ) -> None:
        self.config, self.mesh, self.device, self.head = config, mesh, device, head
        kind, layout = config.parallel.context.kind.value, config.parallel.context.layout.value
        self.context = build(kind, layout, mesh.cp, mesh.ring, mesh.ulysses)
        self.stages, self.weights = parallelize(config, mesh, device, head, entropy)
        self.table = self.weights.table
        initialise(self.weights.everywhere(), config.model, config.train.seed, self.table)
        self.reset_optimizer()

    def forward_backward(self, microbatches: Sequence[Batch], loss_fn: LossFn, total_weight: float) -> Outputs:
        assert not self.weights.gradients(), "one call a step: it leaves whole gradients, to which nothing can be added"
        docs, items = self._items(microbatches)
        sums: dict[str, Tensor] = {}

        def loss(outputs: TokenOutputs, number: int) -> Tensor:
            batch = microbatches[number]
            result = loss_fn(self._unsharded(outputs, docs[number], batch), batch.to(self.device))
            for name, value in {"loss": result.total.detach(), **result.metrics}.items():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
            # divide by the global weight: ranks and micro-batches hold unequal numbers of counted tokens
            return result.total / total_weight

        self.stages.forward_backward(items, loss)
        self.weights.complete_gradients()
        return self._reduced(sums, total_weight)

    def _items(self, microbatches: Sequence[Batch]) -> tuple[list[Documents], list[Item]]:
        """Micro-batches as this rank computes them. Rows are lengthened to what the layout can cut; for a pipeline, all
        to one shape."""
        whole = [batch.padded_to_multiple(self.config.parallel.pieces) for batch in microbatches]
        if self.mesh.pp is not None:
            rows, size = (max(batch.tokens.shape[dim] for batch in whole) for dim in (0, 1))
            whole = [batch.padded(rows, size) for batch in whole]
        docs = [Documents.of(batch.doc_ids) for batch in whole]
        return docs, [self._item(batch, documents) for batch, documents in zip(whole, docs)]

    def _item(self, batch: Batch, docs: Documents) -> Item:
        tokens, positions, labels, weights = (
            self.context.shard(x, docs) for x in (batch.tokens, batch.positions, batch.labels, batch.weights)
        )
        # before the move: later these would wait for the device
        counted = weights.flatten().nonzero().squeeze(-1)
        alike = bool((positions == positions[:1]).all())  # then one row of rotations serves all
        tokens, positions, labels, counted = (
            x.to(self.device, non_blocking=True)
            for x in (tokens, positions[:1] if alike else positions, labels, counted)
        )
        chosen = None if len(counted) == weights.numel() else counted
        return Item(tokens, positions, labels, chosen, lambda layer, q, k, v: self.context.attend(q, k, v, docs))

    def _unsharded(self, outputs: TokenOutputs, docs: Documents, batch: Batch) -> TokenOutputs:
        """Outputs of the whole micro-batch, on every rank that shares it: losses may look at rows as they are."""
        rows, size = batch.tokens.shape
        return outputs.map(lambda x: self.context.unshard(x, docs)[:rows, :size])

    def _reduced(self, sums: dict[str, Tensor], total_weight: float) -> Outputs:
        """Over all samples; with a pipeline, only its last stage has seen a loss, and tells the others. Of the ranks
        that share samples one counts, so that all get the same bits and can decide by them."""
        names, values = list(sums), torch.stack(list(sums.values())) if sums else None
        if self.mesh.pp is not None:  # from the host: an object names its device, which another machine may lack
            names, values = self.weights.from_last_stage((names, None if values is None else values.cpu()))
        assert values is not None
        values = values.to(self.device) if self.mesh.leads else torch.zeros_like(values, device=self.device)
        reduced = dict(zip(names, (comm.sum_(values, self.mesh.world) / total_weight).unbind()))
        return Outputs(reduced.pop("loss"), reduced)

    @property
    def model(self) -> Transformer:
        """The model, where one rank holds all its layers."""
        (part,) = self.weights.parts
        return part

    def step(self, lr: float, judge: Judge = never) -> StepStats:
        grad_norm = clip_gradients(self.weights.gradients(), self.config.optim.clip_norm, self.table)
        skip = judge(grad_norm)
        self.optimizer.step(lr, skip)
        self.weights.finish_step()
        return StepStats(grad_norm, skip)

    def reset_optimizer(self) -> None:
        """Forgets all moments."""
        self.optimizer = Optimizer(self.weights.owned, self.config.optim, self.table)

    @torch.no_grad()
    def token_outputs(self, microbatches: Sequence[Batch]) -> list[TokenOutputs]:
        docs, items = self._items(microbatches)
        outputs = self.stages.forward(items)
        return [self._unsharded(*each) for each in zip(outputs, docs, microbatches)]

    @property
    def rope(self) -> Rope:
        return self.weights.parts[0].rope

    def set_rope(self, rope: Rope) -> None:
        for part in self.weights.parts:
            part.rope = rope

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights.whole({name: parameter.detach() for name, parameter in self.weights.owned.items()})

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole gradients by canonical name, between ``forward_backward`` and ``step``. Collective."""
        yield from self.weights.whole(self.weights.gradients())

    def state_dict(self) -> EngineState:
        moments = {
            f"{moment}.{name}": piece
            for moment, tensors in self.optimizer.state().items()
            for name, piece in self.table.pieces(tensors).items()
        }
        return EngineState(self.table.pieces(self.weights.owned), moments, self.optimizer.updates)

    def check_replicas(self) -> None:
        if self.config.train.guard.compare_replicas:
            check_replicas(self.weights.everywhere(), self.table)

    def load_weights(self, stored: Stored, absent: Collection[str] = ()) -> None:
        """Whole tensors by canonical name; every parameter must be there, but for those named in ``absent``."""
        for name, parameter in self.weights.everywhere():
            if name not in absent:
                self.table.load_(name, parameter, partial(stored.read, name))
        self.stages.reshard()

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        self.load_weights(model)
        self.optimizer.load_state(optimizer, updates)

    def replica(self) -> Transformer:
        """An unsharded copy for decoding, on every rank, its weights rounded as training uses them. Collective."""
        with torch.device("meta"):
            model: Any = Transformer(self.config.model, self.head, self.config.train.loss_chunk)
        model = model.to(COMPUTED[self.config.train.dtype])
        for module in model.exact:
            module.to(STORED[self.config.train.dtype])
        model = model.to_empty(device=self.device).requires_grad_(False)
        model.rope = self.rope
        sync_weights(model, self.named_weights())
        return model


@torch.no_grad()
def sync_weights(model: Transformer, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copies whole weights by name into an unsharded model."""
    parameters = dict(model.named_parameters())
    for name, value in weights:
        parameters[name].copy_(value)
