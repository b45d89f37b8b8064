"""Hold what came out of training runs: one `Run`, and the table of many.

A table of runs is any mapping of column name to sequence (a dict of arrays, a pandas or a polars frame), one
row a run. `lathe.columns` says what each column means, `DERIVATIONS` which follow from others, and `validate`
refuses a table that cannot be trusted. On disk a table is `runs.jsonl`: one `Run.to_row()` a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lathe.columns import FAMILIES, REQUIRED, Place, check_value, find_column, is_missing, name_column, read_column
from lathe.errors import RunsError, nearest
from lathe.shape import Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Table(Protocol):
    """Stand for any mapping of column name to sequence: a dict, a pandas or a polars frame."""

    def __getitem__(self, name: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


# column → what it is made from, and how; tried in order, only for columns that a table lacks
DERIVATIONS: Sequence[tuple[str, tuple[str, ...], Callable[..., Any]]] = (
    ("tokens", ("params", "flops"), lambda params, flops: flops / (6 * params)),
    ("params", ("tokens", "flops"), lambda tokens, flops: flops / (6 * tokens)),
    ("tokens", ("params", "tokens_per_param"), lambda params, ratio: params * ratio),
    ("flops", ("params", "tokens"), lambda params, tokens: 6 * params * tokens),
    ("tokens_per_param", ("params", "tokens"), lambda params, tokens: tokens / params),
    ("vocab_params", ("vocab_size", "d_model"), lambda vocab_size, d_model: vocab_size * d_model),
    ("non_vocab_params", ("non_embedding_params",), lambda params: params),
    ("aspect", ("d_model", "n_layers"), lambda d_model, n_layers: d_model / n_layers),
)


PLAIN = (
    "train_loss", "seed", "trunk", "recipe_id", "flops", "device", "seconds", "energy_j", "steps", "seq_len",
    "batch_tokens", "lr", "git", "created", "curve_file",
)  # fmt: skip
"""Columns that are a `Run`'s own fields, as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Hold what came out of one training run.

    `losses` maps a validation set to a loss in nats per token and `validation` names the one that is the
    run's `loss` (a run-mean loss goes under "train"); `loss_ses` are their standard errors, `accuracies` go
    from 0 to 1. `train_loss` is the mean over the run, whatever `loss` is; `created` is a date and time, ISO 8601.
    """

    name: str
    shape: Shape
    tokens: int
    losses: dict[str, float]
    validation: str
    loss_ses: dict[str, float] = field(default_factory=dict)
    loss_kind: str = "held-out"
    accuracies: dict[str, float] = field(default_factory=dict)
    size: str | None = None
    dataset: str | None = None
    seed: int | None = None
    trunk: str | None = None
    recipe_id: str | None = None
    flops: float | None = None
    device: str | None = None
    seconds: float | None = None
    train_loss: float | None = None
    steps: int | None = None
    seq_len: int | None = None
    batch_tokens: int | None = None
    lr: float | None = None
    energy_j: float | None = None
    git: str | None = None
    created: str | None = None
    curve_file: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.validation not in self.losses:
            hint = nearest(self.validation, self.losses)
            raise RunsError(f"run {self.name!r} has no loss on validation set {self.validation!r}{hint}")
        if extra := set(self.loss_ses) - set(self.losses):
            raise RunsError(f"run {self.name!r} has a standard error but no loss on {sorted(extra)}")
        columns = [f"loss_{name_column(key)}" for key in self.losses]
        if clash := {c for c in columns if columns.count(c) > 1 or find_column(c) is not FAMILIES["loss_"]}:
            raise RunsError(f"run {self.name!r}: column {min(clash)!r} would mean two things; rename the set")
        for column, value in self.to_row().items():
            check_value(value, column=column, source=f"run {self.name!r}")

    @property
    def loss(self) -> float:
        """Give the loss on the run's own validation set, in nats per token."""
        return self.losses[self.validation]

    def to_row(self) -> dict[str, Any]:
        """Flatten to one row of a table of runs, without unset columns and `versions`."""
        shape = self.shape
        row = {
            "name": self.name,
            "size": self.size,
            "params": shape.params,
            "non_embedding_params": shape.non_embedding_params,
            **{key: getattr(shape, key) for key in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")},
            "vocab_size": shape.vocab_size,
            "tied": shape.tied,
            "stored_ratio": shape.stored_layers / shape.n_layers,
            "tokens": self.tokens,
            "dataset": self.dataset,
            "loss": self.loss,
            "loss_kind": self.loss_kind,
            "loss_se": self.loss_ses.get(self.validation),
            **{key: getattr(self, key) for key in PLAIN},
            **{f"loss_{name_column(key)}": value for key, value in self.losses.items()},
            **{f"loss_se_{name_column(key)}": value for key, value in self.loss_ses.items()},
            **{f"accuracy_{name_column(key)}": value for key, value in self.accuracies.items()},
        }
        return {key: value for key, value in row.items() if value is not None}


def _to_numbers(values: Any) -> NDArray[np.float64]:
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        number = (int, float)
        cells = [float(v) if isinstance(v, number) and not is_missing(v) else np.nan for v in array.tolist()]
        return np.array(cells, dtype=np.float64)
    return array.astype(np.float64)


def derive(table: Table) -> dict[str, NDArray[np.float64]]:
    """Compute the columns that a table lacks and that follow from those it has, as `DERIVATIONS` says.

    Returns only the new columns, NaN where an ingredient is missing or no number.
    """
    import numpy as np

    present, derived = set(list_columns(table)), {}
    for name, needs, compute in DERIVATIONS:
        if name in present or not present.issuperset(needs):
            continue
        with np.errstate(all="ignore"):
            derived[name] = compute(*(derived[n] if n in derived else _to_numbers(table[n]) for n in needs))
        present.add(name)
    return derived


def validate(
    table: Table,
    *,
    source: str = "the table of runs",
    target: str = "loss",
    columns: Iterable[str] = REQUIRED,
    rows: Sequence[int] | None = None,
) -> dict[str, NDArray[Any]]:
    """Check a table of runs and return its columns, and those that follow from them, as arrays.

    `target` and `columns` must be there without gaps; other known columns are checked where present, unknown
    ones pass. A column without any value counts as absent. Counts become int64, other numbers float64, text
    objects.

    Args:
        source: what to call the table in messages.
        rows: what to call each row in messages, where that is not 1, 2, 3 …

    Raises:
        RunsError: naming row and column, for a missing or mistyped column, a missing, infinite or impossible
            value, two rows equal in every column, mixed kinds of loss, or a table without rows.
    """
    import numpy as np

    needed = list(dict.fromkeys((target, *columns)))
    raw = {name: _to_array(table[name], name=name, source=source) for name in list_columns(table)}
    if not raw:
        raise RunsError(f"{source}: no columns in a {type(table).__name__}; wanted a mapping of name to values")
    place = _measure(raw, source=source, rows=rows)
    given = {name: values for name, values in raw.items() if name in needed or not _is_empty(values)}
    every = {**given, **derive(given)}
    for name in needed:
        if name not in every:
            raise RunsError(
                f"{source} has no column {name!r}{nearest(name, given)} "
                f"(read one of another name with columns={{'theirs': {name!r}}}, --columns theirs={name})"
            )
    arrays = {
        name: read_column(values, name=name, place=place, gaps=name not in needed) for name, values in every.items()
    }
    first = find_repeats(given)
    if (later := np.flatnonzero(first != np.arange(len(first)))).size:
        raise RunsError(
            f"{source}: {place.row(int(later[0]))} equals {place.row(int(first[later[0]]))} in every column; "
            "replicates differ at least in seed or loss: remove the copy, or read with duplicates='drop'"
        )
    if "loss_kind" in arrays:
        _check_loss_kind(arrays["loss_kind"], place=place)
    return arrays


def find_repeats(table: Table) -> NDArray[np.int64]:
    """Find, for each row, the earliest row equal to it in every column (itself where it is the first)."""
    import numpy as np

    codes: NDArray[Any] | None = None
    first: NDArray[Any] = np.zeros(0, dtype=np.int64)
    for name in list_columns(table):
        values = np.asarray(table[name])
        if values.dtype.kind not in "iufb":
            seen: dict[str, int] = {}
            values = np.array([seen.setdefault(repr(v), len(seen)) for v in values.tolist()], dtype=np.int64)
        _, inverse = np.unique(values, return_inverse=True)
        codes = inverse if codes is None else codes * (int(inverse.max(initial=0)) + 1) + inverse
        unique, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        if len(unique) == len(values):
            break
    return first if codes is None else first[codes]


def list_columns(table: Table) -> list[str]:
    """List a table's column names, in order; columns not named by text are left out."""
    names = getattr(table, "columns", table)  # iterating over a polars frame gives columns, not names
    return [name for name in names if isinstance(name, str)] if isinstance(names, Iterable) else []


def _to_array(values: Any, *, name: str, source: str) -> NDArray[Any]:
    import numpy as np

    try:
        return np.asarray(values)
    except ValueError:
        raise RunsError(f"{source}: column {name!r} holds sequences; wanted one value a row") from None


def _measure(raw: Mapping[str, NDArray[Any]], *, source: str, rows: Sequence[int] | None) -> Place:
    """Check that a table has rows, as many in every column, and prepare to name them."""
    lengths = {name: len(values) if values.ndim == 1 else -1 for name, values in raw.items()}
    count = next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length == -1:
            raise RunsError(f"{source}: column {name!r} has {raw[name].ndim} dimensions; wanted one value a row")
        if length != count:
            first = next(iter(lengths))
            raise RunsError(f"{source}: column {name!r} has {length} rows but {first!r} has {count}; wanted as many")
    if not count:
        raise RunsError(f"{source} has no rows; a table of runs needs one row a run")
    labels = raw["name"].tolist() if "name" in raw else None
    return Place(source=source, rows=range(1, count + 1) if rows is None else rows, labels=labels)


def _is_empty(values: NDArray[Any]) -> bool:
    if values.dtype.kind == "f":
        return bool((values != values).all())
    return values.dtype.kind == "O" and all(map(is_missing, values.tolist()))


def _check_loss_kind(kinds: NDArray[Any], *, place: Place) -> None:
    import numpy as np

    if (other := np.flatnonzero(kinds != kinds[0])).size:
        i = int(other[0])
        raise RunsError(
            f"{place.cell(i, 'loss_kind')} is {kinds[i]!r} but {place.row(0)} is {kinds[0]!r}; kinds of loss "
            f"do not mix: select one, --where \"loss_kind == '{kinds[0]}'\""
        )
