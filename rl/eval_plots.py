"""The picture of ``farside eval math``. Matplotlib is imported when it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#245f9e", "#c9700d", "#a3adb8"
DOTS_PER_INCH = 120


def draw(result: dict[str, Any], path: Path) -> None:
    """Six panels from math.json's numbers; one without numbers says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 6.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    _at_k(panels[0], result)
    _difficulty(panels[1], result["difficulty"])
    _budgets(panels[2], result["budgets"], result["greedy"])
    _lengths(panels[3], result["lengths"])
    _bins(panels[4], result["thinking"])
    _thinking(panels[5], result["difficulty"])
    figure.savefig(path, format="png", metadata={"Software": None})


def _at_k(axes: Axes, result: dict[str, Any]) -> None:
    axes.axhline(100 * result["greedy"], color=GREY, linestyle="--", label="greedy")
    for name, key, color in (("pass@k", "pass_at_k", BLUE), ("maj@k", "maj_at_k", ORANGE)):
        points = [(int(k), 100 * value) for k, value in result[key].items()]
        if points:
            axes.plot(*zip(*points), "o-", color=color, label=name)
            axes.set_xscale("log", base=2)
            axes.set_xticks([k for k, _ in points], labels=[str(k) for k, _ in points])
    _percent(axes, "k")
    axes.legend(fontsize=8, frameon=False)


def _difficulty(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.bar([row["difficulty"] for row in rows], [100 * row["greedy"] for row in rows], color=BLUE, label="greedy")
    drawn = [(row["difficulty"], 100 * row["sampled"]) for row in rows if row["sampled"] is not None]
    if drawn:
        axes.plot(*zip(*drawn), "o", color=ORANGE, label="sampled")
    _percent(axes, "difficulty")
    axes.legend(fontsize=8, frameon=False)


def _budgets(axes: Axes, rows: list[dict[str, Any]], greedy: float) -> None:
    axes.axhline(100 * greedy, color=GREY, linestyle="--", label="no limit")
    if rows:
        points = sorted((row["thinking_tokens"], 100 * row["accuracy"]) for row in rows)
        axes.plot(*zip(*points), "o-", color=BLUE, label="thinking cut and closed")
    else:
        axes.text(0.5, 0.5, "no budgets", transform=axes.transAxes, ha="center")
    _percent(axes, "thinking tokens used, mean")
    axes.legend(fontsize=8, frameon=False)


def _lengths(axes: Axes, bins: list[dict[str, Any]]) -> None:
    left, width = [b["from"] for b in bins], [b["to"] - b["from"] for b in bins]
    right, wrong = [b["right"] for b in bins], [b["answers"] - b["right"] for b in bins]
    axes.bar(left, right, width, align="edge", color=BLUE, label="right")
    axes.bar(left, wrong, width, right, align="edge", color=GREY, label="not right")
    axes.set_xlabel("tokens of an answer", fontsize=9)
    axes.set_ylabel("answers", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _bins(axes: Axes, bins: list[dict[str, Any]]) -> None:
    known = [b for b in bins if b["answers"]]
    middles = [(b["from"] + b["to"]) / 2 for b in known]
    axes.plot(middles, [100 * b["right"] / b["answers"] for b in known], "o-", color=BLUE)
    _percent(axes, "thinking tokens of an answer, as it chose")


def _thinking(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.bar([row["difficulty"] for row in rows], [row["thinking_tokens"] for row in rows], color=BLUE)
    axes.set_xlabel("difficulty", fontsize=9)
    axes.set_ylabel("thinking tokens, greedy, mean", fontsize=9)


def _percent(axes: Axes, along: str) -> None:
    axes.set_ylim(0, 103)
    axes.set_ylabel("solved, %", fontsize=9)
    axes.set_xlabel(along, fontsize=9)
