"""Cut a split's stream into windows that overlap by one token, and read any of them.

Tensors: n windows, w = seq_len + 1 tokens of a window, r places where a document begins.
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lathe.data.store import INDEX_COLUMNS, Split
from lathe.errors import DataError

FEWEST_OPEN = 64
"""Shards that stay mapped however few files a process may have open."""


class MappedShard(NamedTuple):
    """Hold a shard's files: its tokens, where its documents end, and these ends again to bisect.

    Bisection reads single items, which a memoryview gives several times as fast as an array.
    """

    tokens: NDArray
    ends: NDArray[np.uint64]
    bisected: Sequence[int]


OpenShard = Callable[[str, str, int, int], MappedShard]


def open_shards() -> OpenShard:
    """Make a function that maps a shard: its path without suffix, dtype, tokens and documents.

    The last ones used stay mapped, two open files each, in all half of what the process may have open (`ulimit -n`).
    """
    most = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 0
    return functools.lru_cache(maxsize=max(FEWEST_OPEN, most // 4))(_map_shard)


class Windows:
    """Read windows of seq_len + 1 tokens; window k begins at token k · seq_len of the split.

    `count` windows are whole; `tail_targets` tokens, less than a window's targets, are left at the end. Nothing is held
    in memory but what is read: tokens and index are mapped, and documents found by bisection.
    """

    def __init__(self, split: Split, *, seq_len: int, open_shard: OpenShard) -> None:
        self.split, self.seq_len = split, seq_len
        self.count, self.tail_targets = divmod(max(split.tokens - 1, 0), seq_len)
        self._starts: list[int] = split.starts_s.tolist()
        self._open, self._manifest = open_shard, split.dataset.manifest
        self._files = [
            (str(split.dataset.folder / shard.name), self._manifest.dtype, shard.tokens, shard.documents)
            for shard in split.shards
        ]

    def read(self, windows_n: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.int64], NDArray[np.int64]]:
        """Read windows, and say where in them documents begin: tokens_nw as stored, rows_r and places_r.

        A place is from 1 to seq_len; the document that a window begins with has none. Window `count`, the tail, is
        filled up with zeros. Raises DataError for an id beyond the vocabulary.
        """
        starts_n = windows_n * self.seq_len
        shards_n = np.searchsorted(self.split.starts_s, starts_n, side="right") - 1
        tokens_nw = np.zeros((len(windows_n), self.seq_len + 1), dtype=self._manifest.dtype)
        ends, shifts, rows = [np.zeros(0, dtype=np.uint64)], [0], [0]
        for row, (shard, start) in enumerate(zip(shards_n.tolist(), starts_n.tolist(), strict=True)):
            filled = 0
            while filled <= self.seq_len and shard < len(self._files):
                mapped, at = self._open(*self._files[shard]), start + filled - self._starts[shard]
                part = mapped.tokens[at : at + self.seq_len + 1 - filled]
                tokens_nw[row, filled : filled + len(part)] = part
                first = bisect_right(mapped.bisected, at)
                last = bisect_right(mapped.bisected, at + min(len(part), self.seq_len - filled), lo=first)
                if last > first:
                    ends.append(mapped.ends[first:last])
                    shifts.append(filled - at)
                    rows.append(row)
                filled, shard = filled + len(part), shard + 1
        self._check_ids(tokens_nw)
        counts = [len(part) for part in ends]
        places_r = np.concatenate(ends).astype(np.int64) + np.repeat(shifts, counts)
        return tokens_nw, np.repeat(rows, counts), places_r

    def _check_ids(self, tokens_nw: NDArray) -> None:
        if tokens_nw.size and (largest := int(tokens_nw.max())) >= self._manifest.vocab_size:
            raise DataError(
                f"{self.split.dataset.folder} holds the token id {largest}, beyond its vocabulary of "
                f"{self._manifest.vocab_size}; run `lathe data verify` to see whether it was altered, or build it anew"
            )


def _map_shard(path: str, dtype: str, tokens: int, documents: int) -> MappedShard:
    ends = _map(f"{path}.idx", "<u8", documents * INDEX_COLUMNS)[::INDEX_COLUMNS]
    return MappedShard(tokens=_map(f"{path}.bin", dtype, tokens), ends=ends, bisected=memoryview(cast(Any, ends)))


def _map(path: str, dtype: str, count: int) -> NDArray:
    """Map a file of numbers; a bare array, since slices of np.memmap take several times as long."""
    if count == 0:
        return np.zeros(0, dtype=dtype)
    try:
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
    except (OSError, ValueError) as error:  # ValueError: the file is shorter
        raise DataError(f"{path} was changed or removed while it was in use: {error}") from None
