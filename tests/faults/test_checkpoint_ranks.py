"""Several ranks save together: one that dies or fails anywhere leaves the last checkpoint whole, and the same step can
be saved again."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import CheckpointConfig
from farside.parallel import comm
from farside.train.checkpoint import files, retention, saving
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint import store as checkpoint_store
from farside.train.checkpoint.format import read
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore, SaveFailed
from tests.ranks import Rank, RankError, RankPool
from tests.train.stand_in import RowEngine

Change = Callable[[Callable[..., Any]], Callable[..., Any]]


def die() -> None:
    os._exit(9)


def fail() -> None:
    raise OSError("the disk is gone")


def before(action: Callable[[], None], count: int = 1) -> Change:
    """The function, but ``action`` comes before its ``count``-th call."""

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        calls = [0]

        def changed(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                action()
            return original(*arguments, **named)

        return changed

    return change


def after_bytes(action: Callable[[], None]) -> Change:
    """A shard's bytes, in pieces of 64, until ``action`` comes after the third."""

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any) -> Iterator[bytes | memoryview]:
            for number, chunk in enumerate(bytes(part) for part in original(*arguments)):
                if number == 1:
                    yield chunk[:64]
                    action()
                yield chunk

        return changed

    return change


Point = tuple[Any, str, Callable[[Callable[[], None]], Change]]
POINTS: dict[str, Point] = {
    "before a shard": (checkpoint_format, "write_shard", before),
    "before the second shard": (checkpoint_format, "write_shard", lambda action: before(action, 2)),
    "after some bytes": (files, "_shard_bytes", after_bytes),
    "before an fsync": (files.os, "fsync", before),
    "before it tells": (saving, "write_json", before),
}
"""On any rank."""
ON_RANK_0: dict[str, Point] = {
    "before the folder": (checkpoint_store, "require_room", before),
    "before the index": (checkpoint_format, "write_json", before),
    "before the manifest": (checkpoint_format, "write_json", lambda action: before(action, 3)),
    "before the rename": (checkpoint_format, "sync_folder", before),
}
AFTERWARDS: dict[str, Point] = {
    "after the rename": (checkpoint_format, "sync_folder", lambda action: before(action, 2)),
    "before removing old ones": (checkpoint_store, "prune", before),
    "while removing one": (retention, "remove", before),
}
"""On rank 0, when the checkpoint is there already."""
CASES = [
    *((point, victim) for point in POINTS for victim in (0, 1) if (point, victim) != ("before it tells", 0)),
    *((point, 0) for point in [*ON_RANK_0, *AFTERWARDS]),
]
QUICK = [("after some bytes", 1), ("before the manifest", 0)]
ALL_POINTS = {**POINTS, **ON_RANK_0, **AFTERWARDS}


@contextmanager
def hurt(point: str, action: Callable[[], None]) -> Iterator[None]:
    owner, name, change = ALL_POINTS[point]
    original = getattr(owner, name)
    setattr(owner, name, change(action)(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def store_of(place: Rank, directory: Path, asynchronous: bool) -> CheckpointStore:
    group = torch.distributed.group.WORLD if place.world_size > 1 else None
    return CheckpointStore(directory, CheckpointConfig(keep=2, asynchronous=asynchronous), group, {"model": "test"})


def save_and_die(place: Rank, directory: Path, point: str, victim: int) -> None:
    store, engine = store_of(place, directory, True), RowEngine(10.0, place.rank, place.world_size)
    for step in (9, 10):
        engine.set(step)
        store.save(engine, step, {})
    store.finish()
    if place.rank == victim:
        owner, name, change = ALL_POINTS[point]
        setattr(owner, name, change(die)(getattr(owner, name)))
    engine.set(20)
    store.save(engine, 20, {})
    store.finish()


def resume_and_save_again(place: Rank, directory: Path) -> tuple[int, bool]:
    """(step resumed from, whether all values are those of that step), then step 20 is saved anew."""
    store, engine = store_of(place, directory, True), RowEngine(0.0, place.rank, place.world_size)
    found = store.resume(engine)
    assert found is not None
    right = engine.holds(found.step)
    engine.set(20)
    store.save(engine, 20, {})
    store.finish()
    return found.step, right


def check_death(ranks: RankPool, directory: Path, point: str, victim: int) -> None:
    with pytest.raises(RankError, match=f"rank {victim} died"):
        ranks.run(save_and_die, 2, directory, point, victim, deadline=30)
    expected = 20 if point in AFTERWARDS else 10
    assert newest(directory) == directory / "checkpoints" / f"step_{expected:08d}"
    for step, right in ranks.run(resume_and_save_again, 2, directory):
        assert (step, right) == (expected, True)
    assert read(directory / "checkpoints" / "step_00000020").step == 20
    names = {path.name for path in (directory / "checkpoints").iterdir()}
    assert names == {"step_00000010", "step_00000020"} or (point in AFTERWARDS and names > {"step_00000020"})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("point", "victim"), QUICK)
def test_a_rank_that_dies_in_a_save(ranks: RankPool, tmp_path: Path, point: str, victim: int) -> None:
    check_death(ranks, tmp_path, point, victim)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("point", "victim"), [case for case in CASES if case not in QUICK])
def test_a_rank_that_dies_anywhere_in_a_save(ranks: RankPool, tmp_path: Path, point: str, victim: int) -> None:
    check_death(ranks, tmp_path, point, victim)


def save_and_fail(place: Rank, directory: Path, point: str, victim: int, asynchronous: bool) -> tuple[str, bool]:
    """(what this rank was told, whether it held the old checkpoint's values), then step 20 is saved anew."""
    store, engine = store_of(place, directory, asynchronous), RowEngine(10.0, place.rank, place.world_size)
    store.save(engine, 10, {})
    store.finish()
    engine.set(20)
    told = "saved"
    action = fail if place.rank == victim else lambda: None
    with hurt(point, action):
        try:
            store.save(engine, 20, {})
            steps(store)
        except SaveFailed as error:
            told = str(error)
    fresh = RowEngine(0.0, place.rank, place.world_size)
    store_of(place, directory, asynchronous).resume(fresh)
    store.save(engine, 20, {})
    store.finish()
    return told, fresh.holds(10.0)


def steps(store: CheckpointStore) -> None:
    """Training goes on: at each step's boundary all ranks hear whether one has failed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        (failed,) = comm.sum_floats([float(store.failed)], store.group, torch.device("cpu"))
        if failed:
            store.finish()
        time.sleep(0.002)


def check_failure(ranks: RankPool, directory: Path, point: str, victim: int, asynchronous: bool) -> None:
    results = ranks.run(save_and_fail, 2, directory, point, victim, asynchronous, deadline=30)
    texts = {told for told, _ in results}
    assert texts == {
        f"checkpoint of step 20 not saved: rank {victim}: the disk is gone; the one before it is untouched"
    }
    assert all(held for _, held in results)
    assert read(directory / "checkpoints" / "step_00000020").step == 20
    assert not list((directory / "checkpoints").glob(".*"))


@pytest.mark.timeout(60)
def test_a_rank_that_fails_in_a_save_is_heard_by_all(ranks: RankPool, tmp_path: Path) -> None:
    check_failure(ranks, tmp_path / "a", "before a shard", 1, True)
    check_failure(ranks, tmp_path / "b", "before the rename", 0, False)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous", "synchronous"])
@pytest.mark.parametrize(("point", "victim"), [case for case in CASES if case[0] not in AFTERWARDS])
def test_a_rank_that_fails_anywhere_in_a_save(
    ranks: RankPool, tmp_path: Path, point: str, victim: int, asynchronous: bool
) -> None:
    check_failure(ranks, tmp_path, point, victim, asynchronous)


def resume_damaged(place: Rank, directory: Path) -> tuple[int | None, str]:
    """(step resumed from, or None and the error)."""
    engine = RowEngine(0.0, place.rank, place.world_size)
    try:
        found = store_of(place, directory, True).resume(engine)
    except UserError as error:
        return None, str(error)
    assert found is not None
    assert engine.holds(found.step)
    return found.step, ""


def save_steps(place: Rank, directory: Path) -> None:
    store, engine = store_of(place, directory, True), RowEngine(0.0, place.rank, place.world_size)
    for step in (10, 20):
        engine.set(step)
        store.save(engine, step, {})
    store.finish()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.timeout(60)
def test_all_ranks_agree_on_a_corrupt_checkpoint_and_take_the_one_before(ranks: RankPool, tmp_path: Path) -> None:
    """Each rank hashes its share: only one of them sees the damage."""
    ranks.run(save_steps, 2, tmp_path)
    folder = tmp_path / "checkpoints"
    flip(folder / "step_00000020" / "model-00002-of-00002.safetensors")
    assert ranks.run(resume_damaged, 2, tmp_path) == [(10, ""), (10, "")]
    assert {path.name for path in folder.iterdir()} == {"step_00000010", "corrupt_step_00000020"}
    flip(folder / "step_00000010" / "optimizer-00001-of-00002.safetensors")
    for step, said in ranks.run(resume_damaged, 2, tmp_path):
        assert step is None
        assert "step_00000010/optimizer-00001-of-00002.safetensors: corrupt" in said
    assert (folder / "step_00000010").is_dir(), "the last one is left where it is"
