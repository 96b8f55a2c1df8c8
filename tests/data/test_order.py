"""Order without state: bijections, epochs, mixtures, and one stream for every mesh."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.data.batch import Batch, Sample
from farside.data.loader import Loader
from farside.data.mixture import BLOCK, Mixture
from farside.data.order import epoch_item, fold, permuted, rng, shuffled_item


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_permuted_is_a_bijection(size: int, seed: int) -> None:
    assert sorted(permuted(index, size, seed) for index in range(size)) == list(range(size))


def test_permutations_move_things_and_differ_by_seed() -> None:
    one, other = ([permuted(index, 500, seed) for index in range(500)] for seed in (1, 2))
    assert one != other
    assert sum(image == index for index, image in enumerate(one)) < 10
    assert abs(np.corrcoef(one, range(500))[0, 1]) < 0.2


@given(st.integers(1, 60), st.integers(0, 2**32))
def test_epoch_item_visits_each_item_once_an_epoch(size: int, seed: int) -> None:
    epochs = [[epoch_item(epoch * size + index, size, seed) for index in range(size)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 20:
        assert epochs[0] != epochs[1]


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_shuffled_item_visits_each_item_once_an_epoch(size: int, seed: int) -> None:
    epochs = [[shuffled_item(epoch * size + index, size, seed) for index in range(size)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 20:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_shuffled_items_look_random() -> None:
    """Correlation with the index and between neighbours, epochs and seeds; and an even spread of differences."""
    size = 5000
    orders = [
        np.array([shuffled_item(epoch * size + i, size, seed) for i in range(size)])
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.06
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
        steps = np.bincount((np.diff(order) % size) * 20 // size, minlength=20) / size
        assert abs(steps - 0.05).max() < 0.015
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
        assert (one == other).sum() < 12


def test_seeds_are_the_same_on_every_machine() -> None:
    assert fold(1, "a") != fold("1", "a")
    assert fold(1, 23) != fold(12, 3)
    assert rng(1, "x").integers(10**9) == rng(1, "x").integers(10**9)
    assert rng(1, "x").integers(10**9) != rng(2, "x").integers(10**9)


class Numbered:
    """Samples that carry their source and number."""

    def __init__(self, source: int) -> None:
        self.source = source

    def sample(self, index: int, seq_len: int) -> Sample:
        row = np.full(seq_len, index)
        return Sample(row, np.full(seq_len, self.source), np.ones(seq_len, np.float32), np.arange(seq_len), row)


def mixture(shares: dict[str, float], seed: int = 0) -> Mixture:
    return Mixture({name: Numbered(ord(name)) for name in shares}, shares, seed)


SHARES = st.lists(st.one_of(st.floats(1e-4, 1.0), st.sampled_from([0.0, 1e-3, 0.5])), min_size=1, max_size=6)


@given(SHARES.filter(any), st.integers(0, 100))
def test_own_numbers_have_no_gaps_and_shares_are_exact_over_blocks(values: list[float], seed: int) -> None:
    shares = dict(zip("abcdef", values))
    mixed = mixture(shares, seed)
    seen: dict[str, list[int]] = {name: [] for name in shares}
    for block in range(4):
        for index in range(BLOCK * block, BLOCK * (block + 1)):
            name, own = mixed.locate(index)
            seen[name].append(own)
        for name, numbers in seen.items():
            assert sorted(numbers) == list(range(len(numbers))), "a gap or a repetition"
            assert abs(len(numbers) - BLOCK * (block + 1) * shares[name] / sum(values)) <= len(values) / 2
    for name, share in shares.items():
        assert seen[name] or share / sum(values) < len(values) / 2 / (4 * BLOCK)


def test_a_rare_source_takes_no_sample_twice() -> None:
    """Rounding two cumulative shares alone lets a rare source's count go down between blocks."""
    for middle in (0.0003, 0.0007, 0.002):
        mixed = mixture({"a": 0.4991, "b": middle, "c": 0.5009 - middle})
        found = Counter(mixed.locate(index) for index in range(40 * BLOCK))
        assert max(found.values()) == 1


def test_the_order_inside_a_block_is_mixed_and_depends_on_the_seed() -> None:
    names = ["".join(mixture({"a": 1, "b": 1}, seed).locate(i)[0] for i in range(BLOCK)) for seed in (0, 1)]
    assert names[0] != names[1]
    assert "ab" * 3 not in names[0][:6]
    assert 40 < sum(x != y for x, y in zip(names[0], names[0][1:])) < 215


@pytest.mark.parametrize(("size", "micro"), [(1, 8), (1, 3), (2, 4), (2, 1), (4, 2), (4, 5), (8, 1)])
def test_every_mesh_and_micro_batch_deals_out_one_stream(size: int, micro: int) -> None:
    mixed = mixture({"a": 0.6, "b": 0.3, "c": 0.1})
    for step in (0, 1, 37):
        batches = [Loader(mixed, 4, 8, micro, rank, size).step(step) for rank in range(size)]
        assert len({len(pieces) for pieces in batches}) == 1, "ranks must bring equally many micro-batches"
        assert all(1 <= len(batch.tokens) <= micro for pieces in batches for batch in pieces)
        found = Batch(
            *[
                torch.cat([getattr(batch, name) for pieces in batches for batch in pieces])
                for name in ("tokens", "labels", "weights", "positions", "doc_ids")
            ]
        )
        for row in range(8):
            name, own = mixed.locate(8 * step + row)
            assert found.labels[row].tolist() == [ord(name)] * 4
            assert found.tokens[row].tolist() == [own] * 4


def capped(shares: dict[str, float], most: dict[str, int], seed: int = 0) -> Mixture:
    return Mixture({name: Numbered(ord(name)) for name in shares}, shares, seed, most=most)


@given(
    SHARES.filter(any), st.lists(st.one_of(st.none(), st.integers(0, 900)), min_size=6, max_size=6), st.integers(0, 9)
)
def test_an_ended_source_gives_its_share_to_the_others(values: list[float], ends: list[int | None], seed: int) -> None:
    shares = dict(zip("abcdef", values))
    most = {name: end for name, end in zip(shares, ends) if end is not None}
    mixed = capped(shares, most, seed)
    count = int(min(mixed.size, 8 * BLOCK))
    seen: dict[str, list[int]] = {name: [] for name in mixed.names}
    for index in range(count):
        name, own = mixed.locate(index)
        seen[name].append(own)
    whole = count % BLOCK == 0 or count == mixed.size
    for name, numbers in seen.items():
        assert len(set(numbers)) == len(numbers), "a sample is drawn twice"
        assert len(numbers) <= most.get(name, count)
        assert not whole or sorted(numbers) == list(range(len(numbers)))
    assert mixed.counts(count) == {name: len(numbers) for name, numbers in seen.items()}
    if all(name in most for name in mixed.names):
        assert mixed.size == sum(most[name] for name in mixed.names)
        if count == mixed.size:
            assert {name: len(numbers) for name, numbers in seen.items()} == {name: most[name] for name in seen}
    else:
        assert mixed.size == float("inf")
    free = [name for name in mixed.names if name not in most]
    for one in free:
        for other in free:  # those without an end keep their ratio to one another
            ratio = shares[one] / (shares[one] + shares[other])
            pair = len(seen[one]) + len(seen[other])
            assert abs(len(seen[one]) - pair * ratio) <= 3 * len(values) + 2


def test_an_end_far_away_costs_nothing() -> None:
    """Planned by bisection: a trillion samples are as quick as ten."""
    mixed = capped({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10**12, "b": 7 * 10**11})
    assert len(mixed.stretches) == 3
    assert mixed.counts(5 * 10**12)["a"] == 10**12
    assert mixed.counts(5 * 10**12)["b"] == 7 * 10**11
    assert mixed.locate(5 * 10**12)[0] == "c"


def test_the_default_stream_stays_what_it_was() -> None:
    """Golden: the mixture of the demo's shares, as released with its learning curves."""
    mixed = mixture({"a": 0.35, "b": 0.35, "c": 0.12, "d": 0.1, "e": 0.08}, 7)
    stream = [mixed.locate(index) for index in (*range(6), 4500, 10**9)]
    assert [f"{name}{own}" for name, own in stream] == ["b15", "a61", "e1", "e13", "c27", "d13", "b1558", "d100000008"]
