"""Read documents from files: plain text, JSON lines and parquet, compressed or not, alone or in folders.

A reader streams `Document`s, and a `BadLine` for each line or row that holds none: the caller decides what to do with
it. A file that is broken as a whole (cut short, not what its name says) raises DataError.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from lathe.errors import DataError, MissingExtraError

LONGEST_CHARS = 2**20
"""A longer text comes in parts, of half as much at least, so that memory stays bounded."""
LINE_START = re.compile(r"(?<=\S\n)(?= ?\S)|(?<=\S \n)(?= \S)")
"""Where text may be cut: after a single line end without spaces around it, or with one after, or one on each side."""
BLOCK_BYTES = 2**20
ROWS = 256


@dataclass(frozen=True, slots=True)
class Document:
    """Hold a document's text and where it comes from; with `continues`, a part of one whose next part follows."""

    text: str
    source: str
    continues: bool = False


@dataclass(frozen=True, slots=True)
class BadLine:
    """Say which line or row (from 1) of a file holds no document, and why."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.reason}"


Entry = Document | BadLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Name something that gives documents, the same ones in the same order each time it is read.

    `fingerprint` changes with the content; `size_bytes` is for progress only.
    """

    name: str
    fingerprint: str
    size_bytes: int
    read: Callable[[], Iterator[Entry]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Say how documents lie in files: the key or column of their text, and what separates them in a text file."""

    text_key: str = "text"
    split_documents_on: str | None = None

    def __post_init__(self) -> None:
        if self.split_documents_on == "":
            raise DataError("documents cannot be split on nothing; give a text such as <|endoftext|>, or leave it out")


def find_inputs(paths: Sequence[str | Path], layout: Layout) -> tuple[tuple[Input, ...], int]:
    """List the files that paths name, folders searched and sorted, and count those that folders hold of other kinds.

    Raises DataError for a path that is not there, a file of an unknown kind, and when there is nothing to read.
    """
    found: list[Input] = []
    ignored = 0
    for path in map(Path, paths):
        if path.is_dir():
            visible = (p for p in path.rglob("*") if not any(x.startswith(".") for x in p.relative_to(path).parts))
            inside = sorted(p for p in visible if p.is_file())
            known = [p for p in inside if _reader_of(p) is not None]
            ignored += len(inside) - len(known)
            found += [_open_input(p, layout) for p in known]
        elif not path.exists():
            raise DataError(f"there is no file or folder {path}")
        elif _reader_of(path) is None:
            raise DataError(f"{path} is of no known kind; its name should end in {_kinds()}")
        else:
            found.append(_open_input(path, layout))
    if not found:
        where = ", ".join(map(str, paths)) or "no path"
        raise DataError(f"nothing to read in {where}; wanted files whose names end in {_kinds()}")
    return tuple(found), ignored


def open_inputs(
    inputs: Sequence[str | Path | Input], layout: Layout, *, report: Callable[[str], None] | None = None
) -> tuple[Input, ...]:
    """List what is to be read, paths found out and other inputs as they are. Raises DataError as `find_inputs`."""
    found: list[Input] = []
    for given in inputs:
        if isinstance(given, Input):
            found.append(given)
            continue
        files, ignored = find_inputs([given], layout)
        found += files
        if ignored and report is not None:
            report(f"{given}: {ignored} files of other kinds are left out")
    if not found:
        raise DataError("there is nothing to read; give files or folders of text")
    return tuple(found)


def find_cut(text: str, chars: int, *, start: int = 0) -> int:
    """Find where to cut a text, at least so many characters on: at a line's start if one is near, else anywhere."""
    longest = start + LONGEST_CHARS
    found = LINE_START.search(text, start + chars, longest)
    return found.start() if found else min(longest, len(text))


def read_text(file: BinaryIO, name: str, layout: Layout) -> Iterator[Entry]:
    """Read a text file: one document, or with a separator those between its occurrences.

    Around a separator, line ends do not count. Raises DataError for bytes that are not UTF-8 deep inside a document
    that comes in parts.
    """
    if layout.split_documents_on is not None:
        return _split_text(file, name, layout.split_documents_on.encode())
    return _read_parts(file, name)


def read_jsonl(file: BinaryIO, name: str, layout: Layout) -> Iterator[Entry]:
    """Read a file of one JSON object a line; blank lines do not count."""
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BadLine(name, number, _not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield BadLine(name, number, f"not JSON: {getattr(error, 'msg', error)}")
        else:
            yield _take_text(row, name, number, layout.text_key)


def read_parquet(file: BinaryIO, name: str, layout: Layout) -> Iterator[Entry]:
    """Read one column of a parquet file. Raises DataError when there is none of that name, or it holds no text."""
    pyarrow = _import_pyarrow("parquet files")
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    schema = table.schema_arrow
    if layout.text_key not in schema.names:
        raise DataError(f"{name} has no column {layout.text_key!r}; it has {', '.join(schema.names)}: give --text-key")
    kind = schema.field(layout.text_key).type
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise DataError(f"{name}: the column {layout.text_key!r} holds {kind}, not text: give --text-key")
    number = 0
    for rows in table.iter_batches(columns=[layout.text_key], batch_size=ROWS):
        for value in rows.column(0):
            number += 1
            try:
                yield _take_text({layout.text_key: value.as_py()}, name, number, layout.text_key)
            except UnicodeDecodeError as error:
                yield BadLine(name, number, _not_utf8(error))


Reader = Callable[[BinaryIO, str, Layout], Iterator[Entry]]
FORMATS: dict[str, Reader] = {".txt": read_text, ".jsonl": read_jsonl, ".parquet": read_parquet}
"""What a file holds, by its suffix, the compression's taken off."""


def _open_zstd(path: Path) -> BinaryIO:
    # pyarrow's, which parquet needs in any case: unlike other readers it tells a cut file from a whole one
    stream = _import_pyarrow("zstd files").input_stream(str(path), compression="zstd")
    return io.BufferedReader(stream, BLOCK_BYTES)


COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": partial(gzip.open, mode="rb"),  # pyright: ignore[reportAssignmentType]
    ".zst": _open_zstd,
}


def _reader_of(path: Path) -> Reader | None:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return FORMATS.get(suffixes[-2]) if len(suffixes) > 1 and suffixes[-2] != ".parquet" else None
    return FORMATS.get(path.suffix)


def _kinds() -> str:
    return f"{', '.join(FORMATS)} (.txt and .jsonl also {', '.join(COMPRESSIONS)})"


def _open_input(path: Path, layout: Layout) -> Input:
    state = path.stat()
    return Input(
        name=path.as_posix(), fingerprint=f"{state.st_size} bytes, {state.st_mtime_ns}", size_bytes=state.st_size,
        read=partial(_read_file, path, layout),
    )  # fmt: skip


def _read_file(path: Path, layout: Layout) -> Iterator[Entry]:
    """Read one file, whatever breaks in it told as a DataError."""
    reader, name = _reader_of(path), path.as_posix()
    assert reader is not None, path
    with ExitStack() as stack:
        try:
            file = stack.enter_context(COMPRESSIONS.get(path.suffix, partial(open, mode="rb"))(path))
            yield from reader(file, name, layout)
        except (EOFError, zlib.error, OSError, *_arrow_errors()) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{name} is cut short or broken: {reason}; copy it again, or leave it out") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    try:
        from pyarrow import ArrowException
    except ImportError:
        return ()
    return (ArrowException,)


def _import_pyarrow(what: str) -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(f"reading {what}", extra="data") from None
    return pyarrow


def _take_text(row: object, name: str, number: int, key: str) -> Entry:
    """Take the text out of a row, or say why there is none."""
    if not isinstance(row, dict):
        return BadLine(name, number, "not a JSON object")
    if key not in row:
        held = ", ".join(map(str, row)) or "nothing"
        return BadLine(name, number, f"has no key {key!r}; it has {held[:80]}")
    text = row[key]
    if not isinstance(text, str):
        return BadLine(name, number, f"{key!r} holds {'nothing' if text is None else type(text).__name__}, not text")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in set(text)):
        return BadLine(name, number, "holds half a surrogate pair, which is no character")
    return Document(text, name)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x}; iconv can convert it)"


def _split_text(file: BinaryIO, name: str, separator: bytes) -> Iterator[Entry]:
    rest, line = b"", 1
    while block := file.read(max(BLOCK_BYTES, len(rest))):  # as much again: a long document is searched few times
        *whole, rest = (rest + block).split(separator)
        for part in whole:
            yield _decode_part(part, name, line)
            line += part.count(b"\n") + separator.count(b"\n")
    yield _decode_part(rest, name, line)


def _decode_part(part: bytes, name: str, line: int) -> Entry:
    try:
        return Document(part.decode().strip("\r\n"), name)
    except UnicodeDecodeError as error:
        return BadLine(name, line + part.count(b"\n", 0, error.start), _not_utf8(error))


def _read_parts(file: BinaryIO, name: str) -> Iterator[Entry]:
    decoder, held, line, began = codecs.getincrementaldecoder("utf-8-sig")(), "", 1, False
    while True:
        block = file.read(BLOCK_BYTES)
        try:
            held += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += held.count("\n") + error.object.count(b"\n", 0, error.start)
            bad = BadLine(name, line, _not_utf8(error))
            if began:  # parts of this document are gone already
                raise DataError(str(bad)) from None
            yield bad
            return
        if not block:
            yield Document(held, name)
            return
        while len(held) > LONGEST_CHARS:
            at = find_cut(held, LONGEST_CHARS // 2)
            yield Document(held[:at], name, continues=True)
            line, held, began = line + held.count("\n", 0, at), held[at:], True
