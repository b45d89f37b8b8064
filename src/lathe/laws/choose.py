"""Choose a form by predicting what it has not seen: folds that leave whole sizes out, and the weights that follow.

Axes: f a fold, n a run, p a parameter.

The rules were compared on every table at hand (benchmarks/choose.py, docs/laws.md): averaging the forms within 1.5× of
the lowest leave-one-size-out error beats picking the lowest and other cuts; smooth weights come close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lathe.errors import LawError, nearest
from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.forms import Form
from lathe.laws.system import Array, System, column, predict
from lathe.runs import Table, list_columns

NEIGHBOURS = 1.15
"""Runs whose params are within this factor of the next belong to one size, where the table names none."""
WITHIN = 1.5
"""A form joins the average when its leave-one-size-out RMS is within this factor of the best."""
INTERVAL_POWER = 4
INTERVAL_LEAST = 0.05
FOLD_CELLS = 1000
RULES = ("auto", "size", "clusters", "quantiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Which size each run belongs to, smallest first, and the rule that said so."""

    rule: str
    labels: tuple[str, ...]
    index_n: np.ndarray

    @property
    def leave_one_out(self) -> np.ndarray:
        """Return masks (f, n) of the runs fitted when each size is left out."""
        return self.index_n[None, :] != np.arange(len(self.labels))[:, None]

    @property
    def forward(self) -> np.ndarray:
        """Return masks (f, n) of the runs fitted when all sizes above one are left out; two sizes at least.

        Two, because one size says nothing of what size does.
        """
        return self.index_n[None, :] <= np.arange(1, len(self.labels) - 1)[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What cross-validation says of one form.

    Errors are RMS of log residuals, so .01 is one per cent; of residuals themselves where the form may be negative.
    """

    form: str
    leave_one_out: float | None = None
    """Pooled RMS over the sizes left out; None where none can be."""
    forward: float | None = None
    """Pooled RMS over forward folds; None where too few sizes leave a fold to fit."""
    cv: float | None = None
    """Geometric mean of the RMS of every fold, both kinds; the fit's own residual error where there is no fold."""
    weight: float = 0.0
    interval_weight: float = 0.0
    excluded: str = ""
    """Why the form was not considered; empty if it was."""


def check_rule(rule: str) -> None:
    """Refuse a rule of grouping that is not in `RULES`. Raises LawError with the nearest."""
    if rule not in RULES:
        raise LawError(f"folds={rule!r} is not a rule{nearest(rule, RULES)}")


def sizes(columns: Table, *, rule: str = "auto", fallback: str | None = None) -> Folds:
    """Group runs into sizes: the table's `size` column, else neighbours within 15 % of params, else six quantile bins.

    Args:
        rule: "auto" tries the three in that order; or one of them by name.
        fallback: the column to bin when the table has no params.

    Raises:
        LawError: the rule is unknown, or needs a column that is not there.
    """
    known = list_columns(columns)
    check_rule(rule)
    named = "size" in known and not _any_missing(columns["size"])
    if rule == "size" and not named:
        raise LawError("folds='size' needs a `size` column without gaps; leave folds='auto', or use 'clusters'")
    key = "params" if "params" in known else fallback
    scale_n = None if key is None else column(columns, key)
    if rule == "size" or (rule == "auto" and named):
        labels_n = np.asarray([str(v) for v in np.asarray(columns["size"], dtype=object)])
        order = scale_n if scale_n is not None else np.arange(len(labels_n), dtype=float)
        names = sorted(set(labels_n), key=lambda s: float(np.mean(order[labels_n == s])))
        if len(names) > 1 or rule == "size":
            return Folds(rule="size", labels=tuple(names), index_n=np.array([names.index(s) for s in labels_n]))
    if scale_n is None or key is None:
        raise LawError("sizes cannot be told apart: the table has neither a `size` nor a `params` column")
    if rule in ("auto", "clusters"):
        order_n = np.argsort(scale_n, kind="stable")
        breaks = np.diff(np.log(scale_n[order_n])) > np.log(NEIGHBOURS)
        index_n = np.empty(len(scale_n), dtype=np.intp)
        index_n[order_n] = np.concatenate([[0], np.cumsum(breaks)])
        if rule == "clusters" or index_n.max() >= 2:
            return _binned("clusters", key, scale_n, index_n)
    edges = np.unique(np.quantile(scale_n, np.linspace(0, 1, 7)[1:-1]))
    _, index_n = np.unique(np.searchsorted(edges, scale_n, side="left"), return_inverse=True)
    return _binned("quantiles", key, scale_n, index_n)


def _any_missing(values: object) -> bool:
    return any(v is None or v != v for v in np.asarray(values, dtype=object))


def _binned(rule: str, key: str, scale_n: Array, index_n: np.ndarray) -> Folds:
    labels = tuple(f"{key} {np.exp(np.log(scale_n[index_n == i]).mean()):.3g}" for i in range(index_n.max() + 1))
    return Folds(rule=rule, labels=labels, index_n=index_n)


def residuals(form: Form, theta_fp: Array, columns: Table, y_n: Array) -> Array:
    """Take what each parameter vector misses at each run, in log where the form is positive; returns axes f, n."""
    value_fn = predict(form, theta_fp, columns)
    with np.errstate(all="ignore"):
        r_fn = np.log(value_fn / y_n) if form.positive else value_fn - y_n
    return np.nan_to_num(r_fn, nan=1e3, posinf=1e3, neginf=-1e3)


def cross_validate(
    form: Form, system: System, columns: Table, y_n: Array, loss: Loss, folds: Folds
) -> tuple[float, float | None, float]:
    """Predict each left-out size, and all sizes above each, from the rest.

    Returns the pooled leave-one-out RMS, the pooled forward RMS (None without a forward fold), and cv, the geometric
    mean of every fold's RMS. A fold that leaves no more rows than parameters is passed over.

    Raises:
        LawError: no leave-one-out fold can be fitted.
    """
    masks_fn = np.concatenate([folds.leave_one_out, folds.forward])
    is_forward_f = np.arange(len(masks_fn)) >= len(folds.labels)
    usable_f = (masks_fn.sum(axis=1) > system.size) & (~masks_fn).any(axis=1)
    masks_fn, is_forward_f = masks_fn[usable_f], is_forward_f[usable_f]
    if is_forward_f.all():
        raise LawError(
            f"form {form.name!r} has {system.size} parameters and no size can be left out: {len(y_n)} runs in"
            f" {len(folds.labels)} size{'s' if len(folds.labels) != 1 else ''}; add runs or sizes"
        )
    theta_fp, _ = solve(system, y_n, masks_fn.astype(np.float64), loss, cells=FOLD_CELLS, keep=12)
    r_fn = np.where(masks_fn, np.nan, residuals(form, theta_fp, columns, y_n))
    rms_f = np.sqrt(np.nanmean(r_fn**2, axis=1))

    def pooled(rows: np.ndarray) -> float:
        return float(np.sqrt(np.nanmean(r_fn[rows] ** 2)))

    cv = float(np.exp(np.mean(np.log(np.maximum(rms_f, 1e-12)))))
    return pooled(~is_forward_f), pooled(is_forward_f) if is_forward_f.any() else None, cv


def weigh(scores: Sequence[Score]) -> list[Score]:
    """Give each considered form its weight in the average and in the interval; best first, the excluded last."""
    considered = sorted((s for s in scores if not s.excluded), key=lambda s: s.leave_one_out or 0.0)
    if not considered:
        return list(scores)
    lowest = considered[0].leave_one_out or 0.0
    inside = [(s.leave_one_out or 0.0) <= WITHIN * lowest for s in considered]
    raw = np.array([max(s.cv or 0.0, 1e-9) ** -INTERVAL_POWER for s in considered])
    share = raw / raw.sum()
    share = np.where(share < INTERVAL_LEAST, 0.0, share)
    share = share / share.sum()
    weighed = [
        replace(s, weight=float(i) / sum(inside), interval_weight=float(w))
        for s, i, w in zip(considered, inside, share, strict=True)
    ]
    return weighed + [s for s in scores if s.excluded]
