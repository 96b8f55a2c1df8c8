"""From the configured mixture to one Mixture a stage: shares by token or temperature, epochs counted over stages."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from farside.configs.errors import UserError
from farside.configs.schema import DataConfig, MixtureUnit
from farside.configs.stages import Stage
from farside.data.mixture import Mixture, Source
from farside.data.order import fold
from farside.data.pack import TextSource
from farside.data.plan import PlanStore


@runtime_checkable
class Predicting(Protocol):
    """A source whose rows are not full: padding, or the first tokens of documents, are never predicted."""

    def predicted(self, seq_len: int) -> float:
        """Mean tokens a row predicts."""
        ...


@runtime_checkable
class Finite(Predicting, Protocol):
    """A source of text, which ends and begins again."""

    @property
    def size(self) -> int:
        """Its tokens."""
        ...

    def rows(self, seq_len: int) -> int:
        """Rows until it begins again."""
        ...

    def epochs(self, seq_len: int) -> float:
        """How often those rows read its tokens."""
        ...


@dataclass(frozen=True)
class StageMixture:
    """A stage's mixture and the samples it will give."""

    stage: Stage
    mixture: Mixture
    samples: int
    asked: dict[str, float]
    """Share of each entry, of rows or of tokens as data.mixture_unit says; they sum to 1."""

    def source(self, name: str) -> Source:
        return self.mixture.sources[self.mixture.names.index(name)]


def stage_mixtures(
    config: DataConfig, stages: Sequence[Stage], sources: Mapping[str, Source], store: PlanStore, salt: str = ""
) -> list[StageMixture]:
    """A mixture for each stage. Each draws its own order: the seed is folded with the stage's number.

    A source goes on where the last stage with rows of the same kind left it, from the next whole block of samples on.
    Raises UserError for an entry that is no source, and for a stage that max_epochs leaves too few samples.
    """
    rows_used: Counter[object] = Counter()
    epochs_used: defaultdict[str, float] = defaultdict(float)
    planned: list[StageMixture] = []
    for stage in stages:
        unknown = sorted(set(stage.mixture) - set(sources))
        if unknown:
            raise UserError(
                f"stage {stage.name!r}: mixture names {unknown[0]!r}; there are {', '.join(sorted(sources))}"
            )
        try:
            planned.append(_stage_mixture(config, stage, sources, store, salt, rows_used, epochs_used))
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from error
    return planned


def _stage_mixture(
    config: DataConfig,
    stage: Stage,
    sources: Mapping[str, Source],
    store: PlanStore,
    salt: str,
    rows_used: Counter[object],
    epochs_used: defaultdict[str, float],
) -> StageMixture:
    """rows_used, epochs_used: what the stages before took, by kind of row and by source; this one's are added."""
    shares = {name: share for name, share in stage.mixture.items() if share}
    ready = {
        name: source.packed(stage.packing, stage.lengths, store) if isinstance(source, TextSource) else source
        for name, source in sources.items()
        if name in shares
    }
    asked = asked_shares(shares, ready, config.mixture_temperature)
    kinds = {name: (name, stage.seq_len, *_packing(source, stage)) for name, source in ready.items()}
    most: dict[str, int] = {}
    for name, source in ready.items():
        limit = config.sources[name].max_epochs if name in config.sources else None
        if limit is not None and isinstance(source, Finite):
            rows_an_epoch = source.rows(stage.seq_len) / source.epochs(stage.seq_len)
            most[name] = max(0, math.floor((limit - epochs_used[name]) * rows_an_epoch + 1e-6))
    by_row = asked
    if config.mixture_unit is MixtureUnit.token:
        by_row = {name: share / predicted(ready[name], stage.seq_len) for name, share in asked.items()}
    first = {name: rows_used[kind] for name, kind in kinds.items()}
    mixture = Mixture(ready, by_row, fold(config.seed, salt, stage.index), first, most)
    samples = stage.steps * stage.global_batch_size
    if mixture.size < samples:
        raise UserError(
            f"{samples:,} samples asked for, but max_epochs of its sources leaves {mixture.size:,.0f}; "
            "raise max_epochs, train fewer steps or add a source"
        )
    for name, rows in mixture.reserved(samples).items():
        rows_used[kinds[name]] += rows
    for name, rows in mixture.counts(samples).items():
        source = ready[name]
        if isinstance(source, Finite):
            epochs_used[name] += rows * source.epochs(stage.seq_len) / source.rows(stage.seq_len)
    return StageMixture(stage, mixture, samples, asked)


def asked_shares(
    shares: Mapping[str, float], sources: Mapping[str, Source], temperature: float | None
) -> dict[str, float]:
    """Shares that sum to 1. With a temperature those of plain text are divided anew, by n^(1/temperature) of its n
    tokens (as multilingual BERT and mT5, arXiv 2010.11934, do over languages)."""
    total = sum(shares.values())
    asked = {name: share / total for name, share in shares.items()}
    if temperature is None:
        return asked
    sizes = {name: source.size for name in asked if isinstance(source := sources[name], Finite)}
    largest = max(sizes.values(), default=1)
    weights = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    text = sum(asked[name] for name in weights)
    return {**asked, **{name: text * weight / sum(weights.values()) for name, weight in weights.items()}}


def _packing(source: Source, stage: Stage) -> tuple[object, ...]:
    """What decides a text source's rows beside their length; nothing does those of others."""
    return (stage.packing, *sorted(stage.lengths.items())) if isinstance(source, Finite) else ()


def predicted(source: Source, seq_len: int) -> float:
    """Mean tokens a row of any source predicts."""
    return source.predicted(seq_len) if isinstance(source, Predicting) else float(seq_len)
