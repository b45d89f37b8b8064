"""Read tables of measured latencies, and turn each row into a shape, a workload, an engine and times."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lathe.errors import DeviceError, LatheError, MissingExtraError, nearest
from lathe.latency.roofline import check_context
from lathe.presets.shapes import load_shape
from lathe.shape import Shape
from lathe.workload import PREDICTED_AS, Workload

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("prefill_s", "decode_s", "total_s")
SHAPE_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(Shape)}
WORKLOAD_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(Workload)}
COLUMNS = ("shape", "name", "engine", *TIMES, *SHAPE_FIELDS, *WORKLOAD_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Hold one measured time: of what, and where in the table it stands. `phase` is the column without its unit.

    `engine` is what predictions see it as: a table's "compile" is "graph" here.
    """

    name: str
    row: int
    shape: Shape
    workload: Workload
    engine: str
    phase: str
    seconds: float


def read_measurements(path: str | Path) -> pd.DataFrame:
    """Read measured latencies from a .csv, .jsonl or .parquet file.

    Columns: `shape` (a preset's name) or a shape's fields, a workload's fields, `engine`, and `prefill_s` and
    `decode_s`, or `total_s`. Lines of a .csv that begin with # are comments.

    Raises:
        DeviceError: no such file, or no table in it.
        MissingExtraError: parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise DeviceError(f"{path} is a {path.suffix or 'nameless'} file; measurements come as {', '.join(READERS)}")
    try:
        frame = READERS[path.suffix](path)
    except ImportError:
        raise MissingExtraError(f"reading {path}", extra="data") from None
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # pandas' parsers and UnicodeDecodeError
        raise DeviceError(f"{path} holds no table of measurements: {error}") from None
    if frame.empty:
        raise DeviceError(f"{path} has no rows; wanted one measured latency a row")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, comment="#", index_col=False)


def _read_jsonl(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_json(path, lines=True)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pandas()


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""How to read each type of file, by suffix."""


def parse_measurements(table: Any, *, engine: str | None = None) -> tuple[list[Measured], list[str]]:
    """Check a table of measurements row by row.

    Args:
        table: a mapping of column name → values, such as a dict or a data frame; a single value stands for every row.
            An empty cell counts as not given.
        engine: what ran, where the table does not say; eager if not given.

    Returns the times in the table's order, a row's prefill before its decode (its total only where it lacks one of the
    two), and warnings: columns that look misspelt, several backends, times that never settled.

    Raises DeviceError that names the row.
    """
    engine = _engine(engine or "eager")
    columns, rows = _columns(table)
    found: list[Measured] = []
    for row in range(rows):
        cells = {name: values[row] for name, values in columns.items() if not _is_empty(values[row])}
        try:
            found += _parse_row(cells, row=row + 1, engine=engine)
        except LatheError as error:
            raise DeviceError(f"measurements, row {row + 1}: {error}") from error
    return found, [w for name in columns if (w := _misspelt(name))] + _mixed(columns) + _unsettled(columns)


def _mixed(columns: Mapping[str, list[Any]]) -> list[str]:
    """Warn of rows that no one device's numbers can explain: other software has other overheads."""
    backends = sorted({str(value) for value in columns.get("backend", ()) if not _is_empty(value)})
    if len(backends) < 2:
        return []
    return [f"rows come from several backends ({', '.join(backends)}), each with its own overheads; calibrate on one"]


def _unsettled(columns: Mapping[str, list[Any]]) -> list[str]:
    """Warn of rows whose measurement went on varying, which `lathe measure` notes as not steady."""
    steady = [_as(value, "bool", name="steady") for value in columns.get("steady", ())]
    rows = [str(row) for row, value in enumerate(steady, start=1) if value is False]
    if not rows:
        return []
    said = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(rows)}"
    return [f"{said} never settled: the times still varied after warming up; measure them --again on a quiet machine"]


def _columns(table: Any) -> tuple[dict[str, list[Any]], int]:
    names = [str(name) for name in getattr(table, "columns", table)]
    if not any(name in names for name in TIMES):
        raise DeviceError(
            f"measurements have no time; wanted prefill_s and decode_s, or total_s; got {', '.join(names)}"
        )
    wanted = [] if "shape" in names else ["d_model", "n_layers", "n_heads", "vocab_size"]
    if missing := [name for name in wanted if name not in names]:
        raise DeviceError(
            f"measurements have no column {', '.join(missing)}; give them, or presets in a column `shape`"
        )
    single = {name: isinstance(table[name], str | Shape) or not hasattr(table[name], "__len__") for name in names}
    lengths = {name: len(table[name]) for name in names if not single[name]}
    if len(set(lengths.values())) > 1:
        raise DeviceError(f"measurements have columns of different lengths: {lengths}")
    rows = next(iter(lengths.values()), 1)
    if rows == 0:
        raise DeviceError("measurements have no rows; wanted one measured latency a row")
    return {n: [table[n]] * rows if single[n] else [_plain(v) for v in table[n]] for n in names}, rows


def _parse_row(cells: Mapping[str, Any], *, row: int, engine: str) -> list[Measured]:
    shape = _parse_shape(cells)
    workload = Workload(**{n: _as(cells[n], kind, name=n) for n, kind in WORKLOAD_FIELDS.items() if n in cells})
    check_context(shape, workload)
    engine = _engine(cells.get("engine", engine))
    phases = TIMES[:2] if "prefill_s" in cells and "decode_s" in cells else TIMES
    times = {name: cells[name] for name in phases if name in cells}
    if not times:
        raise DeviceError("no time; wanted prefill_s and decode_s, or total_s")
    if "decode_s" in times and workload.new_tokens == 1 and times.pop("decode_s") != 0:
        raise DeviceError("decode_s is not 0, but new_tokens=1: reading the prompt makes the only token")
    for name, value in times.items():
        if isinstance(value, bool | str) or not math.isfinite(value) or value <= 0:
            raise DeviceError(f"{name}={value!r}; wanted seconds above zero")
    label = cells.get("name") or (cells["shape"] if isinstance(cells.get("shape"), str) else None)
    about = {
        "name": str(label or f"{shape.d_model}×{shape.n_layers}"),
        "row": row,
        "shape": shape,
        "workload": workload,
        "engine": engine,
    }
    return [Measured(**about, phase=name.removesuffix("_s"), seconds=float(value)) for name, value in times.items()]


def _engine(name: Any) -> str:
    if name not in PREDICTED_AS:
        raise DeviceError(f"unknown engine {name!r}{nearest(str(name), PREDICTED_AS)}")
    return PREDICTED_AS[name]


def _parse_shape(cells: Mapping[str, Any]) -> Shape:
    """Build a row's shape from its fields, which replace those of the preset in `shape` where there is one."""
    given = {n: _as(cells[n], kind, name=n) for n, kind in SHAPE_FIELDS.items() if n in cells}
    if "shape" not in cells:
        return Shape.of(**given)
    preset = cells["shape"] if isinstance(cells["shape"], Shape) else load_shape(str(cells["shape"]))
    return dataclasses.replace(preset, **given)


def _as(value: Any, kind: str, *, name: str) -> Any:
    """Undo what tables do to values: whole numbers as floats, truth as 0 and 1, or either as text."""
    if kind == "bool" and (value in (0, 1) or str(value).lower() in ("true", "false")):
        return value in (1, True) or str(value).lower() == "true"
    if kind == "int" and isinstance(value, float):
        if not value.is_integer():
            raise DeviceError(f"{name}={value}; wanted a whole number")
        return int(value)
    return value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_empty(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value == "" or value != value


def _misspelt(name: str) -> str | None:
    close = [] if name in COLUMNS else difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.86)
    return f"the column {name!r} is not read; did you mean {close[0]!r}?" if close else None
