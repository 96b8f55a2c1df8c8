"""What training drew from each source, beside what the mixture asked for."""

from typing import Any

from farside.report.markup import Markup, table, tag
from farside.report.numbers import NONE, count, is_number, number, percent
from farside.report.read import Run, mapping

COLUMNS = ("stage", "entry", "asked", "of rows", "of tokens", "tokens", "epochs", "padding", "long documents")
_INTRODUCTION = (
    "What each stage draws, beside the share that its mixture asks for. Epochs: how often plain text is read. "
    "Long documents: share of tokens, asked for and drawn, from documents of at least so many tokens."
)


def drawn(run: Run) -> list[Markup]:
    """A paragraph and a table; nothing where no plan was written."""
    rows: list[tuple[object, ...]] = []
    for stage in run.drawn:
        for name, entry in mapping(stage, "entries").items():
            if isinstance(entry, dict):
                rows.append((str(stage.get("stage", NONE)), name, *_cells(entry)))
    return [tag("p", _INTRODUCTION), table(COLUMNS, rows, numeric=range(2, 8))] if rows else []


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
