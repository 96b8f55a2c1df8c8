"""A sweep's page: the table of its points, their curves, and the comparison of their runs below."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farside.report import compare, plots
from farside.report.headline import OF_COMMAND, rows_of
from farside.report.markup import Markup, image, page, pill, section, table, tag
from farside.report.numbers import NONE, duration, number

if TYPE_CHECKING:
    from farside.launch.sweep import Point

_KINDS = {"finished": "good", "failed": "bad", "stopped": "warn", "interrupted": "warn"}


def write_sweep_report(directory: Path, sweep: dict[str, Any], points: "Sequence[Point]") -> Path:
    """Writes sweep.png and sweep.html into the sweep's directory; returns the page's path."""
    runs = compare.read_runs([Path(p.directory) for p in points if p.seconds is not None], lenient=True)
    by_directory = {run.directory: run for run in runs}
    drawn = [(point, by_directory[Path(point.directory)]) for point in points if Path(point.directory) in by_directory]
    parts: list[Markup] = [_points(points, sweep["command"])]
    if any(rows_of(run) for _, run in drawn):
        metric = OF_COMMAND[sweep["command"]]
        key = "accuracy" if sweep["command"] == "rl" else "loss"
        scale = 100 if metric.share else 1
        values = [(p.name, None if p.metric is None else scale * p.metric, p.best) for p, _ in drawn]
        title = f"{metric.name}, %" if metric.share else metric.name
        png = plots.sweep([(point.name, rows_of(run)) for point, run in drawn], key, values, title)
        _replace(directory / "sweep.png", png)
        parts.append(image(png, f"{key} over steps of every point, and {title} of each"))
    header = tag(
        "header", tag("h1", f"farside sweep: {directory.resolve().name}"), tag("pre", sweep["line"], class_="command")
    )
    body = [header, section("points", "Points", *parts)]
    if len(runs) > 1:
        names = {run.directory: point.name for point, run in drawn}
        drawn_phase = "pretrain" if sweep["command"] in ("train", "run") else sweep["command"]
        body += compare.sections(runs, [names[run.directory] for run in runs], drawn_phase)
    path = directory / "sweep.html"
    _replace(path, page(f"farside sweep: {directory.resolve().name}", *body).encode("utf-8", errors="replace"))
    return path


def _points(points: "Sequence[Point]", command: str) -> Markup:
    metric = OF_COMMAND[command]
    rows = []
    for point in points:
        name: object = tag("b", point.name, " ", pill("best", "good")) if point.best else point.name
        step = "" if point.step is None or point.status == "finished" else f" at step {number(point.step)}"
        status = pill(point.status + step, _KINDS.get(point.status, "plain"))
        if point.cause:
            status = tag("div", status, tag("div", point.cause, class_="soft"))
        loss = NONE if point.loss is None else number(point.loss) if point.loss == point.loss else "not a number"
        rows.append((name, status, loss, metric.text(point.metric), duration(point.seconds)))
    return table(("point", "status", "final loss", metric.name, "time"), rows, numeric=(2, 3, 4))


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
