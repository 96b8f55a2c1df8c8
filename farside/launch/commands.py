"""Commands to work: Hydra composes once, then workers start. Light: neither torch nor the phases are imported here."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.launch.local import JobFailed, Launcher, launching
from farside.train.metrics import is_held

WORKERS = {
    "train": "farside.train.pretrain",
    "sft": "farside.train.sft",
    "reward": "farside.rl.reward.train_reward",
    "rl": "farside.rl.train",
    "eval niah": "farside.train.eval.niah",
}


def dispatch(command: str, words: list[str]) -> int:
    """Runs one command; returns the exit code. Raises UserError for wrong input."""
    if command in ("report", "status", "stop"):
        return _with_directory(command, words)
    if command == "doctor":
        from farside.doctor import examine

        return examine()
    codes: list[int] = []
    run_hydra(command, words, lambda config: codes.append(start(command, config, words)))
    return max(codes, default=0)


def run_hydra(command: str, overrides: list[str], task: Callable[[Config], None]) -> None:
    """Composes with Hydra's own command line, so that -m, --cfg and launcher plugins work as its users know them."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    def job(composed: DictConfig) -> None:
        config = compose.to_config(composed)
        sweep = HydraConfig.get()
        if sweep.mode is RunMode.MULTIRUN:  # every point gets a run directory of its own
            config.run.dir = str(Path(sweep.sweep.dir) / sweep.sweep.subdir)
        task(config)

    compose.register()
    sys.argv = [f"farside {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://farside.configs", config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error)) from error


def start(command: str, config: Config, words: list[str]) -> int:
    if command == "data prepare":
        from farside.data.prepare import prepare

        print(prepare(config.data, print))
        return 0
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
