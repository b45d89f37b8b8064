"""Read tables of training runs: published ones by name, files, and the scaling testbed's folder.

Every source goes the same way: read → rename → choose the loss and the error → derive → select rows →
validate.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.columns import COLUMNS, FAMILIES, find_column, name_column
from lathe.errors import MissingExtraError, RunsError, nearest
from lathe.laws.testbed import DEFAULT_VALIDATION, TASK_SETS, find_tasks, read_testbed
from lathe.runs import derive, find_repeats, validate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


MEAN = "mean"
"""Stands for the mean over validation sets, where none is called so."""


def read_runs(
    name_or_path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    validation: str | None = None,
    tasks: str | Sequence[str] | None = None,
    where: str | None = None,
    target: str = "loss",
    duplicates: Literal["error", "drop"] = "error",
) -> pd.DataFrame:
    """Read runs from a built-in table, a .jsonl, .csv or .parquet file, or a folder of the scaling testbed.

    Args:
        name_or_path: a name that `list_published` lists wins over a file; give a `Path` to mean the file.
        columns: their name → ours, for sources with names of their own. A renamed column replaces one of
            that name.
        validation: the validation set whose column `loss_<set>` becomes `loss`, or "mean" for the mean over all of
            them; by default C4's, where the source has no `loss` of its own.
        tasks: a named set of tasks (`TASK_SETS`) or names of tasks, whose mean top-1 error becomes `error`;
            by default "17", where the source has them. A run that lacks one of the scores has no mean.
        where: rows to keep, such as "dataset == 'rpj' and tokens_per_param >= 20": comparisons, arithmetic,
            `in`, and, or, not. Rows it drops are not checked.
        target: the column that must be there, besides params and tokens.
        duplicates: whether rows equal in every column are an error or all but the first dropped.

    Returns the known columns with their types as `lathe.columns.COLUMNS` says, those that follow from others
    (`lathe.runs.DERIVATIONS`), and the source's further columns as they are.

    Raises:
        RunsError: the source cannot be read, or its table not trusted; the message names row and column.
        MissingExtraError: parquet without pyarrow.
    """
    frame = _read(name_or_path)
    source = str(name_or_path)
    if columns:
        frame = _rename(frame, columns, source=source)
    frame = _choose_loss(frame, validation, source=source)
    frame = _choose_error(frame, tasks, source=source)
    frame = frame.assign(**derive(frame))
    if where is not None:
        frame = frame.loc[match_rows(frame, where, source=source)]
    if duplicates == "drop":
        first = find_repeats(frame)
        frame = frame.loc[[earliest == i for i, earliest in enumerate(first)]]
    arrays = validate(frame, source=source, target=target, rows=[int(i) + 1 for i in frame.index])
    order = [name for name in COLUMNS if name in arrays]
    return type(frame)({name: arrays[name] for name in dict.fromkeys((*order, *arrays))})


def list_published() -> list[str]:
    """List the built-in tables of published runs; each file's head says where its figures come from."""
    folder = resources.files("lathe") / "presets" / "runs"
    return sorted(item.name.removesuffix(".csv") for item in folder.iterdir() if item.name.endswith(".csv"))


def _read(name_or_path: str | Path) -> pd.DataFrame:
    import pandas as pd

    if isinstance(name_or_path, str) and name_or_path in list_published():
        text = (resources.files("lathe") / "presets" / "runs" / f"{name_or_path}.csv").open(encoding="utf-8")
        with text:
            return pd.read_csv(text, comment="#")
    path = Path(name_or_path)
    if path.is_dir():
        return pd.DataFrame.from_records(read_testbed(path))
    suffix = path.suffix.lower()
    if path.exists() and suffix not in READERS:
        raise RunsError(f"{path} is a {suffix or 'nameless'} file; wanted {', '.join(READERS)} or a testbed's folder")
    if not path.exists():
        is_file = suffix in READERS or len(path.parts) > 1
        hint = "" if is_file else nearest(str(name_or_path), list_published())
        raise RunsError(
            f"no file or folder {path}" if is_file else f"no published table or file is called {str(path)!r}{hint}"
        )
    return READERS[suffix](path)


def _read_jsonl(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows: dict[int, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunsError(f"{path} is not a text file: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunsError(
                f"{path}, line {number} is not whole JSON ({error.msg}); if its writing was cut off, remove it"
            ) from None
        if not isinstance(row, dict):
            raise RunsError(f"{path}, line {number} holds a {type(row).__name__}; wanted one JSON object a line")
        rows[number - 1] = row
    if not rows:
        raise RunsError(f"{path} is empty; wanted one JSON object a run and line")
    return pd.DataFrame(list(rows.values()), index=list(rows))


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].tolist()
            if doubled := [name for name in header if header.count(name) > 1]:
                raise RunsError(f"{path} names the column {doubled[0]!r} twice; rename or remove one")
            return pd.read_csv(path, index_col=False, low_memory=False)
    except pd.errors.EmptyDataError:
        raise RunsError(f"{path} is empty; wanted a line of column names, then one row a run") from None
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise RunsError(f"{path} is not a table of comma-separated values: {error}") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(f"reading {path}", extra="data") from None
    try:
        return pyarrow.parquet.read_table(path).to_pandas()
    except (OSError, ValueError) as error:
        raise RunsError(f"{path} is not a parquet file: {error}") from None


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""How to read each type of file, by suffix."""


def _rename(frame: pd.DataFrame, columns: Mapping[str, str], *, source: str) -> pd.DataFrame:
    for theirs in columns:
        if theirs not in frame.columns:
            hint = nearest(theirs, map(str, frame.columns))
            raise RunsError(f"{source} has no column {theirs!r} to read as {columns[theirs]!r}{hint}")
    ours = list(columns.values())
    if twice := {name for name in ours if ours.count(name) > 1}:
        raise RunsError(f"columns maps two columns to {min(twice)!r}; choose one")
    kept = [name for name in frame.columns if name in columns or name not in ours]
    return frame[kept].rename(columns=dict(columns))


def _choose_loss(frame: pd.DataFrame, validation: str | None, *, source: str) -> pd.DataFrame:
    """Make `loss` (and `loss_se`) that of one validation set."""
    losses = [name for name in map(str, frame.columns) if find_column(name) is FAMILIES["loss_"]]
    sets = [name.removeprefix("loss_") for name in losses]
    if validation is None:
        if "loss" in frame.columns or DEFAULT_VALIDATION not in sets:
            return frame
        validation = DEFAULT_VALIDATION
    name = name_column(validation)
    if validation == MEAN and name not in sets and sets:
        return _average_losses(frame, losses)
    if name not in sets:
        raise RunsError(f"{source} has no loss on validation set {validation!r}; it has {', '.join(sets) or 'none'}")
    se = f"loss_se_{name}"
    frame = frame.drop(columns="loss_se", errors="ignore").assign(loss=frame[f"loss_{name}"])
    return frame.assign(loss_se=frame[se]) if se in frame.columns else frame


def _average_losses(frame: pd.DataFrame, losses: Sequence[str]) -> pd.DataFrame:
    """Make `loss` the mean over validation sets; a run that lacks one has none."""
    mean = frame[list(losses)].apply(_to_numeric).mean(axis=1, skipna=False)
    frame = frame.drop(columns="loss_se", errors="ignore").assign(loss=mean)
    errors = [f"loss_se_{name.removeprefix('loss_')}" for name in losses]
    if not set(errors) <= set(frame.columns):
        return frame
    squares = frame[errors].apply(_to_numeric) ** 2
    return frame.assign(loss_se=squares.sum(axis=1, skipna=False) ** 0.5 / len(losses))


def _choose_error(frame: pd.DataFrame, tasks: str | Sequence[str] | None, *, source: str) -> pd.DataFrame:
    """Add `error_<set>` for every named set whose tasks are all there, and `error` for the chosen one."""
    prefix = "accuracy_"
    known = [str(name).removeprefix(prefix) for name in frame.columns if str(name).startswith(prefix)]

    def average(names: Sequence[str]) -> pd.Series:
        scores = frame[[prefix + name for name in names]].apply(_to_numeric)
        return 1 - scores.mean(axis=1, skipna=False)

    errors = {f"error_{key}": average(names) for key, names in TASK_SETS.items() if set(names) <= set(known)}
    if tasks is not None:
        wanted = find_tasks(tasks, known=known)
        if missing := [name for name in wanted if name not in known]:
            raise RunsError(
                f"{source} has no accuracy on {', '.join(map(repr, missing))}; named sets are "
                f"{', '.join(TASK_SETS)}; tasks are {', '.join(known) or 'none'}"
            )
        errors["error"] = average(wanted)
    elif "error" not in frame.columns and "error_17" in errors:
        errors["error"] = errors["error_17"]
    return frame.assign(**errors)


def _to_numeric(values: pd.Series) -> pd.Series:
    import pandas as pd

    return pd.to_numeric(values, errors="coerce")


_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.Compare,
    ast.BinOp,
    ast.UnaryOp,
    ast.Name,
    ast.Constant,
    ast.List,
    ast.Tuple,
)
_MARKS = (ast.boolop, ast.cmpop, ast.operator, ast.unaryop, ast.expr_context)


def match_rows(frame: pd.DataFrame, where: str, *, source: str = "the table of runs") -> NDArray[np.bool_]:
    """Mark the rows for which an expression over the columns holds; it can name and call nothing else.

    Raises:
        RunsError: no such expression, a column that is not there, or no row for which it holds.
    """
    import numpy as np

    quoted = {f"column_{i}_": name for i, name in enumerate(dict.fromkeys(re.findall(r"`([^`]*)`", where)))}
    plain = where
    for mark, name in quoted.items():
        plain = plain.replace(f"`{name}`", mark)
    try:
        tree = ast.parse(plain.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise RunsError(f"where={where!r} is no expression: {error}; wanted such as \"size != '1B'\"") from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED + _MARKS) or isinstance(node, ast.Pow):
            raise RunsError(
                f"where={where!r} uses {ast.unparse(node) or '**'!r}; wanted columns of the table, numbers "
                "and texts joined by comparisons, arithmetic, in, and, or, not"
            )
        name = quoted.get(node.id, node.id) if isinstance(node, ast.Name) else None
        if name is not None and name not in frame.columns:
            hint = nearest(name, map(str, frame.columns))
            raise RunsError(f"where={where!r} names {name!r}, no column of {source}{hint}")
    try:
        truth = frame.eval(where.strip(), engine="python", parser="pandas", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises whatever the columns' types make of the expression
        raise RunsError(f"where={where!r} does not fit the columns of {source}: {error}") from None
    mask = np.asarray(truth)
    if mask.dtype != bool or mask.shape != (len(frame),):
        raise RunsError(f"where={where!r} is not true or false of each row; wanted such as \"size != '1B'\"")
    if not mask.any():
        raise RunsError(f"where={where!r} keeps none of the {len(frame)} rows of {source}")
    return mask
