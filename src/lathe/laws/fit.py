"""Fit a law to a table of runs: a named form, the best in cross-validation, or the average of the good ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lathe.errors import LawError, RunsError, nearest
from lathe.laws.axes import measure_axes
from lathe.laws.choose import Folds, Score, check_rule, cross_validate, residuals, sizes, weigh
from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.forms import FORMS, OBJECTIVES, Form, Objective, find_form
from lathe.laws.judge import judge
from lathe.laws.law import Law, Member
from lathe.laws.system import Array, System, column, compile_form
from lathe.laws.uncertainty import Identified, bootstrap, identify, number_trunks
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
    if isinstance(runs, str):
        raise RunsError(f"runs={runs!r} is a name, not a table; read it with read_runs({runs!r})")
    automatic = form if isinstance(form, str) and form in ("auto", "best") else None
    forms, target, objective = _choose_forms(form, target, objective)
    if draws < 0 or draws == 1:
        raise LawError(f"draws={draws}; give 0 for none, or 2 or more (1000 serves most uses)")
    check_rule(folds)
    columns = validate(runs, target=target, columns=() if automatic else forms[0].columns)
    data = _Data(columns=columns, y_n=column(columns, target), loss=Loss.of(objective))
    _check_target(forms, data, target)
    # Without draws there is no interval, and a named form needs no choice: cross-validation would go unused.
    split = _split(columns, folds, forms) if automatic or draws else None
    attempts: dict[str, _Attempt] = {}
    for i, one in enumerate(forms):
        progress(one.name, 0.7 * i / len(forms))
        attempts[one.name] = _try(one, data, split) if automatic else _attempt(one, data, split, strict=True)
    scores = weigh([a.score for a in attempts.values()])
    if all(s.excluded for s in scores):
        reasons: dict[str, list[str]] = {}
        for s in scores:
            reasons.setdefault(s.excluded.replace(f"form {s.form!r}", "the form"), []).append(s.form)
        raise LawError("no form fits these runs. " + " ".join(f"{', '.join(n)}: {why}." for why, n in reasons.items()))
    if automatic != "auto":
        scores = [replace(s, weight=float(i == 0), interval_weight=float(i == 0)) for i, s in enumerate(scores)]
    members = []
    kept = [s for s in scores if s.weight > 0 or s.interval_weight > 0]
    for i, score in enumerate(kept):
        progress(f"{score.form}, bootstrap", 0.7 + 0.3 * i / len(kept))
        members.append(_member(attempts[score.form], score, data, draws=draws, seed=seed))
    kinds = columns.get("loss_kind")
    return Law(
        members=tuple(members),
        ranking=tuple(scores),
        folds="" if split is None else f"{split.rule}: {', '.join(split.labels)}",
        target=target,
        objective=objective,
        loss_kind=None if kinds is None else str(kinds[0]),
        runs=len(data.y_n),
        axes=measure_axes(columns),
        cv=min(s.cv or 0.0 for s in scores if s.interval_weight > 0),
        warnings=judge(tuple(members), columns, data.y_n) + (_fold_warnings(scores) if draws else ()),
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Data:
    """The runs to fit: checked columns, the target, and how residuals are charged."""

    columns: Mapping[str, Any]
    y_n: Array
    loss: Loss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attempt:
    """One form fitted and scored; of an excluded form the score alone."""

    score: Score
    system: System | None = None
    theta_p: Array | None = None
    known: Identified | None = None
    cost: float = 0.0


def _choose_forms(
    form: str | Form, target: str | None, objective: Objective | None
) -> tuple[list[Form], str, Objective]:
    """List the forms to try, with the target and objective they share."""
    automatic = form in ("auto", "best")
    forms = [f for f in FORMS.values() if f.auto] if automatic else [find_form(form)]
    target = target or forms[0].target
    forms = [f for f in forms if f.target == target] if automatic else forms
    if not forms:
        raise LawError(f"form={form!r} has no form whose target is {target!r}; name a form, such as 'error'")
    objective = objective or forms[0].objective
    if objective not in OBJECTIVES:
        raise LawError(f"objective={objective!r} is not known{nearest(objective, OBJECTIVES)}")
    return forms, target, objective


def _try(form: Form, data: _Data, split: Folds | None) -> _Attempt:
    """Fit and score a form, or say why the runs cannot carry it."""
    try:
        return _attempt(form, data, split, strict=False)
    except LawError as error:
        return _Attempt(score=Score(form=form.name, excluded=str(error)))


def _attempt(form: Form, data: _Data, split: Folds | None, *, strict: bool) -> _Attempt:
    """Fit and score a form; a `strict` one, asked for by name, also where the runs cannot tell all of it."""
    system = _compile(form, data)
    theta_bp, cost_b = solve(system, data.y_n, np.ones((1, len(data.y_n))), data.loss)
    known = identify(system, theta_bp[0], data.y_n, data.loss)
    if known.blurred and not strict:
        raise LawError(f"these runs cannot tell {', '.join(known.blurred)} apart")
    try:
        if split is None:
            raise LawError("the runs cannot be split into sizes")
        out, forward, cv = cross_validate(form, system, data.columns, data.y_n, data.loss, split)
    except LawError:
        if not strict:
            raise
        # Its own residuals stand for cv.
        free = max(len(data.y_n) - system.size, 1)
        r_n = residuals(form, theta_bp, data.columns, data.y_n)
        out, forward, cv = None, None, float(np.sqrt(np.sum(r_n**2) / free))
    score = Score(form=form.name, leave_one_out=out, forward=forward, cv=cv)
    return _Attempt(score=score, system=system, theta_p=theta_bp[0], known=known, cost=float(cost_b[0]))


def _check_target(forms: list[Form], data: _Data, target: str) -> None:
    if len(data.y_n) > 1 and np.ptp(data.y_n) == 0:
        raise LawError(f"{target} is {data.y_n[0]:g} in every run, so there is nothing to fit; add runs that vary it")
    signed = [f.name for f in forms if not f.positive]
    if signed and data.loss.log:
        raise LawError(f"form {signed[0]!r} may be negative, so it has no log; use objective='squares'")
    if len(signed) < len(forms) and (data.y_n <= 0).any():
        row = int(np.argmax(data.y_n <= 0))
        raise LawError(
            f"row {row + 1}: {target} = {data.y_n[row]:g}, but a sum of positive powers is never zero or less"
        )


def _compile(form: Form, data: _Data) -> System:
    count = len(data.y_n)
    for name in form.columns:
        values = column(data.columns, name)
        if count > 1 and np.ptp(values) <= 1e-9 * np.abs(values).max():
            raise LawError(
                f"column {name!r} is {values[0]:g} in every run, so form {form.name!r} cannot see what it does;"
                f" add runs that vary {name}, or use a form without it"
            )
    if count < len(form.names):
        raise LawError(
            f"{count} run{'s' if count != 1 else ''} cannot fix the {len(form.names)} parameters of form"
            f" {form.name!r} ({', '.join(form.names)}); add runs, or use a form with fewer"
        )
    return compile_form(form, data.columns)


def _split(columns: Mapping[str, Any], folds: str, forms: list[Form]) -> Folds | None:
    fallback = next((c for f in forms for c in f.columns if c in columns), None)
    if fallback is None and "params" not in columns and "size" not in columns:
        return None
    split = sizes(columns, rule=folds, fallback=fallback)
    return split if len(split.labels) > 1 else None


def _member(attempt: _Attempt, score: Score, data: _Data, *, draws: int, seed: int) -> Member:
    system, theta_p, known = attempt.system, attempt.theta_p, attempt.known
    assert system is not None
    assert theta_p is not None
    assert known is not None
    count = max(2, round(draws * score.interval_weight)) if draws and score.interval_weight else 0
    trunks = number_trunks(data.columns)
    return Member(
        form=system.form,
        theta_p=theta_p,
        theta_se_p=known.theta_se_p,
        draws_bp=bootstrap(system, theta_p, data.y_n, data.loss, draws=count, seed=seed, trunks=trunks),
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
