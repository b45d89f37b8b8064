"""Keep the states of a training on disk: which there are, whether each is whole, which may go.

    OUT/checkpoints/step-00000040/      files of torch.distributed.checkpoint
                        state.json      the step, every file's size and sha256, the trainer's own numbers; written last
    OUT/checkpoints/.step-00000040.part one that is being written, or being removed; the next start takes it away

A folder gets its name when all in it is written and synced, so what has a name was whole once; `check_snapshot` finds
what has been damaged since.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe import codec, documents
from lathe.errors import CheckpointError, CodecError

CHECKPOINTS, MANIFEST = "checkpoints", "state.json"
KIND = "trainer state"
STEP = re.compile(r"step-(\d{8,})")
LEFTOVER = re.compile(r"\.(step-\d{8,})(\.old)?\.part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Hold a file's size and checksum."""

    bytes: int
    sha256: str


def step_folder(folder: str | Path, step: int) -> Path:
    """Name where a run's folder keeps the state after a step."""
    return Path(folder) / CHECKPOINTS / f"step-{step:08d}"


def part_folder(folder: str | Path, step: int) -> Path:
    """Name where that state is while it is not whole."""
    return Path(folder) / CHECKPOINTS / f".step-{step:08d}.part"


def list_steps(folder: str | Path) -> list[int]:
    """List the steps whose states a run's folder keeps, oldest first; they may be damaged."""
    try:
        found = [STEP.fullmatch(path.name) for path in (Path(folder) / CHECKPOINTS).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{Path(folder) / CHECKPOINTS} cannot be read: {error.strerror}") from None
    return sorted(int(match.group(1)) for match in found if match)


def sum_files(folder: Path, names: Iterable[str]) -> dict[str, Sum]:
    """Measure files. Raises OSError."""
    sums = {}
    for name in names:
        with open(folder / name, "rb", buffering=0) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            sums[name] = Sum(bytes=os.fstat(file.fileno()).st_size, sha256=sha256)
    return sums


def write_manifest(folder: Path, step: int, sums: Mapping[str, Sum], extra: Mapping[str, Any]) -> None:
    """Write what makes a folder whole. Raises CodecError."""
    body = {"step": step, "files": codec.encode(sums), "extra": dict(extra)}
    document = codec.tag({"sha256": _digest(body), **body}, kind=KIND)
    documents.write_atomic(folder / MANIFEST, json.dumps(document, indent=1) + "\n")


def check_snapshot(folder: Path, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Check that a folder is whole, every file to its last byte; gives the trainer's own numbers.

    `parts` processes may each check a `part` of the files. Raises CheckpointError that says what is wrong.
    """
    sums, extra = _read_manifest(folder)
    names = sorted(sums, key=lambda name: (-sums[name].bytes, name))[part::parts]
    for name in names:
        path, wanted = folder / name, sums[name]
        try:
            if (size := path.stat().st_size) != wanted.bytes:
                raise CheckpointError(f"{path} has {size} bytes of {wanted.bytes}")
            if sum_files(folder, [name])[name] != wanted:
                raise CheckpointError(f"{path} has changed since it was written: its sha256 is another")
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    return extra


def _read_manifest(folder: Path) -> tuple[dict[str, Sum], dict[str, Any]]:
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text("utf-8"))
        body = codec.untag(document, kind=KIND, source=str(path))
        sha256 = body.pop("sha256", None)
        if sha256 != _digest(body):
            raise CheckpointError(f"{path} has changed since it was written: its sha256 is another")
        return codec.decode(dict[str, Sum], body["files"], source=str(path)), body["extra"]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        if isinstance(error, CheckpointError | CodecError):
            raise CheckpointError(str(error)) from None
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise CheckpointError(f"{path} {reason}") from None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def publish(folder: str | Path, step: int) -> None:
    """Give a state that is written in full its name, in the place of an older one of that name. Raises OSError."""
    part, final = part_folder(folder, step), step_folder(folder, step)
    aside = final.with_name(f".{final.name}.old.part")
    _sync(part)
    if final.exists():
        final.rename(aside)
    part.rename(final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def prune(
    folder: str | Path, step: int, *, keep_last: int, keep_every: int | None, pinned: Collection[int] = ()
) -> None:
    """Remove the states that need not be kept, after that of `step` was written.

    States of later steps belong to a training that was given up: they go, or they would be taken for the newest.
    """
    steps = list_steps(folder)
    newest = [one for one in steps if one <= step][-keep_last:]
    for one in steps:
        milestone = one <= step and ((keep_every is not None and one % keep_every == 0) or one in pinned)
        if one not in newest and not milestone:
            remove(folder, one)


def remove(folder: str | Path, step: int) -> None:
    """Remove a state; one half removed has no name."""
    part = part_folder(folder, step)
    shutil.rmtree(part, ignore_errors=True)
    try:
        step_folder(folder, step).rename(part)
    except OSError:
        return  # gone already, or not ours to remove: the next save tries again
    shutil.rmtree(part, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Take away what a killed process left half written, and put back a state that it had not replaced yet."""
    root = Path(folder) / CHECKPOINTS
    for path in root.iterdir() if root.is_dir() else ():
        if left := LEFTOVER.fullmatch(path.name):
            if left.group(2) and not (root / left.group(1)).exists():
                path.rename(root / left.group(1))
            else:
                shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Write a folder's names to disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
