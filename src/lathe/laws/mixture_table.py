"""Read tables of runs on mixtures: a column of weights for each source, and the loss.

Axes: n a run, s a source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lathe.errors import LawError, RunsError, nearest
from lathe.laws.system import Array
from lathe.runs import Table, list_columns

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "weight."
"""Begins the names of the columns that hold each source's share of a run's tokens."""
TOLERANCE = 0.01
"""How far a run's weights may be from summing to 1: published tables round them to three decimals."""


def read_mixtures(table: Table, *, target: str) -> tuple[tuple[str, ...], Array, Array]:
    """Take the sources, their weights (n, s) and the target out of a table of runs, and check them. Raises LawError."""
    names = list_columns(table)
    columns = [name for name in names if name.startswith(PREFIX)]
    sources = tuple(name.removeprefix(PREFIX) for name in columns)
    if len(sources) < 2:
        raise LawError(f"the table has {len(sources)} columns {PREFIX}<source>; wanted two or more (and {target})")
    if target not in names:
        raise LawError(f"the table has no column {target!r}{nearest(target, set(names) - set(columns))}")
    weights_ns = np.stack([_numbers(table, name) for name in columns], axis=1)
    losses_n = _numbers(table, target)
    if (weights_ns < 0).any():
        row, at = np.argwhere(weights_ns < 0)[0]
        raise LawError(f"row {row + 1}: {columns[at]} = {weights_ns[row, at]:g}; a weight is a share, 0 to 1")
    sums_n = weights_ns.sum(axis=1)
    if (off_n := abs(sums_n - 1) > TOLERANCE).any():
        row = int(np.argmax(off_n))
        raise LawError(f"row {row + 1}: the weights sum to {sums_n[row]:.4g}; wanted 1, as shares of the tokens")
    weights_ns /= sums_n[:, None]
    if (still_s := np.ptp(weights_ns, axis=0) < 1e-6).any():
        at = int(np.argmax(still_s))
        raise LawError(
            f"{columns[at]} is {weights_ns[0, at]:.3g} in every run, so nothing says what it does; leave the source out"
            " of the mixtures, or vary it"
        )
    return sources, weights_ns, losses_n


def _numbers(table: Table, name: str) -> Array:
    try:
        values_n = np.array(table[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LawError(f"column {name!r} holds something that is no number: {error}") from None
    if not np.isfinite(values_n).all():
        row = int(np.argmax(~np.isfinite(values_n)))
        raise LawError(f"row {row + 1}: {name} = {values_n[row]}; wanted a finite number, or leave the run out")
    return values_n


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow.parquet import read_table

    return read_table(path).to_pandas()


def read_mixture_table(path: str | Path) -> pd.DataFrame:
    """Read a table of runs from .csv, .jsonl or .parquet. Raises RunsError."""
    import pandas as pd

    readers: dict[str, Callable[[Path], Any]] = {
        ".csv": lambda p: pd.read_csv(p, comment="#"),
        ".jsonl": lambda p: pd.read_json(p, lines=True),
        ".parquet": _read_parquet,
    }
    path = Path(path)
    if path.suffix not in readers:
        raise RunsError(f"{path}: the name should end in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, ImportError) as error:
        raise RunsError(f"{path}: cannot be read: {error}") from None
