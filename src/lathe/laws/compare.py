"""Set forms side by side on one split, fitted on some runs and judged on others; and repeat published fits.

Axes: n a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lathe.errors import LawError
from lathe.laws.choose import sizes
from lathe.laws.fit import Progress, fit
from lathe.laws.forms import Objective
from lathe.laws.system import Array, column
from lathe.runs import Table, list_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one law did on one split. Errors are |predicted/true - 1|."""

    form: str
    fit_set: str
    fit_runs: int
    test_runs: int
    mse: float
    r2: float
    """Share of the test losses' variance explained; below zero when worse than their mean."""
    mean_error: float
    """Mean relative error over the focus runs."""
    errors: tuple[float, ...]
    """Relative error of each focus run, in the table's order."""
    spearman: float | None
    """Rank correlation of predicted and true over the focus runs; None for fewer than three."""


def select(runs: Table, keep_n: np.ndarray) -> dict[str, np.ndarray]:
    """Take the rows of a table where the mask holds."""
    return {name: np.asarray(runs[name])[keep_n] for name in list_columns(runs)}


def compare(
    runs: Table,
    forms: Sequence[str],
    *,
    fitted_n: np.ndarray,
    focus_n: np.ndarray,
    target: str = "loss",
    objective: Objective | None = None,
    fit_set: str = "",
    folds: str = "auto",
    progress: Progress = lambda what, share: None,
) -> list[Comparison]:
    """Fit each form to the runs of one mask and judge it on all of them and, apart, on the focus runs.

    Args:
        forms: names of rows of `FORMS`, "auto" or "best".
        fitted_n: which runs are fitted.
        focus_n: which runs the relative errors and the rank correlation are over.
        progress: called before each fit with what it is and the share done.

    Raises:
        LawError, RunsError: as `fit` raises, or when a mask is empty.
    """
    for name, mask_n in (("fit", fitted_n), ("focus", focus_n)):
        if not mask_n.any():
            raise LawError(f"no run is in the {name} set; check the expression that selects it")
    y_n = column(runs, target)
    found = []
    for form in forms:
        progress(form, len(found) / len(forms))
        law = fit(select(runs, fitted_n), form, target=target, objective=objective, draws=0, folds=folds)
        found.append(_judge(form, fit_set, fitted_n, y_n, law.predict(runs), focus_n))
    return found


def leave_sizes_out(
    runs: Table,
    forms: Sequence[str],
    *,
    target: str = "loss",
    objective: Objective | None = None,
    folds: str = "auto",
    progress: Progress = lambda what, share: None,
) -> list[Comparison]:
    """Predict each size from the rest with each form; "auto" chooses anew inside each fold. Raises as `fit` does."""
    split = sizes(runs, rule=folds)
    only, *others = split.labels
    if not others:
        raise LawError(f"the runs are all of one size ({only}), so none can be left out")
    y_n = column(runs, target)
    found = []
    for form in forms:
        guess_n = np.full(len(y_n), np.nan)
        for i, kept_n in enumerate(split.leave_one_out):
            progress(f"{form}, without {split.labels[i]}", (len(found) + i / len(split.labels)) / len(forms))
            law = fit(select(runs, kept_n), form, target=target, objective=objective, draws=0, folds=folds)
            guess_n[~kept_n] = law.predict(select(runs, ~kept_n))
        every_n = np.ones(len(y_n), dtype=bool)
        found.append(_judge(form, f"all but one of {len(split.labels)} sizes", every_n, y_n, guess_n, every_n))
    return found


def _judge(
    form: str, fit_set: str, fitted_n: np.ndarray, y_n: Array, guess_n: Array, focus_n: np.ndarray
) -> Comparison:
    from scipy.stats import spearmanr

    errors_n = np.abs(guess_n / y_n - 1)[focus_n]
    with warnings.catch_warnings():  # a law that ranks nothing predicts a constant: its correlation is NaN, not news
        warnings.simplefilter("ignore")
        ranked: Any = spearmanr(y_n[focus_n], guess_n[focus_n]) if focus_n.sum() > 2 else None
    rank = float("nan") if ranked is None else float(ranked.statistic)
    spread = float(np.sum((y_n - y_n.mean()) ** 2))
    return Comparison(
        form=form,
        fit_set=fit_set,
        fit_runs=int(fitted_n.sum()),
        test_runs=len(y_n),
        mse=float(np.mean((guess_n - y_n) ** 2)),
        r2=1 - float(np.sum((guess_n - y_n) ** 2)) / spread if spread else float("nan"),
        mean_error=float(errors_n.mean()),
        errors=tuple(errors_n.tolist()),
        spearman=None if np.isnan(rank) else rank,
    )


# The laws of Bian et al. 2025 as their authors fitted them (arXiv:2501.18107 and its published fitting scripts): plain
# least squares on the loss, no bounds, every parameter started at one, R² from predictions rounded to four digits.
# `aspect-free` starts epsilon at .001 instead: from one the optimiser runs off to an MSE of .4, and the published
# coefficients are those it finds from here.


def _tied(x: tuple[Array, ...], a: float, b: float, e: float, alpha: float) -> Array:
    n, d, _ = x
    return e + a / np.power(n, alpha) + b / np.power(d, alpha)


def _aspect(x: tuple[Array, ...], a: float, b: float, e: float, alpha: float, epsilon: float) -> Array:
    return _tied(x, a, b, e, alpha) * (1 + epsilon * np.power(x[2], alpha))


def _aspect_free(
    x: tuple[Array, ...], a: float, b: float, e: float, alpha: float, epsilon: float, gamma: float
) -> Array:
    return _tied(x, a, b, e, alpha) * (1 + epsilon * np.power(x[2], gamma))


AS_PUBLISHED: dict[str, tuple[Callable[..., Array], dict[str, float]]] = {
    "chinchilla-tied": (_tied, {"A": 1, "B": 1, "E": 1, "alpha": 1}),
    "aspect": (_aspect, {"A": 1, "B": 1, "E": 1, "alpha": 1, "epsilon": 1}),
    "aspect-free": (_aspect_free, {"A": 1, "B": 1, "E": 1, "alpha": 1, "epsilon": 1e-3, "gamma": 1}),
}
"""Form → its function, and where each parameter starts."""
PUBLISHED_FITS = (
    ("A", "chinchilla-tied"),
    ("A", "aspect"),
    ("B", "chinchilla-tied"),
    ("B", "aspect"),
    ("B", "aspect-free"),
)


def fit_as_published(runs: Table, form: str, *, fitted_n: np.ndarray) -> tuple[dict[str, float], Array]:
    """Fit a form with `scipy.optimize.curve_fit` as its authors did; returns coefficients and predictions of every run.

    Nothing keeps coefficients positive here: on their set A the authors' A is negative, and so is this one.

    Raises:
        LawError: the form is not one of theirs, or the optimiser gives up.
    """
    from scipy.optimize import curve_fit

    if form not in AS_PUBLISHED:
        raise LawError(f"form {form!r} has no published fit to repeat; those with one: {', '.join(AS_PUBLISHED)}")
    law, start = AS_PUBLISHED[form]
    x = (column(runs, "params"), column(runs, "tokens"), column(runs, "aspect"))
    y_n = column(runs, "loss")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            known = tuple(v[fitted_n] for v in x)
            found, _ = curve_fit(law, known, y_n[fitted_n], p0=list(start.values()), maxfev=100_000)
            guess_n = law(x, *found)
        except RuntimeError as error:
            raise LawError(f"the published method does not converge for {form!r} on these runs: {error}") from None
    return {name: float(value) for name, value in zip(start, found, strict=True)}, guess_n


def compare_as_published(
    runs: Table, *, focus_n: np.ndarray | None = None
) -> list[tuple[Comparison, dict[str, float]]]:
    """Repeat the authors' fits of the Morph grid on their sets A and B, judged on all runs and on the focus runs.

    The focus runs are those of size 1B if not given.

    Raises:
        LawError: the table does not say which runs are in sets A and B, or of which size (columns `set_a`, `set_b`,
            `size`).
    """
    missing = [name for name in ("set_a", "set_b", "size") if name not in list_columns(runs)]
    if missing:
        raise LawError(
            "the published fits are of the Morph grid's sets A and B, judged on its 1B runs; this table has no"
            f" column {', '.join(map(repr, missing))} (the built-in table 'morph-2025' has)"
        )
    judged_n = np.asarray(runs["size"]) == "1B" if focus_n is None else focus_n
    found = []
    for name, form in PUBLISHED_FITS:
        fitted_n = np.asarray(runs[f"set_{name.lower()}"], dtype=bool)
        coefficients, guess_n = fit_as_published(runs, form, fitted_n=fitted_n)
        judged = _judge(form, name, fitted_n, column(runs, "loss"), guess_n, judged_n)
        y_n, rounded_n = column(runs, "loss"), np.round(guess_n, 4)
        r2 = 1 - float(np.sum((y_n - rounded_n) ** 2) / np.sum((y_n - y_n.mean()) ** 2))
        found.append((replace(judged, r2=r2), coefficients))
    return found
