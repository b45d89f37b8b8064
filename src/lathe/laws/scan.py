"""Starts by variable projection: scan a grid of exponents, solving for the coefficients in each cell.

Axes: b a weighting of the runs, g a cell of the grid, k l terms, n a run, p a parameter.
"""

from __future__ import annotations

import itertools

import numpy as np

from lathe.laws.evaluate import Loss, log_terms
from lathe.laws.system import Array, System

CELLS = 1600
"""Cells of the scanned grid, shared out over its axes."""
SCAN_RUNS = 2000
"""Runs the scan looks at; longer tables are thinned evenly for the scan only."""


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
        basis_gkn[:, row] = piece.sign * np.exp(log_terms(piece, cells_gp, system.runs))
    for gate in system.factors[1:]:
        basis_gkn *= np.sum([np.exp(log_terms(p, cells_gp, system.runs)) for p in gate], axis=0)[:, None, :]
    return basis_gkn, len(pieces)
