"""From the configuration to stages in which every field is decided."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import (
    Config,
    DataConfig,
    ParallelConfig,
    RopeKind,
    RopeScalingConfig,
    SftConfig,
    SourceConfig,
    SourceKind,
    StageConfig,
    TrainConfig,
)
from farside.configs.stages import check_sources, idle_sources, pretrain_stages, sft_stages

YARN = RopeScalingConfig(RopeKind.yarn, 4.0, 64)
BASE = Config(
    parallel=ParallelConfig(dp_replicate=2, dp_shard=2),
    data=DataConfig(mixture={"en": 1.0}, seq_len=64, global_batch_size=16, micro_batch_size=4),
    train=TrainConfig(steps=30),
)


def test_without_a_list_there_is_one_stage() -> None:
    (stage,) = pretrain_stages(BASE)
    assert (stage.name, stage.index, stage.first_step, stage.last_step) == ("train", 0, 0, 30)
    assert (stage.seq_len, stage.rope, stage.lr) == (64, Rope(BASE.model.rope_theta), BASE.optim.lr)
    assert (stage.global_batch_size, stage.micro_batch_size, stage.mixture) == (16, 4, {"en": 1.0})


def test_stages_follow_each_other_and_inherit_what_they_leave_out() -> None:
    listed = [
        StageConfig("short", 10),
        StageConfig("long", 5, 256, 5e5, YARN, 1e-4, 8, 2, {"zh": 2.0}, eval=True),
        StageConfig("last", 1, lr=0.0),
    ]
    short, long, last = pretrain_stages(replace(BASE, stages=listed))
    assert [(s.index, s.first_step, s.last_step) for s in (short, long, last)] == [(0, 0, 10), (1, 10, 15), (2, 15, 16)]
    assert (short.seq_len, short.eval) == (64, False)
    assert (long.seq_len, long.rope, long.lr, long.global_batch_size) == (
        256,
        Rope(5e5, RopeKind.yarn, 4.0, 64),
        1e-4,
        8,
    )
    assert (long.micro_batch_size, long.mixture, long.eval) == (2, {"zh": 2.0}, True)
    assert last.lr == 0.0, "zero is a value, not a missing one"
    assert last.seq_len == 64


def test_sft_keeps_the_last_stage_s_rope() -> None:
    listed = [StageConfig("short", 10), StageConfig("long", 5, rope_theta=5e5, rope_scaling=YARN)]
    sft = SftConfig(steps=7, lr=2e-4, seq_len=96, global_batch_size=12, micro_batch_size=3)
    (stage,) = sft_stages(replace(BASE, stages=listed, sft=sft))
    assert (stage.name, stage.steps, stage.lr, stage.seq_len) == ("sft", 7, 2e-4, 96)
    assert stage.rope == Rope(5e5, RopeKind.yarn, 4.0, 64)
    assert (stage.global_batch_size, stage.micro_batch_size, stage.mixture) == (12, 3, {"trace": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps = 0; give at least 1"),
        ({"steps": -4}, "steps = -4"),
        ({"seq_len": 15}, "seq_len = 15; give at least 16"),
        ({"micro_batch_size": 0}, "micro_batch_size = 0"),
        ({"global_batch_size": 6}, "global_batch_size = 6 does not divide over 4 data-parallel ranks .*multiple of 4"),
        ({"global_batch_size": 0}, "global_batch_size = 0"),
        ({"global_batch_size": -4}, "global_batch_size = -4"),
        ({"mixture": {}}, "mixture {} needs at least one entry"),
        ({"mixture": {"en": 0.0}}, "needs at least one entry with a positive share"),
        ({"mixture": {"en": 2.0, "zh": -1.0}}, "needs at least one entry with a positive share"),
    ],
)
def test_a_stage_that_cannot_run_is_named(change: dict[str, Any], message: str) -> None:
    entry = replace(StageConfig("second", 5), **change)
    with pytest.raises(UserError, match=f"stage 'second': .*{message}") as error:
        pretrain_stages(replace(BASE, stages=[StageConfig("first", 5), entry]))
    assert "\n" not in str(error.value)


def test_mixtures_of_what_is_no_source_are_seen_before_any_text_is_read() -> None:
    sources = {name: SourceConfig(kind=SourceKind.text, path="x.txt") for name in ("en", "web_text")}
    config = replace(BASE, data=replace(BASE.data, sources=sources))
    drawn = {"en": 1.0, "needle_web_text": 1.0, "copy": 0.5}
    stages = pretrain_stages(replace(config, data=replace(config.data, mixture=drawn)))
    check_sources(config, stages)
    assert idle_sources(config, stages) == []
    assert idle_sources(config, pretrain_stages(config)) == ["web_text"]
    for entry in ("zh", "needle_zh", "web"):
        stages = pretrain_stages(replace(config, data=replace(config.data, mixture={entry: 1.0})))
        with pytest.raises(UserError, match=rf"mixture names '{entry}', .* data\.sources \(en, web_text\)"):
            check_sources(config, stages)


def test_conversations_are_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with pytest.raises(UserError, match=r"sft\.conversations = .*no such file"):
        sft_stages(replace(BASE, sft=SftConfig(conversations=str(path))))
    path.touch()
    assert sft_stages(replace(BASE, sft=SftConfig(conversations=str(path))))
    with pytest.raises(UserError, match=r"sft\.traces = 0; give at least 1"):
        sft_stages(replace(BASE, sft=SftConfig(traces=0)))
