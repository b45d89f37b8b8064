"""The sigmoid of a task's score: a quotient, no sum of powers, so SciPy fits it instead of the engine.

Axes: b a bootstrap draw, g a cell of the scanned grid, n a run or a row asked about, p a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, logit

from lathe import codec
from lathe.errors import LawError
from lathe.laws.choose import sizes
from lathe.laws.system import Array, column
from lathe.laws.uncertainty import Interval, bootstrap_weights, mix, number_trunks
from lathe.runs import Table, list_columns, validate

NAMES = ("c", "gamma", "l", "d")
STEEPEST = 200.0
"""Largest |gamma| times the range of losses: beyond it the sigmoid is a step between two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidLaw:
    """A score that rises from d to c + d as loss falls: S = c/(1 + e^{−gamma(L − l)}) + d.

    The formula is its authors' (Xiao et al. 2024, arXiv:2412.04315; also the OLMo ladder's). S falls as L grows, so
    c is positive and gamma negative; it is steepest at L = l. It is a quotient, which the engine's sums of powers
    cannot hold, so SciPy fits it. Scores are 0–1, and so are d and c + d. Made by `fit_sigmoid`.
    """

    target: str
    column: str
    """The column it reads, of losses."""
    theta: tuple[float, float, float, float]
    """c, gamma, l, d."""
    theta_se: tuple[float | None, ...]
    """Delta-method standard errors of `theta`; None where the runs say nothing."""
    draws_theta: tuple[tuple[float, float, float, float], ...]
    cv: float
    """Standard deviation of the noise that cross-validation shows, in units of the score."""
    runs: int
    loss_kind: str | None
    lowest_loss: float
    highest_loss: float
    warnings: tuple[str, ...]
    seed: int

    @property
    def coefficients(self) -> dict[str, float]:
        """Name each coefficient."""
        return dict(zip(NAMES, self.theta, strict=True))

    @property
    def standard_errors(self) -> dict[str, float]:
        """Give each coefficient's delta-method standard error; infinite where the runs say nothing."""
        return {n: math.inf if se is None else se for n, se in zip(NAMES, self.theta_se, strict=True)}

    @property
    def columns(self) -> tuple[str, ...]:
        """List the one column it reads, as `Law.columns` does."""
        return (self.column,)

    @property
    def log(self) -> bool:
        """Say that it scatters in the score itself, not in its log."""
        return False

    def predict(self, columns: Table) -> Array:
        """Predict the score at each row, from its loss. Raises LawError where the column is missing."""
        return sigmoid(np.array(self.theta), _losses(columns, self.column))

    def draws(self, columns: Table) -> list[tuple[float, Array]]:
        """Predict with every bootstrap draw: the weight 1, and values with axes (b, n)."""
        theta_bp = np.array(self.draws_theta).reshape(-1, 1, 4)
        return [(1.0, sigmoid(theta_bp, _losses(columns, self.column)))] if len(theta_bp) else []

    def interval(self, columns: Table, *, level: float = 0.9) -> Interval:
        """Bracket the score of a new run of known loss with the given probability; see `Law.interval`."""
        drawn = [v for _, v in self.draws(columns)]
        return mix(drawn, [1.0], cv=self.cv, level=level, log=False, seed=self.seed)

    def extrapolation(self, columns: Table) -> list[str]:
        """Say how far the rows' losses reach beyond the fitted runs'; empty inside their range."""
        loss_n, found = _losses(columns, self.column), []
        if loss_n.min() < self.lowest_loss:
            found.append(f"{self.column} {loss_n.min():.4g} is below every run's (lowest {self.lowest_loss:.4g})")
        if loss_n.max() > self.highest_loss:
            found.append(f"{self.column} {loss_n.max():.4g} is above every run's (highest {self.highest_loss:.4g})")
        return found

    def save(self, path: str | Path) -> None:
        """Write the law as JSON, whole or not at all."""
        codec.save(self, path, kind="sigmoid-law")

    @classmethod
    def load(cls, path: str | Path) -> SigmoidLaw:
        """Read a law that `save` wrote. Raises CodecError for any other file."""
        return codec.load(cls, path, kind="sigmoid-law")


def fit_sigmoid(
    runs: Table,
    target: str = "accuracy",
    *,
    loss: str = "loss",
    seed: int = 0,
    draws: int = 1000,
    folds: str = "auto",
) -> SigmoidLaw:
    """Fit the sigmoid of a downstream score against loss, by least squares.

    Args:
        runs: any mapping of column name to values.
        target: the score, 0–1 and rising as loss falls; an `accuracy…` that the table lacks is taken as 1 − `error…`.
        loss: the column of losses.
        seed: of the bootstrap's weights.
        draws: bootstrap draws to keep for intervals; 0 for none.
        folds: how cross-validation groups runs into sizes, see `lathe.laws.choose.sizes`.

    Raises:
        RunsError: a column is missing, or a value is missing, mistyped or impossible.
        LawError: fewer than five runs, one loss for all, or a score that does not rise as loss falls.
    """
    twin = target.replace("accuracy", "error", 1)
    flipped = target.startswith("accuracy") and target not in list_columns(runs) and twin in list_columns(runs)
    columns = validate(runs, target=twin if flipped else target, columns=(loss,))
    x_n, y_n = column(columns, loss), column(columns, twin if flipped else target)
    y_n = 1 - y_n if flipped else y_n
    _check_points(x_n, y_n, loss=loss, target=target)
    if draws < 0 or draws == 1:
        raise LawError(f"draws={draws}; give 0 for none, or 2 or more (1000 serves most uses)")
    ones = np.ones_like(y_n)
    inner_p = _solve(x_n, y_n, ones)
    theta_p = _outer(inner_p)
    split = sizes(columns, rule=folds, fallback=loss)
    cv = _cross_validate(x_n, y_n, np.concatenate([split.leave_one_out, split.forward]))
    weights_bn = bootstrap_weights(len(y_n), draws, seed=seed, trunks=number_trunks(columns))
    drawn = [_outer(_polish(inner_p, x_n, y_n, w_n)[0]) for w_n in weights_bn]
    kinds = columns.get("loss_kind")
    residual_n = sigmoid(theta_p, x_n) - y_n
    return SigmoidLaw(
        target=target,
        column=loss,
        theta=_pack(theta_p),
        theta_se=_standard_errors(theta_p, x_n, residual_n),
        draws_theta=tuple(_pack(t) for t in drawn),
        cv=math.sqrt(residual_n @ residual_n / (len(y_n) - 4)) if cv is None else cv,
        runs=len(y_n),
        loss_kind=None if kinds is None else str(kinds[0]),
        lowest_loss=float(x_n.min()),
        highest_loss=float(x_n.max()),
        warnings=_judge(theta_p, x_n, folded=cv is not None),
        seed=seed,
    )


def _losses(columns: Table, name: str) -> Array:
    loss_n = column(columns, name)
    if not np.isfinite(loss_n).all():
        row = int(np.argmax(~np.isfinite(loss_n)))
        raise LawError(f"row {row + 1}: {name} = {loss_n[row]:g}; wanted a finite loss")
    return loss_n


def _check_points(x_n: Array, y_n: Array, *, loss: str, target: str) -> None:
    if len(y_n) < 5:
        raise LawError(
            f"{len(y_n)} runs cannot fix the 4 coefficients of a sigmoid and check them; add runs, 5 at least"
        )
    if (bad := (y_n < 0) | (y_n > 1)).any():
        row = int(np.argmax(bad))
        raise LawError(f"row {row + 1}: {target} = {y_n[row]:g}; give scores as a fraction, 0–1")
    if (distinct := len(np.unique(x_n))) < 4:
        raise LawError(f"{loss} takes {distinct} distinct values; a sigmoid of 4 coefficients needs 4: add other runs")


def sigmoid(theta: Array, loss: Array) -> Array:
    """Evaluate the sigmoid; the last axis of theta is (c, gamma, l, d), its others broadcast against the losses'."""
    c, gamma, bend, d = np.moveaxis(theta, -1, 0)
    return c * expit(gamma * (loss - bend)) + d


def _outer(inner_p: Array) -> Array:
    """Turn (log −gamma, l, logit d, logit of c's share of 1 − d), which may be any numbers, into theta."""
    d, share = expit(inner_p[2]), expit(inner_p[3])
    return np.array([(1 - d) * share, -math.exp(inner_p[0]), inner_p[1], d])


def _pack(theta_p: Array) -> tuple[float, float, float, float]:
    c, gamma, bend, d = map(float, theta_p)
    return c, gamma, bend, d


def _jacobian(theta_p: Array, x_n: Array) -> Array:
    """Differentiate the curve by theta; axes n, p."""
    c, gamma, bend, _ = theta_p
    q_n = expit(gamma * (x_n - bend))
    steep_n = c * q_n * (1 - q_n)
    return np.stack([q_n, steep_n * (x_n - bend), -steep_n * gamma, np.ones_like(q_n)], axis=1)


def _polish(inner_p: Array, x_n: Array, y_n: Array, w_n: Array) -> tuple[Array, float]:
    """Descend to a local minimum of the weighted squares; returns inner parameters and their cost."""
    root_n, steepest = np.sqrt(w_n), math.log(STEEPEST / np.ptp(x_n))

    def clip(p: Array) -> Array:
        return np.clip(p, (-40, -1e3, -40, -40), (steepest, 1e3, 40, 40))

    def residual(p: Array) -> Array:
        return root_n * (sigmoid(_outer(clip(p)), x_n) - y_n)

    def jacobian(p: Array) -> Array:
        theta_p = _outer(clip(p))
        c, gamma, _, d = theta_p
        share = c / (1 - d)
        to_theta_pq = np.zeros((4, 4))
        to_theta_pq[1, 0], to_theta_pq[2, 1], to_theta_pq[3, 2] = gamma, 1.0, d * (1 - d)
        to_theta_pq[0, 2], to_theta_pq[0, 3] = -c * d, c * (1 - share)
        return root_n[:, None] * (_jacobian(theta_p, x_n) @ to_theta_pq)

    found = least_squares(
        residual, inner_p, jac=jacobian, method="lm", x_scale="jac", xtol=1e-12, ftol=1e-14, gtol=1e-14, max_nfev=200
    )
    return clip(found.x), float(found.cost)


def _solve(x_n: Array, y_n: Array, w_n: Array) -> Array:
    """Scan gamma and l, with c and d by linear least squares, then polish the best cells (variable projection)."""
    low, span = x_n.min(), np.ptp(x_n)
    gamma_g, bend_g = np.meshgrid(-np.geomspace(0.5, 60, 20) / span, low + span * np.linspace(-1, 2, 25))
    gamma_g, bend_g = gamma_g.ravel(), bend_g.ravel()
    q_gn = expit(gamma_g[:, None] * (x_n - bend_g[:, None]))
    share_n = w_n / w_n.sum()
    q_g, y = q_gn @ share_n, y_n @ share_n
    offset_gn = q_gn - q_g[:, None]
    c_g = (offset_gn * share_n) @ (y_n - y) / np.maximum((offset_gn**2) @ share_n, 1e-300)
    if not (c_g > 0).any():
        raise LawError("the score does not rise as loss falls, so no sigmoid describes it; see whether it is an error")
    d_g = np.clip(y - c_g * q_g, 1e-3, 0.99)
    share_g = np.clip(c_g / (1 - d_g), 1e-3, 1 - 1e-3)
    cost_g = (((1 - d_g) * share_g)[:, None] * q_gn + d_g[:, None] - y_n) ** 2 @ share_n
    best = np.argsort(cost_g)[:4]
    starts = np.stack([np.log(-gamma_g), bend_g, logit(d_g), logit(share_g)], axis=1)[best]
    return min((_polish(p, x_n, y_n, w_n) for p in starts), key=lambda found: found[1])[0]


def _cross_validate(x_n: Array, y_n: Array, masks_fn: np.ndarray) -> float | None:
    """Give the geometric mean over folds of the RMS error on what each left out; None without a fold to fit."""
    rms = []
    for keep_n in masks_fn:
        if len(np.unique(x_n[keep_n])) < 4 or keep_n.sum() < 5 or keep_n.all():
            continue
        try:
            inner_p = _solve(x_n[keep_n], y_n[keep_n], np.ones(keep_n.sum()))
        except LawError:  # this part of the runs shows no rise
            continue
        rms.append(np.sqrt(np.mean((sigmoid(_outer(inner_p), x_n[~keep_n]) - y_n[~keep_n]) ** 2)))
    return float(np.exp(np.mean(np.log(np.maximum(rms, 1e-12))))) if rms else None


def _standard_errors(theta_p: Array, x_n: Array, residual_n: Array) -> tuple[float | None, ...]:
    jacobian_np = _jacobian(theta_p, x_n)
    norm_p = np.linalg.norm(jacobian_np, axis=0)
    inverse_pn = np.linalg.pinv(jacobian_np / np.maximum(norm_p, 1e-300), rcond=1e-12)
    se_p = np.linalg.norm(inverse_pn, axis=1) / np.maximum(norm_p, 1e-300)
    se_p = se_p * math.sqrt(residual_n @ residual_n / (len(x_n) - 4))
    return tuple(float(se) if norm > 0 else None for se, norm in zip(se_p, norm_p, strict=True))


def _judge(theta_p: Array, x_n: Array, *, folded: bool) -> tuple[str, ...]:
    c, gamma, bend, d = theta_p
    found = []
    if not x_n.min() <= bend <= x_n.max():
        found.append(
            f"the bend, at loss {bend:.3g}, is not among the runs ({x_n.min():.3g}–{x_n.max():.3g}), so"
            f" {'c + d' if bend < x_n.min() else 'd'} is a guess"
        )
    if -gamma * np.ptp(x_n) > 0.5 * STEEPEST:
        found.append("the score jumps between two runs: gamma is only a lower bound of the steepness")
    if d < 1e-3 or c + d > 1 - 1e-3:
        found.append(f"the runs show no {'floor above 0' if d < 1e-3 else 'ceiling below 1'}")
    if not folded:
        found.append(
            "too few runs or sizes to leave any out: intervals carry the fit's own residuals, and are too narrow"
        )
    return tuple(found)
