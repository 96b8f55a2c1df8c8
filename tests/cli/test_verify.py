"""``farside verify`` as a person runs it: on a narrow terminal, beside a run, under torchrun, and with a bug."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.cli.test_torchrun import TORCHRUN
from tests.faults.driver import environment, farside, status

WORDS = ["experiment=tiny", "parallel.dp_shard=1", "run.dir=run"]


def verdict(directory: Path) -> dict[str, object]:
    return json.loads((directory / "verify" / "verify.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_two_ranks_on_a_narrow_terminal(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of a run")
    with Terminal(["verify", *WORDS, "parallel.cp=2"], tmp_path, columns=40) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert [line for line in terminal.lines if len(line.rstrip()) > 40] == []
    assert "one attention sends, from each rank:" in [line.rstrip() for line in terminal.lines]
    text = " ".join(terminal.text.split())
    number = r"\de[+-]\d\d"
    assert re.search(rf"float64 grad weights embed_tokens {number} {number} 0 input_norm {number} ", text)
    assert re.search(r"forward shift [\d,]+ B = formula backward shift [\d,]+ B = formula", text)
    assert re.search(r"one document a row 1.00 \(1.00 1.00\)", text)
    said = rf"cp2 \(ring, zigzag\) equals one process: gradients {number}, weights {number}; float32 gradients "
    assert re.search(rf"{said}{number}, weights {number}$", text)
    found = verdict(tmp_path / "run")
    assert found["agrees"] is True
    assert found["layout"] == "cp2 (ring, zigzag)"
    assert len(found["differences"]["float64"]["gradients"]) == 20  # type: ignore[index]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "verify"]
    assert (tmp_path / "run" / "config.yaml").read_text() == "of a run"


BROKEN = "from farside.launch import commands; commands.WORKERS['verify'] = 'tests.verify.broken'"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_bug_ends_with_exit_code_1(tmp_path: Path) -> None:
    script = f"{BROKEN}; from farside.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "verify", *WORDS],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.match(r"MISMATCH: one rank differs from one process: gradient of \S+ \(and 19 more\) by 0.5 ", last)
    assert last.endswith("; agrees without accumulation")
    assert verdict(tmp_path / "run")["verdict"] == last
    assert done.stderr == ""


@pytest.mark.timeout(30)
def test_a_layout_that_cannot_be_is_named_before_ranks_start(tmp_path: Path) -> None:
    done = farside(["verify", *WORDS, "parallel.tp=3"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: parallel.tp = 3 does not divide model.num_key_value_heads = 2")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_bare_torchrun(tmp_path: Path) -> None:
    command = [*TORCHRUN, "-m", "farside.train.verify", *WORDS, "parallel.tp=2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("tp2 equals one process: ")
    assert status(tmp_path / "run" / "verify")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_bare_torchrun_fails_with_the_check(tmp_path: Path) -> None:
    command = [*TORCHRUN, "-m", "tests.verify.broken", *WORDS, "parallel.tp=2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("; agrees without accumulation")
