"""Starts the ``farside`` command as a user does, watches what it leaves on disk, and hurts it at chosen moments.

Every process of a job inherits a token in its environment: that is how a job's whole tree and its orphans are found.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "FARSIDE_TEST_JOB"
TIMES = (
    *("seconds", "seconds_rollout", "tokens_per_second", "mfu", "mfu_palm", "mfu_document", "peak_memory_bytes"),
    *("slowest_rank", "slowest_score", "slowest_own_share"),
)
"""Fields of metrics.jsonl that may differ between two equal runs."""


def write_corpus(folder: Path, characters: int = 120_000) -> Path:
    """A small English corpus: the beginning of the shipped one."""
    folder.mkdir(parents=True)
    for split in ("train", "validation", "haystack"):
        text = (ROOT / "data" / "corpora" / "en" / f"{split}.txt").read_text(encoding="utf-8")
        (folder / f"{split}.txt").write_text(text[:characters], encoding="utf-8")
    return folder


def small(corpus: Path, data: Path) -> list[str]:
    """Overrides for one rank, one source, a small vocabulary: a command then takes seconds."""
    return [
        "experiment=tiny",
        *("~data.sources.zh", "~data.sources.code", "~data.mixture.zh", "~data.mixture.code"),
        f"data.sources.en.path={corpus}",
        f"data.dir={data}",
        *("data.tokenizer.vocab_size=512", "data.tokenizer.needle_texts=200", "model.vocab_size=512"),
        *("data.seq_len=64", "data.global_batch_size=4", "data.micro_batch_size=2", "parallel.dp_shard=1"),
        *("eval.niah.sources=[en]", "logging.every=5"),
    ]


def environment(**more: str) -> dict[str, str]:
    """The caller's, with this checkout first on the path and no W&B settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def farside(words: Iterable[str], cwd: Path, seconds: float = 90, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    command = [sys.executable, "-m", "farside.cli", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=seconds
    )


class Job:
    """A ``farside`` command in a session of its own, as a shell's foreground job is in a process group of its own."""

    def __init__(self, words: Iterable[str], cwd: Path, module: str = "farside.cli", **variables: str) -> None:
        self.token = secrets.token_hex(8)
        self.out, self.err = cwd / f"job-{self.token}.out", cwd / f"job-{self.token}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module.split(), *words],
                cwd=cwd,
                env=environment(**{TOKEN: self.token}, **variables),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill_tree()

    def pids(self) -> set[int]:
        """Every live process of the job."""
        mark = f"{TOKEN}={self.token}".encode()
        parents = {pid: parent for pid, parent in _processes().items() if parent is not None}
        found = {pid for pid in parents if mark in _environ(pid)}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def rank(self, number: int) -> int:
        """The process of a rank; with one rank there is no torchrun and no RANK."""
        for pid in self.pids():
            if b"--resolved" in _read(pid, "cmdline") and b"torch.distributed.run" not in _read(pid, "cmdline"):
                own = [item[5:] for item in _environ(pid) if item.startswith(b"RANK=")]
                if int(own[0]) == number if own else number == 0:
                    return pid
        raise AssertionError(f"rank {number} does not run: {self.said()}")

    def torchrun(self) -> int:
        return next(pid for pid in self.pids() if b"torch.distributed.run" in _read(pid, "cmdline"))

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits; fails if the job ends or the time is up first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before the awaited moment: {self.said()}"
            assert time.monotonic() < deadline, f"the awaited moment did not come: {self.said()}"
            time.sleep(0.003)

    def kill_tree(self) -> None:
        """SIGKILL to everything at once."""
        while pids := self.pids():
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()

    def signal(self, number: int, pids: Iterable[int] | None = None) -> None:
        """To the launcher, or to ``pids``."""
        for pid in [self.process.pid] if pids is None else pids:
            _kill(pid, number)

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def gone(self, seconds: float = 5) -> bool:
        """Whether no process of the job is left after at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.pids()

    def said(self) -> str:
        return f"exit {self.process.poll()}\n{self.out.read_text()[-800:]}\n{self.err.read_text()[-2000:]}"


def _processes() -> dict[int, int | None]:
    """pid -> parent of every process that is not a zombie."""
    found: dict[int, int | None] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(int(name), "stat").rpartition(b")")[2].split()
            found[int(name)] = int(fields[1]) if fields and fields[0] != b"Z" else None
    return found


def _environ(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def status(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def last_step(run: Path) -> int:
    """Of metrics.jsonl, torn lines aside; 0 without any."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def sequence(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the fields that measure time: equal runs have it equal to the last bit."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def checkpoint_files(run: Path) -> dict[str, str]:
    """SHA-256 of every file of the newest checkpoint, from its manifest."""
    manifest = json.loads((max((run / "checkpoints").glob("step_*")) / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}
