"""Write shards as their tokens come: each into a file beside, hashed on the way, and named when it is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lathe.data.store import INDEX_COLUMNS, SPLITS, Shard, cannot_write, dtype_of
from lathe.errors import DataError

BUFFER_TOKENS = 2**20
MOST_SOURCES = 100
"""A shard that more files went into names their folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Hold a document's ids, or with `continues` those of a part of one, and what else is stored of it."""

    ids: NDArray[np.integer]
    source: str
    text_bytes: int
    held_out: bool
    continues: bool = False


class UnitWriter:
    """Write what one stretch of the documents makes: a shard of each split that gets any.

    `end_of_text` is put after each document, None where the ids have it already or need none. Raises DataError when the
    disk is full or cannot be written.
    """

    def __init__(self, folder: Path, number: int, *, vocab_size: int, end_of_text: int | None) -> None:
        self.folder, self.number, self.vocab_size, self.end_of_text = folder, number, vocab_size, end_of_text
        self._writers: dict[str, ShardWriter] = {}

    @property
    def tokens(self) -> int:
        """Count the tokens of both splits."""
        return sum(writer.tokens for writer in self._writers.values())

    def add(self, tokens: Tokens) -> bool:
        """Add a document or a part of one; returns False for a document's end when nothing stood before it."""
        split = SPLITS[tokens.held_out]
        if split not in self._writers:
            if not len(tokens.ids) and not tokens.continues:
                return False
            name = f"{split}-{self.number:05}"
            self._writers[split] = ShardWriter(
                self.folder, name, split=split, vocab_size=self.vocab_size, end_of_text=self.end_of_text
            )
        return self._writers[split].add(tokens)

    def finish(self) -> list[Shard]:
        """Name the files, and give their shards."""
        return [self._writers[split].finish() for split in SPLITS if split in self._writers]

    def discard(self) -> None:
        """Take away what is not finished."""
        for writer in self._writers.values():
            writer.discard()


class ShardWriter:
    """Write one shard, a document or a part of one at a time."""

    def __init__(self, folder: Path, name: str, *, split: str, vocab_size: int, end_of_text: int | None) -> None:
        self.name, self.split, self.vocab_size = name, split, vocab_size
        self.tokens = self.documents = self.text_bytes = 0
        self._begun = 0, 0  # where the document began: in tokens, and in bytes of text
        self._ids: list[NDArray[np.integer]] = []
        self._buffered = 0
        self._rows_nc: list[tuple[int, int]] = []
        self._sources: dict[str, None] = {}
        self._dtype = np.dtype(dtype_of(vocab_size)).newbyteorder("<")
        self._end = np.array([] if end_of_text is None else [end_of_text], dtype=self._dtype)
        self._bin, self._index = HashedFile(folder / f"{name}.bin"), HashedFile(folder / f"{name}.idx")

    def add(self, tokens: Tokens) -> bool:
        """Add a document or a part of one; returns False for a document's end when nothing stood before it."""
        self._append(tokens.ids)
        self.text_bytes += tokens.text_bytes
        if tokens.continues:
            return True
        if self.tokens == self._begun[0]:
            self.text_bytes = self._begun[1]
            return False
        self._append(self._end)
        self._rows_nc.append((self.tokens, self.text_bytes - self._begun[1]))
        self._begun = self.tokens, self.text_bytes
        self.documents += 1
        self._sources[tokens.source] = None
        if self._buffered >= BUFFER_TOKENS:
            self._flush()
        return True

    def finish(self) -> Shard:
        """Name the files, and give the shard."""
        self._flush()
        return Shard(
            name=self.name, split=self.split, tokens=self.tokens, documents=self.documents, text_bytes=self.text_bytes,
            sources=shorten(list(self._sources)), sha256=self._bin.finish(), index_sha256=self._index.finish(),
        )  # fmt: skip

    def discard(self) -> None:
        """Take away what is not finished."""
        self._bin.discard()
        self._index.discard()

    def _append(self, ids: NDArray[np.integer]) -> None:
        self._ids.append(ids)
        self.tokens += len(ids)
        self._buffered += len(ids)

    def _flush(self) -> None:
        if self._ids:
            ids = np.concatenate(self._ids)
            if len(ids) and int(ids.max()) >= self.vocab_size:
                raise DataError(
                    f"the id {ids.max()} is beyond the tokenizer's vocabulary of {self.vocab_size}; "
                    "mend its tokenizer.json"
                )
            self._bin.write(ids.astype(self._dtype, copy=False).data)
        self._index.write(np.array(self._rows_nc, dtype="<u8").reshape(-1, INDEX_COLUMNS).data)
        self._ids, self._buffered, self._rows_nc = [], 0, []


class HashedFile:
    """Write a file piece by piece under another name, hashing it. Raises DataError when that fails."""

    def __init__(self, path: Path) -> None:
        self.path, self._part, self._sum = path, path.with_name(f".{path.name}.part"), hashlib.sha256()
        try:
            self._file = open(self._part, "wb", buffering=0)  # noqa: SIM115 - closed by finish or discard
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, content: memoryview) -> None:
        """Append bytes."""
        left = content.cast("B") if content.nbytes else memoryview(b"")
        self._sum.update(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def finish(self) -> str:
        """Sync and name the file; give its sha256."""
        try:
            with self._file as file:
                os.fsync(file.fileno())
            os.replace(self._part, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return self._sum.hexdigest()

    def discard(self) -> None:
        """Take the file away unless it is finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def shorten(sources: Sequence[str]) -> tuple[str, ...]:
    """Name sources, or where they are many their folders."""
    if len(sources) <= MOST_SOURCES:
        return tuple(sources)
    return tuple(dict.fromkeys(f"{PurePosixPath(source).parent}/" for source in sources))
