"""Which checkpoints stay, what is found among garbage, and whether the disk has room."""

import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import Best, CheckpointConfig
from farside.train.checkpoint import retention
from farside.train.checkpoint import store as checkpoint_store
from farside.train.checkpoint.format import read
from farside.train.checkpoint.retention import complete, newest, surplus
from farside.train.checkpoint.store import CheckpointStore, SaveFailed
from tests.mounts import small_disk
from tests.train.stand_in import RowEngine, write_as_ranks


def store(run: Path, settings: CheckpointConfig) -> CheckpointStore:
    return CheckpointStore(run, settings, None, {"model": "test"})


def run_of(run: Path, settings: CheckpointConfig, losses: dict[int, float]) -> list[int]:
    """Saves at each step, with its metrics as the loop writes them; the steps that are left."""
    kept, engine = store(run, settings), RowEngine(0.0)
    for step, loss in losses.items():
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step, "loss": loss}) + "\n")
        engine.set(step)
        kept.save(engine, step, {})
    kept.finish()
    return [int(path.name[5:]) for path in complete(run)]


LOSSES = {10: 5.0, 20: 1.0, 30: 4.0, 40: 3.0, 50: 2.0, 60: 3.5}


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        (CheckpointConfig(keep=1), [60]),
        (CheckpointConfig(keep=3), [40, 50, 60]),
        (CheckpointConfig(keep=1, keep_every=30), [30, 60]),
        (CheckpointConfig(keep=2, keep_best="loss"), [20, 50, 60]),
        (CheckpointConfig(keep=1, keep_best="loss", best=Best.highest), [10, 60]),
        (CheckpointConfig(keep=1, keep_every=20, keep_best="loss", best=Best.highest), [10, 20, 40, 60]),
        (CheckpointConfig(keep=1, keep_best="accuracy"), [60]),
    ],
)
def test_the_newest_every_nth_and_the_best_stay(tmp_path: Path, settings: CheckpointConfig, left: list[int]) -> None:
    assert run_of(tmp_path, settings, LOSSES) == left
    assert all(read(path).step for path in complete(tmp_path))


def test_a_best_that_no_step_has_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(tmp_path, CheckpointConfig(keep=1, keep_best="los"), {10: 5.0, 20: 1.0})
    (line,) = capsys.readouterr().out.splitlines()
    assert "checkpoint.keep_best=los: no such number in metrics.jsonl at step 10 (it has loss, step)" in line


@settings(max_examples=12)
@given(
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.integers(1, 3),
    st.sampled_from([0, 2, 3]),
    st.sampled_from([None, "loss"]),
)
def test_whatever_is_damaged_a_whole_one_stays(
    tmp_path_factory: pytest.TempPathFactory, whole: list[bool], keep: int, every: int, metric: str | None
) -> None:
    """Truncated ones, which count for nothing, push none out; the newest whole one never goes."""
    run = tmp_path_factory.mktemp("run")
    for step, intact in enumerate(whole, 1):
        path = write_as_ranks(run / "checkpoints" / f"step_{step:08d}", step, 1)
        if not intact:
            (path / "model.safetensors").write_bytes(b"")
    settings = CheckpointConfig(keep=keep, keep_every=every, keep_best=metric)
    gone = {int(path.name[5:]) for path in surplus(run, settings)}
    good = [step for step, intact in enumerate(whole, 1) if intact]
    assert not gone & set(good[-keep:])
    assert not {step for step in gone & set(good) if every and step % every == 0}
    assert not good or max(good) not in gone
    assert good or not gone
    shutil.rmtree(run)


def test_the_newest_is_found_among_garbage(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    good = write_as_ranks(folder / "step_00000010", 10, 2)
    write_as_ranks(folder / "notes", 10, 1)
    for name in (
        "step_00000099",
        "step_",
        "step_²",
        "step_-0000001",
        "step_00000020x",
        ".writing-step_00000030",
        "best",
    ):
        (folder / name).mkdir()
    (folder / "step_00000040").write_text("a file")
    os.symlink("step_00000050", folder / "step_00000050")  # a loop
    os.symlink("step_00000010", folder / "step_00000060")
    os.symlink("/etc", folder / "step_00000070")
    shutil.copytree(good, folder / "step_20")
    shutil.copytree(good, folder / "step_000000080")
    (folder / "step_00000090" / "manifest.json").mkdir(parents=True)
    (folder / "latest").write_text("../../etc")
    before = {path.name for path in folder.iterdir()}
    assert newest(tmp_path) == good
    engine = RowEngine(0.0)
    kept = store(tmp_path, CheckpointConfig(keep=1))
    found = kept.resume(engine)
    assert found is not None
    assert (found.step, engine.holds(1.0)) == (10, True)
    kept.save(engine, 50, {})  # in the loop's place
    kept.finish()
    assert newest(tmp_path) == folder / "step_00000050"
    assert {path.name for path in folder.iterdir()} == before - {"step_00000010", ".writing-step_00000030"}
    assert Path("/etc/passwd").is_file()


def test_a_corrupt_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path, CheckpointConfig(keep=3), {10: 1.0, 20: 1.0, 30: 1.0})
    folder = tmp_path / "checkpoints"
    (folder / "step_00000030" / "manifest.json").write_text("{")
    (folder / "step_00000020" / "optimizer.safetensors").write_bytes(b"short")
    engine, kept = RowEngine(0.0), store(tmp_path, CheckpointConfig(keep=3))
    found = kept.resume(engine)
    assert found is not None
    assert (found.step, engine.holds(10.0)) == (10, True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("warning: ") for line in lines] == [True, True]
    assert "step_00000030/manifest.json: corrupt (" in lines[0]
    assert "step_00000020/optimizer.safetensors: corrupt (size" in lines[1]
    assert lines[1].endswith("set aside as corrupt_step_00000020; going on from step 10")
    for step in (20, 30):
        engine.set(step)
        kept.save(engine, step, {})
    kept.finish()
    assert [path.name for path in complete(tmp_path)] == ["step_00000010", "step_00000020", "step_00000030"]


def test_a_checkpoint_that_will_not_go_is_no_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stuck(path: Path) -> None:
        raise PermissionError(f"{path}: not allowed")

    monkeypatch.setattr(retention, "remove", stuck)
    run_of(tmp_path, CheckpointConfig(keep=1), {10: 1.0, 20: 1.0})
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step_00000020"
    assert "warning: old checkpoints stay: " in capsys.readouterr().out


REPEAT = 400
BYTES = sum(piece.values.nbytes for piece in RowEngine(0.0, repeat=REPEAT).tensors.values())


def say_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Where nobody may mount a small disk, the answer of a full one."""
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda path: SimpleNamespace(free=size))


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """keep + 1 of them must fit."""
    with small_disk(tmp_path / "disk", 1) as mounted:
        if not mounted:
            say_free(monkeypatch, 1 << 20)
        run, settings = tmp_path / "disk", CheckpointConfig(keep=2)
        free = retention.shutil.disk_usage(run).free
        with pytest.raises(UserError) as caught:
            store(run, settings).preflight(RowEngine(0.0, repeat=REPEAT * free // BYTES // 2))
        assert "checkpoints need" in str(caught.value)
        assert f"but {free:,} are free" in str(caught.value)
        store(run, settings).preflight(RowEngine(0.0, repeat=REPEAT * free // BYTES // 4))


@pytest.mark.parametrize("asked", [True, False], ids=["asked before", "in the middle of a file"])
def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """The checkpoint before it stays, and with space again the same step is saved. A limit on the size of files fails
    alike where nobody may mount."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with small_disk(tmp_path / "disk", 1) as mounted:
        run, engine = tmp_path / "disk", RowEngine(1.0, repeat=REPEAT)
        kept = store(run, CheckpointConfig(keep=1))
        save(kept, engine, 1)
        engine.set(2.0)
        with monkeypatch.context() as patch:
            if mounted:
                (run / "ballast").write_bytes(bytes(shutil.disk_usage(run).free - BYTES // 2))
            elif asked:
                say_free(patch, BYTES // 2)
            if not asked:
                patch.setattr(checkpoint_store, "require_room", lambda folder, size: None)
                resource.setrlimit(resource.RLIMIT_FSIZE, limits if mounted else (BYTES // 4, limits[1]))
            with pytest.raises(SaveFailed, match="step 2 not saved: rank 0: ") as caught:
                save(kept, engine, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "No space left on device" in str(caught.value) or not (mounted or asked)
        assert not asked or f"it needs {BYTES:,} bytes" in str(caught.value)
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00000001"}
        (run / "ballast").unlink(missing_ok=True)
        save(kept, engine, 2)
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00000002"}
        assert read(run / "checkpoints" / "step_00000002").step == 2


def test_a_disk_without_inodes_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", 4, inodes=64) as mounted:
        run, engine = tmp_path / "disk", RowEngine(1.0)
        kept = store(run, CheckpointConfig(keep=1))
        save(kept, engine, 1)
        left = fill_inodes(run, 3) if mounted else 3  # the folder and two files more
        if mounted:
            with pytest.raises(SaveFailed, match=r"step 2 not saved: rank 0: .*No space left on device"):
                save(kept, engine, 2)
            assert fill_inodes(run, 0) == 0
        else:
            monkeypatch.setattr(retention.os, "statvfs", lambda path: SimpleNamespace(f_files=64, f_favail=0))
        with pytest.raises(SaveFailed, match="no inodes are free"):
            save(kept, engine, 2)
        assert left == 3
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00000001"}
        assert read(run / "checkpoints" / "step_00000001").step == 1


def fill_inodes(run: Path, room: int) -> int:
    """Leaves so many; returns how many are left."""
    while os.statvfs(run).f_favail > room:
        (run / f"ballast{os.statvfs(run).f_favail}").touch()
    return os.statvfs(run).f_favail


def save(kept: CheckpointStore, engine: RowEngine, step: int) -> None:
    kept.save(engine, step, {})
    kept.finish()


def test_what_is_newer_than_the_newest_whole_one_stays(tmp_path: Path) -> None:
    """It may be looked at yet; a resume sets it aside."""
    for step in (1, 2, 3):
        path = write_as_ranks(tmp_path / "checkpoints" / f"step_{step:08d}", step, 1)
    next(path.glob("*.safetensors")).write_bytes(b"")
    assert [path.name for path in surplus(tmp_path, CheckpointConfig(keep=1))] == ["step_00000001"]
