"""Say what the columns of a table of runs hold, and read them cell by cell.

`COLUMNS` is the one place that names a column, its kind, unit and bounds; `FAMILIES` does so for the columns
whose name ends in a validation set or task. `read_column` turns a column into an array or says which cell is
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from lathe.errors import RunsError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOSS_KINDS = ("held-out", "train-run-mean", "un-annealed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Say what one column of a table of runs holds.

    `gaps` allows rows without a value; `low` and `high` are inclusive, `positive` asks for more than zero,
    and `choices` are the only texts allowed where there are any.
    """

    kind: Literal["float", "int", "str", "bool"]
    meaning: str
    unit: str | None = None
    required: bool = False
    positive: bool = False
    gaps: bool = False
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


COLUMNS: Mapping[str, Column] = {
    "name": Column(kind="str", meaning="what the run is called; runs of one shape may share it", gaps=True),
    "size": Column(kind="str", meaning="nominal size, such as 80M: cross-validation leaves out whole sizes"),
    "params": Column(
        kind="float",
        meaning="all stored weights; a fraction only where read off a figure",
        required=True,
        positive=True,
    ),
    "non_embedding_params": Column(
        kind="float",
        meaning="params without token embedding, output head and learned positions",
        positive=True,
    ),
    "d_model": Column(kind="int", meaning="width", positive=True),
    "n_layers": Column(kind="int", meaning="depth", positive=True),
    "n_heads": Column(kind="int", meaning="query heads", positive=True),
    "n_kv_heads": Column(kind="int", meaning="key and value heads", positive=True),
    "d_ff": Column(kind="int", meaning="hidden width of the feed-forward block", positive=True),
    "vocab_size": Column(kind="int", meaning="rows of the embedding, padding included", positive=True),
    "tied": Column(kind="bool", meaning="whether the output head is the embedding"),
    "tokens": Column(kind="float", meaning="training tokens seen", required=True, positive=True),
    "stored_ratio": Column(
        kind="float", meaning="stored layers / n_layers: 1 where no layer is shared", positive=True, high=1.0
    ),
    "dataset": Column(kind="str", meaning="training data", gaps=True),
    "loss": Column(kind="float", meaning="loss of the kind `loss_kind` says", unit="nats per token", positive=True),
    "loss_kind": Column(kind="str", meaning="where the loss was taken; kinds are never mixed", choices=LOSS_KINDS),
    "loss_se": Column(kind="float", meaning="standard error of `loss`", unit="nats per token", gaps=True, low=0.0),
    "train_loss": Column(
        kind="float", meaning="training loss, mean over the run", unit="nats per token", gaps=True, positive=True
    ),
    "seed": Column(kind="int", meaning="seed of initialisation and data order", gaps=True),
    "trunk": Column(kind="str", meaning="the run whose stable phase this one branched from", gaps=True),
    "aspect": Column(kind="float", meaning="d_model / n_layers", positive=True),
    "tokens_per_param": Column(kind="float", meaning="tokens / params", positive=True),
    "nominal_tokens_per_param": Column(kind="float", meaning="the ratio that was asked for", positive=True),
    "flops": Column(kind="float", meaning="training FLOPs; 6·params·tokens where not given", positive=True),
    "vocab_params": Column(kind="float", meaning="vocab_size · d_model", positive=True),
    "non_vocab_params": Column(kind="float", meaning="params without embedding and head", positive=True),
    "unigram_normalised_loss": Column(
        kind="float", meaning="loss less that of a unigram model", unit="nats per token", gaps=True
    ),
    "error": Column(
        kind="float",
        meaning="mean top-1 error over the chosen tasks",
        unit="0–1",
        gaps=True,
        low=0.0,
        high=1.0,
    ),
    "recipe_id": Column(kind="str", meaning="hash of the recipe", gaps=True),
    "device": Column(kind="str", meaning="what the run was trained on", gaps=True),
    "seconds": Column(kind="float", meaning="training time", unit="s", gaps=True, positive=True),
    "energy_j": Column(kind="float", meaning="energy the training took", unit="J", gaps=True, low=0.0),
    "steps": Column(kind="int", meaning="steps of the optimiser", gaps=True, positive=True),
    "seq_len": Column(kind="int", meaning="tokens of a training sequence", gaps=True, positive=True),
    "batch_tokens": Column(kind="int", meaning="tokens of a step", gaps=True, positive=True),
    "lr": Column(kind="float", meaning="peak learning rate", gaps=True, positive=True),
    "git": Column(kind="str", meaning="commit trained at; -dirty where files had changed", gaps=True),
    "created": Column(kind="str", meaning="when the training ended, ISO 8601", gaps=True),
    "curve_file": Column(kind="str", meaning="file of the training loss curve", gaps=True),
}
# prefix of a column's name → what all such columns hold; the first match counts
FAMILIES: Mapping[str, Column] = {
    "loss_se_": Column(
        kind="float",
        meaning="standard error of the loss on a validation set",
        unit="nats per token",
        gaps=True,
        low=0.0,
    ),
    "loss_": Column(kind="float", meaning="loss on a validation set", unit="nats per token", gaps=True, positive=True),
    "error_": Column(
        kind="float", meaning="mean top-1 error over a set of tasks", unit="0–1", gaps=True, low=0.0, high=1.0
    ),
    "accuracy_": Column(kind="float", meaning="accuracy on a task", unit="0–1", gaps=True, low=0.0, high=1.0),
}
REQUIRED = tuple(name for name, spec in COLUMNS.items() if spec.required)


def find_column(name: str) -> Column | None:
    """Look up what a column holds, by its name or its family; None for a column Lathe does not know."""
    if name in COLUMNS:
        return COLUMNS[name]
    return next((spec for prefix, spec in FAMILIES.items() if name.startswith(prefix)), None)


def name_column(name: str) -> str:
    """Turn the name of a validation set or task into the end of a column's name: word characters only."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def check_value(value: Any, *, column: str, source: str) -> None:
    """Refuse a value that its column cannot hold.

    Raises:
        RunsError: naming the column and what it wants.
    """
    import numpy as np

    cell = np.empty(1, dtype=object)
    cell[0] = value
    read_column(cell, name=column, place=Place(source=source, rows=()), gaps=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Name a cell of one table in a message.

    `rows` are the numbers to call its rows by (none for a single value) and `labels` their names, where
    known.
    """

    source: str
    rows: Sequence[int]
    labels: Sequence[Any] | None = None

    def row(self, i: int) -> str:
        """Name a row."""
        label = self.labels[i] if self.labels is not None else None
        return f"row {self.rows[i]}" + (f" ({label})" if isinstance(label, str) else "")

    def cell(self, i: int, column: str) -> str:
        """Name a cell."""
        return f"{self.source}: {self.row(i) + ', ' if self.rows else ''}column {column!r}"


def read_column(values: NDArray[Any], *, name: str, place: Place, gaps: bool) -> NDArray[Any]:
    """Turn a column into an array of its kind, or refuse it.

    Counts become int64 (float64 where some are missing), other numbers float64, text objects with None for
    gaps. `gaps` says whether the use at hand can do without some values; the column itself may still forbid
    them. Without gaps, a column that Lathe does not know must hold finite numbers; with them it passes as it
    is.

    Raises:
        RunsError: naming row and column.
    """
    import numpy as np

    spec = find_column(name)
    if spec is None and gaps:
        return values
    spec = spec or Column(kind="float", meaning="a column of the user's")
    array, missing, bad = _READERS[spec.kind](values)
    if bad is not None:
        value = values[bad : bad + 1].tolist()[0]
        raise RunsError(f"{place.cell(bad, name)} is {value!r}; wanted {_WANTED[spec.kind]}")
    if not (gaps and spec.gaps) and missing.any():
        raise RunsError(
            f"{place.cell(int(np.argmax(missing)), name)} has no value (NaN); fill it in, or leave such rows "
            f"out with where={f'{name} == {name}'!r}"
        )
    if spec.choices and (wrong := [i for i, v in enumerate(array) if v is not None and v not in spec.choices]):
        value = array[wrong[0]]
        raise RunsError(f"{place.cell(wrong[0], name)} is {value!r}{nearest(value, spec.choices)}")
    if spec.kind in ("float", "int"):
        _check_bounds(array, spec=spec, name=name, place=place)
    return array


def _check_bounds(array: NDArray[Any], *, spec: Column, name: str, place: Place) -> None:
    import numpy as np

    span = f"from {spec.low:g} to {spec.high:g}" if spec.high < math.inf else f"{spec.low:g} or more"
    for broken, wanted in (
        (np.isinf(array), "a finite number"),
        ((array <= 0) & spec.positive, "more than 0"),
        ((array < spec.low) | (array > spec.high), span),
    ):
        if broken.any():
            i = int(np.argmax(broken))
            unit = f" ({spec.unit})" if spec.unit else ""
            raise RunsError(f"{place.cell(i, name)} is {array[i]}; wanted {wanted}{unit}")


def is_missing(value: Any) -> bool:
    """Say whether a cell holds nothing: None, NaN, or what pandas puts there."""
    missing_types = ("NoneType", "NAType", "NaTType")  # the last two are pandas'
    return type(value).__name__ in missing_types or (isinstance(value, float) and value != value)


def _parses(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


# A reader returns the array, which cells are missing, and the index of the first cell of another type, if
# any.


def _read_float(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], int | None]:
    import numpy as np

    if values.dtype.kind in "iuf":
        array = values.astype(np.float64)
        return array, np.isnan(array), None
    array, missing, bad = np.full(len(values), np.nan), np.zeros(len(values), dtype=bool), []
    for i, value in enumerate(values.tolist()):
        if is_missing(value):
            missing[i] = True
        elif isinstance(value, Real | Decimal) and not isinstance(value, bool):
            try:
                array[i] = float(value)
            except OverflowError:
                array[i] = math.inf
        else:
            bad.append(i)
    # one word in a column of a text file turns its numbers to text: name the word, not the first number
    words = (i for i in bad if not _parses(values[i]))
    return array, missing, next(words, bad[0]) if bad else None


def _read_int(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], int | None]:
    import numpy as np

    if values.dtype.kind in "iu":
        return values.astype(np.int64), np.zeros(len(values), dtype=bool), None
    array, missing, bad = _read_float(values)
    broken = np.isfinite(array) & (array != np.round(array))
    if bad is None and broken.any():
        bad = int(np.argmax(broken))
    whole = bad is None and bool(np.isfinite(array).all())
    return (array.astype(np.int64) if whole else array), missing, bad


def _read_bool(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], int | None]:
    import numpy as np

    cells = values.tolist()
    missing = np.array([is_missing(v) for v in cells], dtype=bool)
    bad = next((i for i, v in enumerate(cells) if not missing[i] and not (isinstance(v, Real) and v in (0, 1))), None)
    truth = [not gap and bool(v) for v, gap in zip(cells, missing, strict=True)]
    return np.array(truth, dtype=bool), missing, bad


def _read_str(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], int | None]:
    import numpy as np

    array, missing = np.full(len(values), None, dtype=object), np.zeros(len(values), dtype=bool)
    for i, value in enumerate(values.tolist()):
        if is_missing(value):
            missing[i] = True
        elif isinstance(value, str):
            array[i] = value
        elif isinstance(value, Real) and not isinstance(value, bool):
            array[i] = f"{value:g}" if isinstance(value, float) and value == int(value) else str(value)
        else:
            return array, missing, i
    return array, missing, None


_READERS = {"float": _read_float, "int": _read_int, "bool": _read_bool, "str": _read_str}
_WANTED = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}
