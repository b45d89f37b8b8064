"""Give the text that every machine with Python has: the sources of its standard library, prose and code together.

One document a module. Its docstrings stay in it: given apart as well they would be the same text twice, and what a
held-out module says would stand in the training text.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from importlib.util import decode_source
from pathlib import Path, PurePosixPath

from lathe.data.readers import Document, Input
from lathe.errors import DataError

EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "encodings", "idlelib", "pydoc_data", "lib2to3", "site-packages", "dist-packages",
     "__pycache__", "__phello__", "lib-dynload"}
)  # fmt: skip
"""Folders of what is no prose and no usual code: fixtures, tables, generated text, and what is not Python's own."""
OF_THE_MACHINE = ("_sysconfigdata", "_sysconfig_vars", "config-")
"""How names of modules and folders begin that hold this machine's own paths."""


def builtin_documents(*, limit_bytes: int | None = None) -> Iterator[Document]:
    """Read the standard library's modules, about 9 MB, in an order that mixes packages and hangs on their names alone.

    With `limit_bytes`, stop after so many bytes of text, the last module cut at a line's end.

    Raises DataError when this Python has no sources.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise DataError(f"limit_bytes={limit_bytes} leaves no text; give a positive number, or none for all")
    left = sys.maxsize if limit_bytes is None else limit_bytes
    for name, path in _find_modules():
        content = _read(path).encode()
        if len(content) > left:
            content = content[: content.rfind(b"\n", 0, left) + 1]
            left = 0
        if content.strip():
            yield Document(content.decode(), f"python-{platform.python_version()}/{name}")
        left -= len(content)
        if left <= 0:
            return


def builtin_input(*, limit_bytes: int | None = None) -> Input:
    """Give the built-in text as one input of a build. Raises DataError when this Python has no sources."""
    digest, size_bytes = blake2b(digest_size=16), 0
    for document in builtin_documents(limit_bytes=limit_bytes):
        content = document.text.encode()
        digest.update(f"{document.source}\0{len(content)}\0".encode() + content)
        size_bytes += len(content)
    return Input(
        name=f"python-{platform.python_version()}", fingerprint=digest.hexdigest(), size_bytes=size_bytes,
        read=partial(builtin_documents, limit_bytes=limit_bytes),
    )  # fmt: skip


def _find_modules() -> list[tuple[str, Path | zipfile.Path]]:
    """List the modules by their names from the library's folder, in order."""
    places = _find_library()
    for place in places:
        if found := list(_walk(place, PurePosixPath())):
            return sorted(found, key=lambda item: blake2b(item[0].encode()).digest())
    raise DataError(
        f"this Python has no sources of its standard library (looked in {', '.join(map(str, places)) or 'no place'}); "
        "install a full Python, or build from text of your own: lathe data build FILES"
    )


def _find_library() -> list[Path | zipfile.Path]:
    """List where the library may be: its folder, and the archive that embedded Pythons have instead."""
    folder = Path(sysconfig.get_path("stdlib"))
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    archives = [Path(p) for p in sys.path if Path(p).name == archive and zipfile.is_zipfile(p)]
    return [*([folder] if folder.is_dir() else []), *map(zipfile.Path, archives)]


def _walk(folder: Path | zipfile.Path, below: PurePosixPath) -> Iterator[tuple[str, Path | zipfile.Path]]:
    for path in folder.iterdir():
        name = below / path.name
        if path.name in EXCLUDED or path.name.startswith(OF_THE_MACHINE):
            continue
        if path.is_dir():
            yield from _walk(path, name)
        elif path.name.endswith(".py"):
            yield str(name), path


def _read(path: Path | zipfile.Path) -> str:
    try:
        return decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} of the standard library cannot be read: {error}; install Python again") from None
