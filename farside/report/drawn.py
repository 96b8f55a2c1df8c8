"""What training drew from each source, beside what the mixture asked for."""

from typing import Any

from farside.report import plots
from farside.report.markup import Markup, image, pill, quiet, table, tag
from farside.report.numbers import NONE, count, is_number, number, percent
from farside.report.read import Row, Run, mapping

COLUMNS = ("stage", "entry", "asked", "of rows", "of tokens", "tokens", "epochs", "padding", "long documents")
_INTRODUCTION = (
    "What each stage draws, beside the share that its mixture asks for. Epochs: how often plain text is read. "
    "Long documents: share of tokens, asked for and drawn, from documents of at least so many tokens."
)


def drawn(run: Run) -> list[Markup]:
    """A paragraph, a plot and a table; nothing where no plan was written."""
    stages = [
        (str(stage.get("stage", NONE)), entries)
        for stage in run.drawn
        if (entries := {name: entry for name, entry in mapping(stage, "entries").items() if isinstance(entry, dict)})
    ]
    if not stages:
        return []
    rows = [(stage, name, *_cells(entry)) for stage, entries in stages for name, entry in entries.items()]
    return [
        tag("p", _INTRODUCTION),
        image(plots.drawn(stages), "shares drawn of each entry beside those asked for, by stage"),
        table(COLUMNS, rows, numeric=range(2, 8)),
        *contamination(run.contamination),
    ]


def contamination(stages: list[Row]) -> list[Markup]:
    """What the search for the needle grids' words and text in training samples found; nothing if it was not made."""
    searched = [stage for stage in stages if is_number(stage.get("samples")) and stage["samples"]]
    if not searched:
        return []
    leaks = [
        (stage.get("stage", NONE), name, leak.get("sample", NONE), leak.get("kind", NONE), leak.get("what", NONE))
        for stage in searched
        for name, found in mapping(stage, "leaks").items()
        if isinstance(found, list)
        for leak in found
        if isinstance(leak, dict)
    ]
    samples = sum(int(stage["samples"]) * len(_list(stage.get("entries"))) for stage in searched)
    told = f"{count(samples)} samples searched for the needle grid's pairs of words and runs of its haystacks' text"
    if not leaks:
        return [quiet(f"{told}: none found.")]
    return [
        tag("p", pill(f"{len(leaks)} leaks", "bad"), f" in {told}."),
        table(("stage", "entry", "sample", "kind", "what"), leaks[:20], numeric=[2]),
    ]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _cells(entry: dict[str, Any]) -> tuple[object, ...]:
    lengths = mapping(entry, "lengths")
    told = [
        f"{name}+: {percent(pair.get('asked'))} / {percent(pair.get('drawn'))}"
        for name, pair in lengths.items()
        if isinstance(pair, dict)
    ]
    return (
        percent(entry.get("asked")),
        percent(entry.get("share_of_rows")),
        percent(entry.get("share_of_tokens")),
        count(entry.get("tokens")),
        number(entry.get("epochs")) if is_number(entry.get("epochs")) else NONE,
        percent(entry["padding_share"]) if is_number(entry.get("padding_share")) else NONE,
        ", ".join(told) or NONE,
    )
