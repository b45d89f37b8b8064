"""Shuffle range(n) without holding it: place i of a seeded permutation, computed from i alone.

A Feistel network over pairs (left below a, right below b) with a·b just above n, and cycle walking for the few
results that fall outside: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3. Rounds
add a hash of one half to the other. The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014, doi:
10.1145/2660193.2660195), which is quick and no cipher: the order is well mixed, not secret. Integers only, so every
platform gives the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Key = tuple[int | str, ...]
"""What names a permutation: a seed and what is shuffled, such as (seed, "windows", "wiki", epoch)."""

_ROUNDS = 12
"""With 8, the 120 orders of five things come visibly unequally often; with 12 a chi-square test sees nothing."""


def permute(index_n: ArrayLike, size: int, *, key: Key) -> NDArray[np.int64]:
    """Give the places of `index_n` in the permutation of range(size) that `key` names.

    Any integers in range(size), in any shape; work and memory are theirs, not size's.
    """
    index_n = np.asarray(index_n, dtype=np.int64)
    assert index_n.size == 0 or (index_n.min() >= 0 and index_n.max() < size), f"an index outside range({size})"
    left_size = math.isqrt(max(size - 1, 0)) + 1
    right_size = -(-size // left_size)
    keys = _round_keys(key)
    place_n = _scramble(index_n.astype(np.uint64).ravel(), left_size, right_size, keys)
    outside = np.flatnonzero(place_n >= size)
    while outside.size:
        place_n[outside] = _scramble(place_n[outside], left_size, right_size, keys)
        outside = outside[place_n[outside] >= size]
    return place_n.astype(np.int64).reshape(index_n.shape)


def _scramble(
    index_n: NDArray[np.uint64], left_size: int, right_size: int, keys: tuple[np.uint64, ...]
) -> NDArray[np.uint64]:
    """Permute range(left_size · right_size) once."""
    halves_n, sizes = list(np.divmod(index_n, np.uint64(right_size))), (np.uint64(left_size), np.uint64(right_size))
    for turn, key in enumerate(keys):
        here, there = turn % 2, 1 - turn % 2
        # a bit less of hash, so that the sum does not wrap: wrapping is no bijection modulo the half's size
        halves_n[here] = (halves_n[here] + (_hash(halves_n[there] ^ key) >> np.uint64(1))) % sizes[here]
    return halves_n[0] * np.uint64(right_size) + halves_n[1]


def _hash(x_n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x_n = (x_n ^ (x_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_n = (x_n ^ (x_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_n ^ (x_n >> np.uint64(31))


@functools.lru_cache(maxsize=1024)
def _round_keys(key: Key) -> tuple[np.uint64, ...]:
    digest = hashlib.shake_256(json.dumps(key).encode()).digest(8 * _ROUNDS)
    return tuple(np.frombuffer(digest, dtype="<u8").astype(np.uint64))
