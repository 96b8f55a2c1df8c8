"""``verify`` agrees with right layouts and blames the axis of every planted bug."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from farside.configs.compose import compose
from farside.configs.schema import Config, Dtype
from farside.parallel.mesh import ParallelDims
from farside.train.verify.check import Verdict, record, verify
from farside.train.verify.compare import BOUNDS, Differences
from tests.ranks import Rank, RankPool
from tests.verify import bugs

TINY = ("experiment=tiny", "parallel.dp_shard=1", "train.dtype=float64")
Plant = Callable[[], AbstractContextManager[Any]]


def check(place: Rank, config: Config, plant: Plant) -> Verdict:
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    with plant():
        return verify(config, mesh, torch.device("cpu"))


def verdict(ranks: RankPool, size: int, words: str, plant: Plant = nullcontext) -> Verdict:
    results = ranks.run(check, size, compose([*TINY, *words.split()]), plant)
    assert len({result.line for result in results}) == 1, "ranks disagree on the verdict"
    return results[0]


RIGHT = {
    "tp": (2, "parallel.tp=2 optim.kind=muon model.vocab_size=3071"),
    "cp": (2, "parallel.cp=2 parallel.context.kind=allgather parallel.context.layout=contiguous"),
    "pp": (2, "parallel.pp=2 train.activation_checkpointing=full"),
    "replicas": (2, "parallel.dp_replicate=2 model.tie_word_embeddings=false model.qk_norm=true"),
    "tp·cp": (4, "parallel.tp=2 parallel.cp=2 parallel.context.kind=ulysses"),
}


SHORT = ("cp", "pp")
"""The rest runs with --all; the parity cover has such layouts in the normal tests."""


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in RIGHT]
)
def test_right_layouts_agree(ranks: RankPool, name: str) -> None:
    found = verdict(ranks, *RIGHT[name])
    assert found.agrees, found.line
    assert found.retried == {}
    assert " equals one process: gradients " in found.line
    parallel = "cp" in name
    assert (found.traffic is not None) == parallel == (found.work is not None)
    assert found.found[Dtype.float64].gradient > 0, "two ways to sum, not one computation compared with itself"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "parallel.tp=2 parallel.pp=2 parallel.pipeline.schedule=interleaved model.num_hidden_layers=5",
        "parallel.dp_shard=2 parallel.pp=2 parallel.pipeline.schedule=zbv model.num_hidden_layers=4",
        "parallel.cp=4 parallel.context.kind=hybrid parallel.context.layout=balanced data.seq_len=4096",
        "parallel.dp_replicate=2 parallel.cp=2 train.dtype=bfloat16",
        "parallel.dp_shard=2 parallel.tp=2 train.dtype=bfloat16 optim.kind=muon",
        "parallel.tp=4 model.num_key_value_heads=4 train.dtype=float32 optim.kind=muon",
    ],
)
def test_more_right_layouts_agree(ranks: RankPool, words: str) -> None:
    found = verdict(ranks, 4, words)
    assert found.agrees, found.line
    assert list(found.found) == list(dict.fromkeys((Dtype.float64, compose([*TINY, *words.split()]).train.dtype)))


PLANTED: dict[str, tuple[int, str, Plant, str, list[str]]] = {
    "norm gradient not summed over tp": (
        *(2, "parallel.tp=2", bugs.norm_gradients_not_summed),
        *("norm.weight (and 4 more) by", ["tp"]),
    ),
    "loss averaged twice over dp": (2, "parallel.dp_shard=2", bugs.averaged_over_ranks, " more) by 0.5 ", ["dp_shard"]),
    "ring without its reduction": (2, "parallel.cp=2", bugs.ring_without_reduction, "gradient of ", ["cp"]),
    "tied gradient lost": (2, "parallel.pp=2", bugs.tied_gradient_lost, "gradient of model.embed_tokens", ["pp"]),
    "micro-batches averaged": (1, "", bugs.averaged_over_microbatches, " by 0.5 ", ["accumulation"]),
    "a replica drifts": (2, "parallel.dp_replicate=2", bugs.second_replica_drifts, "weight ", ["dp_replicate"]),
    "only in float32": (2, "parallel.tp=2 train.dtype=float32", bugs.wrong_in_float32, " in float32: ", []),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found_and_blamed(ranks: RankPool, name: str) -> None:
    size, words, plant, said, blame = PLANTED[name]
    found = verdict(ranks, size, words, plant)
    assert not found.agrees
    assert found.line.startswith("MISMATCH: ")
    assert said in found.line
    assert found.blame == blame, found.line
    assert record(found)["agrees_without"] == found.retried


@pytest.mark.slow
def test_a_bug_of_one_axis_is_told_from_the_other(ranks: RankPool) -> None:
    found = verdict(ranks, 4, "parallel.dp_shard=2 parallel.tp=2", bugs.norm_gradients_not_summed)
    assert found.retried == {"tp": True, "dp_shard": False, "accumulation": False}


@pytest.mark.slow
def test_a_bug_of_two_axes_together_blames_both(ranks: RankPool) -> None:
    plant = bugs.norm_gradients_not_summed_beside_shards
    found = verdict(ranks, 4, "parallel.dp_shard=2 parallel.tp=2", plant)
    assert found.line.endswith("; agrees without tp, and without dp_shard")


def test_bytes_that_differ_from_the_formula_are_a_mismatch(ranks: RankPool) -> None:
    found = verdict(ranks, 2, "parallel.cp=2", bugs.formula_of_half_the_bytes)
    assert found.failed is None
    assert found.line == "MISMATCH: cp2 (ring, zigzag): one attention sends other bytes than its formula says"


def test_nan_is_a_mismatch() -> None:
    bounds = BOUNDS[Dtype.float64]
    assert Differences(0.0, 0.0, {"a": float("inf")}, {"a": 0.0}).worst(bounds) == (
        "gradient of a",
        float("inf"),
        bounds.gradient,
    )
    assert Differences(0.0, 0.0, {"a": bounds.gradient}, {"a": 0.0}).worst(bounds) is None
