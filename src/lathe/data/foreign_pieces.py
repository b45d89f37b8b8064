"""Hold stretches of tokens that others prepared, and what is known of them besides the ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Marks:
    """Hold the ids that are no text: the one that ends a document, if any does, and those that fill rows up."""

    end_of_text: int | None
    padding: frozenset[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Hold consecutive ids and where they stand: in which file, in which of its rows if it has rows, after how many.

    With `ends`, the text does not go on in the next piece, end-of-text or not.
    """

    ids: NDArray[np.integer]
    source: Path
    row: str
    start: int
    ends: bool


@dataclass(frozen=True, slots=True)
class BadRow:
    """Say which row of a file holds no ids as its neighbours do, and why."""

    source: Path
    row: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.row}: {self.reason}"


def drop_padding(ids: NDArray[np.integer], marks: Marks) -> NDArray[np.integer]:
    """Leave out what fills ids up after their last text: padding, or more ends of text, after an end of text.

    Padding that follows no end of text is text.
    """
    if marks.end_of_text is None:
        return ids
    other = np.flatnonzero(~np.isin(ids, [marks.end_of_text, *marks.padding]))
    tail = int(other[-1]) + 1 if len(other) else 0
    ends = np.flatnonzero(ids[tail:] == marks.end_of_text)
    return ids[: tail + int(ends[0]) + 1] if len(ends) else ids
