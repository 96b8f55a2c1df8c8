"""Commands to work: Hydra composes once, then workers start. Light: neither torch nor the phases are imported here."""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from farside.configs import compose
from farside.configs.compose import SweepPlan
from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.schema import Config, WandbMode
from farside.configs.stages import check_sources, idle_sources, pretrain_stages, replay_stage, sft_stages
from farside.launch.local import JobFailed, Launcher, launching, read_status
from farside.train.console import say

WORKERS = {
    "train": "farside.train.pretrain",
    "sft": "farside.train.sft",
    "reward": "farside.rl.reward.train_reward",
    "rl": "farside.rl.train",
    "eval niah": "farside.train.eval.niah",
    "eval math": "farside.rl.eval",
    "verify": "farside.train.verify",
}
EVALUATIONS = ("eval niah", "eval math")
STAGES: dict[str, tuple[Callable[[Config], object], ...]] = {
    "train": (pretrain_stages,),
    "sft": (sft_stages,),
    "reward": (check_layout,),
    "rl": (check_layout, replay_stage),
    "eval niah": (check_layout,),
    "eval math": (check_layout,),
    "verify": (pretrain_stages,),
    "run": (pretrain_stages, sft_stages, replay_stage),
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended. code: the exit code; cause: one line if it failed; status: as in status.json; stopped: it was
    asked to stop, so nothing must follow."""

    code: int
    cause: str | None = None
    status: str = "failed"
    stopped: bool = False


def dispatch(command: str, words: list[str]) -> int:
    """Runs one command; returns the exit code. Raises UserError for wrong input."""
    if command in ("report", "status", "stop"):
        from farside.launch import directories

        return directories.run(command, words)
    if command == "chat":
        from farside.chat import chat

        return chat(words)
    if command in ("export hf", "import hf"):
        from farside import exchange

        return exchange.run(command, words)
    if command == "doctor":
        from farside.doctor import examine

        return examine()
    words = compose.flags_first(words)
    if command == "verify" and "--types" in words:
        words = [word for word in words if word != "--types"]
        outcomes = run_hydra("verify --types", words, verify_types)
        return max((outcome.code for outcome in outcomes), default=0)
    plan = compose.plan_sweep(words) if "-m" in words or "--multirun" in words else None
    if plan is None:
        outcomes = run_hydra(command, words, lambda config: start(command, config, words))
        return max((outcome.code for outcome in outcomes), default=0)
    return sweep(command, plan, words)


def sweep(command: str, plan: SweepPlan, words: list[str]) -> int:
    """Runs every point that is not finished, whatever becomes of the others, and sums up; returns the exit code."""
    if command in ("data prepare", "verify"):
        outcomes = run_hydra(command, words, lambda config: start(command, config, words))
        return max((outcome.code for outcome in outcomes), default=0)
    from farside.launch import sweep as sweeps

    take_back = sweeps.begin(plan, command, words)
    try:
        run_hydra(command, words, lambda config: start(command, config, words), plan)
    except KeyboardInterrupt:
        pass  # a stopped point stops the sweep; it has saved
    except UserError:  # Hydra refuses a point: none was run
        take_back()
        raise
    return sweeps.finish(plan.directory)


def run_hydra(
    command: str, words: list[str], task: Callable[[Config], Outcome], plan: SweepPlan | None = None
) -> list[Outcome]:
    """The outcome of the one job, or of every point of a sweep that ran in this process.

    Composes with Hydra's own command line, so that -m, --cfg and launcher plugins work as its users know them.
    """
    import hydra
    import yaml
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    outcomes: list[Outcome] = []

    def job(composed: DictConfig) -> None:
        try:
            config = compose.to_config(composed)
            if plan is None:
                outcomes.append(task(config))
            else:
                own = compose.point_words(list(HydraConfig.get().overrides.task), words)
                outcomes.append(_point(config, plan, compose.point_name(own), task))
        except (UserError, OmegaConfBaseException) as error:  # said here: Hydra would print a page before it
            text = str(error) if isinstance(error, UserError) else compose.explain(error)
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
            outcomes.append(Outcome(2, text))

    compose.register()
    words = compose.with_new_sources(words)
    sys.argv = [f"farside {command}", *words, *([plan.override] if plan else [])]
    try:
        hydra.main(version_base="1.3", config_path="pkg://farside.configs", config_name="config")(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(compose.explain(error)) from error
    return outcomes


def _point(config: Config, plan: SweepPlan, name: str, task: Callable[[Config], Outcome]) -> Outcome:
    """One point of a sweep in a run directory of its own. Raises KeyboardInterrupt if it was asked to stop."""
    from farside.launch.sweep import Recorder, is_finished

    directory = plan.directory / name
    config.run.dir = str(directory)
    number = f"{plan.points.index(name) + 1} of {len(plan.points)}: " if plan.points and name in plan.points else ""
    if is_finished(config, directory):
        say(f"── point {number}{name}: finished already ──", indent=3)
        return Outcome(0, status="finished")
    say(f"── point {number}{name} ──", indent=3)
    recorder = Recorder(directory, name)
    outcome = task(config)
    recorder.write(outcome.status, outcome.code, outcome.cause)
    if outcome.stopped:
        raise KeyboardInterrupt
    return outcome


def start(command: str, config: Config, words: list[str]) -> Outcome:
    """Runs the job; whatever goes wrong is said in one line."""
    try:
        if command == "data prepare":
            from farside.data.prepare import prepare

            print(prepare(config.data, say))
            return Outcome(0, status="finished")
        for stages in STAGES.get(command, ()):
            stages(config)  # wrong ones are named before workers start
        if command in ("train", "run"):
            _check_sources(command, config)
        if command == "verify":  # it is no run, but a run may be in its directory
            config.run.dir, config.logging.wandb = str(Path(config.run.dir) / "verify"), WandbMode.off
        with launching(Path(config.run.dir), " ".join(["farside", command, *words])) as launcher:
            return _work(command, config, launcher)
    except JobFailed as failed:
        outcome = Outcome(failed.code, str(failed))
    except UserError as error:
        outcome = Outcome(2, " ".join(str(error).split()))
    except Exception as error:
        directory = Path(config.run.dir)
        outcome = Outcome(1, f"{directory}: {_cause(error)}{_keep_traceback(directory)}")
    print(f"error: {outcome.cause}", file=sys.stderr)
    return outcome


def _check_sources(command: str, config: Config) -> None:
    """Before any text is read. Raises UserError for a mixture of what is not there."""
    stages = pretrain_stages(config)
    if command == "run":
        stages = [*stages, *sft_stages(config), *filter(None, [replay_stage(config)])]
    check_sources(config, stages)
    for name in idle_sources(config, stages):
        say(f"warning: data.sources.{name}: no mixture names it, so nothing trains on it", indent=2)


def verify_types(config: Config) -> Outcome:
    """Types of the configured layout: one line a stage, and the verdict. Starts no process and writes no file."""
    from farside.parallel.types import TypeMismatch
    from farside.train.engine.typecheck import check_types

    try:
        for line in check_types(config, config.parallel.ranks):
            say(line, indent=2)
    except TypeMismatch as mismatch:
        print(f"error: types do not fit: {mismatch}", file=sys.stderr)
        return Outcome(1, str(mismatch))
    say(f"types fit on {config.parallel.ranks:,} ranks")
    return Outcome(0, status="finished")


def _work(command: str, config: Config, launcher: Launcher) -> Outcome:
    if command == "verify":
        return _verify(config, launcher)
    if command == "run":
        from farside.run import run

        run(config, launcher)
    else:
        return Outcome(0, status=_one_phase(command, config, launcher), stopped=launcher.stopping)
    return Outcome(0, status=str(read_status(launcher.directory)["status"]), stopped=launcher.stopping)


def _verify(config: Config, launcher: Launcher) -> Outcome:
    """The workers have said their verdict; it decides the exit code."""
    launcher.run_workers(WORKERS["verify"], config, launcher.directory)
    verdict = json.loads((launcher.directory / "verify.json").read_text())
    return Outcome(0 if verdict["agrees"] else 1, None if verdict["agrees"] else verdict["verdict"], "finished")


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _keep_traceback(directory: Path) -> str:
    """Into logs/launcher.log; returns a hint to it, or nothing where it cannot be written (a full disk)."""
    path = directory / "logs" / "launcher.log"
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as log:
            traceback.print_exc(file=log)
    except OSError:
        return ""
    return f" (see {path})"


def _one_phase(command: str, config: Config, launcher: Launcher) -> str:
    """How it ended."""
    if command == "sft":
        from farside.rl.tasks.traces import write_traces

        write_traces(config, launcher.directory)
    try:
        outcome = launcher.run_workers(WORKERS[command], config, launcher.directory)
    finally:
        if command in EVALUATIONS and launcher.before.of_a_run:  # which goes on from what it was, finished or not
            launcher.before.restore()
    say(f"{outcome}: {launcher.directory}", indent=2)
    return outcome
