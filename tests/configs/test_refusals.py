"""Any layout is either refused in one line or can be built: nothing between. The numbers are drawn at random."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

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
)
from farside.configs.stages import pretrain_stages
from farside.parallel.context.build import check
from farside.parallel.pipeline import split_layers, stages_per_rank
from farside.train.engine.typecheck import check_types


def configs(bad: bool) -> some.SearchStrategy[Config]:
    """Mostly possible ones; with ``bad``, of numbers that seldom fit together and some that never do."""

    def numbers(good: list[int], more: list[int]) -> some.SearchStrategy[int]:
        return some.sampled_from(good + (more if bad else []))

    model = some.builds(
        ModelConfig,
        vocab_size=numbers([64, 101], [1, 5]),
        hidden_size=numbers([8, 24], [0]),
        intermediate_size=numbers([24], [8, 12]),
        num_hidden_layers=numbers([4, 8], [0, 1, 2, 3]),
        num_attention_heads=numbers([4, 8, 12], [1, 2, 6]),
        num_key_value_heads=numbers([4], [0, 1, 2, 6, 8]),
        head_dim=numbers([2, 4], [5]),
    )
    context = some.builds(
        ContextConfig,
        some.sampled_from(ContextKind),
        some.sampled_from(ContextLayout),
        numbers([1, 2], [3, 4, 0, -2]),
    )
    pipeline = some.builds(PipelineConfig, some.sampled_from(PipelineSchedule))
    degrees = [numbers([1, 1, 2, 4], [3, 6, 8, 0, -1])] * 5
    data = some.builds(
        DataConfig,
        mixture=some.just({"en": 1.0}),
        seq_len=numbers([96, 1152], [16, 48, 60]),
        global_batch_size=numbers([48], [0, 1, 8, 24]),
    )
    return some.builds(
        Config, model=model, parallel=some.builds(ParallelConfig, *degrees, context, pipeline), data=data
    )


def why_not(config: Config) -> set[str]:
    """What stands against a layout, said once more and independently: the keys to blame."""
    model, parallel, found = config.model, config.parallel, set()
    degrees = (parallel.dp_replicate, parallel.dp_shard, parallel.cp, parallel.tp, parallel.pp)
    found |= {"degree"} if min(degrees) < 1 else set()
    dp, cp, tp, pp = max(1, degrees[0] * degrees[1]), *(max(1, degree) for degree in degrees[2:])
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    found |= {"model"} if kv_heads < 1 or heads % kv_heads or model.head_dim % 2 or model.hidden_size < 1 else set()
    found |= {"tp"} if kv_heads % tp or model.intermediate_size % tp else set()
    found |= {"vocabulary"} if math.ceil(model.vocab_size / tp) * (tp - 1) >= model.vocab_size else set()
    stages = pp if parallel.pipeline.schedule.value == "1f1b" else 2 * pp
    found |= {"layers"} if model.num_hidden_layers < (stages if pp > 1 else 1) else set()
    ulysses = parallel.context.ulysses_degree
    found |= {"ulysses"} if ulysses < 1 else set()
    kind = parallel.context.kind
    sharing = cp if kind is ContextKind.ulysses else ulysses if kind is ContextKind.hybrid and cp > 1 else 1
    found |= {"heads"} if sharing > 0 and (cp % sharing or heads // tp % sharing) else set()
    pieces = cp * tp * (2 if cp > 1 and parallel.context.layout is ContextLayout.zigzag else 1)
    found |= {"sequence"} if config.data.seq_len % pieces else set()
    found |= {"batch"} if config.data.global_batch_size < 1 or config.data.global_batch_size % dp else set()
    return found


@settings(max_examples=60)
@given(config=some.booleans().flatmap(configs))
def test_a_layout_is_refused_in_one_line_or_divides_everything(config: Config) -> None:
    reasons = why_not(config)
    if reasons:
        with pytest.raises(UserError) as error:
            pretrain_stages(config)
        text = str(error.value)
        assert "\n" not in text
        assert text.startswith(("parallel.", "model.", "stage 'train': "))
        return
    pretrain_stages(config)
    model, parallel = config.model, config.parallel
    heads, kv_heads = model.num_attention_heads // parallel.tp, model.num_key_value_heads // parallel.tp
    context = (parallel.context.kind.value, parallel.context.layout.value, parallel.cp, parallel.ulysses)
    check(*context, config.data.seq_len // parallel.tp, heads, kv_heads)
    stages = stages_per_rank(parallel.pipeline.schedule.value) * parallel.pp if parallel.pp > 1 else 1
    assert all(split_layers(model.num_hidden_layers, stages, 0.5))


@pytest.mark.slow
@settings(max_examples=60)
@given(config=configs(bad=False).filter(lambda config: not why_not(config)))
def test_what_is_not_refused_is_built_and_typed(config: Config) -> None:
    check_types(config, config.parallel.ranks)
