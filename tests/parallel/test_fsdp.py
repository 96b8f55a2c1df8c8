"""Every data-parallel layout computes what one process computes: losses, norms, weights, checkpoints; fp64."""

from functools import cache
from pathlib import Path

import pytest
import torch

from farside.configs.schema import Dtype, OptimKind, Recompute
from farside.train.checkpoint.format import read
from tests.parallel.training import CLIP, Trained, digest, fail_on_rank_zero, load, save, train
from tests.ranks import Rank, RankPool

MESHES = {"dp_shard 2": (1, 2), "dp_shard 3": (1, 3), "dp_shard 4": (1, 4), "replicate 2 x shard 2": (2, 2)}
KINDS = [OptimKind.adamw, pytest.param(OptimKind.muon, marks=pytest.mark.slow)]
"""The parity cover has Muon on every kind of layout in the normal tests."""
CHOSEN = [mesh if mesh == (2, 2) else pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES.values()]
"""The rest runs with --all; the parity cover has more of them in the normal tests."""


@cache
def alone(kind: OptimKind, pieces: int) -> Trained:
    return train(Rank(0, 1), 1, 1, kind, pieces)


def assert_same(found: Trained, wanted: Trained) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=0, abs=1e-12)
    assert found.grad_norms == pytest.approx(wanted.grad_norms, rel=0, abs=1e-12)
    assert found.weights.keys() == wanted.weights.keys()
    for name, value in wanted.weights.items():
        assert (found.weights[name] - value).abs().max() <= 1e-9, name


@pytest.mark.parametrize("kind", OptimKind)
def test_micro_batches_change_nothing_on_one_process(kind: OptimKind) -> None:
    assert min(alone(kind, 1).grad_norms) > CLIP, "clipping must be active"
    assert alone(kind, 1).initial != alone(kind, 1).final
    assert_same(alone(kind, 3), alone(kind, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", CHOSEN, ids=MESHES)
def test_layout_equals_one_process(ranks: RankPool, mesh: tuple[int, int], kind: OptimKind) -> None:
    replicate, shard = mesh
    for pieces in (1, 2) if shard == 3 else (1, 3):  # three ranks have four rows each
        results = ranks.run(train, replicate * shard, replicate, shard, kind, pieces)
        assert_same(results[0], alone(kind, 1))
        for result in results:
            assert result.initial == alone(kind, 1).initial, "initial weights depend on the mesh"
            assert result.final == results[0].final, "ranks hold different weights"
            assert result.losses == results[0].losses
            assert result.grad_norms == results[0].grad_norms


@pytest.mark.parametrize("kind", KINDS)
def test_one_and_two_ranks_and_one_and_four_micro_batches_give_the_same_weights(
    ranks: RankPool, kind: OptimKind
) -> None:
    for size in (1, 2):
        for pieces in (1, 4):
            assert_same(ranks.run(train, size, 1, size, kind, pieces)[0], alone(kind, 1))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [Recompute.selective, Recompute.full])
def test_recomputation_under_sharding_changes_no_bit(ranks: RankPool, recompute: Recompute) -> None:
    wanted = ranks.run(train, 2, 1, 2, OptimKind.muon, 3)
    found = ranks.run(train, 2, 1, 2, OptimKind.muon, 3, Dtype.float64, recompute)
    assert [result.final for result in found] == [result.final for result in wanted]
    assert found[0].losses == wanted[0].losses


@pytest.mark.slow
@pytest.mark.parametrize("recompute", Recompute)
def test_compiled_and_sharded_equals_eager_alone(ranks: RankPool, recompute: Recompute) -> None:
    found = ranks.run(train, 2, 1, 2, OptimKind.muon, 3, Dtype.float64, recompute, True, deadline=200)
    assert_same(found[0], alone(OptimKind.muon, 1))


@pytest.mark.parametrize("kind", OptimKind)
@pytest.mark.parametrize("mesh", [(1, 2), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_bf16_on_every_mesh_is_one_process_to_the_precision_of_bf16(
    ranks: RankPool, mesh: tuple[int, int], kind: OptimKind
) -> None:
    """Measured after three steps on processors with and without bf16 arithmetic: losses within 8e-4, norms 2e-3 and
    6.2e-3, weights 3e-4; one process in bf16 is 5.6e-3 away from fp32 in the norm. Bounds: two to three times that."""
    replicate, shard = mesh
    wanted = train(Rank(0, 1), 1, 1, kind, 1, Dtype.bfloat16)
    results = ranks.run(train, replicate * shard, replicate, shard, kind, 3, Dtype.bfloat16)
    found = results[0]
    assert found.initial == wanted.initial
    assert all(result.final == found.final for result in results)
    assert found.losses == pytest.approx(wanted.losses, rel=2e-3)
    assert found.grad_norms == pytest.approx(wanted.grad_norms, rel=1.2e-2)
    for name, value in wanted.weights.items():
        assert found.weights[name].dtype == torch.float32
        assert (found.weights[name] - value).norm() <= 1e-3 * value.norm(), name


@pytest.mark.parametrize("size", [1, 2])
def test_bf16_resumes_bit_for_bit_from_fp32_weights(ranks: RankPool, tmp_path: Path, size: int) -> None:
    saved, after = ranks.run(save, size, tmp_path, OptimKind.muon, Dtype.bfloat16)[0]
    for loaded, continued, _ in ranks.run(load, size, tmp_path, OptimKind.muon, 1, Dtype.bfloat16):
        assert (loaded, continued) == (saved, after)
    stored = read(tmp_path / "checkpoints" / "step_00000002").tensors("model")
    assert {value.dtype for value in stored.values()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_two_ranks_loads_into_any_mesh_bit_for_bit(
    ranks: RankPool, tmp_path: Path, kind: OptimKind
) -> None:
    (saved, after), other = ranks.run(save, 2, tmp_path, kind)
    assert other == (saved, after)
    checkpoint = read(tmp_path / "checkpoints" / "step_00000002")
    tensors = {name: digest(checkpoint.tensors(name)) for name in ("model", "optimizer")}
    assert saved == f"2 {tensors['model']} {tensors['optimizer']}"
    for size, replicate in ((1, 1), (2, 1), (2, 2)):  # test_resharding.py has all meshes
        for loaded, continued, step in ranks.run(load, size, tmp_path, kind, replicate):
            assert (loaded, step) == (saved, 2), f"{size} ranks, dp_replicate {replicate}"
            if (size, replicate) == (2, 1):
                assert continued == after, "the same mesh must go on bit for bit"


def test_a_failed_save_is_raised_on_every_rank(ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for told in ranks.run(fail_on_rank_zero, 2, tmp_path):
        assert "checkpoint of step 1 not saved" in told
