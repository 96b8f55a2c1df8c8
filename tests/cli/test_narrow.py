"""A terminal of 40 columns: lines are folded at words, fields stay whole, and only a path may be longer."""

import json
import re
from pathlib import Path

import pytest

from farside.train.console import format_step
from tests.cli.terminal import Terminal

WIDTH = 40


def lines_of(words: list[str], cwd: Path, code: int = 0) -> list[str]:
    """What the terminal got, line by line; none that is no path is wider than it."""
    with Terminal(words, cwd, columns=WIDTH) as terminal:
        assert terminal.wait() == code, terminal.text
    too_long = [line for line in terminal.lines if len(line.rstrip()) > WIDTH]
    assert [line for line in too_long if not re.fullmatch(r" *\S+", line)] == []
    return [line.rstrip() for line in terminal.lines]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_train(tmp_path: Path, words: list[str]) -> None:
    lines = lines_of(["train", *words, "logging.every=1", "run.dir=run"], tmp_path)
    text = " ".join(" ".join(lines).split())
    for step in range(1, 5):
        assert re.search(rf"train {step}/4 loss \d\.\d{{4}} grad \d\.\d{{3}} lr \d\.\d\de-0\d", text)
    firsts = [line for line in lines if line.startswith("train") and "loss" in line]
    assert len(firsts) == 4
    follow = lines[lines.index(firsts[0]) + 1]
    assert follow.startswith("      "), "what belongs to a step is indented below it"
    assert "finished: run" in lines


@pytest.mark.timeout(30)
def test_sweep_table(tmp_path: Path) -> None:
    for seed, loss in ((7, 2.5), (8, 3.25)):
        run = tmp_path / f"train.seed={seed},optim.lr=0.001"
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "seconds": 1.0}) + "\n")
        (run / "summary.json").write_text(json.dumps({"validation_loss": {"en": loss}}))
        point = {"name": run.name, "status": "finished", "code": 0, "cause": None, "seconds": 8.31}
        (run / "point.json").write_text(json.dumps(point))
    (tmp_path / "sweep.json").write_text(json.dumps({"command": "train", "planned": None}))
    assert lines_of(["status", str(tmp_path)], tmp_path) == [
        "* train.seed=7,optim.lr=0.001",
        "  finished  loss 2.50  val. loss 2.50",
        "    time 8.3 s",
        "train.seed=8,optim.lr=0.001",
        "  finished  loss 3.25  val. loss 3.25",
        "    time 8.3 s",
        "best (*): train.seed=7,optim.lr=0.001,",
        "  validation loss 2.50",
    ]


@pytest.mark.timeout(30)
def test_help_and_status(tmp_path: Path, finished: Path) -> None:
    lines = lines_of(["--help"], tmp_path)
    assert "  train" in lines
    assert "    pretraining and context extension by" in lines
    assert lines_of(["status", str(finished)], tmp_path)[0] == "status   finished"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_doctor(tmp_path: Path) -> None:
    lines = lines_of(["doctor"], tmp_path)
    assert "two gloo ranks  ok" in lines


def test_a_step_is_one_line_where_there_is_no_terminal() -> None:
    record = {"step": 3, "stage": "base", "seq_len": 2048, "loss": 1.5, "lr": 1e-3, "seconds": 0.5}
    assert format_step("train", record, 20) == "train  3/20  base 2,048  loss 1.5000  lr 1.00e-03  0.50 s"
