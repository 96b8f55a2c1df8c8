"""Which row each piece of text goes into. Pieces are whole documents, or cuts of those that no row could hold.

best_fit is best-fit decreasing (Johnson et al. 1974; for language models Ding et al., arXiv 2404.10830): the longest
piece first, each into the fullest row that still holds it. Only lengths matter, so equal ones are placed together:
rows are kept by their room, and one move serves all rows of one room and all pieces of one length.
"""

from collections import defaultdict

import numpy as np


def best_fit(lengths_P: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each piece, [P] int64; rows count from 0 without gaps. lengths_P descends, within 1..capacity.

    Best-fit decreasing needs at most 11/9 of the fewest rows possible (and one more).
    """
    rows_P = np.empty(len(lengths_P), dtype=np.int64)
    rows_by_room: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # room -> ranges [low, high) of rows
    rooms, opened = 0, 0  # bit r of rooms: some row has room r

    for length, at, count in _runs(lengths_P):
        while count:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1  # the least that holds it
                low, high = rows_by_room[room].pop()
                if not rows_by_room[room]:
                    rooms ^= 1 << room
            else:
                room, low = capacity, opened
                high = opened = opened + -(-count // (capacity // length))
            # a row that took one is now the fullest that may hold another: it takes as many as fit
            each = room // length
            taken = min(high - low, count // each)
            if taken == 0:
                taken, each = 1, count
            rows_P[at : at + taken * each] = np.repeat(np.arange(low, low + taken), each)
            at, count = at + taken * each, count - taken * each
            for left, first, last in ((room - each * length, low, low + taken), (room, low + taken, high)):
                if left and first < last:
                    rows_by_room[left].append((first, last))
                    rooms |= 1 << left
    return rows_P


def length_bucketed(lengths_P: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each piece, [P] int64: neighbours in length share a row, filled until the next does not fit.

    lengths_P descends, within 1..capacity. Pieces over half a row get one each, so that padding is what it costs.
    """
    ends = np.cumsum(lengths_P)
    begins: list[int] = []
    at = 0
    while at < len(lengths_P):
        begins.append(at)
        full = (int(ends[at - 1]) if at else 0) + capacity
        at = int(ends.searchsorted(full, side="right"))
    begins_P = np.zeros(len(lengths_P), dtype=np.int64)
    begins_P[begins[1:]] = 1
    return np.cumsum(begins_P)


def _runs(lengths_P: np.ndarray) -> list[tuple[int, int, int]]:
    """(length, first piece, pieces) of each distinct length, in order."""
    if not len(lengths_P):
        return []
    begins = np.concatenate(([0], np.flatnonzero(np.diff(lengths_P)) + 1))
    counts = np.diff(begins, append=len(lengths_P))
    return list(zip(lengths_P[begins].tolist(), begins.tolist(), counts.tolist()))
