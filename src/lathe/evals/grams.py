"""Find runs of words, whatever their case and punctuation, in a stream of text of any length.

Text is normalised to bytes: NFKC, case folded, punctuation and symbols taken out, words apart by spaces. A word is a
64-bit hash of its bytes, a gram one of its words: a text of 10^12 words meets 10^6 grams falsely with a chance of 5 %.

Axes in names: w words of a stretch of text, g distinct grams of one length.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Number = TypeVar("Number", np.uint64, np.int64)
END, BREAK = b" \x7f ", b" ~ "
"""Words that no text has: where a document ends, and where text is missing within one."""
BLOCK_BYTES = 2**17
"""What is hashed at a time: so much that numpy's calls cost little, and little enough for the processor's cache."""

_SPACE = ord(" ")
_LETTER_FACTOR, _WORD_FACTOR = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, so that powers can be divided by
_CODES = np.random.default_rng(0x1A7E).integers(1, 2**64, 256, dtype=np.uint64)
_CODES[_SPACE] = 0
_ASCII = bytes(ord(chr(c).lower()) if _SPACE < c < 127 else c if c > 127 else _SPACE for c in range(256))
_PUNCTUATION = bytes(c for c in range(_SPACE + 1, 127) if not chr(c).isalnum())


def normalise(text: str) -> bytes:
    """Bring a text into the form in which it is compared, as UTF-8; a run of spaces means one."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text).casefold()
        codes = _letters()[np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype="<u4")]
        text = codes[codes != 0].tobytes().decode("utf-32-le")
    return text.encode().translate(_ASCII, _PUNCTUATION)


def hash_words(text: bytes) -> Hashes:
    """Hash each word of a normalised text of at most BLOCK_BYTES."""
    letters = np.frombuffer(text, dtype=np.uint8)
    inside = letters > _SPACE
    starts_w = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    if not len(starts_w):
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = _powers()
    # the powers of a word's first place are divided out again, so that it hashes alike wherever it stands
    return _mix(np.add.reduceat(_CODES[letters] * powers[: len(letters)], starts_w) * inverses[starts_w])


def hash_runs(hashes_w: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Hash the runs of 1, 2, … `longest` words that begin at each word, as (length, hashes), in place.

    Only for the words that have `longest` - 1 after them.
    """
    count = max(0, len(hashes_w) - longest + 1)
    runs_w, factor = np.zeros(count, dtype=np.uint64), 1
    for length in range(1, longest + 1):
        runs_w += hashes_w[length - 1 : length - 1 + count] * np.uint64(factor)
        factor = factor * _WORD_FACTOR % 2**64
        yield length, runs_w


class GramTable:
    """Look up grams of one length, and keep the first document that each was found in.

    `document_g` is -1 where a gram was not found; `keys_g` are sorted.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.keys_g = sort_distinct(hashes)
        self.document_g = np.full(len(self.keys_g), -1, dtype=np.int64)
        bits = min(max(10, (16 * len(self.keys_g)).bit_length()), 27)
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(2**bits, dtype=bool)
        self._maybe[self.keys_g >> self._shift] = True

    def find(self, hashes_w: Hashes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Give the places in `hashes_w` that hold a gram of the table, and each one's row."""
        likely = np.flatnonzero(self._maybe[hashes_w >> self._shift])
        rows = np.minimum(np.searchsorted(self.keys_g, hashes_w[likely]), len(self.keys_g) - 1)
        same = self.keys_g[rows] == hashes_w[likely]
        return likely[same], rows[same]


def hash_text(pieces: Iterable[bytes]) -> Hashes:
    """Hash the words of normalised text of any length."""
    return np.concatenate([hash_words(block) for block in _cut_blocks(pieces)])


def sort_distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Sort values and drop doubles, several times as fast on 64-bit hashes as numpy's `unique`, which hashes anew."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def scan(pieces: Iterable[bytes], tables: Mapping[int, GramTable], *, longest: int) -> None:
    """Look for the tables' grams, by length, in normalised text whose documents end in END.

    A word may go on from one piece to the next; a gram lies within one document. Memory is bounded by BLOCK_BYTES and
    the largest piece.
    """
    held_w, document = np.zeros(0, dtype=np.uint64), 0
    for block in _cut_blocks(chain(pieces, [END * longest])):
        hashes_w = np.concatenate([held_w, hash_words(block)])
        ends = np.flatnonzero(hashes_w == END_HASH)
        for length, runs_w in hash_runs(hashes_w, longest):
            if length in tables:
                places, rows = tables[length].find(runs_w)
                _note_first(tables[length].document_g, rows, document + np.searchsorted(ends, places))
        # words without enough others after them have not been looked at yet
        held_w = hashes_w[max(0, len(hashes_w) - longest + 1) :]
        document += int(np.searchsorted(ends, len(hashes_w) - len(held_w)))


def _note_first(document_g: NDArray[np.int64], rows: NDArray[np.intp], documents: NDArray[np.int64]) -> None:
    new = document_g[rows] < 0
    # the last one written stays, so they go backwards
    document_g[rows[new][::-1]] = documents[new][::-1]


def _cut_blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces and cut them anew, at spaces, into blocks of about one size."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size < BLOCK_BYTES:
            continue
        text, start = b"".join(held), 0
        while len(text) - start >= BLOCK_BYTES:
            space = text.rfind(b" ", start, start + BLOCK_BYTES)
            stop = start + BLOCK_BYTES if space < 0 else space + 1  # no item holds a word that is so long
            yield text[start:stop]
            start = stop
        held, size = [text[start:]], len(text) - start
    yield b"".join(held)


def _mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    inverse = pow(_LETTER_FACTOR, -1, 2**64)
    first, second = (
        np.cumprod(np.concatenate([[np.uint64(1)], np.full(BLOCK_BYTES - 1, factor, dtype=np.uint64)]))
        for factor in (_LETTER_FACTOR, inverse)
    )
    return first, second


@functools.cache
def _letters() -> NDArray[np.uint32]:
    """Map each code point to itself, to a space, or to 0 where it is taken out."""
    table = np.arange(sys.maxunicode + 1, dtype="<u4")
    for code in range(len(table)):
        category = unicodedata.category(chr(code))
        if category[0] in "PS" or category in ("Cf", "Cs"):  # Cf: soft hyphens and spaces of no width
            table[code] = 0
        elif category[0] == "Z" or category == "Cc":
            table[code] = _SPACE
    return table


END_HASH: np.uint64 = hash_words(END)[0]
"""What END becomes among hashed words."""
