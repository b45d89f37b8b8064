"""What the charts of a law show, as plain rows: its runs, its curves between them, and its level lines over shapes.

Axes: n a run, g a point of a curve.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lathe.errors import LawError
from lathe.laws.law import Law
from lathe.laws.system import Array
from lathe.runs import DERIVATIONS, Table, derive, list_columns

GROUPS = 12
NEIGHBOURS = 1.15
"""Values within this factor of the next belong to one group, as in `lathe.laws.choose`."""
SPAN = 1.6
"""A group wider than this factor is no group: the values are cut into bins instead."""
BINS = 6
GRID = 40
NARROW = 1.3
"""Runs whose params are all within this factor are of one size: no curve along params."""
STRETCH = 1.4
"""How far a curve goes beyond its runs, as a factor."""

Row = dict[str, Any]
_MADE_OF = {name: needs for name, needs, _ in DERIVATIONS if name not in ("params", "tokens")}
_SHOWN = ("params", "tokens", "d_model", "n_layers", "tokens_per_param")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Which group each run belongs to, and the groups' names from the smallest value to the largest."""

    labels: tuple[str, ...]
    index_n: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Runs beside what a law predicts for them; `columns` are those that all tables of runs share."""

    law: Law
    level: float
    """Probability of every interval shown."""
    assume: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    held_out_n: np.ndarray
    measured_n: Array
    predicted_n: Array
    low_n: Array | None
    high_n: Array | None
    sizes: Groups
    ratios: Groups | None
    """Groups of tokens per param; None where the runs do not say."""

    @property
    def residual_n(self) -> Array:
        """Measured less predicted, in the unit that `residual_unit` names."""
        if self.law.log:
            return 100 * (self.measured_n / self.predicted_n - 1)
        return (self.measured_n - self.predicted_n) * (100 if in_parts(self.law.target) else 1)

    @property
    def residual_unit(self) -> str:
        """Name the residuals' unit: per cent of the prediction, points of a score, or the target's own."""
        if self.law.log:
            return "%"
        return "points" if in_parts(self.law.target) else "nats"

    @property
    def fields(self) -> dict[str, list[Any]]:
        """Lay out what a chart may show of each run, ready for JSON: no NaN, no arrays."""
        shape = [self.columns[c] for c in ("d_model", "n_layers") if c in self.columns]
        found: dict[str, list[Any]] = {
            "run": list(self.names),
            "split": ["held out" if h else "fitted" for h in self.held_out_n],
            "group": [self.sizes.labels[i] for i in self.sizes.index_n],
        }
        if self.ratios is not None:
            found["ratio"] = [self.ratios.labels[i] for i in self.ratios.index_n]
        if len(shape) == 2:
            found["shape"] = [f"{d:g} × {n:g}" for d, n in zip(*shape, strict=True)]
        shown = [c for c in dict.fromkeys((*_SHOWN, *self.law.columns)) if c in self.columns]
        numbers = {c: self.columns[c] for c in shown if self.columns[c].dtype.kind in "iuf"}
        numbers |= {"measured": self.measured_n, "predicted": self.predicted_n, "residual": self.residual_n}
        if self.low_n is not None and self.high_n is not None:
            numbers |= {"low": self.low_n, "high": self.high_n}
        return found | {key: [plain(v) for v in values] for key, values in numbers.items()}

    def rows(self) -> list[Row]:
        """List `fields` as one row a run."""
        fields = self.fields
        return [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]


def per_cent(share: float) -> str:
    """Write a share as people say it: 90 %."""
    return f"{100 * share:.4g} %"


def in_parts(target: str) -> bool:
    """Say whether a target goes from 0 to 1, as error and accuracy do."""
    return target.startswith(("error", "accuracy"))


def plain(value: Any) -> float | None:
    """Turn a number into one JSON knows, to seven digits; None for what it does not."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


def short(value: float) -> str:
    """Write a count as people say it: 80M, 1.6B."""
    for bound, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= bound * 0.9995:
            return f"{value / bound:.3g}{letter}"
    return f"{value:.3g}"


def read_points(
    law: Law, runs: Table, *, held_out: Table | None = None, level: float = 0.9, assume: Collection[str] = ()
) -> Points:
    """Set runs beside the law's predictions; rows without a measured target are left out.

    Raises:
        LawError: no row has the target, or the law cannot predict a row (see `Law.predict`).
    """
    tables = [_arrays(runs)] + ([] if held_out is None else [_arrays(held_out)])
    if missing := [t for t in tables if law.target not in t]:
        raise LawError(
            f"the runs have no column {law.target!r} to set beside the law; they have {', '.join(missing[0])}"
        )
    shared = [c for c in tables[0] if all(c in t for t in tables)]
    columns = {c: np.concatenate([t[c] for t in tables]) for c in shared}
    count = len(columns[law.target])
    held_out_n = np.arange(count) >= len(tables[0][law.target])
    keep_n = np.isfinite(columns[law.target].astype(np.float64))
    if not keep_n.any():
        raise LawError(f"no run has a value of {law.target!r} to draw")
    names = columns["name"] if "name" in columns else np.array([f"run {i + 1}" for i in range(count)], dtype=object)
    columns, names, held_out_n = {c: v[keep_n] for c, v in columns.items()}, names[keep_n], held_out_n[keep_n]
    predicted_n, low_n, high_n = predict_rows(law, columns, level=level, assume=assume)
    return Points(
        law=law,
        level=level,
        assume=tuple(assume),
        columns=columns,
        names=tuple(map(str, names)),
        held_out_n=held_out_n,
        measured_n=columns[law.target].astype(np.float64),
        predicted_n=predicted_n,
        low_n=low_n,
        high_n=high_n,
        sizes=_sizes(columns, law),
        ratios=_ratios(columns),
    )


def predict_rows(
    law: Law, columns: Table, *, level: float, assume: Collection[str]
) -> tuple[Array, Array | None, Array | None]:
    """Predict rows, with the ends of their interval where the law keeps draws."""
    predicted_n = law.predict(columns, assume=assume)
    if not any(m.interval_weight > 0 and len(m.draws_bp) > 1 for m in law.members):
        return predicted_n, None, None
    interval = law.interval(columns, level=level, assume=assume)
    return predicted_n, interval.low, interval.high


def group(values_n: Array, *, prefix: str = "") -> Groups:
    """Group numbers that lie together; six bins of equal ratio where they do not fall into groups.

    Values that are no positive number go with the smallest.
    """
    log_n = np.log(np.where(np.isfinite(values_n) & (values_n > 0), values_n, np.nan))
    log_n = np.nan_to_num(log_n, nan=float(np.nanmin(log_n)) if np.isfinite(log_n).any() else 0.0)
    order_n = np.argsort(log_n, kind="stable")
    index_n = np.empty(len(log_n), dtype=np.intp)
    index_n[order_n] = np.concatenate([[0], np.cumsum(np.diff(log_n[order_n]) > np.log(NEIGHBOURS))])
    spans = [np.ptp(log_n[index_n == g]) for g in range(index_n.max() + 1)]
    if len(spans) > GROUPS or max(spans) > np.log(SPAN):
        edges = np.linspace(log_n.min(), log_n.max(), BINS + 1)[1:-1]
        _, index_n = np.unique(np.searchsorted(edges, log_n), return_inverse=True)
    middles = [np.exp(np.median(log_n[index_n == g])) for g in range(index_n.max() + 1)]
    return Groups(labels=tuple(prefix + _two_digits(m) for m in middles), index_n=index_n)


def _two_digits(value: float) -> str:
    return short(float(f"{value:.2g}"))


def trace(points: Points, *, axis: str, groups: Groups) -> list[Row]:
    """Follow the law along one axis through each group of runs: rows of group, axis, predicted, low, high.

    Along params, the shape is the group's typical one at each size: every column the law reads follows a power of
    params. Along any other axis, all else is the group's middle run's.
    """
    needed = [c for c in list_primaries(points.law.columns, points.columns) if c != axis]
    parts: list[dict[str, Array]] = []
    labels: list[str] = []
    for g, label in enumerate(groups.labels):
        rows = np.flatnonzero(groups.index_n == g)
        at_n = points.columns[axis][rows].astype(np.float64)
        span = at_n.max() / at_n.min()
        if axis == "params" and span < NARROW:
            continue
        stretch = STRETCH if axis == "tokens" else min(STRETCH, span**0.25)
        x_g = np.geomspace(at_n.min() / stretch, at_n.max() * stretch, GRID)
        middle = rows[_middle(points.columns, rows, needed)]
        part = {axis: x_g}
        for name in needed:
            values_n = points.columns[name].astype(np.float64)
            follow = axis == "params"
            part[name] = _power(at_n, values_n[rows], x_g) if follow else np.full(GRID, values_n[middle])
        parts.append(part)
        labels += [label] * GRID
    if not parts:
        return []
    columns = {name: np.concatenate([p[name] for p in parts]) for name in (axis, *needed)}
    return _curve_rows(points, columns, axis, labels)


def _curve_rows(points: Points, columns: Mapping[str, Array], axis: str, labels: list[str]) -> list[Row]:
    predicted_g, low_g, high_g = predict_rows(points.law, columns, level=points.level, assume=points.assume)
    rows: list[Row] = [
        {"group": label, axis: plain(x), "predicted": plain(y)}
        for label, x, y in zip(labels, columns[axis], predicted_g, strict=True)
    ]
    if low_g is not None and high_g is not None:
        for row, low, high in zip(rows, low_g, high_g, strict=True):
            row |= {"low": plain(low), "high": plain(high)}
    return rows


def list_primaries(wanted: Iterable[str], columns: Mapping[str, Any]) -> list[str]:
    """List the columns that others follow from, for those a law reads: d_model and n_layers for aspect."""
    found: list[str] = []
    for name in wanted:
        needs = _MADE_OF.get(name, ())
        if needs and all(n in columns for n in needs):
            found += list_primaries(needs, columns)
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _middle(columns: Mapping[str, Any], rows: np.ndarray, names: list[str]) -> int:
    """Find the run nearest its group's medians, in logs."""
    names = [n for n in dict.fromkeys((*names, "params")) if n in columns]
    data = [np.log(np.maximum(columns[n][rows].astype(np.float64), 1e-300)) for n in names]
    return int(np.argmin(sum((d - np.median(d)) ** 2 for d in data))) if data else 0


def _power(at_n: Array, values_n: Array, x_g: Array) -> Array:
    """Fit values = c · at^p in logs and evaluate it."""
    if (values_n <= 0).any() or np.ptp(values_n) == 0:
        return np.full(len(x_g), np.median(values_n))
    slope, constant = np.polyfit(np.log(at_n) - np.log(at_n[0]), np.log(values_n), 1)
    return np.exp(constant + slope * (np.log(x_g) - np.log(at_n[0])))


def _arrays(table: Table) -> dict[str, np.ndarray]:
    given = {name: np.asarray(table[name]) for name in list_columns(table)}
    return {**given, **derive(given)}


def _sizes(columns: Mapping[str, np.ndarray], law: Law) -> Groups:
    named = [str(v) for v in columns["size"]] if "size" in columns else []
    key = "params" if "params" in columns else next(iter(law.columns), law.target)
    scale_n = columns[key].astype(np.float64)
    if named and len(set(named)) <= GROUPS:
        order = sorted(set(named), key=lambda s: float(np.mean(scale_n[[n == s for n in named]])))
        return Groups(labels=tuple(order), index_n=np.array([order.index(n) for n in named]))
    return group(scale_n)


def _ratios(columns: Mapping[str, np.ndarray]) -> Groups | None:
    if "tokens_per_param" not in columns:
        return None
    return group(columns["tokens_per_param"].astype(np.float64), prefix="×")
