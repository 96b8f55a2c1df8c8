"""Degrees of parallelism to named process groups: the only place where ranks are laid out.

Axes from the outside in: pp, dp_replicate, dp_shard, cp, tp. Neighbouring ranks share a tensor-parallel group, whose
traffic is the heaviest; pipeline stages, whose traffic is the lightest, are farthest apart.
"""

import math
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from farside.configs.errors import UserError
from farside.configs.schema import ParallelConfig
from farside.parallel import comm

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class ParallelDims:
    """Validated degrees; their product is the world size.

    pp: pipeline stages. dp_replicate: replicas of the model, gradients summed between them. dp_shard: ranks that
    share one replica's parameters (FSDP2). cp: ranks that share one sequence's attention. tp: ranks that share each
    matrix and, between the blocks, the sequence. ulysses: how many of the cp ranks divide the heads; the rest are a
    ring.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ulysses: int = 1

    @classmethod
    def resolve(cls, config: ParallelConfig, world_size: int) -> "ParallelDims":
        """Raises UserError unless every degree is positive and the product equals ``world_size``."""
        dims = cls(config.dp_replicate, config.dp_shard, config.cp, config.tp, config.pp, config.ulysses)
        degrees = [getattr(dims, axis) for axis in AXES]
        if min(degrees) < 1:
            raise UserError(f"parallel: degrees must be at least 1, got {dims}")
        if dims.world_size != world_size:
            used = [axis for axis in AXES if getattr(dims, axis) > 1] or ["dp_shard"]
            product = "·".join(str(getattr(dims, axis)) for axis in used)
            equation = f"{'·'.join(used)} = {product}{f' = {dims.world_size}' if len(used) > 1 else ''}"
            raise UserError(f"parallel: {equation}, but {world_size} ranks were started; make them equal")
        return dims

    @property
    def world_size(self) -> int:
        return math.prod(getattr(self, axis) for axis in AXES)

    def build(self, device_type: str, copies: int = 1) -> "Mesh":
        """Creates the groups; collective over all ranks. One rank needs none.

        copies: how many times the layout stands side by side, each for itself, where there are more ranks than it
        needs.
        """
        if self.world_size == 1:
            return Mesh(self)
        mesh = init_device_mesh(
            device_type,
            (copies, self.pp, self.dp_replicate, self.dp_shard * self.cp, self.tp),
            mesh_dim_names=("copies", "pp", "dp_replicate", "fsdp", "tp"),
        )["pp", "dp_replicate", "fsdp", "tp"]
        fine = mesh._unflatten(
            "fsdp", (self.dp_shard, self.cp // self.ulysses, self.ulysses), ("dp_shard", "ring", "ulysses")
        )
        named = {
            **{name: mesh[name] for name in ("pp", "fsdp", "tp")},
            **{name: fine[name] for name in ("ring", "ulysses")},
            "cp": fine["ring", "ulysses"]._flatten("cp"),
            "dp": fine["dp_replicate", "dp_shard"]._flatten("dp"),
            "tokens": mesh["dp_replicate", "fsdp"]._flatten("tokens"),
            "world": mesh._flatten("world"),
        }
        groups = {name: part.get_group() if part.size() > 1 else None for name, part in named.items()}
        return Mesh(self, mesh, **groups)


@dataclass(frozen=True)
class Mesh:
    """Named groups of one layout; None stands for this rank alone.

    device_mesh: axes (pp, dp_replicate, fsdp, tp); None on one rank.
    dp: ranks that hold different samples (dp_replicate x dp_shard).
    fsdp: ranks that hold different shards of one replica's parameters (dp_shard x cp).
    tokens: ranks that hold different tokens, so that losses and metrics are summed over them (dp x cp).
    cp, tp, pp: the axes of these names. ring, ulysses: the two axes of cp.
    world: all ranks; decisions are taken together here.
    """

    dims: ParallelDims
    device_mesh: DeviceMesh | None = None
    dp: comm.Group = None
    fsdp: comm.Group = None
    tokens: comm.Group = None
    cp: comm.Group = None
    tp: comm.Group = None
    pp: comm.Group = None
    ring: comm.Group = None
    ulysses: comm.Group = None
    world: comm.Group = None

    @property
    def dp_rank(self) -> int:
        return comm.rank(self.dp)

    @property
    def pp_rank(self) -> int:
        return comm.rank(self.pp)

    @property
    def dp_size(self) -> int:
        return self.dims.dp_replicate * self.dims.dp_shard

    @property
    def replica(self) -> int:
        """Which of dp_replicate equal copies of the model this rank belongs to."""
        return 0 if self.device_mesh is None else self.device_mesh.get_local_rank("dp_replicate")

    @property
    def is_first_replica(self) -> bool:
        return self.replica == 0

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its samples: of all ranks that hold them, one does."""
        return comm.rank(self.cp) == comm.rank(self.tp) == comm.rank(self.pp) == 0


ONE_RANK = Mesh(ParallelDims())
