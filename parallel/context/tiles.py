"""From "who sees whom" to dense kernel calls, without a mask.

Slots ascend in position and documents are contiguous, so among the keys a rank holds, a query sees one run
[first, past). Queries in order then form rectangles (neighbours that see the same keys) and staircases (each sees
one key more), and a staircase is a rectangle and a plain causal square. So future chunks and other documents cost
nothing, no mask is ever built, and a query that sees nothing is in no tile: it stays at exact zero.

Shapes: B batch, L query slots, M key slots.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from farside.parallel.context.documents import Documents


@dataclass(frozen=True)
class Tile:
    """One kernel call.

    causal: query i of the tile sees its keys 0..i (equally many queries and keys); else all of them.
    first: no earlier tile touched these queries, so there is nothing to merge with.
    """

    rows: slice
    queries: slice
    keys: slice
    causal: bool
    first: bool


@dataclass(frozen=True, eq=False)
class Steps:
    """tiles: for every block of keys in the order of computation. merges: whether any query meets two tiles."""

    tiles: tuple[tuple[Tile, ...], ...]
    merges: bool


def plan(docs: Documents, places_BL: np.ndarray, key_places: Iterable[np.ndarray]) -> Steps:
    """Tiles of the queries at some positions against blocks of keys, each at positions [B, M] that ascend."""
    starts_BL = np.take_along_axis(docs.starts_BS, places_BL, axis=1)
    covered_BL = np.zeros(places_BL.shape, dtype=bool)
    merges = False
    steps = []
    for places_BM in key_places:
        step = []
        for rows, queries, keys, causal in _cut(*visible(starts_BL, places_BL, places_BM)):
            touched = covered_BL[rows, queries]
            first = not touched.any()
            merges |= not first
            touched[...] = True
            step.append(Tile(rows, queries, keys, causal, first))
        steps.append(tuple(step))
    return Steps(tuple(steps), merges)


def visible(starts_BL: np.ndarray, places_BL: np.ndarray, places_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every query the run [first, past) of key slots that it sees; first == past where there are none."""
    first_BL, past_BL = np.empty_like(places_BL), np.empty_like(places_BL)
    for row, places_M in enumerate(places_BM):
        first_BL[row] = np.searchsorted(places_M, starts_BL[row], side="left")
        past_BL[row] = np.searchsorted(places_M, places_BL[row], side="right")
    return first_BL, past_BL


def _cut(first_BL: np.ndarray, past_BL: np.ndarray) -> Iterator[tuple[slice, slice, slice, bool]]:
    rows = first_BL.shape[0]
    alike = bool((first_BL == first_BL[:1]).all() and (past_BL == past_BL[:1]).all())
    for row in range(1 if alike else rows):
        where = slice(0, rows) if alike else slice(row, row + 1)
        first_L, past_L = first_BL[row], past_BL[row]
        for begin, end, stairs in _groups(first_L, past_L):
            first, past = int(first_L[begin]), int(past_L[begin])
            if first == past:
                continue
            if not stairs:
                yield where, slice(begin, end), slice(first, past), False
                continue
            if first < past - 1:
                yield where, slice(begin, end), slice(first, past - 1), False
            yield where, slice(begin, end), slice(past - 1, past - 1 + end - begin), True


def _groups(first_L: np.ndarray, past_L: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Maximal runs [begin, end) of queries whose keys are the same (False) or grow by one (True)."""
    size = len(first_L)
    grows = np.diff(past_L)
    blind = (first_L == past_L)[:-1]  # a query without keys cannot begin a staircase
    link = np.where((np.diff(first_L) == 0) & ((grows == 0) | (grows == 1) & ~blind), grows, -1)
    edges = [0, *(np.flatnonzero(np.diff(link)) + 1).tolist(), len(link)] if len(link) else []
    cursor = 0
    for begin, end in pairwise(edges):
        # links begin..end-1 are alike: they join the queries begin..end
        if link[begin] < 0:
            for query in range(max(cursor, begin), end):
                yield query, query + 1, False
            cursor = max(cursor, end)
        else:
            cursor = max(cursor, begin)
            yield cursor, end + 1, link[begin] == 1 and end > cursor
            cursor = end + 1
    if cursor < size:
        yield cursor, size, False
