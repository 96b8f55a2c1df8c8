"""The table that a sweep ends with: a row a point, or two short lines a point where the terminal is narrow."""

from collections.abc import Sequence
from pathlib import Path

from farside.launch.sweep import LEFT, Point
from farside.report.headline import LOSS, OF_COMMAND
from farside.report.numbers import NONE, duration, number
from farside.train.console import console, say

STYLES = {"finished": "", "failed": "red", "stopped": "yellow", "interrupted": "yellow", "running": "", LEFT: "dim"}


def show(directory: Path, command: str, points: Sequence[Point], page: Path | None) -> None:
    """To stdout, within the terminal's width."""
    metric = OF_COMMAND[command]
    out = console()
    header, rows = _cells(command, points)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    out.print()
    if sum(widths) + 2 * (len(widths) - 1) <= out.width:
        out.print(_line(header, widths), style="bold", markup=False)
        for point, row in zip(points, rows):
            out.print(_line(row, widths), style=_style(point), markup=False)
    else:
        for point, row in zip(points, rows):
            out.print(("* " if point.best else "") + point.name, style=_style(point), markup=False)
            facts = [f"{title} {cell}" for title, cell in zip(header[2:], row[2:]) if cell not in ("", NONE)]
            say("  " + "  ".join([row[1], *facts]), indent=4)
    out.print()
    best = next((point for point in points if point.best), None)
    if best is not None:
        say(f"best (*): {best.name}, {metric.name} {metric.text(best.metric)}", indent=2)
    left = [point for point in points if point.status not in ("finished", "failed", "running")]
    if left:
        say(f"left: {', '.join(map(_left, left))}", indent=2)
        say("the same command goes on from there")
    if page is not None:
        say(f"summary: {page}", indent=2)


def _cells(command: str, points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text; one swept key is named once, in the header."""
    metric = OF_COMMAND[command]
    keys = {point.name.partition("=")[0] for point in points}
    single = len(keys) == 1 and not any("," in point.name for point in points)
    header = [keys.pop() if single else "point", "status", "loss", metric.short, "time"]
    rows = []
    for point in points:
        name = point.name.partition("=")[2] if single else point.name
        status = f"{point.status} at step {point.step}" if point.status == "stopped" and point.step else point.status
        loss = NONE if point.loss is None else number(point.loss) if point.loss == point.loss else "nan"
        row = [("* " if point.best else "  ") + name, status, loss, metric.text(point.metric), _time(point)]
        rows.append(row)
    header[0] = "  " + header[0]
    if metric is LOSS:  # the loss is the metric: say it once
        header, rows = _without(header, 3), [_without(row, 3) for row in rows]
    return header, rows


def _time(point: Point) -> str:
    if point.seconds is None or point.seconds >= 60:
        return duration(point.seconds)
    return f"{point.seconds:.1f} s"


def _without(row: list[str], column: int) -> list[str]:
    return row[:column] + row[column + 1 :]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))
    ]
    return "  ".join(cells).rstrip()


def _style(point: Point) -> str:
    return "bold green" if point.best else STYLES[point.status]


def _left(point: Point) -> str:
    step = f" at step {point.step}" if point.step else ""
    return f"{point.name} ({point.status}{step})"
