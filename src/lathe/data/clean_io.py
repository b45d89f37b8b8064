"""Read and write documents in datatrove's interfaces, without losing a line or a key unsaid.

This module needs datatrove; import it inside functions.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger

from lathe.data.readers import BLOCK_BYTES, COMPRESSIONS
from lathe.errors import DataError

BAD_LINES, EMPTY = "bad_lines", "without_text"
"""What a reader calls its counts of what it skips."""
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, OSError)


class CountingReader(BaseDiskReader):
    """Count the rows that hold no text."""

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int) -> Document | None:
        document = super().get_document_from_dict(data, source_file, id_in_file)
        if document is None:
            self.stat_update(EMPTY)
        return document

    def locate(self, filepath: str) -> str:
        """Give a file's whole path."""
        return "/" + str(self.data_folder.resolve_paths(filepath)).lstrip("/")  # the root's own slash is doubled

    def explain(self, filepath: str, error: Exception) -> DataError:
        """Say that a file is broken."""
        return DataError(f"{self.locate(filepath)} is cut short or broken: {error}; copy it again, or leave it out")


class DiskReader(CountingReader):
    """Read local files, compressed or not, to their true end."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if self.paths_file is None and not self.data_folder.list_files():  # the step before removed everything
            return iter(data or ())
        return super().run(data, rank, world_size)

    def read_file(self, filepath: str) -> Iterator[Document]:
        path = Path(self.locate(filepath))
        try:
            with COMPRESSIONS.get(path.suffix, partial(open, mode="rb"))(path) as file:
                yield from self.read_rows(file, filepath)
        except BROKEN as error:
            raise self.explain(filepath, error) from None

    def read_rows(self, file: IO[bytes], filepath: str) -> Iterator[Document]:
        """Read the documents of an open file."""
        raise NotImplementedError


class JsonlFiles(DiskReader):
    """Read JSON lines with all their keys; datatrove's reader loses lines that are no JSON without a word."""

    name = "🐿 Jsonl"
    _requires_dependencies = ("orjson",)
    on_bad_line = "fail"

    def read_rows(self, file: IO[bytes], filepath: str) -> Iterator[Document]:
        import orjson

        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                reason = self._find_fault(row)
            except orjson.JSONDecodeError as error:
                row, reason = {}, f"not JSON in UTF-8: {error}"
            if reason is not None:
                self._report(filepath, number, reason)
            elif (document := self.get_document_from_dict(row, filepath, number)) is not None:
                yield document

    def _find_fault(self, row: Any) -> str | None:
        if not isinstance(row, dict):
            return "not a JSON object"
        if self.text_key not in row:
            return f"has no key {self.text_key!r}; it has {', '.join(row)[:80] or 'nothing'}"
        return None if isinstance(row[self.text_key], str) else f"{self.text_key!r} holds no text"

    def _report(self, filepath: str, number: int, reason: str) -> None:
        where = f"{self.locate(filepath)}, line {number}: {reason}"
        if self.on_bad_line == "fail":
            raise DataError(f"{where}; mend it, or skip such lines with --on-bad-line skip")
        self.stat_update(BAD_LINES)
        logger.warning(where)


class TextFiles(DiskReader):
    """Read a text file as one document."""

    name = "📄 Text"

    def read_rows(self, file: IO[bytes], filepath: str) -> Iterator[Document]:
        try:
            text = b"".join(iter(partial(file.read, BLOCK_BYTES), b"")).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.locate(filepath)}: not UTF-8 (byte {error.start}); convert it, as with iconv"
            ) from None
        document = self.get_document_from_dict({self.text_key: text}, filepath, 0)
        if document is not None:
            yield document


class ParquetFiles(CountingReader, ParquetReader):
    """Read parquet as datatrove does."""

    def read_file(self, filepath: str) -> Generator[Document, None, None]:
        from pyarrow import ArrowException

        try:
            yield from ParquetReader.read_file(self, filepath)
        except (OSError, ArrowException) as error:
            raise self.explain(filepath, error) from None


class DocumentWriter(JsonlWriter):
    """Write documents flat, with their own keys; a key named `rank` does not choose the file, as it does elsewhere."""

    def __init__(self, folder: str, *, suffix: str) -> None:
        compression = {".gz": "gzip", ".zst": "zstd"}.get(suffix)
        super().__init__(folder, f"${{rank}}.jsonl{suffix}", compression=compression, adapter=flatten_document)
        self.suffix = suffix

    def _get_output_filename(self, document: Document, rank: int | str = 0, **_: object) -> str:
        return f"{str(rank).zfill(5)}.jsonl{self.suffix}"

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        try:
            super()._write(document, file_handler, filename)
        except TypeError as error:
            raise DataError(f"document {document['id']}: JSON cannot hold its values: {error}; drop that key") from None


def flatten_document(_: DocumentWriter, document: Document) -> dict[str, Any]:
    """Lay a document's text, id and keys side by side."""
    return {**document.metadata, "id": document.id, "text": document.text}


READERS: dict[str, Callable[..., BaseDiskReader]] = {".jsonl": JsonlFiles, ".parquet": ParquetFiles, ".txt": TextFiles}
"""How to read each kind of file, by suffix."""
