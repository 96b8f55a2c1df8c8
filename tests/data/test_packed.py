"""Packed rows: who is predicted how often, how full rows are, and the twin that places piece by piece."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import Packing
from farside.data.binpack import best_fit, length_bucketed
from farside.data.lengths import MOST_REPEATS, weigh
from farside.data.order import rng
from farside.data.packed import PackedSource, cut
from farside.data.plan import PlanStore
from tests.data.test_pack import check_row

PADDING = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def source(
    folder: Path, lengths: list[int], packing: Packing, asked: dict[int, float] | None = None, seed: int = 0
) -> PackedSource:
    """Documents of distinct tokens: a token's value is its place plus 1000."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.arange(offsets[-1]) + 1000
    store = PlanStore(folder, f"{lengths}")
    return PackedSource("en", tokens, offsets, PADDING, packing, asked or {}, seed, store)


def predicted(packed: PackedSource, seq_len: int, indices: range) -> list[int]:
    """Places of all tokens that carry loss, in the flat array."""
    places: list[int] = []
    for index in indices:
        row = packed.sample(index, seq_len)
        check_row(row)
        assert len(row.tokens) == seq_len
        assert set(row.weights) <= {0.0, 1.0}
        real = row.weights > 0
        assert (row.labels[real] == row.tokens[real] + 1).all(), "a label does not follow its token in the text"
        places += (row.labels[real] - 1000).tolist()
    return places


@pytest.mark.parametrize("packing", list(Packing)[1:])
@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_predicts_every_token_but_the_first_of_a_document_once(
    packing: Packing, tmp_path: Path, lengths: list[int], seq_len: int, seed: int
) -> None:
    packed = source(tmp_path, lengths, packing, seed=seed)
    first = set(packed.offsets.tolist())
    expected = [place for place in range(sum(lengths)) if place not in first]
    if not expected:
        with pytest.raises(UserError, match="source 'en' has no row of"):
            packed.rows(seq_len)
        return
    rows = packed.rows(seq_len)
    epochs = [predicted(packed, seq_len, range(epoch * rows, (epoch + 1) * rows)) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert packed.predicted(seq_len) * rows == pytest.approx(len(expected))
    cuts = sum(-(-(length - 1) // seq_len) - 1 for length in lengths if length > 1)
    alone = sum(length == 1 for length in lengths)
    held = sum(lengths) - alone + cuts  # a cut reads one token twice
    assert packed.plan(seq_len).facts["padding_share"] == pytest.approx(1 - held / (rows * (seq_len + 1)))


@given(LENGTHS, st.integers(2, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_planned_concatenation_predicts_what_windows_do(tmp_path: Path, lengths: list[int], seq_len: int) -> None:
    packed = source(tmp_path, lengths, Packing.concatenate)
    if sum(lengths) <= seq_len:
        return
    places = predicted(packed, seq_len, range(packed.rows(seq_len)))
    assert max(Counter(places).values(), default=1) == 1
    first = set(packed.offsets.tolist())
    missing = set(range(sum(lengths))) - first - set(places)
    assert len(missing) < seq_len, "more than the rest at the end is left out"
    assert packed.plan(seq_len).facts["padding_share"] == pytest.approx(0)


def test_epochs_and_seeds_differ_in_order(tmp_path: Path) -> None:
    packed = source(tmp_path, [7] * 60, Packing.best_fit)
    rows = packed.rows(14)
    orders = [[packed.sample(epoch * rows + i, 14).tokens[0] for i in range(rows)] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    other = source(tmp_path, [7] * 60, Packing.best_fit, seed=1)
    assert [other.sample(i, 14).tokens[0] for i in range(rows)] != orders[0]


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Room of every row: the twin, one piece and all rows at a time."""
    rooms: list[int] = []
    for length in lengths:
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(st.lists(st.integers(1, 30), max_size=200), st.integers(30, 90))
def test_best_fit_is_its_slow_twin(lengths: list[int], capacity: int) -> None:
    lengths.sort(reverse=True)
    rows = best_fit(np.array(lengths, dtype=np.int64), capacity)
    used = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert sorted((capacity - used).tolist()) == slow_best_fit(lengths, capacity)


@given(st.lists(st.integers(1, 30), max_size=200), st.integers(30, 90))
def test_bucketed_rows_hold_neighbours_in_length(lengths: list[int], capacity: int) -> None:
    lengths.sort(reverse=True)
    rows = length_bucketed(np.array(lengths, dtype=np.int64), capacity)
    assert (np.diff(rows, prepend=0) >= 0).all()
    expected, room, row = [], capacity, 0
    for length in lengths:
        if length > room:
            room, row = capacity, row + 1
        expected.append(row)
        room -= length
    assert rows.tolist() == expected


@pytest.mark.parametrize(("seq_len", "documents"), [(4096, 20_000), (32768, 60_000)])
def test_best_fit_leaves_under_one_percent_of_padding(seq_len: int, documents: int) -> None:
    """On log-normal lengths as web text has them: median 700 tokens, one in twenty over 5,000."""
    lengths = np.maximum(2, rng(0, "lengths").lognormal(np.log(700), 1.2, documents).astype(np.int64))
    pieces = np.sort(cut(np.concatenate(([0], np.cumsum(lengths))), np.arange(documents), seq_len)[1])[::-1]
    rows = best_fit(pieces, seq_len + 1)
    assert np.bincount(rows, weights=pieces).max() <= seq_len + 1
    assert pieces.sum() / ((rows.max() + 1) * (seq_len + 1)) >= 0.99


def test_long_documents_come_more_often_and_all_have_their_turn(tmp_path: Path) -> None:
    """70 % of tokens from documents over 100, which hold about a third of the text (Fu et al.)."""
    lengths = [20] * 300 + [150] * 20
    packed = source(tmp_path, lengths, Packing.best_fit, {0: 0.3, 100: 0.7})
    facts = packed.plan(64).facts
    assert facts["shares"]["100"] == pytest.approx(0.7, abs=0.01)
    assert facts["epochs"] == 3
    assert facts["predicted"] == pytest.approx(3 * sum(lengths), rel=0.06)
    counts = Counter(predicted(packed, 64, range(packed.rows(64))))
    times = [counts[place] for place in packed.offsets[:-1] + 1]
    assert min(times) >= 1
    assert max(times[:300]) - min(times[:300]) <= 1
    assert max(times[300:]) - min(times[300:]) <= 1


@pytest.mark.parametrize("packing", Packing)
def test_every_packing_takes_lengths(tmp_path: Path, packing: Packing) -> None:
    packed = source(tmp_path, [20] * 300 + [150] * 20, packing, {0: 0.5, 100: 0.5})
    assert packed.plan(32).facts["shares"]["0"] == pytest.approx(0.5, abs=0.01)
    predicted(packed, 32, range(packed.rows(32)))


def test_what_a_source_lacks_goes_to_its_other_lengths() -> None:
    lengths = np.array([10] * 90 + [100])
    reading = weigh(lengths, {0: 0.1, 100: 0.5, 1000: 0.4}, rng(0), "en")
    assert set(reading.shares) == {0, 100, 1000}
    assert reading.shares[1000] == 0
    assert reading.times[90] == MOST_REPEATS * reading.epochs, "one long document is not read for half of the tokens"
    assert (reading.times * lengths).sum() == pytest.approx(lengths.sum() * reading.epochs, rel=0.02)
    with pytest.raises(UserError, match="source 'en' has no document of a length asked for"):
        weigh(lengths, {1000: 1.0}, rng(0), "en")


def test_a_plan_that_cannot_be_filled_says_how_much_of_the_text_it_reads(tmp_path: Path) -> None:
    """One token in a hundred stands in a long document, and it comes five times at most."""
    packed = source(tmp_path, [11] * 900 + [101], Packing.best_fit, {100: 1.0})
    assert packed.epochs(128) == pytest.approx(5 * 101 / (900 * 11 + 101))


def test_a_plan_is_kept_for_what_it_was_made_of(tmp_path: Path) -> None:
    """Another wish is another plan, in the same folder."""
    lengths = [20] * 300 + [150] * 20
    for asked in ({}, {0: 0.5, 100: 0.5}, {0: 0.8, 100: 0.2}):
        for packing in Packing:
            facts = source(tmp_path, lengths, packing, asked).plan(32).facts
            assert (
                facts == source(tmp_path / "apart" / str(asked) / packing.value, lengths, packing, asked).plan(32).facts
            )
