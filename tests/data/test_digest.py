"""The stream and its digest: the same on every mesh, with every micro-batch, packing and restart."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from farside.configs.schema import Packing
from farside.data.batch import Batch
from farside.data.digest import batch_digest
from farside.data.loader import Loader
from farside.data.mixture import Mixture
from farside.data.order import rng
from farside.data.pack import TextSource
from farside.data.plan import PlanStore
from tests.faults.driver import farside, small, write_corpus

SEQ_LEN, GLOBAL = 24, 8


def text_mixture(folder: Path, packing: Packing) -> Mixture:
    """Made anew, as a restart does."""
    sources = {}
    for name in "ab":
        tokens = rng(name).integers(1, 99, 3000)
        tokens[::17] = 0
        source = TextSource(name, tokens, 0, 5)
        sources[name] = source.packed(packing, {}, PlanStore(folder, name))
    return Mixture(sources, {"a": 0.7, "b": 0.3}, 3)


def digest(batches: list[list[Batch]]) -> float:
    """Over ranks, each with its micro-batches."""
    rows = GLOBAL // len(batches)
    return sum(batch_digest(pieces, rank * rows) for rank, pieces in enumerate(batches))


@pytest.mark.parametrize("packing", Packing)
def test_every_mesh_micro_batch_and_restart_gives_one_stream(tmp_path: Path, packing: Packing) -> None:
    """Over more than an epoch: 2 x 3000 tokens are 250 rows."""
    whole = Loader(text_mixture(tmp_path, packing), SEQ_LEN, GLOBAL, GLOBAL, 0, 1)
    steps = (0, 1, 30, 31, 59)
    expected = {step: digest([whole.step(step)]) for step in steps}
    assert len(set(expected.values())) == len(steps)
    for size, micro in product((1, 2, 4, 8), (1, 3, 8)):
        restarted = text_mixture(tmp_path, packing)
        loaders = [Loader(restarted, SEQ_LEN, GLOBAL, micro, rank, size) for rank in range(size)]
        for step in reversed(steps):
            batches = [loader.step(step) for loader in loaders]
            assert digest(batches) == expected[step]
            tokens = torch.cat([batch.tokens for pieces in batches for batch in pieces])
            assert torch.equal(tokens, whole.step(step)[0].tokens)


def test_the_digest_sees_every_change(tmp_path: Path) -> None:
    batch = Loader(text_mixture(tmp_path, Packing.best_fit), SEQ_LEN, GLOBAL, GLOBAL, 0, 1).step(0)[0]
    found = [batch_digest([batch], 0), batch_digest([batch], 1)]
    for name in ("tokens", "labels", "weights", "doc_ids"):
        changed = getattr(batch, name).clone()
        changed[3, 7] += 1
        found.append(batch_digest([replace(batch, **{name: changed})], 0))
    swapped = torch.tensor([1, 0, *range(2, GLOBAL)])
    rows = lambda numbers: replace(batch, **{n: v[numbers] for n, v in vars(batch).items() if n != "extras"})  # noqa: E731
    found += [batch_digest([rows(swapped)], 0), batch_digest([rows(torch.arange(1, GLOBAL))], 0)]
    found.append(batch_digest([rows(torch.tensor([0, 0, *range(2, GLOBAL)]))], 0))
    assert len(set(found)) == len(found)


def test_padding_for_a_mesh_does_not_change_it(tmp_path: Path) -> None:
    batch = Loader(text_mixture(tmp_path, Packing.best_fit), SEQ_LEN, GLOBAL, GLOBAL, 0, 1).step(0)[0]
    assert batch_digest([batch.padded(GLOBAL + 3, SEQ_LEN + 9)], 0) == batch_digest([batch], 0)


def test_sums_are_exact_in_any_order() -> None:
    """Whole numbers below 2^53: float64 adds them without rounding."""
    values = [float(value) for value in np.full(1 << 12, 2**32 - 1)]
    assert sum(values) * (1 << 9) == (2**32 - 1) * (1 << 21) < 2**53


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_one_rank_and_two_report_equal_digests(tmp_path: Path) -> None:
    """The command itself, each packing kind in one of two stages, dp 1 against dp 2 with other micro-batches."""
    corpus, data = write_corpus(tmp_path / "corpus"), tmp_path / "prepared"
    stages = (
        "stages=[{name: a, steps: 3, packing: best_fit}, {name: b, steps: 3, seq_len: 48, packing: length_bucketed}]"
    )
    lines = []
    for ranks, micro in ((1, 4), (2, 1)):
        run = tmp_path / f"run{ranks}"
        words = [*small(corpus, data), stages, f"parallel.dp_shard={ranks}", f"data.micro_batch_size={micro}"]
        result = farside(["train", *words, f"run.dir={run}"], tmp_path)
        assert result.returncode == 0, result.stderr
        lines.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    one, two = ([line["batch_digest"] for line in run] for run in lines)
    assert one == two
    assert len(set(one)) == len(one) == 6
    assert all(isinstance(value, int) and value > 0 for value in one)
