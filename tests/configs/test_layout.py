"""Layouts that a model or a sequence cannot be cut into are named before anything starts."""

from dataclasses import replace
from typing import Any

import pytest

from farside.configs.errors import UserError
from farside.configs.schema import (
    Config,
    ContextConfig,
    ContextKind,
    ContextLayout,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PipelineConfig,
    PipelineSchedule,
    Recompute,
    TrainConfig,
)
from farside.configs.stages import pretrain_stages

MODEL = ModelConfig(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, intermediate_size=96)
BASE = Config(model=MODEL, data=DataConfig(mixture={"en": 1.0}, seq_len=64, global_batch_size=8))


def parallel(**degrees: Any) -> ParallelConfig:
    return ParallelConfig(**degrees)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (parallel(tp=8), "parallel.tp = 8 does not divide model.num_key_value_heads = 4"),
        (parallel(tp=3), "parallel.tp = 3 does not divide model.num_key_value_heads = 4"),
        (parallel(cp=3), r"seq_len = 64 does not divide into 6 pieces \(parallel.cp = 3, tp = 1, layout zigzag\)"),
        (parallel(cp=3, context=ContextConfig(layout=ContextLayout.balanced)), "does not divide into 3 pieces"),
        (parallel(cp=16, tp=4), "does not divide into 128 pieces"),
        (parallel(cp=16, context=ContextConfig(kind=ContextKind.ulysses)), "16 ranks cannot share 8 attention heads"),
        (
            parallel(cp=4, tp=4, context=ContextConfig(kind=ContextKind.ulysses, layout=ContextLayout.contiguous)),
            "4 ranks cannot share 2 attention heads",
        ),
        (
            parallel(cp=3, context=ContextConfig(kind=ContextKind.hybrid)),
            "ulysses_degree = 2 does not divide parallel.cp = 3",
        ),
        (parallel(pp=8), "makes 8 stages, but model.num_hidden_layers = 4: every stage needs a layer"),
        (parallel(pp=4, pipeline=PipelineConfig(PipelineSchedule["interleaved"])), "makes 8 stages, but"),
        (parallel(pp=0), "parallel.pp = 0; degrees are at least 1"),
    ],
)
def test_impossible_layouts_name_key_numbers_and_fix(layout: ParallelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        pretrain_stages(replace(BASE, parallel=layout))
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_zero_bubble_refuses_what_the_library_gets_wrong() -> None:
    layout = parallel(pp=2, pipeline=PipelineConfig(PipelineSchedule["zbv"]))
    pretrain_stages(replace(BASE, parallel=layout))
    for train in (TrainConfig(compile=True), TrainConfig(activation_checkpointing=Recompute.full)):
        with pytest.raises(UserError, match="zbv splits the backward pass"):
            pretrain_stages(replace(BASE, parallel=layout, train=train))


def test_compiled_tensor_parallelism_is_refused() -> None:
    for layout, compiled in ((parallel(tp=2), False), (parallel(cp=2), True)):
        pretrain_stages(replace(BASE, parallel=layout, train=TrainConfig(compile=compiled)))
    with pytest.raises(UserError, match="cannot be compiled yet"):
        pretrain_stages(replace(BASE, parallel=parallel(tp=2), train=TrainConfig(compile=True)))


def test_possible_layouts_pass() -> None:
    for layout in (
        parallel(tp=4, cp=2, pp=4),
        parallel(cp=8, context=ContextConfig(kind=ContextKind.ulysses)),
        parallel(cp=8, context=ContextConfig(ContextKind.hybrid, ContextLayout.balanced, 4)),
        parallel(dp_replicate=2, dp_shard=4, pp=2, pipeline=PipelineConfig(PipelineSchedule["interleaved"])),
    ):
        assert pretrain_stages(replace(BASE, parallel=layout))


def test_pieces_and_ranks_follow_the_degrees() -> None:
    assert (parallel(cp=2, tp=2).pieces, parallel(cp=2, tp=2, pp=3).ranks) == (8, 12)
    assert parallel(cp=2, context=ContextConfig(layout=ContextLayout.contiguous)).pieces == 2
    assert parallel(tp=4).pieces == 4
    assert parallel(cp=4, context=ContextConfig(kind=ContextKind.hybrid)).ulysses == 2
    assert parallel(cp=4, context=ContextConfig(kind=ContextKind.ulysses)).ulysses == 4
    assert parallel(cp=1, context=ContextConfig(kind=ContextKind.hybrid)).ulysses == 1
