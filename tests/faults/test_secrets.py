"""What a real job shows to others: no secret in what it leaves, no rank's socket open beyond this machine."""

import contextlib
import os
from pathlib import Path

import pytest

from tests.faults.driver import Job, farside, last_step


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_secrets_stay_in_the_environment(tmp_path: Path, words: list[str]) -> None:
    """Keys that a job is given are in nothing that it leaves behind: run directory, logs, checkpoints, W&B's mirror."""
    secrets = {"WANDB_API_KEY": "a1b2c3d4e5" * 4, "HF_TOKEN": "hf_NeverWriteThisDown0123456789"}
    command = ["train", *words, "parallel.dp_shard=2", "train.steps=4", "logging.wandb=offline", "run.dir=run"]
    done = farside(command, tmp_path, **secrets)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.name == "config.json" for path in files)
    for secret in secrets.values():
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ranks_listen_on_this_machine_only(tmp_path: Path, words: list[str]) -> None:
    """Ours: the ranks' own sockets. torchrun's two stores listen everywhere; that is torch's (see its SECURITY.md)."""
    command = ["train", *words, "parallel.dp_shard=2", "train.steps=4000", "run.dir=run"]
    with Job(command, tmp_path) as job:
        job.until(lambda: last_step(tmp_path / "run") >= 2)
        torchrun = job.torchrun()
        found = {pid: listening(pid) for pid in job.pids()}
    ranks = {address for pid, addresses in found.items() if pid != torchrun for address in addresses}
    assert ranks, "gloo listens"
    assert ranks <= {"0100007F", "00000000000000000000000001000000"}, ranks


def listening(pid: int) -> set[str]:
    """Addresses that a process listens on, as /proc/net/tcp writes them."""
    mine = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            mine.add(os.readlink(link))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine}
