"""The whole check: compares, retries with parts of the layout switched off, and comes to a verdict."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from farside.configs.rope import Rope
from farside.configs.schema import Config, Dtype, Recompute
from farside.configs.stages import pretrain_stages
from farside.parallel import comm
from farside.parallel.mesh import Mesh, ParallelDims
from farside.train.verify.attention import Traffic, Work, measure_traffic, plan_work
from farside.train.verify.compare import BOUNDS, Differences, Trained, differences, reference, train
from farside.train.verify.shrink import one_process, shrunken

AXES = ("tp", "cp", "pp", "dp_shard", "dp_replicate")


@dataclass(frozen=True)
class Verdict:
    """layout: in words. ranks: of the layout. found: differences by precision, float64 first. blame: what must be off
    for the layout to agree; empty if it agrees, or if nothing helps. retried: what was switched off, and whether the
    rest agreed. traffic: one attention's bytes, None without context parallelism; so is work."""

    layout: str
    ranks: int
    device: str
    model: dict[str, Any]
    found: dict[Dtype, Differences]
    failed: Dtype | None
    retried: dict[str, bool]
    traffic: Traffic | None
    work: Work | None
    blame: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return self.failed is None and (self.traffic is None or self.traffic.agrees)

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if self.failed is not None:
            return f"MISMATCH: {self.layout} {self._difference(self.failed)}; {self._reason()}"
        if self.traffic is not None and not self.traffic.agrees:
            return f"MISMATCH: {self.layout}: one attention sends other bytes than its formula says"
        said = [
            f"{'' if dtype is Dtype.float64 else f'{dtype.value} '}"
            f"gradients {found.gradient:.0e}, weights {found.weight:.0e}"
            for dtype, found in self.found.items()
        ]
        return f"{self.layout} equals one process: {'; '.join(said)}"

    def _difference(self, dtype: Dtype) -> str:
        worst = self.found[dtype].worst(BOUNDS[dtype])
        assert worst is not None
        what, value, bound = worst
        where = "" if dtype is Dtype.float64 else f" in {dtype.value}"
        return f"differs from one process{where}: {what} by {value:.2g} (bound {bound:.0e})"

    def _reason(self) -> str:
        if self.blame:
            return f"agrees without {', and without '.join(self.blame)}"
        return "no part switched off alone makes it agree"


def verify(config: Config, mesh: Mesh, device: torch.device) -> Verdict:
    """The layout of ``config`` against one process; alike on every rank. mesh: that of the layout. Collective.

    Always in float64, where nothing but a mistake is larger than rounding; then also in train.dtype, on the kernels of
    that precision. Raises UserError for a configuration that cannot train.
    """
    stage = pretrain_stages(config)[-1]
    small = shrunken(config, stage)
    wanted = reference(one_process(small), device, stage.rope, mesh.world)
    found: dict[Dtype, Differences] = {}
    failed = None
    for dtype in dict.fromkeys((Dtype.float64, config.train.dtype)):
        found[dtype] = differences(train(in_dtype(small, dtype), mesh, device, stage.rope), wanted, mesh.world)
        if found[dtype].worst(BOUNDS[dtype]) is not None:
            failed = dtype
            break
    retried = {} if failed is None else retry(in_dtype(small, failed), wanted, mesh, device, stage.rope)
    return Verdict(
        layout_name(config),
        config.parallel.ranks,
        device.type,
        described(small),
        found,
        failed,
        retried,
        measure_traffic(small, config, stage, mesh, device),
        plan_work(config, stage, mesh),
        [name for name, agreed in retried.items() if agreed],
    )


def described(small: Config) -> dict[str, int | bool]:
    """Sizes of what was trained."""
    sizes = {key: value for key, value in vars(small.model).items() if isinstance(value, int)}
    return {**sizes, **{key: getattr(small.data, key) for key in ("seq_len", "global_batch_size", "micro_batch_size")}}


def in_dtype(small: Config, dtype: Dtype) -> Config:
    changed = copy.deepcopy(small)
    changed.train.dtype = dtype
    return changed


def retry(small: Config, wanted: Trained, mesh: Mesh, device: torch.device, rope: Rope) -> dict[str, bool]:
    """By what was switched off: whether the rest agrees with one process. Collective."""
    bounds, agreed = BOUNDS[small.train.dtype], {}
    for name, switch in switches(small).items():
        changed = copy.deepcopy(small)
        switch(changed)
        ranks = changed.parallel.ranks
        # the ranks that this leaves without work repeat it
        part = ParallelDims.resolve(changed.parallel, ranks).build(device.type, comm.size(mesh.world) // ranks)
        trained = train(changed, part, device, rope)
        agreed[name] = differences(trained, wanted, mesh.world).worst(bounds) is None
    return agreed


def switches(small: Config) -> dict[str, Callable[[Config], None]]:
    """What the configuration has switched on, and how to switch each off."""

    def degree_one(axis: str) -> Callable[[Config], None]:
        return lambda config: setattr(config.parallel, axis, 1)

    def no_recomputation(config: Config) -> None:
        config.train.activation_checkpointing, config.train.offload_activations = Recompute.none, False

    def whole_mlps(config: Config) -> None:
        config.train.mlp_chunk = 0

    def no_compilation(config: Config) -> None:
        config.train.compile = False

    def no_accumulation(config: Config) -> None:
        config.data.micro_batch_size = config.data.global_batch_size

    found = {axis: degree_one(axis) for axis in AXES if getattr(small.parallel, axis) > 1}
    if small.train.activation_checkpointing is not Recompute.none:
        found["recomputation"] = no_recomputation
    if small.train.mlp_chunk:
        found["chunked MLPs"] = whole_mlps
    if small.train.compile:
        found["compilation"] = no_compilation
    return {**found, "accumulation": no_accumulation}


def layout_name(config: Config) -> str:
    """Such as "tp2·cp2 (ring, zigzag)"."""
    parallel = config.parallel
    axes = [f"{axis}{getattr(parallel, axis)}" for axis in AXES if getattr(parallel, axis) > 1]
    details = [parallel.context.kind.value, parallel.context.layout.value] if parallel.cp > 1 else []
    details += [parallel.pipeline.schedule.value] if parallel.pp > 1 else []
    return ("·".join(axes) or "one rank") + (f" ({', '.join(details)})" if details else "")


def record(verdict: Verdict) -> dict[str, Any]:
    """For verify.json."""
    return {
        "agrees": verdict.agrees,
        "verdict": verdict.line,
        "layout": verdict.layout,
        "ranks": verdict.ranks,
        "device": verdict.device,
        "model": verdict.model,
        "differences": {
            dtype.value: {"bounds": vars(BOUNDS[dtype]), **found.record()} for dtype, found in verdict.found.items()
        },
        "agrees_without": verdict.retried,
        "attention_bytes": verdict.traffic and verdict.traffic.record(),
        "attention_work": verdict.work and verdict.work.record(),
    }
