"""Trains in a layout and in one process, and says how far apart they are."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farside.configs.rope import Rope
from farside.configs.schema import Config, Dtype
from farside.parallel import comm
from farside.parallel.mesh import ONE_RANK, Mesh
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from farside.train.verify.shrink import CLIP, batch_of, microbatches

STEPS, LR = 3, 1e-2


@dataclass(frozen=True)
class Trained:
    """losses, grad_norms: of every step. gradients: whole, of the first step; weights: whole, after the last."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Bounds:
    """The largest relative differences that rounding may make."""

    loss: float
    grad_norm: float
    gradient: float
    weight: float


BOUNDS = {
    Dtype.float64: Bounds(loss=1e-12, grad_norm=1e-11, gradient=1e-10, weight=1e-9),
    Dtype.float32: Bounds(loss=1e-6, grad_norm=1e-5, gradient=1e-4, weight=1e-5),
    Dtype.bfloat16: Bounds(loss=2e-2, grad_norm=5e-2, gradient=2e-1, weight=2e-2),
}
"""Against one process in float64, whatever the precision of the layout. docs/verify.md has what is usual."""


@dataclass(frozen=True)
class Differences:
    """Largest relative differences to one process over steps and ranks: ||found - wanted|| / ||wanted||.

    gradients, weights: by parameter.
    """

    loss: float
    grad_norm: float
    gradients: dict[str, float]
    weights: dict[str, float]

    @property
    def gradient(self) -> float:
        return max(self.gradients.values())

    @property
    def weight(self) -> float:
        return max(self.weights.values())

    def worst(self, bounds: Bounds) -> tuple[str, float, float] | None:
        """What exceeds its bound, as (what, difference, bound): parameters first, the largest of them; None if nothing
        does."""
        for kind, values, bound in (
            ("gradient of", self.gradients, bounds.gradient),
            ("weight", self.weights, bounds.weight),
        ):
            exceeding = {name: value for name, value in values.items() if value > bound}
            if exceeding:
                name = max(exceeding, key=lambda each: exceeding[each])
                more = f" (and {len(exceeding) - 1} more)" if len(exceeding) > 1 else ""
                return f"{kind} {name}{more}", exceeding[name], bound
        for kind, value, bound in (
            ("loss", self.loss, bounds.loss),
            ("gradient norm", self.grad_norm, bounds.grad_norm),
        ):
            if value > bound:
                return kind, value, bound
        return None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def train(small: Config, mesh: Mesh, device: torch.device, rope: Rope) -> Trained:
    """STEPS steps from the initial weights, the same on every mesh. Collective over the mesh."""
    engine = NativeEngine(small, mesh, device)
    engine.set_rope(rope)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        batch = batch_of(small, step)
        mine = microbatches(small, batch, mesh.dp_rank, mesh.dp_size)
        losses.append(engine.forward_backward(mine, lm_loss, batch.weight).loss.item())
        if step == 0:
            gradients = _kept(engine.named_gradients())
        norms.append(engine.step(LR).grad_norm.item())
    return Trained(losses, norms, gradients, _kept(engine.named_weights()))


def _kept(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.detach().double().cpu().clone() for name, value in named}


def reference(alone: Config, device: torch.device, rope: Rope, world: comm.Group) -> Trained:
    """One process's training, computed by the first rank, on every rank. Collective."""
    trained = train(alone, ONE_RANK, device, rope) if comm.rank(world) == 0 else None
    trained = comm.broadcast_object(trained, world)
    assert trained is not None
    assert min(trained.grad_norms) > CLIP, "clipping is not active"
    return trained


def differences(found: Trained, wanted: Trained, world: comm.Group) -> Differences:
    """Every rank compares what it has, so that a replica that went its own way is seen. Collective."""
    mine = Differences(
        max(map(_relative, found.losses, wanted.losses)),
        max(map(_relative, found.grad_norms, wanted.grad_norms)),
        {name: _distance(found.gradients[name], true) for name, true in wanted.gradients.items()},
        {name: _distance(found.weights[name], true) for name, true in wanted.weights.items()},
    )
    everyone = comm.gather_objects(mine, world)
    return Differences(
        max(each.loss for each in everyone),
        max(each.grad_norm for each in everyone),
        {name: max(each.gradients[name] for each in everyone) for name in mine.gradients},
        {name: max(each.weights[name] for each in everyone) for name in mine.weights},
    )


def _relative(found: float, wanted: float) -> float:
    return _number(abs(found - wanted) / abs(wanted))


def _distance(found: Tensor, wanted: Tensor) -> float:
    return _number(((found - wanted).norm() / wanted.norm().clamp_min(1e-30)).item())


def _number(difference: float) -> float:
    """NaN compares with nothing: it is as far away as can be."""
    return difference if difference == difference else float("inf")
