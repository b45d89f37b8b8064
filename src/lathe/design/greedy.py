"""Choose runs greedily by the variance they remove at a target, under several linearised laws at once.

Axes: c a candidate, n a run, t a row of the target, f g a form, k a feature of the misfit, p q parameters and features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from lathe.design.posterior import Posterior
from lathe.errors import LawError
from lathe.laws.system import Array, column
from lathe.runs import Table, derive, list_columns

MISFIT, REACH, MISFIT_POINTS = 0.01, 3.0, 4
"""How far a law may be off in log loss where no run is near, and how near that is: a factor e³ in params or tokens."""
HEDGE = 0.5
"""Part of the criterion's weights that forms share equally: six runs believe too firmly in one form."""
LEAST_GAIN = 0.01
"""A run that removes a smaller share of the variance than this is not worth training."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What the runs say of the loss of a new run at each row of the target.

    Three standard deviations of log loss: `fit` of a law's own prediction, its misfit included, `forms` between laws,
    `noise` of one run.
    """

    level: float
    loss: Array
    """The prediction: the forms' mean, by belief, of log loss."""
    fit: Array
    forms: Array
    noise: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise LawError(f"level={self.level} is no probability; give a number between 0 and 1, such as 0.9")

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


@dataclass(slots=True, kw_only=True, eq=False)
class View:
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
        self.mean_gc = self.mean_gc + (miss_g / own)[:, None] * (self.by_phi_cp @ reach_p)
        self.mean_gt = self.mean_gt + (miss_g / own)[:, None] * (self.by_phi_tp @ reach_p)
        self.cov_pq = self.cov_pq - np.outer(reach_p, reach_p) / own


def view_forms(found: Sequence[Posterior], known: Table, goal: Table, open_c: Table) -> list[View]:
    """Linearise every form, with a smooth misfit beside its parameters, and condition it on the runs."""
    off_nk, off_tk, off_ck = _misfit(known, goal, open_c)
    views = []
    for p in found:
        _, by_phi_np = p.linearise(known)
        log_c, by_phi_cp = p.linearise(open_c)
        log_t, by_phi_tp = p.linearise(goal)
        by_np = np.concatenate([by_phi_np, off_nk], axis=1)
        prior_p = np.concatenate([p.precision_p, np.ones(off_nk.shape[1])])
        cov_pq: Array = np.asarray(np.linalg.inv(by_np.T @ by_np / p.noise**2 + np.diag(prior_p)), dtype=np.float64)
        views.append(
            View(
                weight=p.weight,
                noise=p.noise,
                cov_pq=cov_pq,
                by_phi_cp=np.concatenate([by_phi_cp, off_ck], axis=1),
                by_phi_tp=np.concatenate([by_phi_tp, off_tk], axis=1),
                mean_gc=np.tile(log_c, (len(found), 1)),
                mean_gt=np.tile(log_t, (len(found), 1)),
                belief_g=np.full(len(found), np.log(p.weight)),
            )
        )
    return views


def _misfit(*tables: Table) -> list[Array]:
    """Lay out features k whose sum with standard normal weights is a smooth misfit of the law, for each table's rows.

    A Gaussian process over log params and log tokens, of sd MISFIT and length REACH, through a grid of points on which
    it is taken to rest (Nyström): without it cheap runs far from the target are believed as much as near ones.
    """
    names = [c for c in ("params", "tokens") if all(c in {*list_columns(t), *derive(t)} for t in tables)]
    if not names:
        return [np.zeros((len(np.atleast_1d(t[list_columns(t)[0]])), 0)) for t in tables]
    at = [np.stack([np.log(column(t, c)) for c in names], axis=1) / REACH for t in tables]
    every = np.concatenate(at)
    sides = [
        np.linspace(low, high, MISFIT_POINTS) for low, high in zip(every.min(axis=0), every.max(axis=0), strict=True)
    ]
    rest_kx = np.stack([g.ravel() for g in np.meshgrid(*sides)], axis=1)

    def kernel(a: Array, b: Array) -> Array:
        return np.exp(-0.5 * np.sum((a[:, None] - b[None]) ** 2, axis=2))

    values_k, vectors_kk = np.linalg.eigh(kernel(rest_kx, rest_kx))
    kept = values_k > 1e-6 * values_k[-1]
    root_kk = vectors_kk[:, kept] / np.sqrt(values_k[kept])
    return [MISFIT * kernel(x, rest_kx) @ root_kk for x in at]


def expect(views: Sequence[View], *, level: float) -> Expected:
    """Average the target over forms, and over which of them is true."""
    weight_f = np.array([v.weight for v in views])
    belief_fg = np.stack([v.belief_g for v in views])
    belief_fg = np.exp(belief_fg - belief_fg.max(axis=0))
    belief_fg /= belief_fg.sum(axis=0)
    mean_fgt = np.stack([v.mean_gt for v in views])
    centre_gt = np.einsum("fg,fgt->gt", belief_fg, mean_fgt)
    spread_gt = np.einsum("fg,fgt->gt", belief_fg, (mean_fgt - centre_gt) ** 2)
    share_f = belief_fg @ weight_f
    return Expected(
        level=level,
        loss=np.exp(weight_f @ centre_gt),
        fit=np.sqrt(share_f @ np.stack([v.variance_t for v in views])),
        forms=np.sqrt(weight_f @ spread_gt),
        noise=float(np.sqrt(share_f @ np.array([v.noise**2 for v in views]))),
    )


def choose(views: Sequence[View], cost_c: Array, flops: float, *, level: float) -> list[tuple[int, Expected]]:
    """Take the candidate of most variance removed per FLOP until the budget or the gain is spent.

    The variance is each form's own. Counting the forms' disagreement as variance too was worse than random choice on
    Morph: linearised, it seems settled by a few cheap runs. Returns each chosen row with the target expected after it.
    """
    left, is_open_c = flops, np.ones(len(cost_c), dtype=bool)
    weights = [(1 - HEDGE) * v.weight + HEDGE / len(views) for v in views]
    truth_gc = np.stack([v.mean_gc[0] for v in views])
    chosen: list[tuple[int, Expected]] = []
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
        chosen.append((c, expect(views, level=level)))
    return chosen
