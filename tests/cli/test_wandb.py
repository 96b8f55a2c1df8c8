"""W&B mirrors metrics.jsonl and can do no harm."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farside.configs import compose
from farside.launch import local
from farside.train.metrics import FINISHED
from tests.faults.driver import TOKEN, Job, environment, farside, last_step, sequence, status

KEY = "0123456789abcdef0123456789abcdef01234567"


def records(file: Path) -> Iterator[bytes]:
    """Records of LevelDB's log format: blocks of 32 KiB, parts with a header of CRC, length and type."""
    content, position, record = file.read_bytes(), 7, b""  # 7: W&B's own file header
    while position + 7 <= len(content):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            yield record
            record = b""


def mirrored(run: Path) -> list[dict[str, Any]]:
    """The logged lines in the offline run's record file, without W&B's own fields."""
    from wandb.proto import wandb_internal_pb2

    lines = []
    for data in records(next((run / "wandb").glob("offline-run-*/run-*.wandb"))):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            lines.append({key: value for key, value in items.items() if not key.startswith("_")})
    return lines


@pytest.mark.timeout(60)
def test_offline_mirrors_every_step(tmp_path: Path, words: list[str], finished: Path) -> None:
    done = farside(["train", *words, "logging.wandb=offline", "run.dir=run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert mirrored(tmp_path / "run") == lines
    assert sequence(tmp_path / "run") == sequence(finished)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_unreachable_server(tmp_path: Path, words: list[str], finished: Path) -> None:
    started = time.monotonic()
    variables = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    done = farside(
        ["train", *words, "logging.wandb=online", "run.dir=run"], tmp_path, **variables, **{TOKEN: "unreachable"}
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"warning: W&B .* metrics\.jsonl .*\n", done.stderr)
    assert status(tmp_path / "run")["status"] == "finished"
    assert sequence(tmp_path / "run") == sequence(finished)
    assert seconds < 25 + 20
    time.sleep(1)
    marked = [path for path in Path("/proc").glob("[0-9]*/environ") if _has(path, f"{TOKEN}=unreachable".encode())]
    assert marked == [], "the mirror or W&B's service outlived the run"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def _has(path: Path, mark: bytes) -> bool:
    try:
        return mark in path.read_bytes()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_mirror_dies_with_the_launcher(tmp_path: Path, words: list[str]) -> None:
    command = ["train", *words, "train.steps=4000", "logging.wandb=offline", "run.dir=run"]
    with Job(command, tmp_path) as job:
        job.until(lambda: any((tmp_path / "run" / "wandb").glob("offline-run-*")) and last_step(tmp_path / "run") > 3)
        job.process.kill()
        job.process.wait()
        assert job.gone(15)


@pytest.mark.timeout(60)
def test_a_silent_server_is_waited_for_once_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later phases try again, but do not wait as long at their ends: five phases cost what one does."""
    waited: list[float] = []

    def silent(mirror: object, directory: Path, seconds: float) -> str:
        waited.append(seconds)
        return "W&B did not answer"

    monkeypatch.setattr(local, "start_mirror", lambda *arguments: None)
    monkeypatch.setattr(local, "stop_mirror", silent)
    config = compose.compose(["experiment=tiny", "parallel.dp_shard=1"])
    with local.launching(tmp_path / "job", "farside run") as launcher:
        for phase in ("pretrain", "sft", "rl"):
            launcher.run_workers("tests.cli.idle_worker", config, launcher.directory / phase)
    assert waited == [20.0, 2.0, 2.0]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_samples_of_rl_become_tables(tmp_path: Path) -> None:
    """The mirror alone, over what RL leaves: held-out answers before the first step come with the first line."""
    sample = {"step": 1, "question": "3+4=?", "text": "<think></think>7", "reward": 1.0, "reward_model": None}
    wrong = {**sample, "text": "8", "reward": None, "detail": "timeout", "step": 2}
    files = {
        "metrics": [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}],
        "samples": [sample, {**sample, "reward": 0.0}, wrong],
        "held_out": [{"step": 0, "question": "1+1=?", "text": "2"}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / FINISHED).touch()
    command = [sys.executable, "-m", "farside.train.metrics", str(tmp_path), "p", "n", "offline", str(os.getpid())]
    subprocess.run(command, env=environment(), check=True, timeout=80, capture_output=True)
    first, second = mirrored(tmp_path)
    assert (first["reward"], second["reward"]) == (0.5, 0.25)
    shapes = [{key: row[key] for key in row if key.endswith((".nrows", ".ncols"))} for row in (first, second)]
    assert shapes[0] == {"held_out.nrows": 1, "held_out.ncols": 3, "samples.nrows": 2, "samples.ncols": 5}
    assert shapes[1] == {"samples.nrows": 1, "samples.ncols": 6}
