"""The report's curves and bars as PNG bytes. Matplotlib's object interface, imported when first drawn."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING, Any

from farside.report.numbers import is_number, number, percent
from farside.report.read import Row, Stage, mean, numbers_of, stages_of
from farside.train.eval.heatmap import ascii_only, draw_grids

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1d2530", "#5d6875", "#d5dae0"
BLUE, ORANGE, GREEN = "#245f9e", "#c9700d", "#2b8a4b"
DOTS_PER_INCH = 120


def grids(results: list[Row]) -> bytes:
    buffer = io.BytesIO()
    draw_grids(results, buffer)
    return buffer.getvalue()


def loss_by_stage(stages: list[Stage]) -> bytes:
    """Loss of every step, its running mean, and where each stage begins."""
    figure, (axes,) = _figure(1, 1, 9.6, 3.5)
    rows = [row for stage in stages for row in stage.rows]
    _curve(axes, rows, "loss", BLUE)
    _labels(axes, "loss, nats per weighted token", "training step")
    _mark_stages(axes, stages, named=True)
    return _png(figure)


def drawn(stages: list[tuple[str, dict[str, Row]]]) -> bytes:
    """A panel a stage: the shares drawn of each entry, of tokens and of rows, beside a mark for what was asked.

    stages: (name, entry -> what data_drawn.json says of it).
    """
    columns = min(3, len(stages))
    tall = -(-len(stages) // columns)
    most = max(len(entries) for _, entries in stages)
    figure, panels = _figure(tall, columns, 9.6, tall * (0.9 + 0.34 * most))
    for axes, (stage, entries) in zip(panels, stages):
        for place, entry in enumerate(entries.values()):
            for offset, key, color in ((-0.17, "share_of_tokens", BLUE), (0.17, "share_of_rows", "#a3adb8")):
                if is_number(value := entry.get(key)):
                    axes.barh(place + offset, 100 * value, color=color, height=0.3)
            if is_number(asked := entry.get("asked")):
                axes.plot([100 * asked] * 2, [place - 0.4, place + 0.4], color=ORANGE, linewidth=2.2)
        axes.set_yticks(range(len(entries)), labels=[shown(name) for name in entries])
        axes.set_ylim(most - 0.4, -0.6)
        axes.set_title(shown(stage), fontsize=9.5, color=INK, loc="left")
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share, %", fontsize=9.5, color=INK)
    for axes in panels[len(stages) :]:
        axes.axis("off")
    marks = [("drawn, of tokens", BLUE), ("drawn, of rows", "#a3adb8"), ("asked for", ORANGE)]
    handles = [panels[0].plot([], [], color=color, linewidth=5, label=label)[0] for label, color in marks]
    figure.legend(handles=handles, fontsize=8.5, frameon=False, loc="outside upper right", ncols=3)
    return _png(figure)


def throughput(stages: list[Stage]) -> bytes:
    """Tokens a second and model FLOPs utilisation."""
    rows = [row for stage in stages for row in stage.rows]
    figure, (speed, use) = _figure(1, 2, 9.6, 2.7)
    _curve(speed, rows, "tokens_per_second", BLUE)
    _labels(speed, "tokens a second", "training step", bottom=0)
    _curve(use, rows, "mfu", BLUE, scale=100)
    _labels(use, "MFU, %", "training step", bottom=0)
    for axes in (speed, use):
        _mark_stages(axes, stages, named=False)
    return _png(figure)


def loss(rows: list[Row]) -> bytes:
    figure, (axes,) = _figure(1, 1, 6.2, 2.7)
    _curve(axes, rows, "loss", BLUE)
    _labels(axes, "loss, nats per weighted token", "training step")
    return _png(figure)


def reward_accuracy(model: Any, format_only: Any) -> bytes:
    """Held-out pair accuracy of the reward model beside a classifier that sees length and format only."""
    figure, (axes,) = _figure(1, 1, 6.2, 1.9)
    bars = [("length and format only", format_only, "#a3adb8"), ("reward model", model, BLUE)]
    known = [(name, float(value), color) for name, value, color in bars if is_number(value)]
    for position, (_, value, color) in enumerate(known):
        axes.barh(position, 100 * value, color=color, height=0.6)
        axes.text(100 * value + 1, position, percent(value), va="center", fontsize=10, color=INK)
    axes.axvline(50, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(known)), labels=[name for name, _, _ in known])
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100], labels=["0", "25", "50 (guessing)", "75", "100"])
    axes.grid(False)
    _labels(axes, "", "held-out pairs ordered rightly, %")
    axes.tick_params(axis="y", labelsize=10)
    return _png(figure)


def rl_curves(rows: list[Row], summary: Row) -> bytes:
    """Reward, verified accuracy, response length and entropy over the steps of RL."""
    figure, panels = _figure(2, 2, 9.6, 5.2)
    reward, accuracy, length, entropy = panels
    _curve(reward, rows, "reward", BLUE)
    _labels(reward, "mean reward", "")
    _accuracy(accuracy, rows, summary)
    _curve(length, rows, "length", BLUE)
    _labels(length, "response length, tokens", "RL step", bottom=0)
    _curve(entropy, rows, "entropy", BLUE)
    _labels(entropy, "entropy, nats per token", "RL step", bottom=0)
    return _png(figure)


def alone(rows: list[Row], summary: Row) -> bytes:
    """What the reward model believes beside what the program verifies, where the reward model alone teaches."""
    figure, (score, accuracy) = _figure(1, 2, 9.6, 2.7)
    _curve(score, rows, "reward_model", BLUE)
    _labels(score, "reward model's score", "RL step")
    _accuracy(accuracy, rows, summary)
    accuracy.set_xlabel("RL step", fontsize=9.5, color=INK)
    return _png(figure)


def overoptimisation(rows: list[Row], summary: Row) -> bytes:
    """The proxy (reward model's score) and the truth (verified accuracy) over steps, the alarms, and the divergence."""
    figure, (proxy, truth, drift) = _figure(1, 3, 9.6, 2.7)
    _curve(proxy, rows, "proxy_window", BLUE)
    _labels(proxy, "reward model's score", "RL step")
    _accuracy(truth, rows, summary)
    truth.set_xlabel("RL step", fontsize=9.5, color=INK)
    _curve(drift, rows, "kl_start", BLUE)
    _labels(drift, "KL from the start, nats", "RL step")
    alarms = [row["step"] for row in rows if row.get("overoptimisation") and is_number(row.get("step"))]
    for axes in (proxy, truth) if alarms else ():
        axes.axvspan(alarms[0], alarms[-1], color=ORANGE, alpha=0.15, linewidth=0)
        axes.axvline(alarms[0], color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    return _png(figure)


def _accuracy(axes: Axes, rows: list[Row], summary: Row) -> None:
    """Verified accuracy: sampled on training problems, greedy on held-out ones."""
    _curve(axes, rows, "accuracy", BLUE, scale=100, label="sampled, training problems")
    held_out = _held_out(rows, summary)
    if held_out:
        steps, values = zip(*held_out)
        shares = [100 * v for v in values]
        axes.plot(steps, shares, "o-", color=ORANGE, markersize=5, linewidth=1.4, label="greedy, held out")
    _labels(axes, "verified correct, %", "", bottom=0, top=103)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="lower right")


def _held_out(rows: list[Row], summary: Row) -> list[tuple[int, float]]:
    """(step, accuracy) of every held-out evaluation, with the ones before and after RL from its summary."""
    points = {row["step"]: row["held_out_accuracy"] for row in rows if is_number(row.get("held_out_accuracy"))}
    if is_number(summary.get("held_out_accuracy_before")):
        points.setdefault(0, summary["held_out_accuracy_before"])
    if rows and is_number(summary.get("held_out_accuracy_after")) and is_number(rows[-1].get("step")):
        points.setdefault(rows[-1]["step"], summary["held_out_accuracy_after"])
    return sorted(points.items())


def overlay(curves: list[tuple[str, list[Row]]], panels: list[tuple[str, str, float]]) -> bytes:
    """Several runs in the same panels, one under the other. curves: (label, rows); panels: (key, what it is, scale)."""
    figure, drawn = _figure(len(panels), 1, 9.6, 3.4 * len(panels))
    for axes, (key, title, scale) in zip(drawn, panels):
        for (label, rows), color in zip(curves, colors(len(curves))):
            known = [row for row in rows if is_number(row.get("step")) and is_number(row.get(key))]
            steps, values = [row["step"] for row in known], [scale * row[key] for row in known]
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.9)
            smooth = _running_mean(values, max(1, len(values) // 40))
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, smooth, color=color, linewidth=1.8, marker=marker, label=shown(label))
        _labels(axes, title, "training step")
    _legend(drawn[0], len(curves))
    return _png(figure)


def sweep(curves: list[tuple[str, list[Row]]], key: str, values: list[tuple[str, Any, bool]], name: str) -> bytes:
    """A sweep: every point's curve of ``key``, and beside it what each came to. values: (point, number or None, whether
    it is the best), in the curves' order."""
    figure, (axes, result) = _figure(1, 2, 11.5, max(3.6, 1.2 + 0.3 * len(values)))
    palette = colors(len(curves))
    for (label, rows), color in zip(curves, palette):
        known = [row for row in rows if is_number(row.get("step")) and is_number(row.get(key))]
        steps, heights = [row["step"] for row in known], [row[key] for row in known]
        smooth = _running_mean(heights, max(1, len(heights) // 40))
        axes.plot(steps, smooth, color=color, linewidth=1.8, label=shown(label), marker="o" if len(steps) == 1 else "")
    _labels(axes, key, "training step")
    _legend(axes, len(curves))
    for place, ((_, value, best), color) in enumerate(zip(values, palette)):
        if is_number(value):
            result.plot([value], [place], "o", color=color, markersize=9 if best else 6)
            text = f"  {number(value)}{' (best)' if best else ''}"
            result.text(value, place, text, va="center", fontsize=9, color=INK, fontweight="bold" if best else None)
        else:
            result.text(
                0.02, place, "none", transform=result.get_yaxis_transform(), va="center", fontsize=9, color=SOFT
            )
    result.set_yticks(range(len(values)), labels=[shown(label) for label, _, _ in values])
    result.set_ylim(len(values) - 0.5, -0.5)
    result.margins(x=0.35)
    _labels(result, "", name)
    result.set_ylim(len(values) - 0.5, -0.5)
    return _png(figure)


def colors(count: int) -> list[Any]:
    """As many colours that can be told apart; from a ramp where there are too many for that."""
    from matplotlib import colormaps

    few = [BLUE, ORANGE, GREEN, "#a03a8c", "#8a6d3b", "#3fa7a3", "#c0392b", "#5d6875"]
    if count <= len(few):
        return few[:count]
    return [colormaps["viridis"](0.95 * place / (count - 1)) for place in range(count)]


def shown(label: str) -> str:
    """A run's or point's name as a figure can hold it; matplotlib hides labels that begin with an underscore."""
    text = ascii_only(label)
    text = text if len(text) <= 40 else text[:38] + ".."
    return text.replace("$", "\\$").lstrip("_") or "?"


def _legend(axes: Axes, count: int) -> None:
    axes.legend(fontsize=8.5 if count <= 12 else 6.5, frameon=False, loc="upper right")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A light figure of ``width`` x ``height`` inches and its panels in reading order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=9, labelcolor=SOFT)
        axes.margins(x=0.01)
    return figure, panels


def _labels(axes: Axes, up: str, along: str, bottom: float | None = None, top: float | None = None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylabel(up, fontsize=9.5, color=INK)
    axes.set_xlabel(along, fontsize=9.5, color=INK)
    if along.endswith("step") or not along:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if max(map(abs, axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_ylim(bottom=bottom, top=top)


def _curve(axes: Axes, rows: list[Row], key: str, color: str, scale: float = 1, label: str = "") -> None:
    """Every step faintly, its running mean on top; says so in the panel when nothing was recorded."""
    known = [row for row in rows if is_number(row.get("step")) and is_number(row.get(key))]
    if not known:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=SOFT)
        return
    axes.plot([r["step"] for r in known], [scale * r[key] for r in known], color=color, alpha=0.3, linewidth=1)
    few = len(known) < 10  # a mean of few points hides them
    radius = 0 if few else max(1, len(known) // 40)
    # Stage by stage: a mean across a boundary would smear a jump that is real.
    for stage in stages_of(known):
        steps, smooth = (
            [r["step"] for r in stage.rows],
            _running_mean([scale * r[key] for r in stage.rows], radius),
        )
        # A single step makes no line: mark it.
        axes.plot(steps, smooth, color=color, linewidth=1.8, label=label, marker="o" if few or len(steps) == 1 else "")
        label = ""  # one entry in the legend


def _running_mean(values: list[float], radius: int) -> list[float]:
    """Mean over at most ``radius`` steps on either side."""
    return [
        mean(values[max(0, i - radius) : i + radius + 1]) or 0.0  # a mean of at least one value
        for i in range(len(values))
    ]


def _mark_stages(axes: Axes, stages: list[Stage], named: bool) -> None:
    """Where each stage begins: a line, and its name and length above the panel."""
    steps = [row["step"] for stage in stages for row in stage.rows if is_number(row.get("step"))]
    known = [(stage, numbers_of(stage.rows, "step")) for stage in stages]
    starts = [(stage, own[0]) for stage, own in known if own]
    spans = [b - a for a, b in itertools.pairwise([*(start for _, start in starts), *steps[-1:]])]
    # Upright names need room: slant them when a stage is narrower than its name.
    crowded = bool(spans) and min(spans) < sum(spans) / 8
    for index, (stage, start) in enumerate(starts):
        if index:
            axes.axvline(start, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        if named:
            length = f"{number(stage.seq_len)} tokens" if is_number(stage.seq_len) else ""
            text = f"{ascii_only(stage.name)[:20]}\n{length}" if stage.name else length
            axes.annotate(
                text.replace("\n", ": ") if crowded else text,
                (start, 1.02),
                xycoords=("data", "axes fraction"),
                fontsize=8.5,
                color=SOFT,
                rotation=28 if crowded else 0,
                rotation_mode="anchor",
                parse_math=False,  # a stage's name is not TeX
            )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
