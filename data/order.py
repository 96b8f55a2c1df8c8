"""Order without state: which item comes i-th is a function of (seed, i) in constant memory."""

import hashlib
from functools import lru_cache

import numpy as np


def fold(*parts: object) -> int:
    """A 64-bit number that depends on every part; the same on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def rng(*parts: object) -> np.random.Generator:
    """A generator for exactly this use: pass what names it, for example (seed, "needle", index)."""
    return np.random.Generator(np.random.PCG64(fold(*parts)))


def permuted(index: int, size: int, seed: int) -> int:
    """Image of ``index`` under a pseudo-random permutation of 0..size-1.

    A four-round Feistel network over the next even number of bits, walked until it falls inside the range
    (cycle walking; Black and Rogaway 2002): a bijection for every size, without a table.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(4):
            left, right = right, left ^ (fold(seed, round_number, right) & mask)
        index = left << half | right
        if index < size:
            return index


def epoch_item(index: int, size: int, seed: int) -> int:
    """The ``index``-th item of an endless stream that visits each of ``size`` items once an epoch, reshuffled."""
    epoch, within = divmod(index, size)
    return permuted(within, size, fold(seed, epoch))


WORD = (1 << 64) - 1


def shuffled_item(index: int, size: int, seed: int) -> int:
    """As ``epoch_item``, in another order and ten times faster: rounds mix by two multiplications (the finaliser of
    splitmix64, Steele et al. 2014), and only their keys, which serve a whole epoch, are hashed."""
    epoch, index = divmod(index, size)
    keys = _round_keys(seed, epoch)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            mixed = right + key
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & WORD
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & WORD
            left, right = right, left ^ ((mixed ^ mixed >> 31) & mask)
        index = left << half | right
        if index < size:
            return index


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(fold(seed, epoch, "round", number) for number in range(6))
