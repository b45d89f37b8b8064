"""One batched engine for every product of sums of powers: scan by variable projection, then Newton, many fits at once.

Axes: b a fit (a start, a fold, a bootstrap draw), p q parameters.

Given the exponents (and the gate's strength) the coefficients are a linear least-squares problem, so a grid of
exponents is scanned with one matrix product for every weighting of the runs (`scan`); the best cells are polished by
a damped Newton method with analytic second derivatives. Parameters move in logs (see `system`), so coefficients and
exponents stay positive. Golub & Pereyra 1973 (variable projection); the damping is Levenberg's and Marquardt's.
"""

from __future__ import annotations

import numpy as np

from lathe.laws.evaluate import Loss, Point, evaluate
from lathe.laws.scan import CELLS, scan
from lathe.laws.system import Array, System

MAX_STEPS = 200
RACE_STEPS = 25
"""Steps after which only the best of a fit's finalists runs on."""


def solve(
    system: System,
    y_n: Array,
    weights_bn: Array,
    loss: Loss,
    *,
    cells: int = CELLS,
    keep: int = 24,
) -> tuple[Array, Array]:
    """Fit every weighting of the runs from scratch; returns theta (b, p) and costs (b).

    Scan, descend a few steps on plain squares from the best cells, then finish the most promising on the loss itself.
    """
    fits = len(weights_bn)
    start_bsp = scan(system, y_n, weights_bn, loss, cells=cells, keep=keep)
    kept = start_bsp.shape[1]
    plain = Loss(log=loss.log, delta=None)
    linear_bp, cost_b = polish(
        system, start_bsp.reshape(-1, system.size), y_n, np.repeat(weights_bn, kept, axis=0), plain, max_steps=10
    )
    finalists = min(6, kept)
    order_bs = np.argsort(np.nan_to_num(cost_b.reshape(fits, kept), nan=np.inf), axis=1)[:, :finalists]
    chosen_bsp = np.take_along_axis(linear_bp.reshape(fits, kept, -1), order_bs[..., None], axis=1)
    linear_bp, cost_b = polish(
        system,
        chosen_bsp.reshape(-1, system.size),
        y_n,
        np.repeat(weights_bn, finalists, axis=0),
        loss,
        max_steps=RACE_STEPS,
    )
    best_b = np.nan_to_num(cost_b.reshape(fits, finalists), nan=np.inf).argmin(axis=1)
    winner_bp = linear_bp.reshape(fits, finalists, -1)[np.arange(fits), best_b]
    linear_bp, cost_b = polish(system, winner_bp, y_n, weights_bn, loss)
    return system.to_theta(linear_bp), np.nan_to_num(cost_b, nan=np.inf)


def resolve(system: System, theta_p: Array, y_n: Array, weights_bn: Array, loss: Loss) -> tuple[Array, Array]:
    """Fit every weighting of the runs, each from the given parameters; returns theta (b, p) and costs (b)."""
    start_bp = np.repeat(system.to_linear(theta_p[None]), len(weights_bn), axis=0)
    linear_bp, cost_b = polish(system, start_bp, y_n, weights_bn, loss, tolerance=1e-9)
    return system.to_theta(linear_bp), cost_b


def polish(
    system: System,
    start_bp: Array,
    y_n: Array,
    weights_bn: Array,
    loss: Loss,
    *,
    max_steps: int = MAX_STEPS,
    tolerance: float = 1e-11,
) -> tuple[Array, Array]:
    """Descend from every start at once to a local minimum; returns linear parameters (b, p) and costs (b).

    Damped Newton in log parameters. A step is taken only if it lowers the cost. A fit is done when the decrease that
    Newton foresees is under `tolerance` of its cost, or the cost is at rounding error.
    """
    k = system.coefficients
    phi_bp = np.array(start_bp, dtype=np.float64)
    phi_bp[:, k:] = np.log(phi_bp[:, k:])
    point = evaluate(system, _linear(phi_bp, k), y_n, weights_bn, loss)
    damping_b = np.full(len(phi_bp), 1e-2)
    floor_b = 1e-28 * weights_bn.sum(axis=1) * (1.0 if loss.log else float(np.mean(y_n**2)))
    live = np.flatnonzero(np.isfinite(point.cost_b))
    for _ in range(max_steps):
        if not len(live):
            break
        step_bp, foreseen_b = _newton(_take(point, live), phi_bp[live], damping_b[live], k)
        done = (foreseen_b <= tolerance * point.cost_b[live]) & (damping_b[live] <= 1e-2)
        done |= (point.cost_b[live] <= floor_b[live]) | (damping_b[live] > 1e12)
        live, step_bp = live[~done], step_bp[~done]
        if not len(live):
            break
        trial_bp = phi_bp[live] + step_bp
        trial = evaluate(system, _linear(trial_bp, k), y_n, weights_bn[live], loss)
        better = trial.cost_b < point.cost_b[live]
        at = live[better]
        phi_bp[at] = trial_bp[better]
        point.set(at, trial, better)
        damping_b[live] *= np.where(better, 0.15, 8.0)
        damping_b[live] = np.maximum(damping_b[live], 1e-14)
    return _linear(phi_bp, k), point.cost_b


def _linear(phi_bp: Array, k: int) -> Array:
    linear_bp = phi_bp.copy()
    np.exp(np.minimum(linear_bp[:, k:], 8.0), out=linear_bp[:, k:])
    return linear_bp


def _take(point: Point, at: np.ndarray) -> Point:
    return Point(
        cost_b=point.cost_b[at],
        gradient_bp=point.gradient_bp[at],
        hessian_bpq=point.hessian_bpq[at],
        gauss_bpq=point.gauss_bpq[at],
    )


def _newton(point: Point, phi_bp: Array, damping_b: Array, k: int) -> tuple[Array, Array]:
    """Solve for the damped step in log parameters; returns the step and the decrease it foresees."""
    scale_bp = np.ones_like(phi_bp)
    scale_bp[:, k:] = np.exp(phi_bp[:, k:])
    gradient_bp = point.gradient_bp * scale_bp
    both_bpq = scale_bp[:, :, None] * scale_bp[:, None, :]
    hessian_bpq = point.hessian_bpq * both_bpq
    diagonal = np.arange(phi_bp.shape[1])
    hessian_bpq[:, diagonal[k:], diagonal[k:]] += gradient_bp[:, k:]  # d²/dφ² of exp(φ)
    gauss_bp = point.gauss_bpq[:, diagonal, diagonal] * scale_bp**2
    gauss_bp = np.maximum(gauss_bp, 1e-9 * gauss_bp.max(axis=1, keepdims=True) + 1e-300)
    hessian_bpq[:, diagonal, diagonal] += damping_b[:, None] * gauss_bp
    # Scaled to a unit Gauss–Newton diagonal, the system is as well conditioned as the data allow.
    root_bp = np.sqrt(gauss_bp)
    scaled_bpq = hessian_bpq / (root_bp[:, :, None] * root_bp[:, None, :])
    scaled_bpq[:, diagonal, diagonal] += 1e-13
    values_bp, vectors_bpq = np.linalg.eigh(scaled_bpq)
    # A direction of negative curvature is walked down as if it curved up (saddle-free Newton, Dauphin et al. 2014).
    values_bp = np.maximum(np.abs(values_bp), 1e-12 + 1e-3 * damping_b[:, None])
    inside_bp = np.matmul(vectors_bpq.transpose(0, 2, 1), (gradient_bp / root_bp)[:, :, None])[:, :, 0]
    step_bp = -np.matmul(vectors_bpq, (inside_bp / values_bp)[:, :, None])[:, :, 0] / root_bp
    largest_b = np.abs(step_bp).max(axis=1)
    shrink_b = np.minimum(1.0, 2.0 / np.maximum(largest_b, 1e-300))
    return step_bp * shrink_b[:, None], 0.5 * np.sum(inside_bp**2 / values_bp, axis=1)
