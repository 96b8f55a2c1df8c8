"""Commands on what a job left on disk: report, status, stop. A sweep's directory stands for its points."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.launch.local import read_status
from farside.launch.sweep import SWEEP, read_points, summarise
from farside.train.console import say
from farside.train.metrics import is_held


def run(command: str, words: list[str]) -> int:
    """Returns the exit code. Raises UserError for a wrong directory or one that cannot be written."""
    several = command == "report"
    if not words or (len(words) > 1 and not several):
        raise UserError(f"farside {command}: name one run directory, such as runs/demo")
    for word in words:
        if not Path(word).is_dir():
            raise UserError(f"farside {command}: {word}: no such directory; name one run directory, such as runs/demo")
    commands: dict[str, Callable[[list[Path]], None]] = {"report": report, "status": status, "stop": stop}
    try:
        commands[command]([Path(word) for word in words])
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return 0


def report(directories: list[Path]) -> None:
    from farside.report.compare import write_comparison
    from farside.report.page import write_report

    if len(directories) > 1:
        print(write_comparison(directories))
    elif (directories[0] / SWEEP).is_file():
        print(summarise(directories[0], *read_points(directories[0])))
    else:
        print(write_report(directories[0]))


def status(directories: list[Path]) -> None:
    directory = directories[0]
    if (directory / SWEEP).is_file():
        from farside.launch.sweep_table import show

        sweep, points = read_points(directory)
        show(directory, sweep["command"], points, None)
        return
    told = _told(directory)
    if told["status"] == "running" and not _is_worked_in(directory):
        told["status"] = "killed (no process holds the directory; the same command resumes)"
    for key, value in told.items():
        say(f"{key:<8} {_plain(value)}", indent=9)


def _told(directory: Path) -> dict[str, Any]:
    """Of status.json. Raises UserError where there is none."""
    if not (directory / "status.json").is_file():
        raise UserError(f"{directory}: not a run directory (no status.json)")
    return {"status": "unknown (status.json is damaged; the same command resumes)", **read_status(directory)}


def _is_worked_in(directory: Path) -> bool:
    """By a job of its own, or as a phase of a whole one."""
    return is_held(directory) or is_held(directory.parent)


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def stop(directories: list[Path]) -> None:
    directory = directories[0]
    if not (directory / SWEEP).is_file():
        if _told(directory)["status"] != "running" and not _is_worked_in(directory):
            raise UserError(f"{directory}: no job runs there; `farside status {directory}` tells how it ended")
        (directory / "stop").touch()
        say(f"{directory}: asked to stop; it saves at the next step's end", indent=2)
        return
    _, points = read_points(directory)
    running = [Path(point.directory) for point in points if point.status == "running"]
    if not running:
        raise UserError(f"{directory}: no point of this sweep is running")
    for point in running:
        (point / "stop").touch()
        say(f"{point}: asked to stop; it saves at the next step's end, and the sweep with it", indent=2)
