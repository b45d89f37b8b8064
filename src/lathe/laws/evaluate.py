"""Cost, gradient and Hessian of a product of sums of powers, for many fits at once.

Axes: b a fit (a start, a fold, a bootstrap draw), n a run, p q parameters.

The log of a sum of powers is a log-sum-exp of linear functions of (log terms, exponents), so its derivatives are
averages under the terms' shares: ∇ = Σ share·∇z, and ∇² = Σ share·∇z∇zᵀ − ∇∇ᵀ. A product adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lathe.laws.forms import HUBER_DELTA, Objective
from lathe.laws.system import Array, Piece, System

CHUNK = 1 << 16
"""Elements (fits × runs) evaluated together: small enough to stay in a core's cache."""


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


def log_terms(piece: Piece, linear_bp: Array, runs: int) -> Array:
    z_bn = np.zeros((len(linear_bp), runs))
    if piece.coefficient is not None:
        z_bn += linear_bp[:, piece.coefficient, None]
    for index, x_n in zip(piece.exponents, piece.x_n, strict=True):
        z_bn += linear_bp[:, index, None] * x_n
    return z_bn


def _shares(pieces: Sequence[Piece], linear_bp: Array, runs: int) -> tuple[Array, Array, list[Array]]:
    """Return a factor's sign, the log of its size, and each term's share of it."""
    if len(pieces) == 1:
        z_bn = log_terms(pieces[0], linear_bp, runs)
        return np.full_like(z_bn, pieces[0].sign), z_bn, [np.ones_like(z_bn)]
    zs = [log_terms(p, linear_bp, runs) for p in pieces]
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


def residual_gradients(system: System, linear_p: Array, y_n: Array, loss: Loss) -> tuple[Array, Array]:
    """Return one fit's residual at each run (n), and its gradient (n, p) in linear coordinates."""
    linear_bp = np.atleast_2d(linear_p)
    shares, value_bn, r_bn = _residuals(system, linear_bp, y_n, loss)
    jacobian_bpn, unused_bpq = np.zeros((1, system.size, system.runs)), np.zeros((1, system.size, system.size))
    for pieces, shares_bn in zip(system.factors, shares, strict=True):
        for piece, share_bn in zip(pieces, shares_bn, strict=True):
            _add_piece(piece, share_bn, share_bn, jacobian_bpn, unused_bpq)
    scale_n = np.ones(system.runs) if value_bn is None else value_bn[0]
    return r_bn[0], jacobian_bpn[0].T * scale_n[:, None]


def _residuals(
    system: System, linear_bp: Array, y_n: Array, loss: Loss
) -> tuple[list[list[Array]], Array | None, Array]:
    """Return each factor's shares, the prediction itself where residuals are in level, and the residuals."""
    factors = [_shares(pieces, linear_bp, system.runs) for pieces in system.factors]
    shares = [f[2] for f in factors]
    log_bn = sum(f[1] for f in factors[1:]) + factors[0][1]
    if loss.log:
        return shares, None, log_bn - np.log(y_n)
    value_bn = np.exp(log_bn)
    for sign_bn, _, _ in factors:
        value_bn *= sign_bn
    return shares, value_bn, value_bn - y_n


def _evaluate(system: System, linear_bp: Array, y_n: Array, weights_bn: Array, loss: Loss) -> Point:
    fits, runs, size = len(linear_bp), system.runs, system.size
    with np.errstate(all="ignore"):  # a step too far gives inf or nan, and the caller refuses it
        shares, value_bn, r_bn = _residuals(system, linear_bp, y_n, loss)
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
        for pieces, shares_bn in zip(system.factors, shares, strict=True):
            alone = len(system.factors) == 1
            factor_bpn = total_bpn if alone else np.zeros_like(total_bpn)
            for piece, share_bn in zip(pieces, shares_bn, strict=True):
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
