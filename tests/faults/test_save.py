"""A checkpoint is complete or invisible, wherever its writer dies and whatever the disk does."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from farside.configs.errors import UserError
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.retention import newest
from tests.faults.driver import Job, farside, sequence
from tests.mounts import small_disk

TENSORS = {"model": {"weight": torch.arange(64.0)}, "optimizer": {"moment": torch.ones(64)}}


def save(run: Path, step: int) -> None:
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint_format.write(folder / f"step_{step:08d}", step, TENSORS, {"step": step})


def crash(name: str, count: int, after: bool) -> Callable[[], None]:
    """Replaces a function the writer uses by one that ends the process before or after its ``count``-th call."""
    owner = checkpoint_format.os if name in ("rename", "fsync") else checkpoint_format
    original, calls = getattr(owner, name), [0]

    def dying(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == count and not after:
            os._exit(9)
        result = original(*arguments, **named)
        if calls[0] == count and after:
            os._exit(9)
        return result

    return lambda: setattr(owner, name, dying)


POINTS = {
    "before the first file": crash("write_shard", 1, False),
    "before the second file": crash("write_shard", 2, False),
    "after the second file": crash("write_shard", 2, True),
    "before the first fsync": crash("fsync", 1, False),
    "before the manifest": crash("write_json", 3, False),
    "after the manifest": crash("write_json", 3, True),
    "before the rename": crash("rename", 1, False),
    "after the rename": crash("rename", 1, True),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("point", POINTS)
def test_crash_inside_a_save(tmp_path: Path, point: str) -> None:
    save(tmp_path, 10)
    child = os.fork()
    if child == 0:
        POINTS[point]()
        save(tmp_path, 20)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    found = newest(tmp_path)
    assert found is not None
    assert checkpoint_format.read(found).step == (20 if point == "after the rename" else 10)
    save(tmp_path, 20)
    found = newest(tmp_path)
    assert found is not None
    assert checkpoint_format.read(found).step == 20
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


@pytest.mark.timeout(60)
def test_flipped_byte_is_named(tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step_00000010"
    for file in sorted(folder.iterdir()):
        original = file.read_bytes()
        for place in {0, len(original) // 2, len(original) - 1}:
            file.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
            with pytest.raises(UserError) as caught:
                checkpoint_format.read(folder)
            assert str(file) in str(caught.value) or file.name == "manifest.json"
            assert "\n" not in str(caught.value)
        file.write_bytes(original)
    assert checkpoint_format.read(folder).step == 10


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("room", [300_000, pytest.param(0, marks=pytest.mark.slow)], ids=["some room", "none at all"])
def test_disk_full_while_saving(tmp_path: Path, words: list[str], room: int) -> None:
    """A real full disk where root may mount one; elsewhere a limit on the size of files, which fails alike."""
    disk = tmp_path / "disk"
    run = disk / "run"
    command = ["train", *words, "train.steps=24", "checkpoint.every=8", f"run.dir={run}"]
    with small_disk(disk, 16) as mounted:
        with Job(command, tmp_path) as job:
            job.until(lambda: (run / "checkpoints" / "step_00000008").exists())
            if mounted:
                fill(disk, room)
            else:
                resource.prlimit(job.rank(0), resource.RLIMIT_FSIZE, (room // 3, room // 3))
            assert job.wait() == 1, job.said()
            assert job.gone()
        lines = job.err.read_text().splitlines()
        assert len(lines) == 1, lines
        if mounted:
            assert "No space left on device" in lines[0]
        if room:
            assert "checkpoint of step 16 not saved" in lines[0]
            assert "the one before it is untouched" in lines[0]
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000008"]
        assert checkpoint_format.read(run / "checkpoints" / "step_00000008").step == 8

        (disk / "ballast").unlink(missing_ok=True)  # there is space again
        done = farside(command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "resumed at step 8" in done.stdout
        assert [record["step"] for record in sequence(run)] == list(range(1, 25))


def fill(disk: Path, room: int) -> None:
    """Leaves ``room`` bytes."""
    with (disk / "ballast").open("wb") as ballast, contextlib.suppress(OSError):  # the job writes too
        while shutil.disk_usage(disk).free > room:
            ballast.write(bytes(4096))
            ballast.flush()
