"""From the configuration to a list of stages in which every field is decided. No torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.rope import Rope
from farside.configs.schema import Config, Packing, ProfileConfig


@dataclass(frozen=True)
class Stage:
    """One stage of training. Its steps are ``first_step + 1 .. first_step + steps`` of the run, counted from 1."""

    index: int
    name: str
    first_step: int
    steps: int
    seq_len: int
    rope: Rope
    lr: float
    global_batch_size: int
    micro_batch_size: int
    mixture: dict[str, float]
    packing: Packing
    lengths: dict[int, float]
    eval: bool

    @property
    def last_step(self) -> int:
        return self.first_step + self.steps


def pretrain_stages(config: Config) -> list[Stage]:
    """The stages of ``farside train``: the configured list, or one stage of train.steps steps."""
    if not config.stages:
        return _pretrain(config, [_stage(config, 0, 0, "train", config.train.steps)])
    stages: list[Stage] = []
    for entry in config.stages:
        first_step = stages[-1].last_step if stages else 0
        stages.append(
            _stage(
                config,
                len(stages),
                first_step,
                entry.name,
                entry.steps,
                seq_len=entry.seq_len,
                rope=Rope.of_model(config.model).changed(
                    entry.rope_theta, entry.rope_scaling, f"stage {entry.name!r}: "
                ),
                lr=entry.lr,
                mixture=entry.mixture,
                packing=entry.packing,
                lengths=entry.lengths,
                global_batch_size=entry.global_batch_size,
                micro_batch_size=entry.micro_batch_size,
                eval=entry.eval,
            )
        )
    return _pretrain(config, stages)


def _pretrain(config: Config, stages: list[Stage]) -> list[Stage]:
    check_stages(config, stages)
    traced, last = profile_range(config.profile), stages[-1].last_step
    if traced is not None and traced.stop > last + 1:
        raise UserError(f"profile.steps = {config.profile.steps}, but training has {last} steps; name some of them")
    return stages


def profile_range(profile: ProfileConfig) -> range | None:
    """The steps to trace, counted from 1; None: no tracing. Raises UserError for anything but FIRST..LAST."""
    if not profile.steps:
        if profile.memory:
            raise UserError("profile.memory = true without steps; name them, such as profile.steps=10..12")
        return None
    match = re.fullmatch(r"(\d+)\.\.(\d+)", profile.steps)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"profile.steps = {profile.steps!r}; give FIRST..LAST, counted from 1, such as 10..12")
    return range(first, last + 1)


def sft_stages(config: Config) -> list[Stage]:
    """Supervised fine-tuning is one stage that keeps the last pretraining stage's RoPE."""
    sft = config.sft
    if sft.traces < 1:
        raise UserError(f"sft.traces = {sft.traces}; give at least 1")
    if sft.conversations is not None and not Path(sft.conversations).is_file():
        raise UserError(
            f"sft.conversations = {sft.conversations}: no such file; name one, or null for the task's traces"
        )
    return check_stages(
        config,
        [
            _stage(
                config,
                0,
                0,
                "sft",
                sft.steps,
                seq_len=sft.seq_len,
                lr=sft.lr,
                mixture=sft.mixture,
                rope=pretrain_stages(config)[-1].rope,
                global_batch_size=sft.global_batch_size,
                micro_batch_size=sft.micro_batch_size,
            )
        ],
    )


def replay_stage(config: Config) -> Stage | None:
    """What RL replays beside its own samples, or None. It keeps the last pretraining stage's RoPE."""
    replay = config.rl.replay
    if replay.samples == 0:
        return None
    if replay.weight <= 0:
        raise UserError(f"rl.replay.weight = {replay.weight}; give more than 0, or set rl.replay.samples=0")
    stage = _stage(
        config,
        0,
        0,
        "rl.replay",
        config.rl.steps,
        seq_len=replay.seq_len,
        lr=config.rl.lr,
        mixture=replay.mixture,
        rope=pretrain_stages(config)[-1].rope,
        global_batch_size=replay.samples,
        micro_batch_size=replay.micro_batch_size,
    )
    return check_stages(config, [stage])[0]


def _stage(
    config: Config,
    index: int,
    first_step: int,
    name: str,
    steps: int,
    *,
    seq_len: int | None = None,
    rope: Rope | None = None,
    lr: float | None = None,
    global_batch_size: int | None = None,
    micro_batch_size: int | None = None,
    mixture: dict[str, float] | None = None,
    packing: Packing | None = None,
    lengths: dict[int, float] | None = None,
    eval: bool = False,
) -> Stage:
    data = config.data
    return Stage(
        index=index,
        name=name,
        first_step=first_step,
        steps=steps,
        seq_len=data.seq_len if seq_len is None else seq_len,
        rope=rope or Rope.of_model(config.model),
        lr=config.optim.lr if lr is None else lr,
        global_batch_size=data.global_batch_size if global_batch_size is None else global_batch_size,
        micro_batch_size=data.micro_batch_size if micro_batch_size is None else micro_batch_size,
        mixture=dict(data.mixture if mixture is None else mixture),
        packing=data.packing if packing is None else packing,
        lengths=dict(data.lengths if lengths is None else lengths),
        eval=eval,
    )


def check_stages(config: Config, stages: list[Stage]) -> list[Stage]:
    """Raises UserError for a stage that cannot run; returns the stages."""
    check_layout(config)
    ranks = config.parallel.dp_replicate * config.parallel.dp_shard
    for key in ("every", "keep"):
        if getattr(config.checkpoint, key) < 1:
            raise UserError(f"checkpoint.{key} = {getattr(config.checkpoint, key)}; give at least 1")
    if config.checkpoint.keep_every < 0:
        raise UserError(f"checkpoint.keep_every = {config.checkpoint.keep_every}; give at least 0")
    names = [stage.name for stage in stages]
    for stage in stages:
        where = f"stage {stage.name!r}"
        if names.count(stage.name) > 1 or not re.fullmatch(r"\w[\w.-]*", stage.name):
            raise UserError(f"{where}: a stage's name is a folder's: give each its own, of letters, digits, - _ and .")
        if stage.lr < 0 or not math.isfinite(stage.lr):
            raise UserError(f"{where}: lr = {stage.lr}; give 0 or more")
        if stage.steps < 1:
            raise UserError(f"{where}: steps = {stage.steps}; give at least 1")
        if stage.seq_len < 16:
            raise UserError(f"{where}: seq_len = {stage.seq_len}; give at least 16")
        if stage.micro_batch_size < 1:
            raise UserError(f"{where}: micro_batch_size = {stage.micro_batch_size}; give at least 1")
        if stage.global_batch_size < 1:
            raise UserError(f"{where}: global_batch_size = {stage.global_batch_size}; give at least {ranks}")
        if stage.global_batch_size % ranks:
            raise UserError(
                f"{where}: global_batch_size = {stage.global_batch_size} does not divide over "
                f"{ranks} data-parallel ranks (dp_replicate·dp_shard); use a multiple of {ranks}"
            )
        if stage.seq_len % config.parallel.pieces:
            raise UserError(
                f"{where}: seq_len = {stage.seq_len} does not divide into {config.parallel.pieces} pieces "
                f"(parallel.cp = {config.parallel.cp}, tp = {config.parallel.tp}, layout "
                f"{config.parallel.context.layout.value}); use a multiple of {config.parallel.pieces}"
            )
        if not stage.mixture or any(weight < 0 for weight in stage.mixture.values()) or not sum(stage.mixture.values()):
            raise UserError(f"{where}: mixture {stage.mixture} needs at least one entry with a positive share")
        if stage.lengths and (
            min(stage.lengths.values()) < 0 or min(stage.lengths) < 0 or not sum(stage.lengths.values())
        ):
            raise UserError(f"{where}: lengths {stage.lengths} needs lengths from 0 up, one with a positive share")
    return stages


def check_sources(config: Config, stages: Sequence[Stage]) -> None:
    """Before any text is read: an entry of a mixture is a source, a task about one (such as needle_en), copy, or trace.
    Raises UserError."""
    sources = sorted(config.data.sources)
    for stage in stages:
        for entry in stage.mixture:
            if entry in ("copy", "trace") or any(entry == name or entry.endswith(f"_{name}") for name in sources):
                continue
            raise UserError(
                f"stage {stage.name!r}: mixture names {entry!r}, which is no source of data.sources "
                f"({', '.join(sources)}) nor a task about one; add the source, or name another"
            )


def idle_sources(config: Config, stages: Sequence[Stage]) -> list[str]:
    """Sources of data.sources that no stage draws from."""
    drawn = [entry for stage in stages for entry, share in stage.mixture.items() if share > 0]
    return [
        name
        for name in sorted(config.data.sources)
        if not any(entry == name or entry.endswith(f"_{name}") for entry in drawn)
    ]
