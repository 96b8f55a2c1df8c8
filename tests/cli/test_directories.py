"""`farside status` and `farside stop` on directories that no job works in."""

import subprocess
import sys
from pathlib import Path

import pytest

from farside.chat import find
from farside.configs.errors import UserError
from farside.launch import directories
from farside.launch.local import read_status
from farside.train import metrics
from farside.train.checkpoint.format import load
from farside.train.metrics import hold_directory, is_held, write_status
from tests.faults.driver import environment


def test_only_a_run_can_be_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        directories.run("stop", [str(tmp_path)])
    write_status(tmp_path, "finished")
    with pytest.raises(UserError, match="no job runs there"):
        directories.run("stop", [str(tmp_path)])
    assert not (tmp_path / "stop").exists()
    write_status(tmp_path, "running")  # on another machine, maybe, whose locks are not seen here
    assert directories.run("stop", [str(tmp_path)]) == 0
    assert "asked to stop" in capsys.readouterr().out
    assert (tmp_path / "stop").exists()


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    write_status(tmp_path, "finished")
    command = f"{sys.executable} -u -m farside.cli status {tmp_path} | true; echo ${{PIPESTATUS[0]}}"
    for _ in range(2):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), timeout=30)
        assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_is_no_checkpoint_is_told_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").touch()
    for look in (load, find):
        with pytest.raises(UserError, match=r"Hugging Face folder.*farside import hf"):
            look(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step_00000002").mkdir(parents=True)
    with pytest.raises(UserError, match=r"a run directory, no checkpoint; name one in it, such as .*step_00000002"):
        load(tmp_path / "run")
    with pytest.raises(UserError, match="no such checkpoint"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_status_is_told_and_stops_nobody(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "status.json").write_bytes(damage)
    assert read_status(tmp_path) == {}
    assert directories.run("status", [str(tmp_path)]) == 0
    assert "status.json is damaged" in " ".join(capsys.readouterr().out.split())
    write_status(tmp_path, "running")
    assert read_status(tmp_path)["status"] == "running"


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*arguments: object) -> None:
        raise OSError(metrics.NO_LOCKS[0], "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with hold_directory(tmp_path):
        assert "has no locks" in capsys.readouterr().err
        assert is_held(tmp_path)
