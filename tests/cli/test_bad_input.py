"""Bad input that appears late or comes from outside: it is named in one line, before any work, and loses nothing."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from farside.data.tokenizer import Tokenizer
from tests.cli.test_errors import refused
from tests.faults.driver import Job, farside, last_step, status
from tests.mounts import read_only


def prepared_of(words: list[str]) -> Path:
    folder = next(Path(word.partition("=")[2]) for word in words if word.startswith("data.dir="))
    return next(path.parent for path in folder.glob("*/data.json"))


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_token_files_of_another_vocabulary(tmp_path: Path, words: list[str]) -> None:
    """As many tokens as before, some beyond the tokenizer; and a tokenizer that made none of them."""
    original = prepared_of(words)
    for name in ("foreign", "other"):
        shutil.copytree(original, tmp_path / name / original.name)
    file = tmp_path / "foreign" / original.name / "en.train.bin"
    tokens = np.fromfile(file, dtype=np.uint16)
    tokens[len(tokens) // 2] = 600
    tokens.tofile(file)
    tokenizer = tmp_path / "other" / original.name / "tokenizer.json"
    Tokenizer.train(["quite other words " * 50], 300).save(tokenizer)

    train = ["train", *words, "run.dir=run"]
    with ThreadPoolExecutor(2) as pool:
        foreign = pool.submit(farside, [*train, f"data.dir={tmp_path / 'foreign'}"], tmp_path)
        other = pool.submit(farside, [*train, "run.dir=other-run", f"data.dir={tmp_path / 'other'}"], tmp_path)
        text = ("holds token 600, but the tokenizer beside it has 512", "another vocabulary", "prepared again")
        refused(foreign.result(), str(file), *text)
        refused(other.result(), str(tokenizer), "not the tokenizer its token files were made with", "prepared again")
    assert last_step(tmp_path / "run") == 0


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_needle_longer_than_the_context_is_named_before_the_first_step(tmp_path: Path, words: list[str]) -> None:
    """In the documents of a later stage, and in the grid that is only drawn at the end."""
    stages = "{name: a, steps: 2, mixture: {en: 1}}, {name: later, steps: 2, seq_len: 16, mixture: {needle_en: 1}}"
    training = ["train", *words, f"stages=[{stages}]", "run.dir=training"]
    graded = "{name: a, steps: 2, eval: true, mixture: {en: 1}}"
    grid = ["train", *words, f"stages=[{graded}]", "eval.niah.min_length=9", "run.dir=grid"]
    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(farside, command, tmp_path) for command in (training, grid)]
        expected = ("stage 'later'", "needle_en", "seq_len = 16 leaves no room for a needle and its question")
        refused(outcomes[0].result(), *expected)
        refused(outcomes[1].result(), "eval.niah.min_length: 9 tokens are too few for a needle", "raise it")
    assert [last_step(tmp_path / name) for name in ("training", "grid")] == [0, 0]


@pytest.mark.timeout(90)
def test_read_only_run_directory(tmp_path: Path, words: list[str], finished: Path) -> None:
    disk = tmp_path / "disk"
    shutil.copytree(finished, disk / "run")
    with read_only(disk / "run" if os.geteuid() else disk):
        train = farside(["train", *words, f"run.dir={disk / 'run'}"], tmp_path)
        refused(train, f"run.dir {disk / 'run'}: cannot be written", "name another")
        refused(farside(["report", str(disk / "run")], tmp_path), str(disk / "run"), "cannot be written")
        told = farside(["status", str(disk / "run")], tmp_path)
        assert told.stdout.split()[:2] == ["status", "finished"], told.stderr


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_second_job_in_a_directory_names_the_first(tmp_path: Path, words: list[str]) -> None:
    """Both real; ``test_errors.py`` has the quick one."""
    command = ["train", *words, "train.steps=4000", "run.dir=run"]
    with Job(command, tmp_path) as job:
        job.until(lambda: last_step(tmp_path / "run") >= 2)
        before = (tmp_path / "run" / "config.yaml").read_bytes()
        other = farside(["train", *words, "optim.lr=1", "run.dir=run"], tmp_path)
        refused(other, "run.dir run: in use by process", str(job.process.pid), "another run.dir")
        assert (tmp_path / "run" / "config.yaml").read_bytes() == before
        assert status(tmp_path / "run")["status"] == "running"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_phase_of_a_running_job_is_held(tmp_path: Path, words: list[str]) -> None:
    with Job(["run", *words, "train.steps=4000", "run.dir=job"], tmp_path) as job:
        job.until(lambda: last_step(tmp_path / "job" / "pretrain") >= 2)
        other = farside(["train", *words, "run.dir=job/pretrain"], tmp_path)
        refused(other, "job/pretrain: in use by process", str(job.process.pid))
