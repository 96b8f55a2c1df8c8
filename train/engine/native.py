"""The native engine: our model, FSDP2, AdamW."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from farside.configs.rope import Rope
from farside.configs.schema import Config
from farside.data.batch import Batch
from farside.parallel import comm, fsdp
from farside.parallel.context.attention import Documents, SingleRank
from farside.parallel.mesh import Mesh
from farside.train.engine.base import EngineState, Outputs, StepStats
from farside.train.loss import LossFn
from farside.train.model.heads import TokenOutputs
from farside.train.model.init import initialise
from farside.train.model.transformer import Transformer
from farside.train.model.wrap import wrap_blocks
from farside.train.optim.build import Optimizer, clip_gradients
from farside.train.precision import COMPUTED, STORED


class NativeEngine:
    """Implements ``Engine``. head: "lm" or "scalar"; entropy: whether token outputs carry it."""

    def __init__(
        self, config: Config, mesh: Mesh, device: torch.device, head: str = "lm", entropy: bool = False
    ) -> None:
        self.config, self.mesh, self.device, self.entropy = config, mesh, device, entropy
        self.context = SingleRank()
        stored, computed = STORED[config.train.dtype], COMPUTED[config.train.dtype]
        with torch.device("meta"):
            self.model = Transformer(config.model, head, config.train.loss_chunk, computed).to(stored)
        wrap_blocks(self.model.model.layers, config.train, device)
        fsdp.apply_fsdp(self.model, self.model.model.layers, mesh, None if computed is stored else computed)
        self.model.to_empty(device=device)
        initialise(self.model, config.model, config.train.seed)
        self.optimizer = Optimizer(self.model, config.optim, mesh.dp_shard)

    def _outputs(self, batch: Batch) -> tuple[TokenOutputs, Batch]:
        docs = Documents.of(batch.doc_ids)
        # before the move: later these would wait for the device
        counted = batch.weights.flatten().nonzero().squeeze(-1)
        alike = bool((batch.positions == batch.positions[:1]).all())  # then one row of rotations serves all
        batch = batch.to(self.device)
        docs = Documents(batch.doc_ids, docs.single)
        attend = lambda layer, q, k, v: self.context.attend(q, k, v, docs)  # noqa: E731
        chosen = None if len(counted) == batch.weights.numel() else counted.to(self.device, non_blocking=True)
        positions = batch.positions[:1] if alike else batch.positions
        return self.model(batch.tokens, positions, batch.labels, attend, self.entropy, chosen), batch

    def forward_backward(self, microbatches: Sequence[Batch], loss_fn: LossFn, total_weight: float) -> Outputs:
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(microbatches):
            fsdp.set_gradient_sync(self.model, number + 1 == len(microbatches))
            outputs, batch = self._outputs(batch)
            result = loss_fn(outputs, batch)
            # divide by the global weight: ranks and micro-batches hold unequal numbers of counted tokens
            (result.total / total_weight).backward()
            for name, value in {"loss": result.total.detach(), **result.metrics}.items():
                sums[name] = sums[name] + value if name in sums else value
        values = torch.stack([value.double() for value in sums.values()])
        values = comm.sum_(values, self.mesh.dp) / total_weight
        reduced = dict(zip(sums, values.unbind()))
        return Outputs(reduced.pop("loss"), reduced)

    def step(self, lr: float) -> StepStats:
        grad_norm = clip_gradients(self.model, self.config.optim.clip_norm, self.mesh.dp_shard)
        self.optimizer.step(lr)
        self.model.zero_grad(set_to_none=True)
        return StepStats(grad_norm)

    @torch.no_grad()
    def token_outputs(self, microbatches: Sequence[Batch]) -> list[TokenOutputs]:
        return [self._outputs(batch)[0] for batch in microbatches]

    def set_rope(self, rope: Rope) -> None:
        self.model.rope = rope

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, fsdp.full(parameter.detach())

    def state_dict(self) -> EngineState:
        return EngineState(dict(self.named_weights()), self.optimizer.state(), self.optimizer.updates)

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Whole tensors by canonical name; every parameter must be there."""
        for name, parameter in self.model.named_parameters():
            fsdp.copy_full_(parameter, weights[name])

    def load_state_dict(self, state: EngineState) -> None:
        self.load_weights(state.model)
        self.optimizer.load_state(state.optimizer, state.updates)

    def replica(self) -> Transformer:
        """An unsharded copy for decoding, on every rank, its weights rounded as training uses them. Collective."""
        with torch.device("meta"):
            model = Transformer(self.config.model, self.model.head, self.config.train.loss_chunk)
        model = model.to(COMPUTED[self.config.train.dtype]).to_empty(device=self.device).requires_grad_(False)
        model.rope = self.model.rope
        sync_weights(model, self.named_weights())
        return model


@torch.no_grad()
def sync_weights(model: Transformer, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copies whole weights by name into an unsharded model."""
    parameters = dict(model.named_parameters())
    for name, value in weights:
        parameters[name].copy_(value)
