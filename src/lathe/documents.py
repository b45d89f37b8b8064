"""Read and write whole documents: JSON and TOML text into dicts, files at once or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lathe.errors import CodecError


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a `.json` or `.toml` file into a dict. Raises CodecError with the line of a fault."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise CodecError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".toml":
        return parse_toml(text, source=str(path))
    if path.suffix == ".json":
        return parse_json(text, source=str(path))
    raise CodecError(f"{path}: the name should end in .json or .toml")


def parse_json(text: str, *, source: str = "the document") -> dict[str, Any]:
    """Parse one JSON object. Raises CodecError with the line of a fault, for doubled keys, and for NaN."""

    def constant(name: str) -> Any:
        raise CodecError(f"{source}: {name} is not JSON; every number must be finite")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, item in items:
            if name in found:
                raise CodecError(f"{source}: the key {name!r} stands there twice")
            found[name] = item
        return found

    try:
        document = json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        cut = "; the file seems cut short" if error.pos >= len(text.rstrip()) else ""
        raise CodecError(f"{source}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}{cut}") from None
    except CodecError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply; more digits than Python will read
        raise CodecError(f"{source}: {error}") from None
    if not isinstance(document, dict):
        raise CodecError(f"{source}: holds {name_value(document)}; an object {{…}} was wanted")
    return document


def parse_toml(text: str, *, source: str) -> dict[str, Any]:
    """Parse a TOML document. Raises CodecError with the line of a fault."""
    import tomllib  # only now: `import lathe` stays quick

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its message ends in "(at line …, column …)"
        raise CodecError(f"{source}: not TOML: {error}") from None
    except (RecursionError, ValueError) as error:
        raise CodecError(f"{source}: {error}") from None


def check_path(path: str | Path, *suffixes: str) -> None:
    """Refuse a file that could not be written, before the work whose result it shall hold. Raises CodecError."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise CodecError(f"{path}: the name should end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise CodecError(f"there is no folder {path.parent} to write {path.name} in; make it first")


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, synced, then renamed. Raises CodecError."""
    path = Path(path)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        try:
            with open(neighbour, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(neighbour, path)
        finally:
            neighbour.unlink(missing_ok=True)
    except OSError as error:
        raise CodecError(f"{path}: cannot be written: {error.strerror}; nothing was changed") from None


def lock_file(descriptor: int, *, wait: bool = False) -> bool:
    """Take the system's lock of an open file or folder, which ends with the process; says whether it was free.

    True too where the system, or the file's, has no such locks. With `wait` it is waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def name_value(data: Any) -> str:
    """Name a value's kind as a document's reader knows it."""
    if isinstance(data, dict):
        return "a table"
    if isinstance(data, list | tuple):
        return f"a list of {len(data)}"
    text = "null" if data is None else json.dumps(data, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
