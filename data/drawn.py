"""What each stage draws from each source beside what was asked for. From the plan alone: order is a function of the
configuration, so nothing need be counted while training."""

from collections.abc import Sequence
from typing import Any

from farside.data.mixing import Finite, StageMixture, predicted
from farside.data.packed import PackedSource

DRAWN = "data_drawn.json"


def drawn(mixtures: Sequence[StageMixture]) -> list[dict[str, Any]]:
    """One JSON object a stage; ``entries`` hold, for each name of its mixture: share asked for, rows drawn, their share
    of rows and of predicted tokens, and of text the epochs, padding and shares of lengths."""
    return [
        {
            "stage": planned.stage.name,
            "seq_len": planned.stage.seq_len,
            "packing": planned.stage.packing.value,
            "samples": planned.samples,
            "entries": _entries(planned),
        }
        for planned in mixtures
    ]


def _entries(planned: StageMixture) -> dict[str, dict[str, Any]]:
    seq_len, counts = planned.stage.seq_len, planned.mixture.counts(planned.samples)
    tokens = {name: rows * predicted(planned.source(name), seq_len) for name, rows in counts.items()}
    entries: dict[str, dict[str, Any]] = {}
    for name, rows in counts.items():
        source = planned.source(name)
        entries[name] = {
            "asked": planned.asked[name],
            "rows": rows,
            "share_of_rows": rows / planned.samples,
            "tokens": round(tokens[name]),
            "share_of_tokens": tokens[name] / sum(tokens.values()),
        }
        if isinstance(source, Finite):
            entries[name]["epochs"] = rows * source.epochs(seq_len) / source.rows(seq_len)
        if isinstance(source, PackedSource):
            facts = source.plan(seq_len).facts
            asked = {str(bound): share / sum(source.lengths.values()) for bound, share in source.lengths.items()}
            entries[name] |= {
                "padding_share": facts["padding_share"],
                "lengths": {bound: {"asked": asked[bound], "drawn": share} for bound, share in facts["shares"].items()},
            }
    return entries
