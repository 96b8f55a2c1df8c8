"""``-m``: a run directory a point, a failing point named and the others finished, a summary, and resuming."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.launch.sweep import read_points
from farside.report.headline import final_loss, measure
from farside.report.read import read_run
from tests.faults.driver import ROOT, Job, farside, last_step

PNG = b"\x89PNG"


@pytest.fixture
def sweep(tmp_path: Path, words: list[str]) -> list[str]:
    """Three points of which the second cannot run."""
    overrides = [word for word in words if not word.startswith("train.steps")]
    return ["train", "-m", *overrides, "train.steps=3,0,2", "run.dir=sweep"]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_failing_point_is_named_and_the_others_finish(tmp_path: Path, sweep: list[str]) -> None:
    done = farside(sweep, tmp_path)
    assert done.returncode == 2, done.stderr
    cause = "stage 'train': steps = 0; give at least 1"
    assert done.stderr.splitlines() == [f"error: {cause}", f"error: point train.steps=0 failed: {cause}"]
    folder = tmp_path / "sweep"
    assert [last_step(folder / f"train.steps={steps}") for steps in (3, 2)] == [3, 2]

    told = json.loads((folder / "sweep.json").read_text())["points"]
    assert [(point["name"], point["status"]) for point in told] == [
        ("train.steps=3", "finished"),
        ("train.steps=0", "failed"),
        ("train.steps=2", "finished"),
    ]
    losses = [told[0]["metric"], told[2]["metric"]]
    for steps, loss in zip((3, 2), losses):
        summary = json.loads((folder / f"train.steps={steps}" / "summary.json").read_text())
        assert summary["validation_loss"] == {"en": loss}
    assert [point["best"] for point in told] == [losses[0] < losses[1], False, losses[0] >= losses[1]]
    assert (folder / "sweep.png").read_bytes()[:4] == PNG
    page = (folder / "sweep.html").read_text()
    for text in ("train.steps=0", cause.replace("'", "&#x27;"), "best", "farside train -m"):
        assert text in page

    lines = done.stdout.splitlines()
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["train.steps", "status", "loss", "val.", "loss", "time"]
    assert [line.strip("* ").split()[:2] for line in table[1:4]] == [
        ["3", "finished"],
        ["0", "failed"],
        ["2", "finished"],
    ]
    assert sum(line.startswith("*") for line in table) == 1

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/logs/rank_0.log")}
    again = farside(sweep, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a worker was started"
    assert again.returncode == 2
    assert again.stdout.count("finished already") == 2
    assert farside(["status", "sweep"], tmp_path).stdout.splitlines()[1:] == table[:-1]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_interrupt_stops_the_sweep_and_the_same_command_goes_on(tmp_path: Path, words: list[str]) -> None:
    overrides = [word for word in words if not word.startswith("train.steps")]
    command = ["train", "-m", *overrides, "train.steps=4000", "data.seed=0,1", "run.dir=sweep"]
    first = tmp_path / "sweep" / "data.seed=0"
    with Job(command, tmp_path) as job:
        job.until(lambda: last_step(first) >= 3)
        os.killpg(job.process.pid, signal.SIGINT)
        assert job.wait() == 0, job.said()
        assert job.gone()
        said = job.out.read_text()
    stopped = json.loads((first / "status.json").read_text())
    assert stopped["status"] == "stopped"
    assert f"left: data.seed=0 (stopped at step {stopped['step']}), data.seed=1 (not started)" in said
    assert not (tmp_path / "sweep" / "data.seed=1").exists()

    with Job(command, tmp_path) as job:
        job.until(lambda: last_step(first) > stopped["step"])
        assert f"resumed at step {stopped['step']}" in job.out.read_text()
        assert farside(["stop", "sweep"], tmp_path).returncode == 0
        assert job.wait() == 0, job.said()
        assert "data.seed=1 (not started)" in job.out.read_text()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_refused_sweep_leaves_the_earlier_one(tmp_path: Path) -> None:
    """A value that Hydra refuses, in an awkwardly named directory; swept experiments share one directory."""
    name = "it's, a=sweep"
    quoted = name.replace("'", "\\'")
    command = ["train", "-m", "checkpoint.every=0", f"run.dir='{quoted}'"]
    failed = farside([*command, "experiment=tiny,smoke"], tmp_path)
    assert failed.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    before = (tmp_path / name / "sweep.json").read_bytes()
    refused = farside([*command, "experiment=tiny,typo"], tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: experiment=typo: no such option")
    assert (tmp_path / name / "sweep.json").read_bytes() == before
    assert [path.name for path in sorted((tmp_path / name).glob("experiment=*"))] == [
        "experiment=smoke",
        "experiment=tiny",
    ]


PLUGIN = """
import os
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus


class ForkLauncher(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        for number, overrides in enumerate(job_overrides):
            child = os.fork()
            if child == 0:
                super().launch([overrides], initial_job_idx + number)
                os._exit(0)
            os.waitpid(child, 0)
        return [JobReturn(_return_value=None, status=JobStatus.COMPLETED) for _ in job_overrides]


node = {"_target_": "hydra_plugins.fork.ForkLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="fork", node=node)
"""


@pytest.mark.timeout(60)
def test_launcher_plugin_that_runs_points_in_other_processes(tmp_path: Path) -> None:
    """The summary and the exit code come from what the points left on disk."""
    plugins = tmp_path / "path" / "hydra_plugins"
    plugins.mkdir(parents=True)
    (plugins / "fork.py").write_text(PLUGIN)
    command = ["train", "-m", "hydra/launcher=fork", "experiment=tiny", "checkpoint.every=0,-1", "run.dir=sweep"]
    done = farside(command, tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{plugins.parent}")
    assert done.returncode == 2
    for every in (0, -1):
        name = f"checkpoint.every={every}"
        assert f"error: point {name} failed: checkpoint.every = {every}; give at least 1" in done.stderr
        assert json.loads((tmp_path / "sweep" / name / "point.json").read_text())["status"] == "failed"


def write(run: Path, losses: list[float], **summary: Any) -> Path:
    run.mkdir(parents=True)
    rows = [json.dumps({"step": step, "loss": loss, "seconds": 1.0}) for step, loss in enumerate(losses, 1)]
    (run / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "point.json").write_text(
        json.dumps({"name": run.name, "status": "finished", "code": 0, "cause": None, "seconds": 1.0})
    )
    return run


def test_final_loss_is_the_mean_of_the_last_twenty(tmp_path: Path) -> None:
    rows = read_run(write(tmp_path / "run", [100.0, *range(20)])).rows("pretrain")
    assert final_loss(rows) == sum(range(20)) / 20
    assert final_loss([]) is None


def test_a_point_that_diverged_is_never_best(tmp_path: Path) -> None:
    write(tmp_path / "a", [3.0, float("nan")], validation_loss={"en": 0.1})
    write(tmp_path / "b", [3.0, 2.0], validation_loss={"en": 2.0, "zh": 4.0})
    (tmp_path / "sweep.json").write_text(json.dumps({"command": "train", "planned": ["a", "b", "c"]}))
    _, points = read_points(tmp_path)
    assert [(p.name, p.status, p.metric, p.best) for p in points] == [
        ("a", "finished", 0.1, False),
        ("b", "finished", 3.0, True),
        ("c", "not started", None, False),
    ]


def test_a_point_whose_process_is_gone_was_interrupted(tmp_path: Path) -> None:
    run = write(tmp_path / "a", [3.0])
    (run / "point.json").write_text(
        json.dumps({"name": "a", "status": "running", "code": 0, "cause": None, "seconds": 0})
    )
    (tmp_path / "sweep.json").write_text(json.dumps({"command": "train", "planned": None}))
    assert [point.status for point in read_points(tmp_path)[1]] == ["interrupted"]


def test_every_command_has_a_metric_that_its_run_gives(tmp_path: Path) -> None:
    from farside.report.headline import ACCURACY, OF_COMMAND, PAIRS, SOLVED

    assert set(OF_COMMAND) == {"train", "sft", "reward", "rl", "run", "eval niah", "eval math"}
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "summary.json").write_text('{"held_out_accuracy": 0.75}')
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "summary.json").write_text('{"held_out_accuracy_after": 0.5}')
    (tmp_path / "eval" / "math").mkdir(parents=True)
    (tmp_path / "eval" / "math" / "math.json").write_text('{"greedy": 0.25}')
    run = read_run(tmp_path)
    assert (measure(run, PAIRS), measure(run, ACCURACY), measure(run, SOLVED)) == (0.75, 0.5, 0.25)


def test_plan_of_a_sweep() -> None:
    words = ["-m", "experiment=tiny", "optim.lr=1e-3,3e-3", "train.seed=range(0,2)", "~data.sources.zh"]
    plan = compose.plan_sweep(words)
    assert plan is not None
    assert plan.directory == Path("runs/tiny")
    assert plan.points == [f"optim.lr={lr},train.seed={seed}" for lr in (0.001, 0.003) for seed in (0, 1)]
    with pytest.raises(UserError, match="goes with none of --cfg"):
        compose.plan_sweep(["-m", "--cfg", "job"])
    assert compose.plan_sweep(["experiment=tiny"]) is None
    swept = compose.plan_sweep(["-m", "experiment=glob(*)", "run.name=x"])
    assert swept is not None
    assert swept.points is None  # what the files say, only Hydra knows


def test_long_names_of_points_do_not_collide() -> None:
    names = [compose.point_name([f"data.sources.en.path={'x' * 300}", f"train.seed={seed}"]) for seed in (0, 1)]
    assert names[0] != names[1]
    assert max(map(len, names)) <= 120
