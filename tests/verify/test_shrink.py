"""The small model keeps what makes the large one's layout work, and its batches hold what shows mistakes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import (
    Config,
    ContextConfig,
    ContextKind,
    ContextLayout,
    ModelConfig,
    ParallelConfig,
    PipelineConfig,
    PipelineSchedule,
)
from farside.configs.stages import pretrain_stages
from farside.train.verify.attention import packed_row
from farside.train.verify.compare import STEPS
from farside.train.verify.shrink import batch_of, microbatches, one_process, shrunken

LARGE = ModelConfig(
    vocab_size=151936,
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    qk_norm=True,
    tie_word_embeddings=False,
)


def config_of(model: ModelConfig, parallel: ParallelConfig, seq_len: int = 131072) -> Config:
    config = Config(model=model, parallel=parallel)
    config.data.mixture = {"en": 1.0}
    config.data.seq_len, config.data.micro_batch_size = seq_len, 1
    config.data.global_batch_size = 8 * parallel.dp_replicate * parallel.dp_shard
    return config


degrees = st.sampled_from([1, 2, 3, 4, 8, 16])


@given(
    st.sampled_from([LARGE, replace(LARGE, vocab_size=50257, num_key_value_heads=1), ModelConfig(), Config().model]),
    st.builds(
        ParallelConfig,
        st.sampled_from([1, 2]),
        degrees,
        degrees,
        degrees,
        degrees,
        st.builds(ContextConfig, st.sampled_from(ContextKind), st.sampled_from(ContextLayout), degrees),
        st.builds(PipelineConfig, st.sampled_from(PipelineSchedule)),
    ),
)
def test_whatever_can_train_can_be_verified(model: ModelConfig, parallel: ParallelConfig) -> None:
    config = config_of(model, parallel, parallel.pieces * 1024)
    try:
        (stage,) = pretrain_stages(config)
    except UserError:
        assume(False)
    small = shrunken(config, stage)
    pretrain_stages(small)
    pretrain_stages(one_process(small))
    new, tp = small.model, parallel.tp
    assert new.num_attention_heads * model.num_key_value_heads == new.num_key_value_heads * model.num_attention_heads
    for count, whole in ((new.num_key_value_heads, model.num_key_value_heads), (new.vocab_size, model.vocab_size)):
        assert count <= whole
        assert (count % tp == 0) == (whole % tp == 0)
    repeated = (heads // tp % parallel.ulysses > 0 for heads in (new.num_key_value_heads, model.num_key_value_heads))
    assert len(set(repeated)) == 1, "Ulysses repeats key/value heads in both or in neither"
    assert (new.qk_norm, new.tie_word_embeddings) == (model.qk_norm, model.tie_word_embeddings)
    assert new.num_attention_heads * new.head_dim <= 8 * 16 * 64
    dp = parallel.dp_replicate * parallel.dp_shard
    assert small.data.global_batch_size // dp // small.data.micro_batch_size >= 2, "it accumulates"
    assert small.data.seq_len <= max(stage.seq_len, 16)


def test_golden_sizes() -> None:
    """64 heads over 8, on tp4 with two heads a rank: 4 key/value heads suffice; 9 layers for 8 stages."""
    parallel = ParallelConfig(tp=4, cp=2, pp=4, pipeline=PipelineConfig(PipelineSchedule.interleaved))
    config = config_of(LARGE, parallel)
    small = shrunken(config, pretrain_stages(config)[0])
    sizes = (small.model.num_attention_heads, small.model.num_key_value_heads, small.model.num_hidden_layers)
    assert sizes == (32, 4, 9)
    assert (small.model.vocab_size, small.model.intermediate_size, small.data.seq_len) == (64, 40, 48)


@pytest.fixture(scope="module")
def small() -> Config:
    config = config_of(ModelConfig(), ParallelConfig(dp_shard=2))
    return shrunken(config, pretrain_stages(config)[0])


def test_batches_are_uneven(small: Config) -> None:
    first, second = batch_of(small, 0), batch_of(small, 1)
    lengths = [[int((row == number).sum()) for number in row[row >= 0].unique()] for row in first.doc_ids]
    assert lengths[0] == [small.data.seq_len]
    assert sum(length % 2 for row in lengths for length in row) > len(lengths)
    assert len({len(row) for row in lengths}) > 1
    assert (first.doc_ids[-1] < 0).sum() > small.data.seq_len // 2
    assert not first.weights[first.doc_ids < 0].any()
    weights = first.weights.sum(1)
    assert len(set(weights.tolist())) == len(weights)
    half = len(weights) // 2
    assert not second.weights[:half].any()
    assert second.weights[half:].any()
    assert STEPS > 1, "the second step comes"


def test_microbatches_are_all_rows_once(small: Config) -> None:
    batch = batch_of(small, 0)
    parts = [part for rank in range(2) for part in microbatches(small, batch, rank, 2)]
    assert len(parts) == 2 * 4
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert len(microbatches(one_process(small), batch, 0, 1)) == 1


def test_packed_documents_follow_each_other() -> None:
    numbers = packed_row(np.random.default_rng(0), 100_000)
    assert all(one <= two for one, two in pairwise(numbers.tolist()))
    assert 40 < len(np.unique(numbers)) < 200  # mean length: 600 · exp(1.3² / 2) = 1,397
