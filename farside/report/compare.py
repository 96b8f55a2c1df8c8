"""Several runs on one page: what was set differently, what came of it, the curves on top of each other, the grids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farside.configs import compose
from farside.configs.errors import UserError
from farside.report import plots
from farside.report.headline import final_loss, validation_loss
from farside.report.markup import Markup, image, join, page, pill, quiet, section, table, tag
from farside.report.needles import title_of
from farside.report.numbers import NONE, count, duration, number, percent
from farside.report.overview import KINDS, green_of, held_out_change, total_seconds
from farside.report.read import Run, mapping, numbers_of, read_run
from farside.train.eval.heatmap import language_name

MOST_GRIDS = 8
MOST_KEYS = 15
"""More that differ are folded away."""
CURVES = {
    "pretrain": ("Pretraining and context extension", [("loss", "loss, nats per weighted token", 1.0)]),
    "sft": ("Supervised warm start", [("loss", "loss, nats per weighted token", 1.0)]),
    "reward": ("Reward model", [("loss", "loss, nats a pair", 1.0), ("accuracy", "pairs in order, %", 100.0)]),
    "rl": (
        "Reinforcement learning",
        [
            ("accuracy", "verified correct, sampled, %", 100.0),
            ("held_out_accuracy", "verified correct, held out, %", 100.0),
            ("length", "response length, tokens", 1.0),
        ],
    ),
}


def write_comparison(directories: Sequence[Path]) -> Path:
    """Writes comparison.html into the nearest folder that holds all runs; returns its path.

    Raises UserError when a directory holds nothing of a run, or is named twice.
    """
    twice = [str(path) for path in directories if sum(path.resolve() == other.resolve() for other in directories) > 1]
    if twice:
        raise UserError(f"farside report: {twice[0]} is named twice; a run is compared with others")
    runs = read_runs(directories)
    labels = _labels([run.directory for run in runs])
    parents = [run.directory.resolve().parent for run in runs]
    path = Path(os.path.relpath(os.path.commonpath(parents))) / "comparison.html"
    title = f"farside: {len(runs)} runs compared"
    header = tag("header", tag("h1", title), *(_named(run, label) for run, label in zip(runs, labels)))
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(page(title, header, *sections(runs, labels)), encoding="utf-8", errors="replace")
    os.replace(unfinished, path)
    return path


def read_runs(directories: Sequence[Path], lenient: bool = False) -> list[Run]:
    """The runs; lenient: directories with nothing of a run are left out instead of refused."""
    runs = []
    for directory in directories:
        try:
            runs.append(read_run(directory))
        except UserError:
            if not lenient:
                raise
    return runs


def sections(runs: Sequence[Run], labels: Sequence[str], drawn: str = "") -> list[Markup]:
    """The comparison itself, without a header and without the curves of the phase that is ``drawn`` already."""
    return [_results(runs, labels), _differences(runs, labels), *_curves(runs, labels, drawn), _grids(runs, labels)]


def _labels(directories: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [directory.resolve().parts for directory in directories]
    depth = 1
    while len({names[-depth:] for names in parts}) < len(parts):
        depth += 1
    return ["/".join(names[-depth:]) for names in parts]


def _named(run: Run, label: str) -> Markup:
    status = str(run.status.get("status", "status unknown"))
    facts = tag("p", tag("b", label), " ", pill(status, KINDS.get(status, "plain")))
    return join([facts, tag("pre", run.command, class_="command") if run.command else ""])


def _results(runs: Sequence[Run], labels: Sequence[str]) -> Markup:
    rows: list[tuple[str, list[str]]] = [
        ("status", [str(run.status.get("status", NONE)) for run in runs]),
        ("pretraining tokens", [_tokens(run) for run in runs]),
        ("final training loss, pretraining", [number(final_loss(run.rows("pretrain"))) for run in runs]),
    ]
    losses = [mapping(run.summary("pretrain"), "validation_loss") for run in runs]
    for source in dict.fromkeys(name for own in losses for name in own):
        rows.append((f"validation loss, {language_name(source)}", [number(own.get(source)) for own in losses]))
    if sum(len(own) > 1 for own in losses):
        rows.append(("validation loss, mean", [number(validation_loss(run)) for run in runs]))
    rows += [
        ("final training loss, warm start", [number(final_loss(run.rows("sft"))) for run in runs]),
        ("needle cells green, last grid", [_green(run) for run in runs]),
        ("reward model, held-out pairs", [percent(run.summary("reward").get("held_out_accuracy")) for run in runs]),
        ("held-out problems solved before RL", [_before(run) for run in runs]),
        ("held-out problems solved after RL", [_after(run) for run in runs]),
        ("time", [duration(total_seconds(run)) for run in runs]),
    ]
    known = [(name, *values) for name, values in rows if any(value != NONE for value in values)]
    return section("results", "Results", table(("", *labels), known, numeric=range(1, len(runs) + 1)))


def _tokens(run: Run) -> str:
    tokens = numbers_of(run.rows("pretrain"), "tokens")
    return count(tokens[-1] if tokens else None)


def _green(run: Run) -> str:
    return "{:,} of {:,}".format(*green_of(run.grids[-1])) if run.grids else NONE


def _before(run: Run) -> str:
    return percent(run.summary("rl").get("held_out_accuracy_before"))


def _after(run: Run) -> str:
    return held_out_change(run)[1]


def _differences(runs: Sequence[Run], labels: Sequence[str]) -> Markup:
    """Keys whose values differ. A configuration that cannot be read is named instead."""
    flats: list[dict[str, Any]] = []
    unread = []
    for run, label in zip(runs, labels):
        try:
            flats.append(compose.flat(compose.load(run.directory / "config.yaml")))
        except UserError as error:
            flats.append({})
            unread.append(f"{label}: {error}")
    readable = [flat for flat in flats if flat]
    keys = sorted({key for flat in readable for key in flat if not key.startswith("run.")})
    rows = []
    for key in keys:
        values = [_value(flat, key) for flat in flats]
        if len({value for flat, value in zip(flats, values) if flat}) > 1:
            rows.append((tag("code", key), *values))
    parts: list[object] = [quiet(line) for line in unread]
    if len(rows) > MOST_KEYS:
        shown = table(("key", *labels), rows, numeric=range(1, len(runs) + 1))
        parts.append(tag("details", tag("summary", f"{len(rows)} keys differ"), shown))
    elif rows:
        parts.append(table(("key", *labels), rows, numeric=range(1, len(runs) + 1)))
    else:
        parts.append(quiet("None: the configurations compute the same."))
    return section("config", "What was set differently", *parts)


def _value(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return NONE
    value = flat[key]
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _curves(runs: Sequence[Run], labels: Sequence[str], drawn: str) -> list[Markup]:
    found = []
    for phase, (title, panels) in CURVES.items():
        if phase == drawn:
            continue
        curves = [(label, run.rows(phase)) for run, label in zip(runs, labels) if run.rows(phase)]
        shown = [panel for panel in panels if any(numbers_of(rows, panel[0]) for _, rows in curves)]
        if shown:
            picture = image(plots.overlay(curves, shown), f"{title}: {', '.join(label for label, _ in curves)}")
            found.append(section(phase, title, picture))
    return found


def _grids(runs: Sequence[Run], labels: Sequence[str]) -> Markup:
    """The last grid of every run, a row each, in one picture with one colour scale."""
    title = "Needle grids: the last of each run"
    having = [(run, label) for run, label in zip(runs, labels) if run.grids]
    if not having:
        return section("needles", title, quiet("No run has one yet."))
    shown = having[:MOST_GRIDS]
    titled = [{**run.grids[-1], "title": f"{label}: {title_of(run.grids[-1])}"} for run, label in shown]
    parts: list[object] = [image(plots.grids(titled), "; ".join(str(grid["title"]) for grid in titled))]
    if len(having) > MOST_GRIDS:
        parts.append(quiet(f"{MOST_GRIDS} of {len(having)} runs are shown."))
    return section("needles", title, *parts)
