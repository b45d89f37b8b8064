"""Choose which further small runs narrow a law's prediction at a target most, for a budget of training FLOPs.

Greedy V-optimality: the law is linearised at its most probable parameters (see `lathe.design.posterior`), and each step
takes the run that removes most of the prediction's variance at the target for each FLOP it costs.

Axes: c a candidate, n a run, t a row of the target, f a form, p q parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lathe.design.greedy import LEAST_GAIN, Expected, choose, expect, view_forms
from lathe.design.posterior import Posterior, fit_posterior, weigh_evidence
from lathe.design.small_runs import propose_candidates
from lathe.errors import BudgetError, LawError, nearest
from lathe.laws.axes import HELD, SCALES, axis_values, measure_axes, shape_columns
from lathe.laws.forms import FORMS, Form, find_form
from lathe.laws.system import Array, column
from lathe.runs import Table, derive, list_columns, validate

if TYPE_CHECKING:
    from lathe.shape import Shape

NOISE = 0.003
"""Standard deviation of log loss between runs that differ only in seed, where nothing better is known."""
LEAST_WEIGHT = 0.01
"""Forms of less belief than this have no say."""
Target = Table | tuple["Shape", float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextRun:
    """One run to add: what to train, its cost, and what the target should look like once it is in."""

    row: int
    """Its row in the table of candidates."""
    columns: Mapping[str, Any]
    flops: float
    spent: float
    """FLOPs of this run and all chosen before it."""
    loss: float
    """The loss predicted for this run."""
    after: Expected
    """The target expected once this run and those before it are in, averaged over which form is true."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextRuns:
    """The runs to add, best first, and the target before any of them."""

    before: Expected
    chosen: tuple[NextRun, ...]
    flops: float
    """The budget."""
    weights: Mapping[str, float]
    """Each form's share of belief."""
    warnings: tuple[str, ...]

    @property
    def after(self) -> Expected:
        """Give the target expected after all of them."""
        return self.chosen[-1].after if self.chosen else self.before

    @property
    def spent(self) -> float:
        """Count the FLOPs of all chosen runs."""
        return self.chosen[-1].spent if self.chosen else 0.0

    @property
    def columns(self) -> dict[str, Array]:
        """Lay the chosen runs out as a table, in order: what to hand to the trainer."""
        names = self.chosen[0].columns if self.chosen else ()
        return {name: np.array([r.columns[name] for r in self.chosen]) for name in names}


def next_runs(
    runs: Table,
    target: Target,
    *,
    flops: float,
    candidates: Table | None = None,
    form: str | Form = "auto",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> NextRuns:
    """Choose the further runs that narrow the prediction at the target most within a budget of training FLOPs.

    Fewer runs than coefficients will do: a weak prior stands in (log exponents about .45, sd .7). The variance that is
    reduced is the mean over the target's rows and over forms; forms' disagreement is shown, but no run is credited with
    settling it. After training some of them, ask again with the new runs in the table.

    It is worth what the laws are worth: from six runs on Morph it halves the error that random runs of equal FLOPs
    leave, but where cheap runs do not follow the law that dear ones do, as among points read off a figure, a few
    random, dearer runs do better, and the intervals are too narrow. `benchmarks/next.py` shows both.

    Args:
        runs: the runs there are, any mapping of column name to values.
        target: what to predict: columns (one row or several), or a shape and its tokens.
        flops: budget; a run costs its `flops` column if the candidates have one, else 6·params·tokens.
        candidates: runs one could do, columns like those of `runs`; by default the grid of `propose_candidates`.
        form: "auto" for every form whose columns are at hand, the name of one, or a `Form`.
        noise: first guess of the standard deviation of log loss from run to run, such as a law's `cv`; by default from
            replicates among the runs, else .003.
        level: of the interval at the target.
        seed: of the starts of the fits.

    Raises:
        BudgetError: the budget is not above zero, or buys none of the candidates; names the cheapest.
        RunsError: runs or candidates cannot be trusted; names row and column.
        LawError: the target lacks a column, or no form reads what it varies.
    """
    if not (flops > 0 and math.isfinite(flops)):
        raise BudgetError(f"flops={flops:g} buys no training; give a budget above zero, such as 1e19")
    known = validate(runs)
    goal = _read_target(target)
    if candidates is None:
        candidates = propose_candidates(known, goal, flops=flops)
    needed = () if "flops" in list_columns(candidates) else ("params",)
    open_c = validate(candidates, source="the table of candidates", target="tokens", columns=needed)
    cost_c = column(open_c, "flops")
    if cost_c.min() > flops:
        cheapest = int(np.argmin(cost_c))
        raise BudgetError(
            f"flops={flops:.4g} buys none of the {len(cost_c)} candidates; the cheapest is row {cheapest + 1}"
            f" ({_describe(open_c, cheapest)}) at {cost_c[cheapest]:.4g}: raise the budget, or offer smaller runs"
        )
    forms = _find_forms(form, {"the runs": known, "the target": goal, "the candidates": open_c})
    found = fit_forms(known, forms, noise=noise, seed=seed)
    views = view_forms(found, known, goal, open_c)
    before = expect(views, level=level)
    loss_c = np.exp(sum(v.weight * v.mean_gc[0] for v in views))
    chosen, spent = [], 0.0
    for c, after in choose(views, cost_c, flops, level=level):
        spent += cost_c[c]
        chosen.append(
            NextRun(
                row=c,
                columns={name: values[c] for name, values in open_c.items()},
                flops=float(cost_c[c]),
                spent=float(spent),
                loss=float(loss_c[c]),
                after=after,
            )
        )
    return NextRuns(
        before=before,
        chosen=tuple(chosen),
        flops=float(flops),
        weights={p.form.name: p.weight for p in found},
        warnings=_warn(known, goal, open_c, found, before, spent / flops, chosen),
    )


def forecast(
    runs: Table,
    target: Target,
    *,
    form: str | Form = "auto",
    noise: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Expected:
    """Predict the target from few runs under the prior that `next_runs` uses; arguments and errors are its own."""
    known, goal = validate(runs), _read_target(target)
    found = fit_forms(known, _find_forms(form, {"the runs": known, "the target": goal}), noise=noise, seed=seed)
    return expect(view_forms(found, known, goal, goal), level=level)


def fit_forms(known: Mapping[str, Array], forms: Sequence[Form], *, noise: float | None, seed: int) -> list[Posterior]:
    """Fit every form under the prior, and share belief among them by evidence; the most believed first."""
    y_n = column(known, "loss")
    if noise is None:
        noise = _replicate_noise(known, y_n) or NOISE
    if not (noise > 0 and math.isfinite(noise)):
        raise LawError(f"noise={noise:g}; give a standard deviation of log loss above zero, such as {NOISE}")
    found = [fit_posterior(f, known, y_n, noise=noise, seed=seed) for f in forms]
    weight_f = weigh_evidence(found)
    weight_f = np.where(weight_f < LEAST_WEIGHT, 0.0, weight_f)
    weight_f /= weight_f.sum()
    kept = [replace(p, weight=float(w)) for p, w in zip(found, weight_f, strict=True) if w > 0]
    return sorted(kept, key=lambda p: -p.weight)


def _read_target(target: Target) -> dict[str, Any]:
    if isinstance(target, tuple):
        shape, tokens = target
        columns: dict[str, Any] = dict(shape_columns(shape, tokens=tokens))
    else:
        columns = {name: np.atleast_1d(np.asarray(target[name])) for name in list_columns(target)}
    lengths = {name: len(values) for name, values in columns.items()}
    rows = max(lengths.values(), default=0)
    if not rows:
        raise LawError("the target has no rows; give its columns, such as {'d_model': 2048, 'n_layers': 16, …}")
    if set(lengths.values()) - {1, rows}:
        raise LawError(f"the target's columns differ in length: {lengths}")
    columns = {name: np.broadcast_to(values, (rows,)) for name, values in columns.items()}
    for name in (n for n in SCALES if n in columns):
        values_t = column(columns, name)
        if not (np.isfinite(values_t) & (values_t > 0)).all():
            raise LawError(f"the target's {name} is {values_t.min():g}; wanted a finite number above zero")
    return columns


def _find_forms(form: str | Form, tables: Mapping[str, Table]) -> list[Form]:
    """List the forms that every table has the columns for; refuse those that cannot tell the target's rows apart."""
    if form == "best":
        raise LawError(
            "form='best' asks for cross-validation, which few runs do not allow; give 'auto' or a form's name"
        )
    forms = [f for f in FORMS.values() if f.auto and f.target == "loss"] if form == "auto" else [find_form(form)]
    if forms[0].target != "loss" or not forms[0].positive:
        raise LawError(f"form {forms[0].name!r} predicts no positive loss; use 'auto' or a law of the loss")
    lacking = {f.name: _lacking(f, tables) for f in forms}
    forms = [f for f in forms if not lacking[f.name]]
    if not forms:
        name, missing = min(lacking.items(), key=lambda item: len(item[1]))
        raise LawError(f"form {name!r} cannot be used: {'; '.join(missing)}")
    goal = tables["the target"]
    blind = [f for f in forms if _cannot_tell(f, goal)]
    if len(blind) == len(forms):
        varied = [n for n in (*SCALES, *HELD) if n in list_columns(goal) and len(set(goal[n].tolist())) > 1]
        raise LawError(
            f"form {forms[0].name!r} reads {', '.join(forms[0].columns)} alone and gives rows of the target that differ"
            f" in {', '.join(varied)} one prediction; use a form that reads these, such as 'width-depth'"
        )
    return [f for f in forms if f not in blind]


def _lacking(form: Form, tables: Mapping[str, Table]) -> list[str]:
    found = []
    for source, table in tables.items():
        known = {*list_columns(table), *derive(table)}
        found += [f"{source} lack{'s' if source == 'the target' else ''} column {c!r}{nearest(c, known)}"
                  for c in form.columns if c not in known]  # fmt: skip
    return found


def _cannot_tell(form: Form, goal: Table) -> bool:
    """Say whether rows of the target that differ on some axis look alike to the form."""
    seen = np.stack([column(goal, c) for c in form.columns], axis=1)
    axes = [v for v in axis_values({n: goal[n] for n in list_columns(goal)}).values() if len(v) == len(seen)]
    every = np.stack([*axes, *seen.T], axis=1)
    return len(np.unique(seen, axis=0)) < len(np.unique(every, axis=0))


def _replicate_noise(known: Mapping[str, Array], y_n: Array) -> float | None:
    """Pool the scatter of log loss among runs of one shape and tokens; None without two degrees of freedom."""
    axes = [known[c] for c in ("params", "tokens", "d_model", "n_layers", "d_ff", "n_kv_heads") if c in known]
    _, group_n = np.unique(np.stack(axes, axis=1), axis=0, return_inverse=True)
    group_n = group_n.ravel()
    log_n, counts = np.log(y_n), np.bincount(group_n)
    free = int(np.sum(counts - 1))
    if free < 2:
        return None
    means = np.bincount(group_n, weights=log_n) / counts
    return float(np.sqrt(np.sum((log_n - means[group_n]) ** 2) / free))


def _describe(table: Mapping[str, Array], row: int) -> str:
    names = ("name", "d_model", "n_layers", "params", "tokens")
    return ", ".join(
        f"{n} {v:.4g}" if isinstance(v := table[n][row], float) else f"{n} {v}" for n in names if n in table
    )


def _warn(
    known: Mapping[str, Array],
    goal: Mapping[str, Array],
    open_c: Mapping[str, Array],
    found: Sequence[Posterior],
    before: Expected,
    used: float,
    chosen: Sequence[NextRun],
) -> tuple[str, ...]:
    """Say what the design rests on and cannot mend."""
    said = []
    y_n, first = known["loss"], found[0]
    if len(y_n) < first.system.size:
        said.append(
            f"{len(y_n)} runs for the {first.system.size} parameters of {first.form.name}: the prior supplies the rest"
        )
    if not chosen:
        said.append(f"no candidate would remove even {LEAST_GAIN:.1%} of the variance at the target")
    elif used < 0.9:
        said.append(
            f"stopped at {used:.0%} of the budget: no run that the rest can buy would remove another {LEAST_GAIN:.1%}"
            " of the variance"
        )
    if (spread := float(before.forms.max())) > float(before.fit.max()):
        said.append(f"forms differ by {spread:.2%} at the target, more than any of them is unsure")
    runs_axes, open_axes, goal_axes = measure_axes(known), measure_axes(open_c), measure_axes(goal)
    for name in {c: None for p in found for c in p.form.columns}:
        if not all(name in a for a in (runs_axes, open_axes, goal_axes)):
            continue
        low = min(runs_axes[name].low, open_axes[name].low)
        high = max(runs_axes[name].high, open_axes[name].high)
        if low == high and goal_axes[name].low != low:
            said.append(
                f"{name} is {low:g} in every run and candidate: what it does at the target is the prior's guess"
            )
        elif goal_axes[name].high > 1.001 * high:
            said.append(f"{name} at the target is ×{goal_axes[name].high / high:.3g} beyond every run and candidate")
    for name in HELD:
        if name in runs_axes and name in goal_axes and runs_axes[name].distinct == 1:
            held = runs_axes[name].low
            if max(abs(goal_axes[name].low - held), abs(goal_axes[name].high - held)) > 0.01 * abs(held):
                said.append(f"{name} is {held:g} in every run but not at the target, and no form reads it")
    return tuple(said)
