"""``farside run``: the whole job as phases, each a run directory inside the run's own, one lineage.

A phase starts from the checkpoint of the one before it and is skipped once finished; so the same command again
resumes wherever the last one ended.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.ranges import check_grid_size
from farside.configs.schema import Config
from farside.data.prepare import Prepared, prepare
from farside.launch.local import JobFailed, Launcher, read_status
from farside.report.page import write_report
from farside.rl import train as rl
from farside.rl.reward import train_reward
from farside.rl.tasks.registry import make_task
from farside.rl.tasks.traces import write_traces
from farside.train.checkpoint.retention import newest
from farside.train.console import say
from farside.train.eval.niah import check_grid
from farside.train.metrics import write_json

FIRST_USED = {
    "sft.": "sft",
    "reward.": "reward",
    "rl.max_new_tokens": "reward",
    "rl.repetition.": "reward",
    "rl.rollout_batch": "reward",
    "rl.verifier_timeout_seconds": "reward",
    "rl.": "rl",
}
"""The phase that looks first at a key that begins so; at any other, the first phase."""


@dataclass(frozen=True)
class Phase:
    """name: its folder; module: the worker; parent: the phase whose last checkpoint it starts from."""

    name: str
    module: str
    parent: str | None = None
    before: Callable[[Config, Path], object] = lambda config, directory: None


REWARD_ALONE = "rl_reward_alone"
PHASES = (
    Phase("pretrain", "farside.train.pretrain"),
    Phase("sft", "farside.train.sft", "pretrain", lambda config, directory: write_traces(config, directory)),
    Phase("reward", train_reward.__name__, "sft"),
    Phase("rl", rl.__name__, "sft"),
    Phase(REWARD_ALONE, rl.__name__, "sft"),
    Phase("eval", "farside.train.eval.niah", "rl"),
)


def run(config: Config, launcher: Launcher) -> int:
    """Runs what is left of the job; returns 0 when finished or stopped on request. Raises JobFailed."""
    directory = launcher.directory
    check_ahead(config)
    _hold_to_configuration(config, directory)
    started, earlier = time.monotonic(), _spent(directory)
    status = Status(directory, started, earlier)
    try:
        return _run_phases(config, launcher, status)
    except UserError as error:
        status.write("failed", status.phase, cause=" ".join(str(error).split()))
        raise


def _run_phases(config: Config, launcher: Launcher, status: "Status") -> int:
    status.write("running", "prepare")
    check_grid(config.eval.niah, Prepared(prepare(config.data, say)))
    for phase in phases_of(config):
        if launcher.stopping:
            break
        status.write("running", phase.name)
        if not run_phase(phase, config, launcher, status):
            break
    else:
        status.write("finished", "report")
        say(f"report: {write_report(launcher.directory)}", indent=2)
        return 0
    status.write("stopped", phase.name, cause="asked to stop")
    say(f"stopped in {phase.name}; the same command goes on from there", indent=2)
    return 0


def check_ahead(config: Config) -> None:
    """What a late phase would refuse is refused before the first begins. Raises UserError."""
    check_grid_size(config.eval.niah)
    if absent := sorted(set(config.eval.niah.sources) - set(config.data.sources)):
        there = ", ".join(sorted(config.data.sources))
        raise UserError(f"eval.niah.sources names {absent[0]!r}; data.sources has {there}")
    make_task(config.sft.task)
    train_reward.check(config)
    for phase in phases_of(config):
        if phase.module == rl.__name__:
            rl.check(arm_of(phase, config))


def run_phase(phase: Phase, config: Config, launcher: Launcher, status: "Status") -> bool:
    """Runs one phase unless it is finished; returns whether it is. Raises JobFailed."""
    directory = launcher.directory / phase.name
    summed_up = phase.name == "eval" or (directory / "summary.json").is_file()
    if summed_up and read_status(directory).get("status") == "finished":
        return True
    directory.mkdir(exist_ok=True)
    say(f"── {phase.name} ──")
    phase.before(config, directory)
    parent = final_checkpoint(launcher.directory / phase.parent) if phase.parent else None
    began = time.monotonic()
    try:
        outcome = launcher.run_workers(phase.module, for_phase(phase, config, launcher.directory), directory, parent)
    except JobFailed as failed:
        status.add_phase(phase.name, time.monotonic() - began, "failed")
        status.write("failed", phase.name, cause=str(failed))
        write_report(launcher.directory)
        raise
    status.add_phase(phase.name, time.monotonic() - began, outcome)
    collect(phase, launcher.directory)
    write_report(launcher.directory)
    return outcome == "finished"


def phases_of(config: Config) -> list[Phase]:
    """The phases of this job, in order."""
    return [phase for phase in PHASES if phase.name != REWARD_ALONE or config.rl.reward_alone_steps]


def for_phase(phase: Phase, config: Config, directory: Path) -> Config:
    """``arm_of`` with what only earlier phases could know."""
    config = arm_of(phase, config)
    if phase.module == rl.__name__ and (config.rl.reward_model_weight or config.rl.process_weight):
        return replace(config, rl=replace(config.rl, reward_model=str(final_checkpoint(directory / "reward"))))
    if phase.name == "eval":
        return replace(config, eval=replace(config.eval, name="after_rl"))
    return config


def arm_of(phase: Phase, config: Config) -> Config:
    """The configuration, or that of the arm which the reward model judges alone. It is there to be watched: no alarm
    stops it, and no verdict chooses its groups."""
    if phase.name != REWARD_ALONE:
        return config
    alone = replace(
        config.rl,
        steps=config.rl.reward_alone_steps,
        verifier_weight=0.0,
        reward_model_weight=1.0,
        sampling_rounds=1,
        overoptimisation=replace(config.rl.overoptimisation, stop=None),
        replay=replace(config.rl.replay, samples=0),
    )
    return replace(config, rl=alone)


def final_checkpoint(directory: Path) -> Path:
    return Path(json.loads((directory / "summary.json").read_text())["checkpoint"]["path"])


def collect(phase: Phase, directory: Path) -> None:
    """Copies what the report shows of a phase to the top: needle grids, the data's and the machine's description."""
    for folder in (directory / phase.name / "eval").glob("*"):
        shutil.copytree(folder, directory / "eval" / folder.name, dirs_exist_ok=True)
    for name in ("data.json", "machine.json"):
        if (directory / phase.name / name).is_file():
            shutil.copyfile(directory / phase.name / name, directory / name)


class Status:
    """status.json and phases.json of the whole job."""

    def __init__(self, directory: Path, started: float, earlier: float) -> None:
        self.directory, self.started, self.earlier, self.phase = directory, started, earlier, "prepare"

    def write(self, status: str, phase: str, cause: str | None = None) -> None:
        self.phase = phase
        seconds = self.earlier + time.monotonic() - self.started
        step = read_status(self.directory / phase).get("step")
        write_json(
            self.directory / "status.json",
            {"status": status, "phase": phase, "step": step, "cause": cause, "seconds": seconds},
        )

    def add_phase(self, name: str, seconds: float, status: str) -> None:
        """Adds to the phase's time of earlier attempts."""
        path = self.directory / "phases.json"
        phases: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
        spent = sum(entry["seconds"] for entry in phases if entry["name"] == name)
        phases = [entry for entry in phases if entry["name"] != name]
        write_json(path, [*phases, {"name": name, "seconds": spent + seconds, "status": status}])


def _spent(directory: Path) -> float:
    return float(str(read_status(directory).get("seconds", 0.0)))


def _hold_to_configuration(config: Config, directory: Path) -> None:
    """A run directory belongs to one configuration: a phase that has begun must not be described by another."""
    path = directory / "config.yaml"
    changed = compose.differences(compose.load(path), config) if path.is_file() else []
    if changed := [(key, old, new) for key, old, new in changed if not _is_ahead(key, directory)]:
        key, old, new = changed[0]
        raise UserError(
            f"{directory}: made with another configuration ({key} = {old} there, {new} here"
            f"{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}); use another run.name or run.dir"
        )
    path.write_text(compose.to_yaml(config))


def _is_ahead(key: str, directory: Path) -> bool:
    """Whether only phases that have no checkpoint yet look at this key: it may change, above all what one of them has
    refused."""
    phase = next((phase for begins, phase in FIRST_USED.items() if key.startswith(begins)), "pretrain")
    return newest(directory / phase) is None and not (directory / phase / "summary.json").is_file()
