"""Fit a law to a table of runs: a named form, the best in cross-validation, or the average of the good ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lathe.errors import LawError, nearest
from lathe.laws.axes import measure_axes
from lathe.laws.choose import Folds, Score, check_rule, cross_validate, residuals, sizes, weigh
from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.forms import FORMS, OBJECTIVES, Form, Objective, find_form
from lathe.laws.judge import judge
from lathe.laws.law import Law, Member
from lathe.laws.system import Array, System, column, compile_form
from lathe.laws.uncertainty import bootstrap, identify, number_trunks
from lathe.runs import Table, validate

DRAWS = 1000
Progress = Callable[[str, float], None]


def fit(
    runs: Table,
    form: str | Form = "auto",
    *,
    target: str | None = None,
    objective: Objective | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    folds: str = "auto",
    progress: Progress = lambda what, share: None,
) -> Law:
    """Fit a scaling law to runs.

    Args:
        runs: any mapping of column name to values, such as `read_runs` returns; see `lathe.columns.COLUMNS`.
        form: "auto" averages the forms that predict left-out sizes best, "best" takes the one that does, or the name
            of a row of `FORMS`, or a `Form`.
        target: the column to predict; the form's own ("loss" for most) if not given.
        objective: "squares-log" (least squares on the log), "huber-log" (Huber's loss of log residuals, δ = 1e-3),
            "squares" (least squares); the form's own if not given.
        seed: of the bootstrap's weights. The fit itself does not depend on it.
        draws: bootstrap draws to keep for intervals; 0 for none, and then a named form is not cross-validated.
        folds: how cross-validation groups runs into sizes, see `lathe.laws.choose.sizes`.
        progress: called before each step with what it is and the share done, 0 to 1.

    Raises:
        RunsError: the table is empty, or a value is missing, mistyped or impossible; names row and column.
        LawError: no such form or objective, a column that does not vary, or fewer runs than coefficients.
    """
    automatic = form if form in ("auto", "best") else None
    forms = [f for f in FORMS.values() if f.auto] if automatic else [find_form(form)]
    target = target or forms[0].target
    forms = [f for f in forms if f.target == target] if automatic else forms
    if not forms:
        raise LawError(f"form={form!r} has no form whose target is {target!r}; name a form, such as 'error'")
    objective = objective or forms[0].objective
    if objective not in OBJECTIVES:
        raise LawError(f"objective={objective!r} is not known{nearest(objective, OBJECTIVES)}")
    if draws < 0 or draws == 1:
        raise LawError(f"draws={draws}; give 0 for none, or 2 or more (1000 serves most uses)")
    check_rule(folds)
    columns = validate(runs, target=target, columns=() if automatic else forms[0].columns)
    y_n = column(columns, target)
    loss = Loss.of(objective)
    _check_objective(forms, loss, y_n, target)
    # Without draws there is no interval, and a named form needs no choice: cross-validation would go unused.
    split = _split(columns, folds, forms) if automatic or draws else None
    fitted = []
    for i, one in enumerate(forms):
        progress(one.name, 0.7 * i / len(forms))
        fitted.append(_Attempt(one, columns, y_n, loss, split, strict=automatic is None))
    scores = weigh([a.score for a in fitted])
    if all(s.excluded for s in scores):
        raise LawError("no form fits these runs: " + "; ".join(f"{s.form}: {s.excluded}" for s in scores))
    scores = _settle(scores, automatic)
    attempts = {a.form.name: a for a in fitted}
    trunks = number_trunks(columns)
    members = []
    kept = [s for s in scores if s.weight > 0 or s.interval_weight > 0]
    for i, score in enumerate(kept):
        progress(f"{score.form}, bootstrap", 0.7 + 0.3 * i / len(kept))
        members.append(_member(attempts[score.form], score, y_n, loss, draws=draws, seed=seed, trunks=trunks))
    axes = measure_axes(columns)
    kinds = columns.get("loss_kind")
    drawn = [s.cv or 0.0 for s in scores if s.interval_weight > 0]
    return Law(
        members=tuple(members),
        ranking=tuple(scores),
        folds="" if split is None else f"{split.rule}: {', '.join(split.labels)}",
        target=target,
        objective=objective,
        loss_kind=None if kinds is None or not len(kinds) else str(kinds[0]),
        runs=len(y_n),
        axes=axes,
        cv=min(drawn),
        warnings=judge(tuple(members), columns, y_n) + (_fold_warnings(scores) if draws else ()),
        seed=seed,
    )


class _Attempt:
    """One form against the table: fitted and scored, or excluded with the reason."""

    __slots__ = ("cost", "form", "score", "system", "theta_p")

    def __init__(
        self, form: Form, columns: Mapping[str, Any], y_n: Array, loss: Loss, split: Folds | None, *, strict: bool
    ) -> None:
        self.form = form
        try:
            self.system = _compile(form, columns, y_n)
            theta_bp, cost_b = solve(self.system, y_n, np.ones((1, len(y_n))), loss)
            self.theta_p, self.cost = theta_bp[0], float(cost_b[0])
            self.score = self._score(columns, y_n, loss, split, strict=strict)
        except LawError as error:
            if strict:
                raise
            self.score = Score(form=form.name, excluded=str(error))

    def _score(self, columns: Mapping[str, Any], y_n: Array, loss: Loss, split: Folds | None, *, strict: bool) -> Score:
        try:
            if split is None:
                raise LawError("the runs cannot be split into sizes")
            out, forward, cv = cross_validate(self.form, self.system, columns, y_n, loss, split)
        except LawError:
            if not strict:
                raise
            # A named form may be fitted to runs too few to leave any out; its own residuals then stand for cv.
            free = max(len(y_n) - self.system.size, 1)
            r_n = residuals(self.form, self.theta_p[None], columns, y_n)
            out, forward, cv = None, None, float(np.sqrt(np.sum(r_n**2) / free))
        return Score(form=self.form.name, leave_one_out=out, forward=forward, cv=cv)


def _check_objective(forms: list[Form], loss: Loss, y_n: Array, target: str) -> None:
    signed = [f.name for f in forms if not f.positive]
    if signed and loss.log:
        raise LawError(f"form {signed[0]!r} may be negative, so it has no log; use objective='squares'")
    if len(signed) < len(forms) and (y_n <= 0).any():
        row = int(np.argmax(y_n <= 0))
        raise LawError(f"row {row + 1}: {target} = {y_n[row]:g}, but a sum of positive powers is never zero or less")


def _compile(form: Form, columns: Mapping[str, Any], y_n: Array) -> System:
    for name in form.columns:
        values = column(columns, name)
        if len(y_n) > 1 and np.ptp(values) <= 1e-9 * np.abs(values).max():
            raise LawError(
                f"column {name!r} is {values[0]:g} in every run, so form {form.name!r} cannot see what it does;"
                f" add runs that vary {name}, or use a form without it"
            )
    if len(y_n) < len(form.names):
        raise LawError(
            f"{len(y_n)} run{'s' if len(y_n) != 1 else ''} cannot fix the {len(form.names)} parameters of form"
            f" {form.name!r} ({', '.join(form.names)}); add runs, or use a form with fewer"
        )
    return compile_form(form, columns)


def _split(columns: Mapping[str, Any], folds: str, forms: list[Form]) -> Folds | None:
    fallback = next((c for f in forms for c in f.columns if c in columns), None)
    if fallback is None and "params" not in columns and "size" not in columns:
        return None
    split = sizes(columns, rule=folds, fallback=fallback)
    return split if len(split.labels) > 1 else None


def _settle(scores: list[Score], automatic: str | Form | None) -> list[Score]:
    """Keep the weights for "auto"; give all of them to the first otherwise."""
    if automatic == "auto":
        return scores
    return [replace(s, weight=float(i == 0), interval_weight=float(i == 0)) for i, s in enumerate(scores)]


def _member(
    attempt: _Attempt, score: Score, y_n: Array, loss: Loss, *, draws: int, seed: int, trunks: np.ndarray | None
) -> Member:
    system, theta_p = attempt.system, attempt.theta_p
    known = identify(system, theta_p, y_n, loss)
    count = max(2, round(draws * score.interval_weight)) if draws and score.interval_weight else 0
    return Member(
        form=attempt.form,
        theta_p=theta_p,
        theta_se_p=known.theta_se_p,
        draws_bp=bootstrap(system, theta_p, y_n, loss, draws=count, seed=seed, trunks=trunks),
        condition=known.condition,
        cost=attempt.cost,
        weight=score.weight,
        interval_weight=score.interval_weight,
    )


def _fold_warnings(scores: list[Score]) -> tuple[str, ...]:
    if scores[0].leave_one_out is None:
        return (
            "too few runs or sizes to leave any out: intervals carry the fit's own residuals instead of"
            " cross-validation error, and are likely too narrow",
        )
    return ()
