"""Write a whole folder or nothing, and read the JSON documents in one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lathe import documents
from lathe.errors import CheckpointError, CodecError


def check_new_folder(out: str | Path, *, source: str | Path) -> None:
    """Refuse to write over anything. Raises CheckpointError."""
    out = Path(out)
    if Path(source).exists() and out.resolve() == Path(source).resolve():
        raise CheckpointError(f"{out} is the model itself; write to another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already; give a new folder, or empty this one")


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` once it is filled without an error. Raises CheckpointError."""
    out = Path(out)
    neighbour = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        neighbour.mkdir(parents=True)
        try:
            yield neighbour
            neighbour.replace(out)
        finally:
            shutil.rmtree(neighbour, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON document that is part of a model. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder is no whole model")
    try:
        return documents.read_document(path)
    except CodecError as error:
        raise CheckpointError(str(error)) from None
