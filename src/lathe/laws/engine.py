"""One batched engine for every product of sums of powers: scan by variable projection, then Newton, many fits at once.

Axes: b a fit (a start, a fold, a bootstrap draw), g a cell of the exponents' grid, k a term, n a run, p q parameters.

Given the exponents (and the gate's strength) the coefficients are a linear least-squares problem, so a grid of
exponents is scanned with one matrix product for every weighting of the runs; the best cells are polished by a damped
Newton method with analytic second derivatives. Parameters move in logs (see `system`), so coefficients and exponents stay positive.
Golub & Pereyra 1973 (variable projection); the damping is Levenberg's and Marquardt's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lathe.laws.forms import HUBER_DELTA, Objective
from lathe.laws.system import Array, Piece, System

CHUNK = 1 << 16
"""Elements (fits × runs) evaluated together: small enough to stay in a core's cache."""
MAX_STEPS = 200
CELLS = 1600
"""Cells of the scanned grid, shared out over its axes."""
SCAN_RUNS = 2000
"""Runs the scan looks at; longer tables are thinned evenly for the scan only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How residuals are taken and charged: r in log or in level; r²/2, or Huber's beyond `delta`."""

    log: bool
    delta: float | None

    @classmethod
    def of(cls, objective: Objective) -> Loss:
        """Look up an objective by name."""
        return {
            "squares-log": cls(log=True, delta=None),
            "huber-log": cls(log=True, delta=HUBER_DELTA),
            "squares": cls(log=False, delta=None),
        }[objective]

    def charge(self, r: Array) -> tuple[Array, Array, Array]:
        """Return the cost, its first and its second derivative at each residual."""
        if self.delta is None:
            return 0.5 * r * r, r, np.ones_like(r)
        clipped = np.clip(r, -self.delta, self.delta)
        return clipped * (r - 0.5 * clipped), clipped, (np.abs(r) <= self.delta).astype(r.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Cost, gradient and curvatures of a batch of fits, in linear coordinates (log terms at the centre, exponents)."""

    cost_b: Array
    gradient_bp: Array
    hessian_bpq: Array
    gauss_bpq: Array
    """Gauss–Newton curvature with Huber's reweighting: positive, and the scale of the damping."""

    def set(self, at: np.ndarray, other: Point, mask: np.ndarray) -> None:
        """Overwrite the fits `at` with the masked ones of another point."""
        for name in ("cost_b", "gradient_bp", "hessian_bpq", "gauss_bpq"):
            getattr(self, name)[at] = getattr(other, name)[mask]


def evaluate(system: System, linear_bp: Array, y_n: Array, weights_bn: Array, loss: Loss) -> Point:
    """Evaluate a batch of fits: Σ_n w_bn · charge(r_bn), its gradient and its Hessian."""
    chunk = max(1, CHUNK // max(system.runs, 1))
    parts = [
        _evaluate(system, linear_bp[i : i + chunk], y_n, weights_bn[i : i + chunk], loss)
        for i in range(0, len(linear_bp), chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    names = ("cost_b", "gradient_bp", "hessian_bpq", "gauss_bpq")
    return Point(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _terms(piece: Piece, linear_bp: Array, runs: int) -> Array:
    z_bn = np.zeros((len(linear_bp), runs))
    if piece.coefficient is not None:
        z_bn += linear_bp[:, piece.coefficient, None]
    for index, x_n in zip(piece.exponents, piece.x_n, strict=True):
        z_bn += linear_bp[:, index, None] * x_n
    return z_bn


def _shares(pieces: Sequence[Piece], linear_bp: Array, runs: int) -> tuple[Array, Array, list[Array]]:
    """Return a factor's sign, the log of its size, and each term's share of it."""
    if len(pieces) == 1:
        z_bn = _terms(pieces[0], linear_bp, runs)
        return np.full_like(z_bn, pieces[0].sign), z_bn, [np.ones_like(z_bn)]
    zs = [_terms(p, linear_bp, runs) for p in pieces]
    top_bn = zs[0].copy()
    for z_bn in zs[1:]:
        np.maximum(top_bn, z_bn, out=top_bn)
    shares = []
    total_bn = np.zeros_like(top_bn)
    for piece, z_bn in zip(pieces, zs, strict=True):
        z_bn -= top_bn
        np.exp(z_bn, out=z_bn)
        if piece.sign < 0:
            np.negative(z_bn, out=z_bn)
        total_bn += z_bn
        shares.append(z_bn)
    for share_bn in shares:
        share_bn /= total_bn
    return np.sign(total_bn), top_bn + np.log(np.abs(total_bn)), shares


def _evaluate(system: System, linear_bp: Array, y_n: Array, weights_bn: Array, loss: Loss) -> Point:
    fits, runs, size = len(linear_bp), system.runs, system.size
    with np.errstate(all="ignore"):  # a step too far gives inf or nan, and the caller refuses it
        factors = [_shares(pieces, linear_bp, runs) for pieces in system.factors]
        log_bn = sum(f[1] for f in factors[1:]) + factors[0][1]
        if loss.log:
            r_bn = log_bn - np.log(y_n)
            value_bn = None
        else:
            value_bn = np.exp(log_bn)
            for sign_bn, _, _ in factors:
                value_bn *= sign_bn
            r_bn = value_bn - y_n
        cost_bn, slope_bn, bend_bn = loss.charge(r_bn)
        cost_b = np.einsum("bn,bn->b", weights_bn, cost_bn)
        slope_bn = slope_bn * weights_bn
        bend_bn = bend_bn * weights_bn
        steep_bn = (
            weights_bn if loss.delta is None else weights_bn * np.where(bend_bn > 0, 1.0, loss.delta / np.abs(r_bn))
        )
        if value_bn is not None:  # r = f − y: ∇r = f·∇log f and ∇²r = f·(∇²log f + ∇log f ∇log fᵀ)
            slope_bn = slope_bn * value_bn
            bend_bn = bend_bn * value_bn**2 + slope_bn
            steep_bn = steep_bn * value_bn**2
        total_bpn = np.zeros((fits, size, runs))
        hessian_bpq = np.zeros((fits, size, size))
        for pieces, (_, _, shares) in zip(system.factors, factors, strict=True):
            alone = len(system.factors) == 1
            factor_bpn = total_bpn if alone else np.zeros_like(total_bpn)
            for piece, share_bn in zip(pieces, shares, strict=True):
                _add_piece(piece, share_bn, share_bn * slope_bn, factor_bpn, hessian_bpq)
            if not alone:
                total_bpn += factor_bpn
                hessian_bpq -= _weighted(factor_bpn, slope_bn)
        hessian_bpq += _weighted(total_bpn, bend_bn - slope_bn if len(system.factors) == 1 else bend_bn)
        gradient_bp = np.matmul(total_bpn, slope_bn[:, :, None])[:, :, 0]
        gauss_bpq = _weighted(total_bpn, steep_bn)
    return Point(cost_b=cost_b, gradient_bp=gradient_bp, hessian_bpq=hessian_bpq, gauss_bpq=gauss_bpq)


def _add_piece(piece: Piece, share_bn: Array, sloped_bn: Array, jacobian_bpn: Array, hessian_bpq: Array) -> None:
    """Add one term's ∇z to its factor's Jacobian and Σ_n slope·share·∇z∇zᵀ to the Hessian."""
    if piece.coefficient is None:
        return
    c = piece.coefficient
    jacobian_bpn[:, c] += share_bn
    hessian_bpq[:, c, c] += sloped_bn.sum(axis=1)
    for i, x_n in zip(piece.exponents, piece.x_n, strict=True):
        jacobian_bpn[:, i] += share_bn * x_n
        cross_b = sloped_bn @ x_n
        hessian_bpq[:, c, i] += cross_b
        hessian_bpq[:, i, c] += cross_b
        for j, other_n in zip(piece.exponents, piece.x_n, strict=True):
            hessian_bpq[:, i, j] += sloped_bn @ (x_n * other_n)


def _weighted(jacobian_bpn: Array, weights_bn: Array) -> Array:
    return np.matmul(jacobian_bpn * weights_bn[:, None, :], jacobian_bpn.transpose(0, 2, 1))


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


def solve(
    system: System, y_n: Array, weights_bn: Array, loss: Loss, *, cells: int = CELLS, keep: int = 24
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
        system, chosen_bsp.reshape(-1, system.size), y_n, np.repeat(weights_bn, finalists, axis=0), loss
    )
    cost_bs = np.nan_to_num(cost_b.reshape(fits, finalists), nan=np.inf)
    best_b = cost_bs.argmin(axis=1)
    pick = np.arange(fits)
    return system.to_theta(linear_bp.reshape(fits, finalists, -1)[pick, best_b]), cost_bs[pick, best_b]


def resolve(system: System, theta_p: Array, y_n: Array, weights_bn: Array, loss: Loss) -> tuple[Array, Array]:
    """Fit every weighting of the runs, each from the given parameters; returns theta (b, p) and costs (b)."""
    start_bp = np.repeat(system.to_linear(theta_p[None]), len(weights_bn), axis=0)
    linear_bp, cost_b = polish(system, start_bp, y_n, weights_bn, loss, tolerance=1e-9)
    return system.to_theta(linear_bp), cost_b


def scan(system: System, y_n: Array, weights_bn: Array, loss: Loss, *, cells: int = CELLS, keep: int) -> Array:
    """Find starts by variable projection: the best cells of a grid of exponents for each weighting.

    Returns linear parameters with axes (b, start, p), `keep` starts a weighting. Relative residuals stand in for log
    ones. A coefficient that comes out negative starts small instead.
    """
    if system.runs > SCAN_RUNS:
        thin = np.linspace(0, system.runs - 1, SCAN_RUNS).astype(np.intp)
        system, y_n, weights_bn = system.rows(thin), y_n[thin], weights_bn[:, thin]
    k = system.coefficients
    cells_gp = _cells(system, cells)
    basis_gkn, sums = _basis(system, cells_gp)
    scaled_gkn = basis_gkn / y_n if loss.log else basis_gkn
    target_n = np.ones_like(y_n) if loss.log else y_n
    gram_bgkl = np.stack([np.matmul(scaled_gkn * w_n, scaled_gkn.transpose(0, 2, 1)) for w_n in weights_bn])
    right_bgk = np.stack([scaled_gkn @ (w_n * target_n) for w_n in weights_bn])
    norm_bgk = np.sqrt(np.einsum("bgkk->bgk", gram_bgkl)) + 1e-300
    ridged = gram_bgkl / (norm_bgk[..., :, None] * norm_bgk[..., None, :]) + 1e-10 * np.eye(sums)
    coefficients = np.linalg.solve(ridged, (right_bgk / norm_bgk)[..., None])[..., 0] / norm_bgk
    floor_bgk = 3e-3 * np.sqrt(weights_bn @ target_n**2)[:, None, None] / norm_bgk
    coefficients = np.maximum(coefficients, floor_bgk)
    fit_bg = np.einsum("bgk,bgkl,bgl->bg", coefficients, gram_bgkl, coefficients) - 2 * np.einsum(
        "bgk,bgk->bg", coefficients, right_bgk
    )
    keep = min(keep, len(cells_gp))
    best_bs = np.argsort(fit_bg, axis=1)[:, :keep]
    starts = np.empty((len(weights_bn), keep, system.size))
    starts[...] = cells_gp[best_bs]
    starts[..., :sums] = np.log(np.take_along_axis(coefficients, best_bs[..., None], axis=1))
    assert sums <= k
    return starts


def _cells(system: System, cells: int) -> Array:
    """Lay a grid over the exponents and the gate's strength; returns linear parameters with axes (g, p)."""
    k, gated = system.coefficients, len(system.factors) > 1
    axes = system.size - k + gated
    each = int(np.clip(round(cells ** (1 / axes)), 5, 48))
    exponents = np.geomspace(0.04, 1.6, each)
    grids = [exponents] * (system.size - k)
    if gated:
        grids.append(np.log(np.geomspace(3e-3, 1.0, each)))
    cells_gp = np.zeros((each**axes, system.size))
    mesh = np.array(list(itertools.product(*grids)))
    cells_gp[:, k:] = mesh[:, : system.size - k]
    if gated:
        cells_gp[:, k - 1] = mesh[:, -1]
    return cells_gp


def _basis(system: System, cells_gp: Array) -> tuple[Array, int]:
    """Evaluate each term of the sum, times the gate, at unit coefficient; returns axes (g, k, n) and the count k."""
    pieces = system.factors[0]
    basis_gkn = np.empty((len(cells_gp), len(pieces), system.runs))
    for row, piece in enumerate(pieces):
        basis_gkn[:, row] = piece.sign * np.exp(_terms(piece, cells_gp, system.runs))
    for gate in system.factors[1:]:
        basis_gkn *= sum(np.exp(_terms(p, cells_gp, system.runs)) for p in gate)[:, None, :]
    return basis_gkn, len(pieces)
