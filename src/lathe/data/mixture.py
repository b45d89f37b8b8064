"""Mix datasets in fixed shares: which source each sample comes from, and which of that source's samples it is.

Samples are dealt in blocks of `BLOCK`. By the end of every block each source has had its share of all samples so far,
to a sample or so, so that the realised mixture never drifts; inside a block the sources come in a seeded order.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lathe import codec
from lathe.data.order import permute
from lathe.data.store import Dataset
from lathe.errors import DataError, nearest

BLOCK = 10_000
"""Samples in a block."""

_MUST_AGREE = {"vocab_size": "vocabularies", "tokenizer_sha256": "tokenizers", "end_of_text": "end-of-text ids"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Name datasets and the share of tokens that each gives.

    `sources` maps names to datasets' folders, and `weights` the same names to shares, which need not sum to one; a
    source of weight 0 is left out. `repeats` caps how many times a source may be read, such as 4 or 1.5; a source it
    does not name has no cap. Raises DataError for names or numbers that make no mixture.
    """

    sources: dict[str, str]
    weights: dict[str, float]
    repeats: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, of in (("weights", self.weights), ("repeats", self.repeats)):
            for name, value in of.items():
                if name not in self.sources:
                    raise DataError(f"{table} names {name!r}, which is no source{nearest(name, self.sources)}")
                if not 0 <= value < math.inf:
                    raise DataError(f"{table}.{name}={value}; wanted a number of 0 or more")
                if table == "repeats" and value == 0:
                    raise DataError(f"repeats.{name}=0; wanted more, or weights.{name}=0 to leave the source out")
        if missing := [name for name in self.sources if name not in self.weights]:
            raise DataError(f"the source {missing[0]!r} has no weight; add one under weights (0 leaves it out)")
        if not sum(self.weights.values()) > 0:
            raise DataError(f"weights sum to {sum(self.weights.values())}; wanted at least one above zero")


def load_mixture(path: str | Path) -> Mixture:
    """Read a mixture from a `.toml` or `.json` file; its folders are relative to the file's. Raises CodecError."""
    mixture = codec.load(Mixture, path, kind="mixture")
    return replace(mixture, sources={n: str(Path(path).parent / folder) for n, folder in mixture.sources.items()})


def write_mixture(weights: Mapping[str, float], folders: Mapping[str, str]) -> str:
    """Write a mixture as TOML, weights to four decimals that sum to 1; its folders are relative to the file's."""
    rounded = {name: round(weight, 4) for name, weight in weights.items()}
    largest = max(rounded, key=lambda name: rounded[name])
    rounded[largest] = round(rounded[largest] + 1 - sum(rounded.values()), 4)
    tables = {"sources": {name: json.dumps(folders[name]) for name in rounded}, "weights": rounded}
    return "\n".join(
        f"[{title}]\n" + "".join(f"{json.dumps(name)} = {value}\n" for name, value in body.items())
        for title, body in tables.items()
    )


def open_sources(mixture: Mixture) -> dict[str, Dataset]:
    """Open the datasets of a mixture whose weight is above zero, by name in sorted order.

    Raises DataError for a dataset that is missing, and for datasets whose ids do not mean the same.
    """
    opened: dict[str, Dataset] = {}
    for name in sorted(name for name, weight in mixture.weights.items() if weight > 0):
        try:
            opened[name] = Dataset(mixture.sources[name])
        except DataError as error:
            raise DataError(f"the mixture's source {name!r}: {error}") from error
    first = next(iter(opened))
    for name, dataset in opened.items():
        _check_same_ids({first: opened[first], name: dataset})
    return opened


def _check_same_ids(datasets: dict[str, Dataset]) -> None:
    for attribute, words in _MUST_AGREE.items():
        found = {name: getattr(dataset.manifest, attribute) for name, dataset in datasets.items()}
        if len(set(found.values())) > 1:
            given = " and ".join(f"{n!r} has {'none' if v is None else v}" for n, v in found.items())
            raise DataError(f"sources with different {words}: {given}; build them with one tokenizer")


def whole_shares(mixture: Mixture) -> tuple[int, ...]:
    """Give the weights above zero as whole numbers in the same proportions, by name in sorted order."""
    exact = [as_written(weight) for _, weight in sorted(mixture.weights.items()) if weight > 0]
    scale = math.lcm(*(one.denominator for one in exact))
    return tuple(int(one * scale) for one in exact)


def as_written(number: float) -> Fraction:
    """Give the number that was meant: the shortest decimal that reads as this one, so that .1 is one tenth."""
    return Fraction(repr(float(number)))


def apportion(count: int, shares: Sequence[int]) -> list[int]:
    """Split a count by shares into whole numbers that sum to it, none of which falls as the count grows.

    The list is halved and the split rounded, level by level, which puts each off by less than half a sample a level.
    """
    if len(shares) == 1:
        return [count]
    middle, whole = len(shares) // 2, sum(shares)
    left = (2 * count * sum(shares[:middle]) + whole) // (2 * whole)
    return apportion(left, shares[:middle]) + apportion(count - left, shares[middle:])


def deal(start: int, count: int, *, shares: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give, for each of `count` samples from `start` on, the index of its source and its number in that source."""
    blocks = range(start // BLOCK, (start + count - 1) // BLOCK + 1)
    parts = [deal_block(block, shares=shares, seed=seed) for block in blocks]
    within = slice(start % BLOCK, start % BLOCK + count)
    sources_n, numbers_n = (np.concatenate(columns)[within] for columns in zip(*parts, strict=True))
    return sources_n, numbers_n


@functools.lru_cache(maxsize=8)
def deal_block(block: int, *, shares: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal one block of samples: the index of each one's source, and its number in that source."""
    before, after = (np.array(apportion(n * BLOCK, shares)) for n in (block, block + 1))
    quotas = after - before
    ranks_n = permute(np.arange(BLOCK), BLOCK, key=(seed, "sources", block))
    sources_n = np.searchsorted(np.cumsum(quotas), ranks_n, side="right")
    numbers_n = np.empty(BLOCK, dtype=np.int64)
    # a source's samples come in their own order, so that its first epoch is over before its second begins
    starts = np.repeat(before - (np.cumsum(quotas) - quotas), quotas)
    numbers_n[np.argsort(sources_n, kind="stable")] = starts + np.arange(BLOCK)
    sources_n.flags.writeable = numbers_n.flags.writeable = False  # the cache gives the same arrays to everyone
    return sources_n, numbers_n
