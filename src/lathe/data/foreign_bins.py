"""Read files of bare ids that others prepared: litgpt's chunks and nanoGPT's files."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lathe.data.foreign_pieces import Marks, Piece, drop_padding
from lathe.errors import DataError

BLOCK_TOKENS = 2**20
LITGPT_MAGIC, LITGPT_VERSION = b"LITPKDS", 1
LITGPT_HEADER = struct.Struct("<7sQBQ")
LITGPT_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def find_litgpt(path: Path) -> list[Path]:
    """List packed chunks: a folder's or a single one, where any .bin file begins as one does."""
    files = _find_bins(path)
    return files if any(map(_has_magic, files)) else []


def find_nanogpt(path: Path) -> list[Path]:
    """List .bin files that nothing marks as another's: a folder's or a single one."""
    files = _find_bins(path)
    return [] if any(map(_has_magic, files)) else files


def _find_bins(path: Path) -> list[Path]:
    return sorted(path.glob("*.bin")) if path.is_dir() else [path] if path.suffix == ".bin" else []


def _has_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LITGPT_MAGIC)) == LITGPT_MAGIC


def read_nanogpt(path: Path, marks: Marks) -> Iterator[Piece]:
    """Read little-endian uint16 ids, file after file. Raises DataError."""
    for file in find_nanogpt(path):
        size = file.stat().st_size
        if size % 2 or not size:
            raise DataError(f"{file} has {size} bytes, wanted two for each of its uint16 ids; copy it again")
        for start in range(0, size // 2, BLOCK_TOKENS):
            ids = np.fromfile(file, dtype="<u2", count=BLOCK_TOKENS, offset=2 * start)
            yield Piece(ids, file, "", start, ends=start + len(ids) == size // 2)


def read_litgpt(path: Path, marks: Marks) -> Iterator[Piece]:
    """Read chunks, those of one writer one after another; what fills up the last of them is dropped.

    Raises DataError.
    """
    for _, group in groupby(find_litgpt(path), key=lambda file: re.sub(r"\d+$", "", file.stem)):
        files, last = list(group), None
        for file in files:
            ids = _read_chunk(file)
            if file == files[-1]:
                ids = drop_padding(ids, marks)
                if len(ids) == 1 and ids[0] == last == marks.end_of_text:
                    ids = ids[:0]  # a chunk of nothing but padding
            last = ids[-1] if len(ids) else None
            yield Piece(ids, file, "", 0, ends=file == files[-1])


def _read_chunk(path: Path) -> NDArray[np.integer]:
    with path.open("rb") as file:
        header = file.read(LITGPT_HEADER.size)
    if len(header) < LITGPT_HEADER.size:
        raise DataError(f"{path} is cut short within its header; copy it again")
    magic, version, code, tokens = LITGPT_HEADER.unpack(header)
    if magic != LITGPT_MAGIC:
        raise DataError(f"{path} begins with {magic!r}, its neighbours with {LITGPT_MAGIC!r}; copy it again")
    if version != LITGPT_VERSION or code not in LITGPT_DTYPES:
        raise DataError(
            f"{path} is a chunk of version {version} with dtype code {code}; "
            f"wanted version {LITGPT_VERSION} and one of {', '.join(map(str, LITGPT_DTYPES))}"
        )
    dtype, size = np.dtype(LITGPT_DTYPES[code]), path.stat().st_size
    if size != LITGPT_HEADER.size + tokens * dtype.itemsize:
        raise DataError(f"{path} has {size} bytes; its header promises {tokens} ids of {dtype.itemsize}: copy it again")
    return np.fromfile(path, dtype=dtype, offset=LITGPT_HEADER.size)
