"""How positions become rotation angles: the settings that travel with a stage, a checkpoint and a replica. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

from farside.configs.errors import UserError
from farside.configs.schema import ModelConfig, RopeKind, RopeScalingConfig


@dataclass(frozen=True)
class Rope:
    """RoPE's base and how it is stretched beyond the length it was trained for.

    factor: new length over the old; original_length: the old one in tokens (YaRN only).
    """

    theta: float
    kind: RopeKind = RopeKind.none
    factor: float = 1.0
    original_length: int = 0

    @classmethod
    def of(cls, theta: float, scaling: RopeScalingConfig, where: str) -> "Rope":
        """Raises UserError, led to by ``where``, for a scaling that means nothing."""
        if theta <= 1:
            raise UserError(f"{where}rope_theta = {theta}; give more than 1, such as 10000")
        if scaling.kind in (None, RopeKind.none):
            if scaling.factor != 1.0:
                raise UserError(f"{where}rope_scaling: factor = {scaling.factor} but no kind; use pi, ntk or yarn")
            return cls(theta)
        if scaling.factor < 1:
            raise UserError(f"{where}rope_scaling.factor = {scaling.factor}; give at least 1")
        if scaling.kind is RopeKind.yarn and scaling.original_length < 16:
            raise UserError(
                f"{where}rope_scaling.original_length = {scaling.original_length}; "
                "yarn needs the length in tokens that the model was trained on before"
            )
        return cls(theta, scaling.kind, scaling.factor, scaling.original_length)

    @classmethod
    def of_model(cls, model: ModelConfig) -> "Rope":
        return cls.of(model.rope_theta, model.rope_scaling, "model.")

    def changed(self, theta: float | None, scaling: RopeScalingConfig, where: str) -> "Rope":
        """This one, but for what a stage or an evaluation names."""
        if scaling == RopeScalingConfig():
            scaling = RopeScalingConfig(self.kind, self.factor, self.original_length)
        return self.of(self.theta if theta is None else theta, scaling, where)

    def record(self) -> dict[str, Any]:
        """For a checkpoint's state."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Rope":
        return cls(**{**record, "kind": RopeKind(record["kind"])})
