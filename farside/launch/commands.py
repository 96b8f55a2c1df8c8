"""Commands to work: Hydra composes once, then workers start. Light: neither torch nor the phases are imported here."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.configs.stages import pretrain_stages, replay_stage, sft_stages
from farside.launch.local import JobFailed, Launcher, launching
from farside.train.metrics import is_held

WORKERS = {
    "train": "farside.train.pretrain",
    "sft": "farside.train.sft",
    "reward": "farside.rl.reward.train_reward",
    "rl": "farside.rl.train",
    "eval niah": "farside.train.eval.niah",
}
STAGES: dict[str, tuple[Callable[[Config], object], ...]] = {
    "train": (pretrain_stages,),
    "sft": (sft_stages,),
    "rl": (replay_stage,),
    "run": (pretrain_stages, sft_stages, replay_stage),
}


def dispatch(command: str, words: list[str]) -> int:
    """Runs one command; returns the exit code. Raises UserError for wrong input."""
    if command in ("report", "status", "stop"):
        return _with_directory(command, words)
    if command == "doctor":
        from farside.doctor import examine

        return examine()
    codes = run_hydra(command, words, lambda config: start(command, config, words))
    return max(codes, default=0)


def run_hydra(command: str, overrides: list[str], task: Callable[[Config], int]) -> list[int]:
    """The exit code of every point of a sweep, or of the one job. Wrong input of a point does not end the others.

    Composes with Hydra's own command line, so that -m, --cfg and launcher plugins work as its users know them.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    codes: list[int] = []

    def job(composed: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        try:
            config = compose.to_config(composed)
            if hydra_config.mode is RunMode.MULTIRUN:  # every point gets a run directory of its own
                name = _point(hydra_config.overrides.task, overrides) or str(hydra_config.job.num)
                config.run.dir = str(Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir / name)
            codes.append(task(config))
        except (UserError, OmegaConfBaseException) as error:  # said here: Hydra would print a page before it
            text = str(error) if isinstance(error, UserError) else compose.explain(error)
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
            codes.append(2)

    compose.register()
    sys.argv = [f"farside {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://farside.configs", config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error)) from error
    return codes


def _point(task: list[str], overrides: list[str]) -> str:
    """A folder's name from the overrides in which the points of a sweep differ, such as optim.lr=0.001."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = OverridesParser.create().parse_overrides([word for word in overrides if not word.startswith("-")])
    fixed = {item.key_or_group for item in given if not item.is_sweep_override()}
    point = [word for word in task if word.partition("=")[0].lstrip("+~") not in fixed]
    return ",".join(point).replace("/", "_")[:200]


def start(command: str, config: Config, words: list[str]) -> int:
    if command == "data prepare":
        from farside.data.prepare import prepare

        print(prepare(config.data, print))
        return 0
    for stages in STAGES.get(command, ()):
        stages(config)  # wrong ones are named before workers start
    directory = Path(config.run.dir)
    line = " ".join(["farside", command, *words])
    try:
        with launching(directory, line) as launcher:
            if command == "run":
                from farside.run import run

                code = run(config, launcher)
            else:
                code = _one_phase(command, config, launcher)
    except JobFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.code
    except UserError:
        raise
    except Exception as error:
        print(f"error: {directory}: {_cause(error)}{_keep_traceback(directory)}", file=sys.stderr)
        return 1
    if launcher.signals:
        sys.exit(code)  # a stopped point of a sweep stops the sweep
    return code


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


def _one_phase(command: str, config: Config, launcher: Launcher) -> int:
    if command == "sft":
        from farside.rl.tasks.traces import write_traces

        write_traces(config.sft, launcher.directory)
    outcome = launcher.run_workers(WORKERS[command], config, launcher.directory)
    print(f"{outcome}: {launcher.directory}")
    return 0


def _with_directory(command: str, words: list[str]) -> int:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise UserError(f"farside {command}: name one run directory, such as runs/demo")
    directory = Path(words[0])
    if command == "report":
        from farside.report.page import write_report

        print(write_report(directory))
    elif command == "status":
        path = directory / "status.json"
        if not path.is_file():
            raise UserError(f"{directory}: not a run directory (no status.json)")
        status = json.loads(path.read_text())
        if status["status"] == "running" and not (is_held(directory) or is_held(directory.parent)):
            status["status"] = "killed (no process holds the directory; the same command resumes)"
        for key, value in status.items():
            print(f"{key:<8} {value}")
    else:
        (directory / "stop").touch()
        print(f"{directory}: asked to stop; it saves at the next step's end")
    return 0
