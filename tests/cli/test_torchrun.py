"""Workers under a bare torchrun, and what two ranks show on the terminal."""

import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.stages import pretrain_stages
from farside.parallel.mesh import ParallelDims
from farside.train import runtime
from farside.train.metrics import hold_directory
from tests.cli.test_errors import refused
from tests.faults.driver import environment, farside, last_step, status

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "-m", "farside.train.pretrain", *words]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.timeout(60)
def test_bare_torchrun(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()  # an old request is not for this run
    done = torchrun([*words, "parallel.dp_shard=2", "run.dir=run", "logging.every=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "run")["status"] == "finished"
    assert last_step(tmp_path / "run") == 4
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]  # rank 0, once
    assert {"rank_0.log", "rank_1.log"} <= {path.name for path in (tmp_path / "run" / "logs").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_more_ranks_than_the_layout(tmp_path: Path, words: list[str]) -> None:
    done = torchrun([*words, "run.dir=run"], tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "parallel: dp_shard = 1, but 2 ranks were started; make them equal" in errors[0]
    assert "farside/train" not in done.stderr  # torchrun's own traceback comes, ours does not


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_unknown_key_under_torchrun(tmp_path: Path, words: list[str]) -> None:
    done = torchrun([*words, "optim.lrr=1"], tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: optim.lrr: no such key; did you mean optim.lr?"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_torchrun_in_a_held_directory(tmp_path: Path, words: list[str]) -> None:
    with hold_directory(tmp_path / "run"):
        done = torchrun([*words, "parallel.dp_shard=2", "run.dir=run"], tmp_path)
    assert done.returncode != 0
    assert f"in use by process {os.getpid()}" in done.stderr
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_refused_torchrun_leaves_the_description(tmp_path: Path, words: list[str], finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    done = torchrun([*words, "parallel.dp_shard=2", "model.hidden_size=32", "run.dir=run"], tmp_path)
    assert done.returncode != 0
    assert "checkpoint of another model" in done.stderr
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert status(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_terminal_shows_a_bar(tmp_path: Path, words: list[str]) -> None:
    """Without a terminal there are lines only: see ``test_bare_torchrun``."""
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                shown.extend(os.read(leader, 4096))
            except OSError:
                return

    command = [sys.executable, "-m", "farside.cli", "train", *words, "train.steps=30", "run.dir=run"]
    reader = threading.Thread(target=read)
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(TERM="xterm"), stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    reader.start()
    assert process.wait(60) == 0, shown.decode()
    reader.join(5)
    os.close(leader)
    assert "━" in shown.decode()
    assert "/30" in shown.decode()
    assert shown.decode().rstrip().endswith("finished: run")


def test_impossible_layouts_are_named_before_a_group_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **keys: object) -> None:
        raise AssertionError("a process group was started")

    monkeypatch.setattr("torch.distributed.init_process_group", started)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for word, said in {"parallel.tp=3": "parallel.tp = 3 does not divide", "parallel.pp=2": "but 2 ranks were"}.items():
        with pytest.raises(UserError, match=said):
            runtime._start(None, ["experiment=tiny", word], pretrain_stages)
    with pytest.raises(AssertionError, match="was started"):
        runtime._start(None, ["experiment=tiny"], pretrain_stages)


def test_the_mesh_is_that_of_rank_0s_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *arguments, **keys: None)
    monkeypatch.setattr(ParallelDims, "build", lambda dims, device: dims)
    first = compose.to_yaml(compose.compose(["experiment=tiny", "parallel.tp=2", "parallel.dp_shard=1"]))
    monkeypatch.setattr(runtime, "_on_rank_0", lambda function: first)
    config, dims, _ = runtime._start(None, ["experiment=tiny", "parallel.dp_shard=2"], pretrain_stages)
    assert (config.parallel.tp, dims.tp, dims.dp_shard) == (2, 2, 1)  # type: ignore[attr-defined]


def test_a_gpu_for_every_rank_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert runtime._own_device(1, 2) == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert runtime._own_device(1, 2) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="3 ranks on this machine, which has 2 GPUs: lower degrees"):
        runtime._own_device(1, 3)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_impossible_layouts_start_nothing(tmp_path: Path, words: list[str]) -> None:
    """The launcher takes less than two seconds of processor time, in which no worker imports torch."""
    for phase in ("train", "reward", "eval niah"):
        before = os.times()
        refused(farside([*phase.split(), *words, "parallel.tp=3", "run.dir=run"], tmp_path), "parallel.tp = 3")
        spent = os.times()
        assert spent.children_user - before.children_user < 2
    done = torchrun([*words, "parallel.tp=3", "run.dir=run"], tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "parallel.tp = 3 does not divide" in errors[0]
    assert not (tmp_path / "run").exists()
