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
from scipy.special import ndtri

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
HEDGE = 0.5
"""Part of the criterion's weights that forms share equally: six runs believe too firmly in one form."""
LEAST_GAIN = 1e-3
"""A run that removes a smaller share of the variance than this is not worth training."""
Target = Table | tuple["Shape", float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What the runs say of the loss of a new run at each row of the target.

    Three standard deviations of log loss: `fit` of the law's own prediction, `forms` between laws, `noise` of one run.
    """

    level: float
    loss: Array
    fit: Array
    forms: Array
    noise: float

    @property
    def half_width(self) -> Array:
        """Give the interval's half width in log loss: .01 is ±1 %."""
        return ndtri((1 + self.level) / 2) * np.sqrt(self.fit**2 + self.forms**2 + self.noise**2)

    @property
    def low(self) -> Array:
        """Give the lower end of the interval at each row."""
        return self.loss * np.exp(-self.half_width)

    @property
    def high(self) -> Array:
        """Give the upper end of the interval at each row."""
        return self.loss * np.exp(self.half_width)


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
    after: Outlook
    """The target expected once this run and those before it are in, averaged over which form is true."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextRuns:
    """The runs to add, best first, and the target before any of them."""

    before: Outlook
    chosen: tuple[NextRun, ...]
    flops: float
    """The budget."""
    weights: Mapping[str, float]
    """Each form's share of belief."""
    warnings: tuple[str, ...]

    @property
    def after(self) -> Outlook:
        """Give the target expected after all of them."""
        return self.chosen[-1].after if self.chosen else self.before

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
    open_c = validate(candidates, source="the table of candidates", target="tokens")
    cost_c = column(open_c, "flops")
    if cost_c.min() > flops:
        cheapest = int(np.argmin(cost_c))
        raise BudgetError(
            f"flops={flops:.4g} buys none of the {len(cost_c)} candidates; the cheapest is row {cheapest + 1}"
            f" ({_describe(open_c, cheapest)}) at {cost_c[cheapest]:.4g}: raise the budget, or offer smaller runs"
        )
    forms = _find_forms(form, {"the runs": known, "the target": goal, "the candidates": open_c})
    found = fit_forms(known, forms, noise=noise, seed=seed)
    views = _look(found, goal, open_c)
    before = _expect(views, level=level)
    loss_c = np.exp(sum(v.weight * v.mean_gc[0] for v in views))
    chosen, spent = [], 0.0
    for c, after in _choose(views, cost_c, flops, level=level):
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
) -> Outlook:
    """Predict the target from few runs under the prior that `next_runs` uses; arguments and errors are its own."""
    known, goal = validate(runs), _read_target(target)
    found = fit_forms(known, _find_forms(form, {"the runs": known, "the target": goal}), noise=noise, seed=seed)
    return _expect(_look(found, goal, goal), level=level)


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


@dataclass(slots=True, kw_only=True, eq=False)
class _View:
    """One form as the design sees it: its covariance shrinks as runs are chosen, and its means move.

    Means have an axis g: the form that is taken to be true, whose predictions the chosen runs then show.
    """

    weight: float
    noise: float
    cov_pq: Array
    by_phi_cp: Array
    by_phi_tp: Array
    mean_gc: Array
    mean_gt: Array
    belief_g: Array
    """Log of the belief in this form once the chosen runs are in, up to a constant."""

    @property
    def variance_t(self) -> Array:
        return np.einsum("tp,pq,tq->t", self.by_phi_tp, self.cov_pq, self.by_phi_tp)

    def gains(self) -> Array:
        """Say by how much each candidate lowers the mean variance over the target's rows."""
        reach_cp = self.by_phi_cp @ self.cov_pq
        own_c = np.sum(reach_cp * self.by_phi_cp, axis=1)
        return np.mean((reach_cp @ self.by_phi_tp.T) ** 2, axis=1) / (own_c + self.noise**2)

    def add(self, c: int, shown_g: Array) -> None:
        """Take in candidate c, whose log loss is `shown_g` if form g is true."""
        reach_p = self.cov_pq @ self.by_phi_cp[c]
        own = float(self.by_phi_cp[c] @ reach_p) + self.noise**2
        miss_g = shown_g - self.mean_gc[:, c]
        self.belief_g = self.belief_g - 0.5 * (miss_g**2 / own + np.log(own))
        self.mean_gc = self.mean_gc + np.outer(miss_g / own, self.by_phi_cp @ reach_p)
        self.mean_gt = self.mean_gt + np.outer(miss_g / own, self.by_phi_tp @ reach_p)
        self.cov_pq = self.cov_pq - np.outer(reach_p, reach_p) / own


def _look(found: Sequence[Posterior], goal: Table, open_c: Table) -> list[_View]:
    views = []
    for p in found:
        log_c, by_phi_cp = p.linearise(open_c)
        log_t, by_phi_tp = p.linearise(goal)
        views.append(
            _View(
                weight=p.weight,
                noise=p.noise,
                cov_pq=p.cov_pq,
                by_phi_cp=by_phi_cp,
                by_phi_tp=by_phi_tp,
                mean_gc=np.tile(log_c, (len(found), 1)),
                mean_gt=np.tile(log_t, (len(found), 1)),
                belief_g=np.full(len(found), np.log(p.weight)),
            )
        )
    return views


def _expect(views: Sequence[_View], *, level: float) -> Outlook:
    """Average the target over forms, and over which of them is true."""
    weight_f = np.array([v.weight for v in views])
    belief_fg = np.stack([v.belief_g for v in views])
    belief_fg = np.exp(belief_fg - belief_fg.max(axis=0))
    belief_fg /= belief_fg.sum(axis=0)
    mean_fgt = np.stack([v.mean_gt for v in views])
    centre_gt = np.einsum("fg,fgt->gt", belief_fg, mean_fgt)
    spread_gt = np.einsum("fg,fgt->gt", belief_fg, (mean_fgt - centre_gt) ** 2)
    share_f = belief_fg @ weight_f
    return Outlook(
        level=level,
        loss=np.exp(weight_f @ centre_gt),
        fit=np.sqrt(share_f @ np.stack([v.variance_t for v in views])),
        forms=np.sqrt(weight_f @ spread_gt),
        noise=float(np.sqrt(share_f @ np.array([v.noise**2 for v in views]))),
    )


def _choose(views: Sequence[_View], cost_c: Array, flops: float, *, level: float) -> list[tuple[int, Outlook]]:
    """Take the candidate of most variance removed per FLOP until the budget or the gain is spent.

    Returns each chosen row with the target expected after it.
    """
    left, is_open_c = flops, np.ones(len(cost_c), dtype=bool)
    weights = [(1 - HEDGE) * v.weight + HEDGE / len(views) for v in views]
    truth_gc = np.stack([v.mean_gc[0] for v in views])
    chosen: list[tuple[int, Outlook]] = []
    while (affordable_c := is_open_c & (cost_c <= left)).any():
        gain_c = sum((w * v.gains() for w, v in zip(weights, views, strict=True)), np.zeros(1))
        variance = sum(w * float(v.variance_t.mean()) for w, v in zip(weights, views, strict=True))
        worth_c = affordable_c & (gain_c >= LEAST_GAIN * variance)
        if not worth_c.any():
            break
        c = int(np.argmax(np.where(worth_c, gain_c / cost_c, -1.0)))
        for view in views:
            view.add(c, truth_gc[:, c])
        is_open_c[c] = False
        left -= cost_c[c]
        chosen.append((c, _expect(views, level=level)))
    return chosen


def _read_target(target: Target) -> dict[str, Any]:
    if isinstance(target, tuple):
        shape, tokens = target
        return dict(shape_columns(shape, tokens=tokens))
    columns = {name: np.atleast_1d(np.asarray(target[name])) for name in list_columns(target)}
    if not columns or not all(len(v) for v in columns.values()):
        raise LawError("the target has no rows; give its columns, such as {'d_model': 2048, 'n_layers': 16, …}")
    return columns


def _find_forms(form: str | Form, tables: Mapping[str, Table]) -> list[Form]:
    """List the forms that every table has the columns for; refuse those that cannot tell the target's rows apart."""
    if form == "best":
        raise LawError(
            "form='best' asks for cross-validation, which few runs do not allow; give 'auto' or a form's name"
        )
    forms = [f for f in FORMS.values() if f.auto and f.target == "loss"] if form == "auto" else [find_form(form)]
    if not forms[0].positive:
        raise LawError(f"form {forms[0].name!r} may be negative, so log loss cannot be followed; use a law of the loss")
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
    before: Outlook,
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
