"""How sure a fit is: bootstrap draws, delta-method standard errors, condition, and intervals that cover.

Axes: b a bootstrap draw, n a run, p q parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from lathe.errors import LawError
from lathe.laws.engine import resolve
from lathe.laws.evaluate import Loss, evaluate, residual_gradients
from lathe.laws.system import Array, System

UNSEEN = 1e-12
"""Share of the scaled curvature under which a combination of parameters is not seen at all."""


def bootstrap_weights(runs: int, draws: int, *, seed: int, trunks: np.ndarray | None = None) -> Array:
    """Draw exponential (Dirichlet) weights with mean one for each run, or for each trunk that several runs share.

    Args:
        runs: number of rows, n.
        draws: number of draws, b.
        trunks: for each row the number of its trunk, 0 upwards.
    """
    index_n = np.arange(runs) if trunks is None else trunks
    weights = np.random.default_rng(seed).exponential(size=(draws, int(index_n.max()) + 1))
    weights_bn = weights[:, index_n]
    return weights_bn / weights_bn.mean(axis=1, keepdims=True)


def number_trunks(columns: Mapping[str, Any]) -> np.ndarray | None:
    """Number the trunk that each run branched from; a run without one is its own. None if the table names no trunks."""
    if "trunk" not in columns:
        return None
    names = [f"row {i}" if t is None else f"trunk {t}" for i, t in enumerate(columns["trunk"].tolist())]
    return np.unique(names, return_inverse=True)[1]


def bootstrap(
    system: System, theta_p: Array, y_n: Array, loss: Loss, *, draws: int, seed: int, trunks: np.ndarray | None
) -> Array:
    """Refit to reweighted runs, each draw polished to convergence from the fit itself; returns theta (b, p)."""
    if draws == 0:
        return np.empty((0, system.size))
    weights_bn = bootstrap_weights(system.runs, draws, seed=seed, trunks=trunks)
    theta_bp, _ = resolve(system, theta_p, y_n, weights_bn, loss)
    return theta_bp


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What a fit's curvature says: standard errors of (log coefficients, exponents), and the condition number."""

    theta_se_p: Array
    condition: float
    blurred: tuple[str, ...]
    """Parameters of some combination that the runs do not see at all; their standard errors are infinite."""


def identify(system: System, theta_p: Array, y_n: Array, loss: Loss) -> Identified:
    """Take standard errors by the delta method, and the condition of the scaled normal matrix.

    Least squares: s²·(JᵀJ)⁻¹ with s² on n − p degrees of freedom. Huber: the sandwich B⁻¹(Σψ²∇∇ᵀ)B⁻¹, where the bread
    B = Σψ'∇∇ᵀ takes ψ' as the density of residuals near zero (few residuals lie where Huber's loss is curved). The
    condition is that of JᵀJ scaled to a unit diagonal: 1 where every parameter is seen alone, above 1e8 where some
    combination is all but unseen. Errors are infinite where the runs leave no degree of freedom, and for parameters of
    a combination they do not see, such as a constant, a coefficient and an exponent over two values of a column.
    """
    linear_p = system.to_linear(theta_p[None])
    ones = np.ones((1, system.runs))
    point = evaluate(system, linear_p, y_n, ones, Loss(log=loss.log, delta=None))
    gauss_pq = point.gauss_bpq[0]
    to_theta = system.to_theta(np.eye(system.size)).T
    from_theta = system.to_linear(np.eye(system.size)).T
    natural_pq = from_theta.T @ gauss_pq @ from_theta
    root_p = np.sqrt(np.maximum(np.diag(natural_pq), 1e-300))
    values_p, vectors_pq = np.linalg.eigh(natural_pq / np.outer(root_p, root_p))
    condition = float(values_p[-1] / max(abs(values_p[0]), 1e-300))
    unseen_p = np.abs(vectors_pq[:, values_p < UNSEEN]).max(axis=1, initial=0.0) > 1e-3
    blurred = tuple(name for name, unseen in zip(system.form.names, unseen_p, strict=True) if unseen)
    free = system.runs - system.size
    if free <= 0:
        return Identified(theta_se_p=np.full(system.size, np.inf), condition=condition, blurred=blurred)
    if loss.delta is None:
        cov_pq = _inverse(gauss_pq) * (2 * point.cost_b[0] / free)
    else:
        cov_pq = _sandwich(system, linear_p, y_n, loss, loss.delta) * (system.runs / free)
    theta_cov_pq = to_theta @ cov_pq @ to_theta.T
    theta_se_p = np.where(unseen_p, np.inf, np.sqrt(np.maximum(np.diag(theta_cov_pq), 0)))
    return Identified(theta_se_p=theta_se_p, condition=condition, blurred=blurred)


def _sandwich(system: System, linear_p: Array, y_n: Array, loss: Loss, delta: float) -> Array:
    """Take the covariance of a Huber fit: bread from residuals within a bandwidth, meat from every run's gradient."""
    r_n, gradient_np = residual_gradients(system, linear_p, y_n, loss)
    width = max(delta, float(np.median(np.abs(r_n))))
    near_n = (np.abs(r_n) <= width) * (delta / width)
    bread_pq = _inverse(gradient_np.T @ (near_n[:, None] * gradient_np))
    pull_np = loss.charge(r_n)[1][:, None] * gradient_np
    return bread_pq @ (pull_np.T @ pull_np) @ bread_pq


def _inverse(matrix_pq: Array) -> Array:
    root_p = np.sqrt(np.maximum(np.diag(matrix_pq), 1e-300))
    scaled = matrix_pq / np.outer(root_p, root_p)
    return np.linalg.pinv(scaled, rcond=1e-15, hermitian=True) / np.outer(root_p, root_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A prediction interval, and its three parts as standard deviations (of log loss where the law is positive).

    `bootstrap` is the scatter of refits, `forms` the disagreement between forms, `noise` the cross-validation error
    that no refit shows. Each array has one entry a row asked about.
    """

    level: float
    low: Array
    high: Array
    bootstrap: Array
    forms: Array
    noise: Array


def mix(draws: list[Array], weights: list[float], *, cv: float, level: float, log: bool, seed: int) -> Interval:
    """Mix each form's predictive draws by weight, add N(0, cv), and take quantiles.

    Args:
        draws: for each form its predictions at (b, n).
        weights: for each form its weight; they add to one.
        cv: standard deviation of the noise, in log if `log`.

    Raises:
        LawError: the level is not between 0 and 1, or there are no draws.
    """
    if not 0 < level < 1:
        raise LawError(f"level={level} is no probability; give a number between 0 and 1, such as 0.9")
    if not draws or any(len(d) < 2 for d in draws):
        raise LawError("this law keeps no bootstrap draws; fit it with draws=1000 to get intervals")
    levels = [np.log(d) if log else d for d in draws]
    share = np.array(weights) / np.sum(weights)
    weight_b = np.concatenate([np.full(len(d), w / len(d)) for d, w in zip(levels, share, strict=True)])
    value_bn = np.concatenate(levels)
    rng = np.random.default_rng(seed)
    # Normal quantiles in random order: the noise has its exact spread, whatever the number of draws.
    noise_b = np.concatenate([rng.permutation(ndtri((np.arange(len(d)) + 0.5) / len(d))) for d in levels])
    low, high = _quantiles(value_bn + cv * noise_b[:, None], weight_b, ((1 - level) / 2, (1 + level) / 2))
    means_fn = np.stack([d.mean(axis=0) for d in levels])
    centre_n = share @ means_fn
    return Interval(
        level=level,
        low=np.exp(low) if log else low,
        high=np.exp(high) if log else high,
        bootstrap=np.sqrt(share @ np.stack([d.var(axis=0) for d in levels])),
        forms=np.sqrt(share @ (means_fn - centre_n) ** 2),
        noise=np.full(value_bn.shape[1], cv),
    )


def _quantiles(value_bn: Array, weight_b: Array, at: tuple[float, ...]) -> list[Array]:
    order_bn = np.argsort(value_bn, axis=0)
    sorted_bn = np.take_along_axis(value_bn, order_bn, axis=0)
    reached_bn = np.cumsum(weight_b[order_bn], axis=0) - 0.5 * weight_b[order_bn]
    found = []
    for q in at:
        above_n = np.minimum((reached_bn < q).sum(axis=0), len(weight_b) - 1)
        below_n = np.maximum(above_n - 1, 0)
        columns = np.arange(value_bn.shape[1])
        r0, r1 = reached_bn[below_n, columns], reached_bn[above_n, columns]
        part = np.clip(np.divide(q - r0, r1 - r0, out=np.zeros_like(r0), where=r1 > r0), 0, 1)
        found.append(sorted_bn[below_n, columns] * (1 - part) + sorted_bn[above_n, columns] * part)
    return found
