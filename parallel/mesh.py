"""Degrees of parallelism to named process groups: the only place where ranks are laid out."""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from farside.configs.errors import UserError
from farside.configs.schema import ParallelConfig
from farside.parallel import comm


@dataclass(frozen=True)
class ParallelDims:
    """Validated degrees; their product is the world size.

    dp_replicate: replicas of the model, gradients summed between them.
    dp_shard: ranks that share one replica's parameters (FSDP2).
    """

    dp_replicate: int
    dp_shard: int

    @classmethod
    def resolve(cls, config: ParallelConfig, world_size: int) -> "ParallelDims":
        """Raises UserError unless every degree is positive and the product equals ``world_size``."""
        dims = cls(config.dp_replicate, config.dp_shard)
        if min(dims.dp_replicate, dims.dp_shard) < 1:
            raise UserError(f"parallel: degrees must be at least 1, got {dims}")
        if dims.world_size != world_size:
            raise UserError(
                f"parallel: dp_replicate·dp_shard = {dims.dp_replicate}·{dims.dp_shard} = {dims.world_size}, "
                f"but {world_size} ranks were started; make them equal"
            )
        return dims

    @property
    def world_size(self) -> int:
        return self.dp_replicate * self.dp_shard

    def build(self, device_type: str) -> "Mesh":
        """Creates the groups; collective over all ranks. One rank needs none."""
        if self.world_size == 1:
            return Mesh(self, None, None, None)
        mesh = init_device_mesh(
            device_type, (self.dp_replicate, self.dp_shard), mesh_dim_names=("dp_replicate", "dp_shard")
        )
        everyone = mesh["dp_replicate", "dp_shard"]._flatten("dp")
        return Mesh(self, mesh, everyone.get_group(), mesh["dp_shard"].get_group())


@dataclass(frozen=True)
class Mesh:
    """Named groups of one layout.

    device_mesh: axes (dp_replicate, dp_shard); None on one rank.
    dp: all data-parallel ranks: they hold different samples; losses and metrics are summed over it.
    dp_shard: the ranks that hold different shards of one replica.
    """

    dims: ParallelDims
    device_mesh: DeviceMesh | None
    dp: comm.Group
    dp_shard: comm.Group

    @property
    def dp_rank(self) -> int:
        return comm.rank(self.dp)

    @property
    def dp_size(self) -> int:
        return self.dims.world_size
