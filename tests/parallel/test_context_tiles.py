"""Tiles cover exactly the allowed pairs, once; kernels agree with each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.parallel.context import kernels, tiles
from farside.parallel.context.layout import Layout
from tests.parallel.contexts import documents


@st.composite
def rows_and_layout(draw: st.DrawFn) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
    """Any documents with padding, and any permutation of the positions over the ranks."""
    ranks, local = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    size = ranks * local
    rows, places = [], []
    for _ in range(draw(st.integers(1, 2))):
        cuts = sorted(draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
        lengths = np.diff([0, *cuts, size]).tolist()
        rows.append(tuple(-length if draw(st.booleans()) and draw(st.booleans()) else length for length in lengths))
        owners = draw(st.permutations(list(range(ranks)) * local))
        places.append([np.flatnonzero(np.array(owners) == rank) for rank in range(ranks)])
    return tuple(rows), np.array(places).swapaxes(0, 1)


@given(rows_and_layout())
def test_tiles_cover_the_allowed_pairs_exactly_once(case: tuple[tuple[tuple[int, ...], ...], np.ndarray]) -> None:
    rows, places_NBL = case
    docs = documents(rows)
    seen_BSS = torch.zeros(docs.allowed_BSS.shape, dtype=torch.int64)
    batch = np.arange(len(rows))
    for places_BL in places_NBL:
        steps = tiles.plan(docs, places_BL, list(places_NBL))
        touched = np.zeros(places_BL.shape, dtype=bool)
        for places_BM, step in zip(places_NBL, steps.tiles, strict=True):
            for tile in step:
                assert tile.first == (not touched[tile.rows, tile.queries].any())
                assert steps.merges or tile.first
                touched[tile.rows, tile.queries] = True
                for row in batch[tile.rows]:
                    queries, keys = places_BL[row, tile.queries], places_BM[row, tile.keys]
                    dense = torch.ones(len(queries), len(keys), dtype=torch.int64)
                    assert not tile.causal or len(queries) == len(keys)
                    seen_BSS[row, queries[:, None], keys] += dense.tril() if tile.causal else dense
    assert torch.equal(seen_BSS, docs.allowed_BSS.long())
    work = Layout(places_NBL).work(docs)
    assert work.sum() == docs.allowed_BSS.sum()


def test_one_document_is_one_causal_call_and_short_ones_are_one_each() -> None:
    """What makes it fast: no mask, no empty block, rows that are alike in one call."""
    docs = documents(((16,), (16,)))
    assert tiles.plan(docs, docs.places_BS, [docs.places_BS]).tiles == (
        (tiles.Tile(slice(0, 2), slice(0, 16), slice(0, 16), True, True),),
    )
    docs = documents(((5, 7, -4),))
    steps = tiles.plan(docs, docs.places_BS, [docs.places_BS])
    assert [(tile.queries, tile.causal) for tile in steps.tiles[0]] == [(slice(0, 5), True), (slice(5, 12), True)]
    assert not steps.merges


def test_zigzag_ring_skips_what_the_paper_skips() -> None:
    """Own keys: causal. An earlier rank's: all queries, its first chunk. A later rank's: the second chunk, all keys."""
    docs = documents(((32,),))
    places = [np.r_[0:4, 28:32][None], np.r_[4:8, 24:28][None], np.r_[8:12, 20:24][None], np.r_[12:16, 16:20][None]]
    steps = tiles.plan(docs, places[1], [places[1], places[0], places[3]])
    calls = [[(tile.queries, tile.keys, tile.causal) for tile in step] for step in steps.tiles]
    assert calls == [
        [(slice(0, 8), slice(0, 8), True)],
        [(slice(0, 8), slice(0, 4), False)],
        [(slice(4, 8), slice(0, 8), False)],
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_cpu_flash_agrees_with_naive(dtype: torch.dtype, causal: bool) -> None:
    """Also on strided views, and with the output and logsumexp of a larger softmax than the tile's."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    keys = 37 if causal else 21
    q, k, v = draw(2, 37, 6, 16).transpose(1, 2), *draw(2, 2, keys, 3, 16).transpose(2, 3)
    grad = draw(2, 37, 6, 16).transpose(1, 2)
    found, wanted = kernels.CPU_FLASH.forward(q, k, v, causal), kernels.NAIVE.forward(q, k, v, causal)
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for ours, truth in zip(found, wanted):
        assert ours.dtype == truth.dtype
        assert (ours - truth).abs().max() <= bound
    out, lse = draw(2, 37, 6, 16).transpose(1, 2), wanted[1].transpose(1, 2).contiguous().transpose(1, 2) + 0.3
    arguments = (grad, q, k, v, out, lse, causal)
    for ours, truth in zip(kernels.CPU_FLASH.backward(*arguments), kernels.NAIVE.backward(*arguments)):
        assert ours.dtype == truth.dtype
        assert (ours - truth).abs().max() <= bound * truth.abs().max()
