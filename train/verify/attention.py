"""What one attention sends, counted and by the formula, and how evenly its work is divided.

Shapes: B batch, L local slots, H heads, K key/value heads, D head dim, all of one rank.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from farside.configs.schema import Config
from farside.configs.stages import Stage
from farside.parallel import comm
from farside.parallel.context.attention import ContextParallel
from farside.parallel.context.build import build
from farside.parallel.context.documents import Documents
from farside.parallel.mesh import Mesh
from farside.train.engine.parallelize import COMPUTED
from farside.train.verify.shrink import batch_of

MEDIAN, SPREAD = 600.0, 1.3
"""Of document lengths, log-normal, for the work under packed documents: as in docs/context.md."""


@dataclass(frozen=True)
class Bytes:
    """By collective, of each rank, in one forward and in one backward pass."""

    forward: dict[str, int]
    backward: dict[str, int]


@dataclass(frozen=True)
class Traffic:
    """counted: of every rank, in the small model; formula: for the same sizes; full_size: the formula for the user's
    model, a whole micro-batch and one layer."""

    counted: list[Bytes]
    formula: Bytes
    full_size: Bytes

    @property
    def agrees(self) -> bool:
        return all(counted == self.formula for counted in self.counted)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True)
class Work:
    """Busiest context-parallel rank over the mean, at the user's sequence length; shares: work of every rank over the
    mean. one: a document a row; packed: log-normal documents."""

    seq_len: int
    one: list[float]
    packed: list[float]

    def record(self) -> dict[str, Any]:
        return asdict(self)


def context_of(config: Config, mesh: Mesh) -> ContextParallel:
    return build(
        config.parallel.context.kind.value, config.parallel.context.layout.value, mesh.cp, mesh.ring, mesh.ulysses
    )


def measure_traffic(small: Config, full: Config, stage: Stage, mesh: Mesh, device: torch.device) -> Traffic | None:
    """One attention of the small model, forward and backward; None without context parallelism. Collective."""
    if mesh.cp is None:
        return None
    context, tp, dtype = context_of(small, mesh), small.parallel.tp, COMPUTED[small.train.dtype]
    docs = Documents.of(batch_of(small, 0).doc_ids[: small.data.micro_batch_size])
    rows, size = docs.ids_BS.shape
    model, local = small.model, small.data.seq_len // small.parallel.cp
    heads, kv_heads = model.num_attention_heads // tp, model.num_key_value_heads // tp
    q_BLHD, k_BLKD, v_BLKD = (
        torch.randn(rows, local, count, model.head_dim, dtype=dtype, device=device, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    )
    with comm.count_bytes() as forward:
        out_BLHD = context.attend(q_BLHD, k_BLKD, v_BLKD, docs)
    with comm.count_bytes() as backward:
        out_BLHD.sum().backward()
    counted = comm.gather_objects(Bytes(dict(forward), dict(backward)), mesh.world)
    formula = Bytes(*context.bytes_sent(rows, size, heads, kv_heads, model.head_dim, dtype))
    whole = full.model
    full_size = context.bytes_sent(
        stage.micro_batch_size,
        stage.seq_len,
        whole.num_attention_heads // tp,
        whole.num_key_value_heads // tp,
        whole.head_dim,
        COMPUTED[full.train.dtype],
    )
    return Traffic(counted, formula, Bytes(*full_size))


def plan_work(full: Config, stage: Stage, mesh: Mesh) -> Work | None:
    """Planned, not computed: at the user's sequence length and micro-batch; None without context parallelism."""
    if mesh.cp is None:
        return None
    context, shape = context_of(full, mesh), (stage.micro_batch_size, stage.seq_len)
    generator = np.random.default_rng(0)
    packed = np.stack([packed_row(generator, stage.seq_len) for _ in range(stage.micro_batch_size)])
    return Work(
        stage.seq_len,
        _over_mean(context.work(Documents.of(torch.zeros(shape, dtype=torch.long)))),
        _over_mean(context.work(Documents.of(torch.from_numpy(packed)))),
    )


def packed_row(generator: np.random.Generator, size: int) -> np.ndarray:
    """Document numbers of a row, [S]."""
    lengths = np.maximum(1, generator.lognormal(np.log(MEDIAN), SPREAD, size=size)).astype(np.int64)
    return np.searchsorted(np.cumsum(lengths), np.arange(size), side="right")


def _over_mean(work_N: np.ndarray) -> list[float]:
    return (work_N / work_N.mean()).tolist()
