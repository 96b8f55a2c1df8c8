"""A sweep: one run directory a point inside the sweep's own, a summary of all, and resuming by the same command.

A point leaves point.json in its directory, whichever process ran it, so that Hydra's launcher plugins work; the
summary is read back from the directories.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farside.configs import compose
from farside.configs.compose import SweepPlan
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.launch.local import read_status
from farside.report.headline import OF_COMMAND, final_loss, measure, rows_of
from farside.report.read import read_run
from farside.train.metrics import is_held, write_json

POINT, SWEEP = "point.json", "sweep.json"
LEFT = "not started"
MARKS = {"finished", "stopped", "failed"}


@dataclass(frozen=True)
class Point:
    """What the summary says of a point. loss: of the last steps; metric: what the command is judged by; seconds: of
    all attempts; cause: why it failed."""

    name: str
    directory: str
    status: str = LEFT
    step: int | None = None
    loss: float | None = None
    metric: float | None = None
    seconds: float | None = None
    cause: str | None = None
    code: int = 0
    best: bool = False


@dataclass
class Recorder:
    """Writes a point's point.json: when it starts, and how it ended."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        path = self.directory / POINT
        self.earlier = float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0
        self.write("running")

    def write(self, status: str, code: int = 0, cause: str | None = None) -> None:
        seconds = self.earlier + time.monotonic() - self.started
        record = {"name": self.name, "status": status, "code": code, "cause": cause, "seconds": seconds}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.directory / POINT, record)
        except OSError as error:
            raise UserError(f"run.dir {self.directory}: cannot be written ({error.strerror}); name another") from error


def is_finished(config: Config, directory: Path) -> bool:
    """Whether the point is done and was done with this very configuration."""
    path = directory / "config.yaml"
    if read_status(directory).get("status") != "finished" or not path.is_file():
        return False
    return not compose.differences(compose.load(path), config)


def begin(plan: SweepPlan, command: str, words: list[str]) -> Callable[[], None]:
    """Makes the sweep's directory, so that ``farside status`` knows it from the first point on; returns what takes
    that back for a sweep that is refused."""
    path = plan.directory / SWEEP
    before = path.read_bytes() if path.is_file() else None
    try:
        plan.directory.mkdir(parents=True, exist_ok=True)
        line = " ".join(["farside", command, *words])
        write_json(plan.directory / SWEEP, {"command": command, "line": line, "planned": plan.points, "points": []})
    except OSError as error:
        raise UserError(f"run.dir {plan.directory}: cannot be written ({error.strerror}); name another") from error

    def take_back() -> None:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)

    return take_back


def read_points(directory: Path) -> tuple[dict[str, Any], list[Point]]:
    """(sweep.json, every point as its own directory tells it now), the best one marked."""
    sweep = json.loads((directory / SWEEP).read_text())
    names = sweep["planned"]
    if names is None:  # a sweeper plugin's: as they come
        names = sorted(path.parent.name for path in directory.glob(f"*/{POINT}"))
    points = [_read(directory / name, name, sweep["command"]) for name in names]
    metric = OF_COMMAND[sweep["command"]]
    known = [p.metric for p in points if p.status == "finished" and p.metric is not None and _sound(p)]
    best = max(known, key=lambda value: metric.better * value, default=None)
    marked = next((p.name for p in points if best is not None and p.status == "finished" and p.metric == best), None)
    return sweep, [Point(**{**asdict(point), "best": point.name == marked}) for point in points]


def _sound(point: Point) -> bool:
    return point.loss is None or math.isfinite(point.loss)


def _read(directory: Path, name: str, command: str) -> Point:
    if not (directory / POINT).is_file():
        return Point(name, str(directory))
    record = json.loads((directory / POINT).read_text())
    status = record["status"]
    if status == "running" and not is_held(directory):
        status = "interrupted"
    loss = metric = None
    try:
        run = read_run(directory)
        loss, metric = final_loss(rows_of(run)), measure(run, OF_COMMAND[command])
    except UserError:  # failed before it left anything
        pass
    step = read_status(directory).get("step")
    return Point(
        name,
        str(directory),
        status,
        step if isinstance(step, int) else None,
        loss,
        metric,
        record["seconds"],
        record["cause"],
        record["code"],
    )


def summarise(directory: Path, sweep: dict[str, Any], points: list[Point]) -> Path:
    """Writes sweep.json, sweep.png and sweep.html; returns the page's path."""
    from farside.report.sweep import write_sweep_report

    told = [{**asdict(point), "loss": point.loss if _sound(point) else None} for point in points]  # JSON has no nan
    write_json(directory / SWEEP, {**sweep, "points": told})
    return write_sweep_report(directory, sweep, points)


def finish(directory: Path) -> int:
    """Prints and writes the summary; returns the exit code: that of the worst point, 0 if none failed."""
    from farside.launch.sweep_table import show

    sweep, points = read_points(directory)
    page = summarise(directory, sweep, points)
    show(directory, sweep["command"], points, page)
    failed = [point for point in points if point.status == "failed"]
    for point in failed:
        print(f"error: point {point.name} failed: {point.cause}", file=sys.stderr)
    return max((point.code for point in failed), default=0)
