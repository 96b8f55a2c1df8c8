"""Pictures of needle grids: context length across, needle depth down, colour for the share returned.

Matplotlib is imported inside functions, so that importing this module costs a command line nothing, and only
its object interface is used: no pyplot, no global figure, nothing to close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import LinearSegmentedColormap

# Lightness rises all the way (CIE L* about 33, 63, 82), so the order survives colour blindness.
RED, AMBER, GREEN = "#9a1b1e", "#da871a", "#80dc88"

# Matplotlib's fonts hold no Chinese glyphs: panels are named in ASCII.
LANGUAGES = {"en": "English", "zh": "Chinese", "code": "code"}

PANEL_WIDTH, PANEL_HEIGHT = 4.7, 3.1  # inches
DOTS_PER_INCH = 120


def check_result(result: Any) -> None:
    """Raise ValueError, in one line, when ``result`` is not a needle grid as niah.json holds it."""
    if not isinstance(result, dict):
        raise ValueError("a needle grid must be a JSON object")
    for key, kind in (("name", str), ("lengths", list), ("depths", list), ("grids", dict)):
        if not isinstance(result.get(key), kind):
            raise ValueError(f"a needle grid needs {key!r} ({kind.__name__})")
    rows, columns = len(result["depths"]), len(result["lengths"])
    if not rows or not columns or not result["grids"]:
        raise ValueError("a needle grid needs at least one length, one depth and one language")
    if not all(_is_finite(x) for x in [*result["lengths"], *result["depths"]]):
        raise ValueError("lengths and depths of a needle grid must be numbers")
    for language, grid in result["grids"].items():
        scores = grid.get("scores") if isinstance(grid, dict) else None
        if not isinstance(scores, list) or [len(r) if isinstance(r, list) else -1 for r in scores] != [columns] * rows:
            raise ValueError(f"scores of grid {language!r} must be {rows} depth rows of {columns} lengths")
        if not all(_is_finite(x) and 0 <= x <= 1 for row in scores for x in row):
            raise ValueError(f"scores of grid {language!r} must lie between 0 and 1")


def count_green(grid: dict[str, Any]) -> tuple[int, int]:
    """(cells whose needles all came back, all cells) of one language, counted from its scores."""
    scores = [score for row in grid["scores"] for score in row]
    return sum(score == 1 for score in scores), len(scores)


def language_name(language: str) -> str:
    """ASCII name of a language or source for labels."""
    return LANGUAGES[language] if language in LANGUAGES else ascii_only(language)


def ascii_only(text: str) -> str:
    """``text`` with question marks for whatever matplotlib's fonts may lack, control characters too."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def color_map() -> LinearSegmentedColormap:
    """Red (0) over amber (0.5) to green (1), rising in lightness."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("needles", [RED, AMBER, GREEN])


def draw_grid(result: dict[str, Any], path: Path | str | BinaryIO) -> None:
    """Write a PNG of one niah.json: a panel a language, side by side."""
    draw_grids([result], path)


def draw_grids(results: Sequence[dict[str, Any]], path: Path | str | BinaryIO) -> None:
    """Write a PNG of several results as rows (before, after, after RL) that share one colour scale.

    Raises ValueError when ``results`` is empty or one of them is not a needle grid.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not results:
        raise ValueError("no needle grids to draw")
    for result in results:
        check_result(result)
    # dict, not set: keeps the order of first appearance
    languages = list(dict.fromkeys(language for result in results for language in result["grids"]))
    figure = Figure(
        figsize=(PANEL_WIDTH * len(languages) + 0.9, PANEL_HEIGHT * len(results) + 0.2),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)  # type: ignore[union-attr,call-arg]
    panels = figure.subplots(len(results), len(languages), squeeze=False)
    for row, result in enumerate(results):
        for column, language in enumerate(languages):
            axes = panels[row][column]
            if language in result["grids"]:
                mesh = _draw_panel(axes, result, language, first=column == 0)
            else:
                axes.set_axis_off()
    bar = figure.colorbar(mesh, ax=panels.ravel().tolist(), pad=0.015, fraction=0.03, aspect=28 * len(results) ** 0.5)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25%", "50%", "75%", "all"])
    bar.set_label("needles returned exactly", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    # no Software entry: the same grid gives the same bytes
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_panel(axes: Axes, result: dict[str, Any], language: str, first: bool) -> QuadMesh:
    """One language of one result; ``first`` in its row carries the label of the depth axis."""
    lengths, depths = result["lengths"], result["depths"]
    mesh = axes.pcolormesh(
        result["grids"][language]["scores"],
        cmap=color_map(),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.8,
    )
    green, cells = count_green(result["grids"][language])
    title = ascii_only(str(result["title"] if "title" in result else result["name"]))
    axes.set_title(
        f"{title}\n{language_name(language)}: {green:,} of {cells:,} green",
        loc="left",
        fontsize=10,
        parse_math=False,  # a title is not TeX: a lone dollar sign must not raise
    )
    columns, rows = _ticks(len(lengths), 8), _ticks(len(depths), 8)
    axes.set_xticks([c + 0.5 for c in columns], labels=[f"{round(lengths[c]):,}" for c in columns])
    axes.set_yticks([r + 0.5 for r in rows], labels=[f"{depths[r]:.0f}" for r in rows])
    axes.invert_yaxis()  # depth 0, the beginning of the text, on top
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if first:
        axes.set_ylabel("needle depth, % of the text", fontsize=9)
    _mark_trained_length(axes, result)
    return mesh


def _mark_trained_length(axes: Axes, result: dict[str, Any]) -> None:
    """Dashed line right of the last column no longer than training was: beyond it is extrapolation."""
    label = "context length, tokens"
    trained = result.get("trained_length")
    if _is_finite(trained):
        label += f" (trained up to {round(trained):,}"
        seen = sum(length <= trained for length in result["lengths"])
        if 0 < seen < len(result["lengths"]):
            axes.axvline(seen, color="black", linestyle=(0, (4, 2)), linewidth=1.6)
            label += ": dashed line"
        label += ")"
    axes.set_xlabel(label, fontsize=9)


def _ticks(count: int, most: int) -> list[int]:
    """At most ``most`` evenly spread indices of ``count``, from the first on."""
    return list(range(0, count, math.ceil((count - 1) / (most - 1)) if count > most else 1))


def _is_finite(x: Any) -> TypeGuard[float]:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
