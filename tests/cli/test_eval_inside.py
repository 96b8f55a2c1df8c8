"""An evaluation in the directory of a run leaves the run described as it was."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.launch import commands
from farside.launch.local import JobFailed, Launcher
from farside.run import PHASES, run_phase
from farside.train.metrics import DESCRIPTIONS, write_status

ENDS = {"finished": None, "failed": JobFailed("rank 0: lost", 1), "refused": UserError("eval.name: no")}


@pytest.fixture(params=ENDS)
def end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the workers of an evaluation end: they describe what they do, as workers do."""

    def run_workers(self: Launcher, module: str, config: Config, directory: Path, init_from: Any = None) -> str:
        (directory / "config.yaml").write_text(compose.to_yaml(config))
        write_status(directory, "finished")
        if error := ENDS[request.param]:
            raise error
        return "finished"

    monkeypatch.setattr(Launcher, "run_workers", run_workers)
    return str(request.param)


@cache
def tiny() -> Config:
    return compose.compose(["experiment=tiny"])


def evaluation(directory: Path) -> Config:
    config = deepcopy(tiny())
    config.run.dir = str(directory)
    return config


def described(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in DESCRIPTIONS if (directory / name).is_file()}


@pytest.mark.parametrize("command", ["eval niah", "eval math"])
@pytest.mark.parametrize("run", ["checkpoints", "phases.json"])
def test_what_trains_there_is_still_to_go_on(tmp_path: Path, end: str, command: str, run: str) -> None:
    (tmp_path / run).mkdir() if run == "checkpoints" else (tmp_path / run).touch()
    write_status(tmp_path, "stopped", cause="asked to stop")
    (tmp_path / "config.yaml").write_text("train: {steps: 100000}")
    (tmp_path / "command.txt").write_text("farside train")
    before = described(tmp_path)
    outcome = commands.start(command, evaluation(tmp_path), [])
    assert described(tmp_path) == before
    assert outcome.status == ("finished" if end == "finished" else "failed")


def test_an_evaluation_by_itself_is_described(tmp_path: Path, end: str) -> None:
    commands.start("eval niah", evaluation(tmp_path), ["eval.name=x"])
    if end == "finished":
        assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"
        assert (tmp_path / "command.txt").read_text() == "farside eval niah eval.name=x\n"


def test_a_phase_without_its_summary_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill in the midst of an evaluation there would leave it."""
    started: list[Path] = []

    class Fake:
        directory = tmp_path

        def run_workers(self, module: str, config: Config, directory: Path, init_from: Any = None) -> str:
            started.append(directory)
            return "stopped"

    phase, fake = PHASES[0], Fake()
    (tmp_path / phase.name).mkdir()
    write_status(tmp_path / phase.name, "finished")
    monkeypatch.setattr("farside.run.write_report", lambda directory: directory)
    nothing: Any = type("Nothing", (), {"add_phase": lambda *given: None})()
    assert not run_phase(phase, Config(), fake, nothing)  # type: ignore[arg-type]
    assert started == [tmp_path / phase.name]
    (tmp_path / phase.name / "summary.json").write_text("{}")
    assert run_phase(phase, Config(), fake, nothing)  # type: ignore[arg-type]
    assert len(started) == 1
