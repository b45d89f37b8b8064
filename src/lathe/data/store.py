"""Keep tokens on disk: memory-mapped shards, an index of documents, and a manifest that makes them a dataset.

    dataset.json            the `Manifest`, written last: a folder without it is not a dataset
    tokenizer.json          the tokenizer that made the ids
    train-00000.bin, …      ids, little-endian uint16 or uint32, documents one after another, each with its end-of-text
    train-00000.idx, …      one row a document: the token after its last one in the shard, and its text's bytes (uint64)
    held-out-00000.bin, …   the same for documents held out

A *split* ("train", "held-out") is one stream of tokens: its shards in order.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lathe import codec
from lathe.errors import DataError

MANIFEST, TOKENIZER, JOURNAL = "dataset.json", "tokenizer.json", "build.json"
SPLITS = ("train", "held-out")
BEGINNINGS = (JOURNAL, f".{JOURNAL}", "train-", ".train-")
"""How names begin in a folder that a build was writing."""
SHARD_TOKENS = 2**26
HELD_OUT = 0.005
"""What a shard holds, and the share of documents held out, where nothing else is asked."""
INDEX_COLUMNS = 2
"""Of an index's row: where a document ends in its shard, in tokens, and the bytes of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Name one shard: its file without suffix, what it holds, and the checksums (sha256) of its two files."""

    name: str
    split: str
    tokens: int
    documents: int
    text_bytes: int
    sources: tuple[str, ...]
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Say what a dataset holds and where it comes from.

    `end_of_text` is the id that ends a document, None where foreign tokens have none; their rows and files may end a
    document without it. `tokenizer_sha256` is that of tokenizer.json's bytes, None where the tokenizer is not known.
    `text_bytes` are UTF-8's, 0 where the text is not known. `bad_lines` counts the lines that were skipped, by file;
    `empty_documents` those without text. `request` identifies what was asked of the build, None where the dataset was
    made in another way.
    """

    vocab_size: int
    dtype: str
    end_of_text: int | None
    tokenizer_sha256: str | None
    held_out: float
    shards: tuple[Shard, ...]
    bad_lines: dict[str, int]
    empty_documents: int = 0
    request: str | None = None

    def __post_init__(self) -> None:
        if self.dtype != dtype_of(self.vocab_size):
            raise DataError(
                f"dtype={self.dtype!r} for a vocabulary of {self.vocab_size}; wanted {dtype_of(self.vocab_size)!r}"
            )


def check_split(held_out: float, shard_tokens: int) -> None:
    """Refuse a share to hold out, or a size of shards, that cannot be. Raises DataError."""
    if not 0 <= held_out < 1:
        raise DataError(f"held_out={held_out} is no share of the documents; give one from 0 to below 1, such as 0.005")
    if shard_tokens < 1:
        raise DataError(f"shard_tokens={shard_tokens} makes no shard; give a positive number, such as {SHARD_TOKENS}")


def dtype_of(vocab_size: int) -> str:
    """Name the narrowest dtype that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


class Dataset:
    """Open a dataset: nothing but its manifest is loaded, and no file stays open.

    Raises DataError for a folder that is no dataset, or whose files are not those of its manifest by size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            left = any(path.name.startswith(BEGINNINGS) for path in self.folder.glob("*"))
            unfinished = " (a build that was not finished: run it again)" if left else ""
            raise DataError(f"{self.folder} is no dataset: it has no {MANIFEST}{unfinished}")
        self.manifest = codec.load(Manifest, path, kind="dataset")
        for shard in self.manifest.shards:
            self._check_size(shard.name + ".bin", shard.tokens * np.dtype(self.manifest.dtype).itemsize)
            self._check_size(shard.name + ".idx", shard.documents * INDEX_COLUMNS * 8)

    def split(self, name: str) -> Split:
        """Open one split. Raises DataError for a name that there is not."""
        if name not in SPLITS:
            raise DataError(f"a dataset has no split {name!r}; it has {' and '.join(SPLITS)}")
        return Split(self, name, [shard for shard in self.manifest.shards if shard.split == name])

    def _check_size(self, name: str, wanted: int) -> None:
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != wanted:
            state = "is missing" if found is None else f"has {found:,} bytes, and its manifest says {wanted:,}"
            raise DataError(f"{path} {state}; copy the dataset again, or build it anew")


class Split:
    """One stream of tokens over several shards, read where it is asked for.

    `starts_s` holds where each shard begins in the stream, with the total at the end.
    """

    def __init__(self, dataset: Dataset, name: str, shards: Sequence[Shard]) -> None:
        self.dataset, self.name, self.shards = dataset, name, tuple(shards)
        self.starts_s = np.concatenate([[0], np.cumsum([s.tokens for s in shards], dtype=np.int64)]).astype(np.int64)

    @property
    def tokens(self) -> int:
        """Count all tokens."""
        return int(self.starts_s[-1])

    @cached_property
    def index_nc(self) -> NDArray[np.uint64]:
        """Load every document's end in the stream and its text's bytes, one row each: 16 bytes a document in memory.

        `read_index` reads one shard's.
        """
        parts = [
            read_index(self.dataset.folder, shard) + np.array([start, 0], dtype=np.uint64)
            for shard, start in zip(self.shards, self.starts_s, strict=False)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, INDEX_COLUMNS), dtype=np.uint64)

    def read(self, start: int, count: int) -> NDArray[np.unsignedinteger]:
        """Read tokens of the stream into memory, across shards where need be. Raises DataError beyond its end."""
        if start < 0 or count < 0 or start + count > self.tokens:
            raise DataError(f"tokens {start} to {start + count} of a split that has {self.tokens}")
        dtype = np.dtype(self.dataset.manifest.dtype).newbyteorder("<")
        tokens_n, filled = np.empty(count, dtype=dtype), 0
        at = int(np.searchsorted(self.starts_s, start, side="right")) - 1
        while filled < count:
            path, within = self.dataset.folder / f"{self.shards[at].name}.bin", start + filled - int(self.starts_s[at])
            wanted = min(count - filled, self.shards[at].tokens - within)
            part = np.fromfile(path, dtype=dtype, count=wanted, offset=within * dtype.itemsize)
            if len(part) < wanted:
                raise DataError(f"{path} was cut short while it was in use; copy the dataset again")
            tokens_n[filled : filled + wanted] = part
            filled, at = filled + wanted, at + 1
        return tokens_n


def read_index(folder: Path, shard: Shard) -> NDArray[np.uint64]:
    """Read where a shard's documents end in it, and their texts' bytes, one row each."""
    return np.fromfile(folder / f"{shard.name}.idx", dtype="<u8").reshape(-1, INDEX_COLUMNS)


def write_whole(path: Path, content: bytes) -> str:
    """Write a file in one step, synced, and give its sha256. Raises DataError; nothing is left then."""
    neighbour = path.with_name(f".{path.name}.part")
    try:
        try:
            with open(neighbour, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(neighbour, path)
        finally:
            neighbour.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    return hashlib.sha256(content).hexdigest()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Reasons that are a matter of space."""


def cannot_write(path: Path, error: OSError) -> DataError:
    """Make the error of a file or folder that cannot be written."""
    remedy = "free some space or write elsewhere" if error.errno in FULL else "name a place that you can write to"
    return DataError(f"{path}: cannot be written: {error.strerror}; {remedy}")


def file_sha256(path: Path) -> str:
    """Hash a file without loading it whole."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
