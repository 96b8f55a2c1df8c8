"""Layouts are permutations that every rank computes alike; the balanced one is even under document masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.parallel.context import layout
from farside.parallel.context.build import KINDS, check
from farside.parallel.context.documents import Documents
from tests.parallel.contexts import Case, documents, make_context
from tests.ranks import Rank, RankPool


def packed(seed: int, rows: int, size: int) -> Documents:
    """Lengths of web text and code: log-normal, median 600 tokens, a tail into the tens of thousands; cut at the row's
    end, as a packed stream of tokens is."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(np.log(600), 1.3, size=rows * size // 20)).astype(int).clip(16)
    ids = np.repeat(np.arange(len(lengths)), lengths)[: rows * size]
    return Documents.of(torch.from_numpy(ids.reshape(rows, size)))


def imbalance(name: str, docs: Documents, ranks: int) -> float:
    work = layout.LAYOUTS[name](docs, ranks).work(docs)
    return work.max() / work.mean()


@pytest.mark.parametrize("name", ["contiguous", "zigzag", "balanced", "fine"])
@given(ranks=st.integers(1, 5), chunk=st.integers(1, 9), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_layout_is_a_permutation_of_every_row(name: str, ranks: int, chunk: int, lengths: list[int]) -> None:
    size = 2 * ranks * chunk
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = torch.cat([ids, torch.full((size,), -1)])[:size]
    docs = Documents.of(torch.stack([ids, ids.flip(0)]))
    places_NBL = layout.LAYOUTS[name](docs, ranks).places_NBL
    assert places_NBL.shape == (ranks, 2, 2 * chunk)
    assert (np.diff(places_NBL, axis=2) > 0).all()
    assert (np.sort(places_NBL.swapaxes(0, 1).reshape(2, -1), axis=1) == np.arange(size)).all()


def test_chunks_lie_where_the_names_say() -> None:
    docs = documents(((16,),))
    assert layout.contiguous(docs, 2).places_NBL[1, 0].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert layout.zigzag(docs, 2).places_NBL[0, 0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    docs = documents(((4, 12),))  # blocks of four: 10, 10, 26 and 42 pairs
    assert layout.balanced(docs, 2, smallest=4).places_NBL[0, 0].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_work_of_one_long_document(ranks: int) -> None:
    """Contiguous: (2N - 1)/N of the mean; zigzag: even. Balanced is then as coarse as zigzag."""
    docs = documents(((4096,),))
    assert imbalance("contiguous", docs, ranks) == pytest.approx((2 * ranks - 1) / ranks, rel=0.01)
    assert imbalance("zigzag", docs, ranks) == 1.0
    assert imbalance("balanced", docs, ranks) == 1.0
    runs = np.diff(layout.balanced(docs, ranks).places_NBL, axis=2) > 1
    assert runs.sum((1, 2)).max() <= 1


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("rows", [1, 4])
def test_balanced_is_even_on_packed_documents(ranks: int, rows: int) -> None:
    """The gate: at most 1.05 of the mean in every batch; zigzag is beside it, and is not even."""
    worst = {
        name: max(imbalance(name, packed(seed, rows, 32768), ranks) for seed in range(5))
        for name in ("zigzag", "balanced")
    }
    assert worst["balanced"] <= 1.05, worst
    assert worst["zigzag"] >= 1.2, worst


def test_padding_is_no_work() -> None:
    docs = documents(((512, -512),))
    work = layout.balanced(docs, 2).work(docs)
    assert work.sum() == 512 * 513 // 2
    assert work.max() <= 1.05 * work.mean()


def shards(place: Rank, case: Case) -> dict[str, torch.Tensor]:
    docs = documents(case.rows)
    context = make_context(case, place.world_size)
    tokens = torch.arange(docs.ids_BS.numel()).view(docs.ids_BS.shape)
    wide = torch.randn(*tokens.shape, 3, generator=torch.Generator().manual_seed(0))
    for global_tensor in (tokens, docs.ids_BS, wide, wide > 0):
        assert torch.equal(context.unshard(context.shard(global_tensor, docs), docs), global_tensor)
    labels = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], dim=1)
    positions = torch.from_numpy(docs.places_BS - docs.starts_BS)
    local = {"tokens": tokens, "labels": labels, "positions": positions}
    return {name: context.shard(x, docs) for name, x in local.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["contiguous", "zigzag", "fine"])
def test_verl_4250_labels_and_positions_are_those_of_the_whole_row(ranks: RankPool, kind: str, name: str) -> None:
    """A label shifted after sharding would be wrong at every edge of a run; unshard is the inverse of shard."""
    rows = ((13, 19), (32,))
    starts = documents(rows).starts_BS.flatten()
    for local in ranks.run(shards, 4, Case(kind, name, rows)):
        ends = local["tokens"] % 32 == 31
        assert torch.equal(local["labels"], torch.where(ends, -100, local["tokens"] + 1))
        wanted = local["tokens"] % 32 - torch.from_numpy(starts)[local["tokens"]]
        assert torch.equal(local["positions"], wanted)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("ring", "zigzag", 4, 2, 36, 4, 2), "zigzag.*2·cp = 8.*36"),
        (("ring", "contiguous", 4, 2, 38, 4, 2), "contiguous.*cp = 4.*38"),
        (("allgather", "balanced", 4, 2, 38, 4, 2), "balanced.*cp = 4.*38"),
        (("ulysses", "zigzag", 4, 2, 64, 6, 2), "ulysses.*divisible by 4, got 6"),
        (("hybrid", "zigzag", 4, 3, 64, 6, 2), "hybrid.*cp = 4.*3"),
        (("hybrid", "zigzag", 4, 2, 64, 5, 5), "divisible by 2, got 5"),
        (("mesh", "zigzag", 4, 2, 64, 4, 2), "parallel.context.kind.*mesh"),
    ],
)
def test_numbers_that_do_not_divide_are_named_before_any_group_exists(arguments: tuple, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        check(*arguments)


def test_what_divides_passes_and_degree_one_asks_for_nothing() -> None:
    check("ulysses", "zigzag", 4, 2, 64, 12, 6)  # 6 key/value heads on 4 ranks: repeated
    check("hybrid", "balanced", 4, 2, 4 * 7, 2, 1)
    check("ulysses", "zigzag", 1, 1, 33, 3, 1)
