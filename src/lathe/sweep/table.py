"""Keep a sweep's table of runs in the order of its entries, whatever order they ended in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lathe.documents import write_atomic
from lathe.errors import RunsError
from lathe.runs import Run
from lathe.train.record import IDENTITY, append_run, hold_table, parse_row


def write_table(path: Path, runs: Sequence[Run]) -> None:
    """Put runs into a table in the order given: in the places of the rows that it has of them, the rest at its end.

    Rows of other runs stay where they are; so the same runs, put in at any times, make the same table. Raises
    RunsError.
    """
    for run in runs:
        append_run(path, run)
    try:
        with hold_table(path):  # evaluations may be adding scores
            before = path.read_bytes()
            after = _arrange(before.decode().splitlines(), runs)
            if after != before:
                write_atomic(path, after)
    except OSError as error:
        raise RunsError(f"{path}: cannot be read: {error.strerror}") from None


def _arrange(lines: list[str], runs: Sequence[Run]) -> bytes:
    """Fill the places of runs' rows with them in order; what a row knows besides stays with it."""
    rows = [parse_row(line) for line in lines]
    ours = {_identity(run.to_row()): run.to_row() for run in runs}
    known = {_identity(row): row for row in rows if row is not None and _identity(row) in ours}
    places = [place for place, row in enumerate(rows) if row is not None and _identity(row) in ours]
    for place, (identity, row) in zip(places, ours.items(), strict=True):
        lines[place] = json.dumps({**known[identity], **row}, ensure_ascii=False, allow_nan=False)
    return "".join(f"{line}\n" for line in lines).encode()


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in IDENTITY)
