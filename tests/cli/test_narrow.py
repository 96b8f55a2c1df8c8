"""A terminal of 40 columns: lines are folded at words, fields stay whole, and only a path may be longer."""

import re
from pathlib import Path

import pytest

from farside.train.console import format_step
from tests.cli.terminal import Terminal
from tests.faults.driver import farside

WIDTH = 40


def lines_of(words: list[str], cwd: Path, code: int = 0) -> list[str]:
    """What the terminal got, line by line; none that is no path is wider than it."""
    with Terminal(words, cwd, columns=WIDTH) as terminal:
        assert terminal.wait() == code, terminal.text
    too_long = [line for line in terminal.lines if len(line.rstrip()) > WIDTH]
    assert [line for line in too_long if not re.fullmatch(r" *\S+", line)] == []
    return [line.rstrip() for line in terminal.lines]


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


@pytest.mark.timeout(90)
def test_sweep_table(tmp_path: Path, words: list[str]) -> None:
    command = ["train", "-m", *words, "train.steps=0,2", "data.seed=0", "train.seed=7,8", "run.dir=sweep"]
    overrides = [word for word in command if word != "train.steps=4" and word != "train.steps=0,2"]
    done = farside([*overrides, "train.steps=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = lines_of(["status", "sweep"], tmp_path)
    places = [number for number, line in enumerate(lines) if "train.seed=" in line and "best" not in line]
    assert [lines[place].removeprefix("* ") for place in places] == ["train.seed=7", "train.seed=8"]
    for place in places:
        assert re.match(r"  finished  loss \d\.\d\d  val\. loss \d\.\d\d", lines[place + 1])


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
