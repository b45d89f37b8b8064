"""Add a run, and what was found of it later, to a table of runs that other trainings may be adding to meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.documents import lock_file, write_atomic
from lathe.errors import RunsError
from lathe.runs import Run
from lathe.train.folder import BRANCHES, RUN

TABLE = "runs.jsonl"
"""The table of runs, beside their folders."""

IDENTITY = ("recipe_id", "seed", "tokens")
"""Columns that tell one training from another."""


def append_run(path: str | Path, run: Run) -> bool:
    """Add a run's row to a table, made if need be; says whether it was new.

    A row whose recipe, seed and tokens stand there already is not added. What a killed writer left of a row is taken
    away. Raises RunsError if the table cannot be written; it is then as it was.
    """
    path, row = Path(path), run.to_row()
    try:
        with hold_table(path) as descriptor:
            text = _read_all(descriptor)
            whole = text[: text.rfind(b"\n") + 1]
            torn = text[len(whole) :]
            if parse_row(torn) is not None:  # whole, but for its end of line: a person's
                whole, torn = text, b""
            if any(_same(row, other) for other in map(parse_row, whole.splitlines()) if other is not None):
                return False
            line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            if whole and not whole.endswith(b"\n"):
                line = b"\n" + line
            _put(descriptor, len(whole), line, before=text)
    except OSError as error:
        raise RunsError(
            f"{path}: the run {run.name!r} could not be added: {error.strerror}; its result is whole all the same: "
            "train the recipe again, which only adds the row"
        ) from None
    return True


def add_scores(
    folder: str | Path, *, accuracies: Mapping[str, float], losses: Mapping[str, tuple[float, float | None]]
) -> Run:
    """Add what an evaluation found to the run of a trained folder, and to its row in the table beside; gives the run.

    `losses` are losses in nats per token with their standard errors. What the run knew of other tasks and sets stays;
    of the same ones, the new counts. A run that the table does not hold is added. Raises CodecError or RunsError.
    """
    path = Path(folder) / RUN
    run = codec.load(Run, path, kind="run")
    ses = {name: se for name, (_, se) in losses.items() if se is not None}
    kept = {name: se for name, se in run.loss_ses.items() if name not in losses}
    run = dataclasses.replace(
        run,
        accuracies={**run.accuracies, **accuracies},
        losses={**run.losses, **{name: loss for name, (loss, _) in losses.items()}},
        loss_ses={**kept, **ses},
    )
    parent = Path(folder).resolve().parent
    table = (parent.parent.parent if parent.name == BRANCHES else parent) / TABLE  # a branch's row is with its trunk's
    if not _replace_row(table, run):
        append_run(table, run)
    codec.save(run, path, kind="run")
    return run


def _replace_row(path: Path, run: Run) -> bool:
    """Put a run's row in the place of its old one, in a table written anew; says whether there was one."""
    row = run.to_row()
    try:
        with hold_table(path) as descriptor:
            lines = _read_all(descriptor).splitlines()
            places = [i for i, other in enumerate(map(parse_row, lines)) if other is not None and _same(row, other)]
            if not places:
                return False
            for i in places:
                old = parse_row(lines[i]) or {}
                lines[i] = json.dumps({**old, **row}, ensure_ascii=False, allow_nan=False).encode()
            write_atomic(path, b"\n".join(lines) + b"\n")
    except OSError as error:
        raise RunsError(f"{path}: the scores of {run.name!r} could not be added: {error.strerror}") from None
    return True


def find_run(path: str | Path, recipe_id: str) -> dict[str, Any] | None:
    """Find the row of a recipe in a table of runs; None if there is none. Raises RunsError."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunsError(f"{path}: cannot be read: {error.strerror}") from None
    rows = (row for row in map(parse_row, text.splitlines()) if row is not None)
    return next((row for row in rows if row.get("recipe_id") == recipe_id), None)


@contextmanager
def hold_table(path: Path) -> Iterator[int]:
    """Open a table for reading and writing, alone; waits for others. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_file(descriptor, wait=True)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:  # another process put a new file in its place while we waited: that one is the table
            os.close(descriptor)


def _put(descriptor: int, place: int, line: bytes, *, before: bytes) -> None:
    """Write a line at a place and cut off what stood behind, or leave the file as it was. Raises OSError."""
    try:
        os.ftruncate(descriptor, place)
        if os.pwrite(descriptor, line, place) < len(line):
            raise OSError(28, "No space left on device")
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, place)
            os.pwrite(descriptor, before[place:], place)
        raise


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()


def parse_row(line: bytes | str) -> dict[str, Any] | None:
    """Read a row; None for what is none, which is left to those who read the table."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return row.get("recipe_id") is not None and all(row.get(key) == other.get(key) for key in IDENTITY)
