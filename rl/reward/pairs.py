"""Preference pairs from the policy's own samples: same problem, same format, one right and one wrong."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farside.data.batch import Batch
from farside.data.chat import END_THINK, THINK
from farside.rl.reward.feed import ShuffledFeed
from farside.rl.reward.model import answer_batch
from farside.rl.types import Completion, Mark, Prompt, Verdict
from farside.train.metrics import read_metrics


@dataclass(frozen=True)
class Pair:
    chosen: Completion
    rejected: Completion


def shape_of(text: str) -> str:
    """The text with its numbers masked: answers of one shape differ in their digits only."""
    return re.sub(r"\d+", "0", text)


def shows_work(text: str) -> bool:
    return bool(text.partition(END_THINK)[0].removeprefix(THINK).strip())


def make_pairs(
    completions: Sequence[Completion], verdicts: Sequence[Verdict], per_prompt: int = 4, bare: bool = True
) -> tuple[list[Pair], list[Pair]]:
    """(alike, mixed): each wrong answer with a right one of the same shape, nearest in length, or else with a right one
    of any other shape; a problem gives at most ``per_prompt`` pairs.

    The wrong answers must be whole (ended, not truncated). Pairs of one shape are given away neither by format nor by
    length; mixed ones may be, and teach how far a shape can be trusted. bare: whether answers that show no work are
    paired among themselves.
    """
    alike_pairs: list[Pair] = []
    mixed: list[Pair] = []
    by_prompt: dict[int, list[tuple[Completion, Verdict]]] = {}
    for completion, verdict in zip(completions, verdicts):
        by_prompt.setdefault(completion.prompt.index, []).append((completion, verdict))
    for samples in by_prompt.values():
        right = {item.text: item for item, verdict in samples if verdict.mark is Mark.correct}
        wrong = {item.text: item for item, verdict in samples if verdict.mark is Mark.wrong and not item.truncated}
        free = list(right.values())
        for rejected in list(wrong.values())[:per_prompt]:
            alike = [item for item in free if shape_of(item.text) == shape_of(rejected.text)]
            others = [item for item in right.values() if shape_of(item.text) != shape_of(rejected.text)]
            if alike and (bare or shows_work(rejected.text)):
                free.remove(chosen := _nearest(alike, rejected))
                alike_pairs.append(Pair(chosen, rejected))
            elif others:
                mixed.append(Pair(_nearest(others, rejected), rejected))
    return alike_pairs, mixed


def _nearest(answers: Sequence[Completion], other: Completion) -> Completion:
    return min(answers, key=lambda item: abs(len(item.tokens) - len(other.tokens)))


class PairFeed(ShuffledFeed[Pair]):
    """Batches of pairs for the training loop."""

    def __init__(self, pairs: list[Pair], per_step: int, micro_pairs: int, seed: int, rank: int, size: int) -> None:
        super().__init__(pairs, pair_batch, "pairs", per_step, micro_pairs, seed, rank, size)


def pair_batch(pairs: Sequence[Pair]) -> Batch:
    """Rows chosen, rejected, chosen, ...; a pair weighs 1."""
    return answer_batch([item for pair in pairs for item in (pair.chosen, pair.rejected)], 0.5)


def save_pairs(path: Path, pairs: Mapping[str, Sequence[Pair]]) -> None:
    """As JSONL, one pair a line with its split."""
    save_lines(path, ({"split": split, **asdict(pair)} for split, members in pairs.items() for pair in members))


def load_pairs(path: Path) -> dict[str, list[Pair]]:
    pairs: dict[str, list[Pair]] = {"train": [], "held_out": []}
    for record in read_metrics(path):
        pairs[record["split"]].append(Pair(read_completion(record["chosen"]), read_completion(record["rejected"])))
    return pairs


def save_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """JSONL that appears whole or not at all, for ``read_metrics``."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record) + "\n")
    unfinished.rename(path)


def read_completion(record: dict[str, Any]) -> Completion:
    """From what ``asdict`` made of it."""
    return Completion(**{**record, "prompt": Prompt(**record["prompt"])})
