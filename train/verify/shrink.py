"""The user's configuration made small: same family, flags and layout, sizes that still divide by it, and batches that
show mistakes.

Sizes are chosen so that the small model takes the paths of the large one: a vocabulary that tensor parallelism must pad
stays one, key/value heads that Ulysses must repeat stay such, the ratio of query to key/value heads is kept.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from farside.configs.schema import Config, ContextLayout, Dtype, ModelConfig, OptimConfig, ParallelConfig, Recompute
from farside.configs.stages import Stage
from farside.data.batch import Batch, Sample, document_sample
from farside.parallel.pipeline import stages_per_rank

ROWS = 2
"""Of a micro-batch."""
AT_ONCE = 64
"""Rows that the one process computes at once, at most: thousands of data-parallel ranks must fit into its memory."""
CLIP = 0.05
"""Below the gradient norm of every step, so that clipping is active."""
CHUNK = 7
"""Tokens that a chunked MLP takes at once: several chunks, the last one shorter."""
LOCAL, LOCAL_BALANCED = 24, 256
"""Tokens of a context-parallel rank. The balanced layout cuts nothing finer than 64."""


def shrunken(config: Config, stage: Stage) -> Config:
    """A configuration of the same layout that trains in seconds, in float64. stage: gives lengths and batch sizes."""
    small = copy.deepcopy(config)
    small.model = shrunken_model(config)
    small.stages = []
    parallel = config.parallel
    local = LOCAL_BALANCED if parallel.cp > 1 and parallel.context.layout is ContextLayout.balanced else LOCAL
    small.data.seq_len = min(stage.seq_len, parallel.pieces * -(-local * max(2, parallel.cp) // parallel.pieces))
    dp = parallel.dp_replicate * parallel.dp_shard
    accumulated = -(-stage.global_batch_size // (dp * stage.micro_batch_size))
    small.data.micro_batch_size = ROWS
    small.data.global_batch_size = dp * ROWS * min(4, max(2, accumulated))
    # a large eps: Adam's update then depends on the gradient's scale, so that clipping shows, and is not the sign of
    # what is rounding only
    small.optim = OptimConfig(
        kind=config.optim.kind,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        eps=1e-3,
        clip_norm=CLIP,
        lr=1e-2,
    )
    small.train.mlp_chunk = min(config.train.mlp_chunk, CHUNK)
    small.train.dtype = Dtype.float64
    return small


def one_process(small: Config) -> Config:
    """The same training in one piece: one rank, one micro-batch (unless it would be huge), nothing recomputed, compiled
    or cut into chunks, float64."""
    alone = copy.deepcopy(small)
    alone.parallel = ParallelConfig()
    alone.data.micro_batch_size = min(AT_ONCE, alone.data.global_batch_size)
    alone.train.activation_checkpointing, alone.train.compile = Recompute.none, False
    alone.train.mlp_chunk, alone.train.offload_activations = 0, False
    alone.train.dtype = Dtype.float64
    return alone


def shrunken_model(config: Config) -> ModelConfig:
    model, parallel, tp = config.model, config.parallel, config.parallel.tp
    schedule = parallel.pipeline.schedule.value
    stages = parallel.pp * stages_per_rank(schedule) if parallel.pp > 1 else 1
    kv_heads = next(heads for heads in range(min(2, model.num_key_value_heads), 1 << 30) if _fits(config, heads))
    return replace(
        model,
        vocab_size=_vocabulary(model.vocab_size, tp),
        hidden_size=min(model.hidden_size, 24),
        intermediate_size=min(model.intermediate_size, tp * -(-40 // tp)),
        num_hidden_layers=min(model.num_hidden_layers, stages + 1),
        num_attention_heads=kv_heads * (model.num_attention_heads // model.num_key_value_heads),
        num_key_value_heads=kv_heads,
        head_dim=min(model.head_dim, 8),
        initializer_range=0.3,  # wide: attention is then far from even, and every gradient far from zero
    )


def _fits(config: Config, kv_heads: int) -> bool:
    """Whether so many key/value heads divide as the model's do; the model's own always fit."""
    model, tp, ulysses = config.model, config.parallel.tp, config.parallel.ulysses
    if kv_heads == model.num_key_value_heads:
        return True
    heads = kv_heads * (model.num_attention_heads // model.num_key_value_heads)
    repeated, repeated_there = (count // tp % ulysses > 0 for count in (kv_heads, model.num_key_value_heads))
    return kv_heads % tp == 0 and heads // tp % ulysses == 0 and repeated == repeated_there


def _vocabulary(whole: int, tp: int) -> int:
    """About 61 rows, divisible by tp if the whole is; every rank has a row."""
    if whole % tp == 0:
        return min(whole, tp * -(-61 // tp))
    return next((size for size in range(61, whole) if size % tp and (tp - 1) * -(-size // tp) < size), whole)


def batch_of(small: Config, step: int) -> Batch:
    """The global batch of a step: random tokens with unequal weights in random documents of odd lengths.

    The first row is one document, the last is mostly padding that sees nothing; of the second step the first half of
    the rows, and so whole ranks, count nothing.
    """
    generator, rows, size = np.random.default_rng(step), small.data.global_batch_size, small.data.seq_len
    samples = []
    for row in range(rows):
        lengths = [size] if row == 0 else list(_odd_lengths(generator, size))
        samples.append(_sample(generator, lengths, small.model.vocab_size))
    batch = Batch.of(samples)
    weights, doc_ids = batch.weights.double(), batch.doc_ids.clone()
    doc_ids[-1, size // 4 :], weights[-1, size // 4 :] = -1, 0.0
    if step == 1:
        weights[: rows // 2] = 0.0
    return replace(batch, weights=weights, doc_ids=doc_ids)


def _odd_lengths(generator: np.random.Generator, size: int) -> Iterable[int]:
    """Odd lengths that fill ``size``; the last one takes what is left."""
    while size > 0:
        length = min(size, 2 * int(generator.integers(0, max(2, size // 3))) + 1)
        yield length
        size -= length


def _sample(generator: np.random.Generator, lengths: list[int], vocabulary: int) -> Sample:
    count = sum(lengths) + 1
    starts = np.zeros(count, dtype=bool)
    starts[np.cumsum([0, *lengths])] = True  # the last start is the label-only token: never counted
    weights = generator.uniform(0.1, 2.0, count) * (generator.random(count) < 0.8)
    return document_sample(generator.integers(vocabulary, size=count), weights.astype(np.float32), starts)


def microbatches(small: Config, batch: Batch, dp_rank: int, dp_size: int) -> list[Batch]:
    """This data-parallel rank's rows, ``micro_batch_size`` at a time."""
    share = small.data.global_batch_size // dp_size
    size = min(share, small.data.micro_batch_size)
    return [
        Batch(**{name: value[first : first + size] for name, value in vars(batch).items() if name != "extras"})
        for first in range(dp_rank * share, (dp_rank + 1) * share, size)
    ]
