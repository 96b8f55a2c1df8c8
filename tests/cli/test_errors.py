"""Wrong input: exit code 2 and one line that names the key or file and the fix. No traceback on the terminal."""

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from farside.train.metrics import hold_directory
from tests.faults.driver import farside, last_step, write_corpus

LIGHT = {
    "mistyped command": (["trian"], "no such command"),
    "no subcommand": (["eval"], "farside eval niah"),
    "unknown key": (["train", "experiment=tiny", "optim.lrr=1"], "optim.lrr: no such key; did you mean optim.lr?"),
    "wrong type": (["train", "experiment=tiny", "optim.lr=fast"], "optim.lr"),
    "wrong choice": (["train", "experiment=tiny", "logging.wandb=perhaps"], "logging.wandb"),
    "unknown experiment": (["train", "experiment=tinny"], "experiment=tinny: no such option; there are:"),
    "layout of another phase": (["rl", "experiment=tiny", "parallel.tp=3"], "parallel.tp = 3 does not divide"),
    "bad grammar": (["train", "experiment=tiny", "optim.lr"], "optim.lr"),
    "no run directory": (["status", "nowhere"], "name one run directory"),
    "no status": (["status", "."], "status.json"),
}
"""Need no workers. What else compositions and stages refuse: tests/configs/."""
Outcome = Future[CompletedProcess[str]]


def refused(done: CompletedProcess[str], *expected: str) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    for text in expected:
        assert text in lines[0]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two commands at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def started(pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {name: pool.submit(farside, words, tmp_path_factory.mktemp("error")) for name, (words, _) in LIGHT.items()}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", LIGHT)
def test_light(started: dict[str, Outcome], name: str) -> None:
    refused(started[name].result(), LIGHT[name][1])


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_corpus_that_cannot_be_read(tmp_path: Path, words: list[str], pool: ThreadPoolExecutor) -> None:
    empty, binary = write_corpus(tmp_path / "empty"), write_corpus(tmp_path / "binary")
    (empty / "train.txt").write_text("\n")
    (binary / "haystack.txt").write_bytes(b"text \xff text")
    missing = write_corpus(tmp_path / "missing") / "validation.txt"
    missing.unlink()
    expected = {
        "nowhere": ("data.sources.en.path", "nowhere", "train.txt"),
        str(empty): ("data.sources.en", str(empty / "train.txt"), "empty"),
        str(binary): ("data.sources.en", str(binary / "haystack.txt"), "not UTF-8"),
        str(missing.parent): ("data.sources.en", str(missing), "missing"),
    }
    prepare = ["data", "prepare", *words]
    started = [pool.submit(farside, [*prepare, f"data.sources.en.path={path}"], tmp_path) for path in expected]
    for outcome, texts in zip(started, expected.values(), strict=True):
        refused(outcome.result(), *texts)


def corrupt(run: Path) -> None:
    """Flips one bit of the newest checkpoint's weights."""
    file = run / "checkpoints" / "step_00000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_checkpoints_that_do_not_fit(
    tmp_path: Path, words: list[str], finished: Path, pool: ThreadPoolExecutor
) -> None:
    """Of another model, and corrupt: the one before it is used; a job whose samples are longer than its text runs
    beside them."""
    shutil.copytree(finished, tmp_path / "other")
    shutil.copytree(finished, tmp_path / "corrupt")
    corrupt(tmp_path / "corrupt")
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir() if path.is_file()}
    train = ["train", *words]
    other = pool.submit(farside, [*train, "run.dir=other", "model.hidden_size=32"], tmp_path)
    broken = pool.submit(farside, [*train, "run.dir=corrupt"], tmp_path)
    long = pool.submit(farside, [*train, "run.dir=long", "data.seq_len=900000"], tmp_path)
    refused(other.result(), "checkpoint of another model", "model.hidden_size: 64 there, 32 here", "another run.dir")
    after = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} == {"lock"}, "what was refused describes nothing"
    done = broken.result()
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stdout.splitlines() if "warning" in line]
    assert "step_00000004/model.safetensors: corrupt" in warning
    assert warning.endswith("set aside as corrupt_step_00000004; going on from step 2")
    assert "resumed at step 2" in done.stdout
    assert last_step(tmp_path / "corrupt") == 4
    refused(long.result(), "seq_len", "900000")
    assert "Traceback" in (tmp_path / "long" / "logs" / "rank_0.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+data.mixture.fr=1.0"], ("mixture names 'fr'",)),
        (["train.init_from=nowhere"], ("nowhere",)),
        (["data.sources.en.path=nowhere"], ("data.sources.en.path", "nowhere")),
        (["model.vocab_size=100"], ("model.vocab_size = 100",)),
        (["parallel.dp_shard=0"], ("parallel.dp_shard = 0", "at least 1")),
    ],
)
def test_job_that_cannot_run(tmp_path: Path, words: list[str], overrides: list[str], expected: tuple[str]) -> None:
    refused(farside(["train", *words, "run.dir=run", *overrides], tmp_path), *expected)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_start_from_another_model(tmp_path: Path, words: list[str], finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "step_00000004"
    done = farside(["train", *words, f"train.init_from={checkpoint}", "model.hidden_size=32", "run.dir=run"], tmp_path)
    refused(done, "checkpoint of another model", "model.hidden_size: 64 there, 32 here", str(checkpoint))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_resume_may_change_the_learning_rate_but_not_the_samples(
    tmp_path: Path, words: list[str], finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    command = ["train", *words, "run.dir=run", "train.steps=6", "optim.lr=0.5", "data.seq_len=32"]
    refused(farside(command, tmp_path), "data.seq_len: 64 there, 32 here", "checkpoint.force=[data.seq_len]")
    assert "seq_len: 64" in (tmp_path / "run" / "config.yaml").read_text()
    done = farside([*command, "checkpoint.force=[data.seq_len]"], tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "resumed at step 4" in line]
    assert "changed: " in line
    assert "-> 0.5" in line
    assert last_step(tmp_path / "run") == 6


@pytest.mark.timeout(60)
def test_two_jobs_in_one_directory(tmp_path: Path, words: list[str]) -> None:
    with hold_directory(tmp_path / "run"):
        holder = f"in use by process {os.getpid()} on {socket.gethostname()}"
        refused(farside(["train", *words, "run.dir=run"], tmp_path), "run.dir", holder)
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.timeout(60)
def test_directory_that_cannot_be_made(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    refused(farside(["train", *words, "run.dir=file/run"], tmp_path), "run.dir", "name another")
