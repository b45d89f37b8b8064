"""Starts by variable projection: scan a grid of exponents, solving for the coefficients in each cell.

Axes: b a weighting of the runs, g a cell of the grid, k l terms, n a run, p a parameter.
"""

from __future__ import annotations

import itertools

import numpy as np

from lathe.laws.evaluate import Loss, log_terms
from lathe.laws.system import Array, Piece, System

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
    cells_gp = _cells(system, cells)
    basis_kgn = _basis(system, cells_gp)
    sums = len(basis_kgn)
    if loss.log:
        basis_kgn /= y_n
    target_n = np.ones_like(y_n) if loss.log else y_n
    # One product for each pair of terms serves every weighting of the runs.
    w_nb = np.ascontiguousarray(weights_bn.T)
    gram_bgkl = np.empty((len(weights_bn), len(cells_gp), sums, sums))
    right_bgk = np.empty((len(weights_bn), len(cells_gp), sums))
    for k in range(sums):
        right_bgk[:, :, k] = (basis_kgn[k] @ (w_nb * target_n[:, None])).T
        for j in range(k + 1):
            gram_bgkl[:, :, k, j] = gram_bgkl[:, :, j, k] = ((basis_kgn[k] * basis_kgn[j]) @ w_nb).T
    norm_bgk = np.sqrt(np.einsum("bgkk->bgk", gram_bgkl)) + 1e-300
    ridged = gram_bgkl / (norm_bgk[..., :, None] * norm_bgk[..., None, :]) + 1e-10 * np.eye(sums)
    coefficients = np.linalg.solve(ridged, (right_bgk / norm_bgk)[..., None])[..., 0] / norm_bgk
    floor_bgk = 3e-3 * np.sqrt(weights_bn @ target_n**2)[:, None, None] / norm_bgk
    coefficients = np.maximum(coefficients, floor_bgk)
    image_bgk = np.matmul(gram_bgkl, coefficients[..., None])[..., 0]
    fit_bg = np.einsum("bgk,bgk->bg", coefficients, image_bgk - 2 * right_bgk)
    keep = min(keep, len(cells_gp))
    best_bs = np.argsort(fit_bg, axis=1)[:, :keep]
    starts = np.empty((len(weights_bn), keep, system.size))
    starts[...] = cells_gp[best_bs]
    starts[..., :sums] = np.log(np.take_along_axis(coefficients, best_bs[..., None], axis=1))
    assert sums <= system.coefficients
    return starts


def _cells(system: System, cells: int) -> Array:
    """Lay a grid over the exponents and the gate's strength; returns linear parameters with axes (g, p).

    Beyond six axes even three points each are too many cells: as many are then drawn at random, always the same.
    """
    k, gated = system.coefficients, len(system.factors) > 1
    axes = system.size - k + gated
    each = int(np.clip(round(cells ** (1 / axes)), 3, 48))
    exponents = np.geomspace(0.04, 1.6, each)
    grids = [exponents] * (system.size - k)
    if gated:
        grids.append(np.log(np.geomspace(3e-3, 1.0, each)))
    if each**axes > 2 * cells:
        mesh = np.stack([np.random.default_rng(i).choice(g, cells) for i, g in enumerate(grids)], axis=1)
    else:
        mesh = np.array(list(itertools.product(*grids)))
    cells_gp = np.zeros((len(mesh), system.size))
    cells_gp[:, k:] = mesh[:, : system.size - k]
    if gated:
        cells_gp[:, k - 1] = mesh[:, -1]
    return cells_gp


def _basis(system: System, cells_gp: Array) -> Array:
    """Evaluate each term of the sum, times the gate, at unit coefficient; returns axes (k, g, n)."""
    pieces = system.factors[0]
    basis_kgn = np.empty((len(pieces), len(cells_gp), system.runs))
    for row, piece in enumerate(pieces):
        basis_kgn[row] = piece.sign * _powers(system, piece, cells_gp)
    for gate in system.factors[1:]:
        basis_kgn *= np.sum([_powers(system, p, cells_gp) for p in gate], axis=0)
    return basis_kgn


def _powers(system: System, piece: Piece, cells_gp: Array) -> Array:
    """Evaluate a term at every cell; cells that share its parameters share the exponentials."""
    own = [*piece.exponents] if piece.coefficient is None else [piece.coefficient, *piece.exponents]
    key_g = np.zeros(len(cells_gp), dtype=np.intp)
    for p in own:
        _, code_g = np.unique(cells_gp[:, p], return_inverse=True)
        key_g = key_g * (int(code_g.max()) + 1) + code_g
    _, first, inverse_g = np.unique(key_g, return_index=True, return_inverse=True)
    return np.exp(log_terms(piece, cells_gp[first], system.runs))[inverse_g]
