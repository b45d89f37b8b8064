"""Remember how far a build has come, so that a killed one goes on where it was; and let only one write at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from lathe import codec
from lathe.data.store import JOURNAL, MANIFEST, TOKENIZER, Dataset, Manifest, Shard, cannot_write, write_whole
from lathe.documents import lock_file
from lathe.errors import DataError

KIND = "dataset build"
OURS = re.compile(r"(train|held-out)-\d{5,}\.(bin|idx)|\..+\.part")
"""Names of what a build leaves when it is killed: shards that its journal does not know yet, and unfinished files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Hold all that a dataset's bytes hang on. A build goes on, or is left as it is, only for an equal request."""

    inputs: int
    inputs_sha256: str
    tokenizer_sha256: str
    end_of_text: int
    text_key: str
    split_documents_on: str | None
    held_out: float
    shard_tokens: int

    @property
    def id(self) -> str:
        """Hash the content."""
        return hashlib.sha256(codec.canonical_json(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Say what is done: the shards of `units` stretches, up to after so many documents (or bad lines) of a file."""

    request: Request
    file: int = 0
    documents: int = 0
    units: int = 0
    shards: tuple[Shard, ...] = ()
    bad_lines: dict[str, int]
    empty_documents: int = 0


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, for this process alone. Raises DataError when another holds it."""
    if folder.is_file():
        raise DataError(f"{folder} is a file; name a new folder as --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "nt":  # Windows opens no folders, and has no such locks
            yield
            return
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        if not lock_file(descriptor):
            raise DataError(f"another build is writing {folder}; wait for it, or choose another --out")
        yield
    finally:
        os.close(descriptor)


def open_journal(folder: Path, request: Request) -> Journal | Manifest:
    """Find where to go on: a journal, new if there is none, or the manifest when all is done.

    Takes away what a killed build left half done. Raises DataError when the folder holds anything else.
    """
    path = folder / JOURNAL
    if (folder / MANIFEST).is_file():
        manifest = Dataset(folder).manifest
        if manifest.request != request.id:
            raise DataError(f"{folder} holds a dataset of other inputs or options; choose another --out, or remove it")
        path.unlink(missing_ok=True)
        return manifest
    if path.is_file():
        journal = codec.load(Journal, path, kind=KIND)
        _check_same(folder, journal.request, request)
    else:
        others = [p.name for p in folder.iterdir() if not OURS.fullmatch(p.name)]
        if others:
            raise DataError(f"{folder} holds other files ({sorted(others)[0]}); choose a new folder as --out")
        journal = Journal(request=request, bad_lines={})
        save_journal(folder, journal)
    known = {f"{shard.name}{suffix}" for shard in journal.shards for suffix in (".bin", ".idx")}
    missing = [name for name in sorted(known) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]} is gone, so this build cannot go on; remove {folder} and build anew")
    for leftover in folder.iterdir():
        if OURS.fullmatch(leftover.name) and leftover.name not in known:
            leftover.unlink()
    return journal


def save_journal(folder: Path, journal: Journal) -> None:
    """Write the journal in one step. Raises DataError."""
    content = json.dumps(codec.tag(codec.encode(journal), kind=KIND), indent=1, ensure_ascii=False)
    write_whole(folder / JOURNAL, content.encode())


def drop_journal(folder: Path, *, made: bool) -> None:
    """Take away a build that has done nothing yet, and the folder if it was made for it."""
    for path in [*folder.iterdir()]:
        if path.name in (JOURNAL, TOKENIZER) or OURS.fullmatch(path.name):
            path.unlink()
    if made:
        with suppress(OSError):
            folder.rmdir()


def _check_same(folder: Path, found: Request, wanted: Request) -> None:
    differing = [f.name for f in fields(Request) if getattr(found, f.name) != getattr(wanted, f.name)]
    if differing:
        raise DataError(
            f"{folder} holds an unfinished build of another request ({', '.join(differing)} differ); "
            "repeat that one, choose another --out, or remove the folder"
        )
