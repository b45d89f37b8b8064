"""Propose small trainings around the runs there are, for a design to choose from.

Axes: n a run, c a candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lathe.laws.system import Array, column
from lathe.runs import Table, derive, list_columns

SPARSE = 20.0
"""Tokens per parameter below which nothing is proposed, unless the runs or the target go there: such runs mislead
extrapolation."""
WIDTH_STEP = 64
SPACING = 1.25
"""Ratio between neighbouring widths, and between neighbouring depths; tokens per parameter double."""
BEYOND = 4.0
"""Proposed runs have at most this many times the largest run's parameters."""


def propose_candidates(runs: Table, target: Table, *, flops: float) -> dict[str, NDArray[Any]]:
    """Lay out a grid of runs no smaller than the smallest there is and no larger than the target.

    Where runs and target have d_model and n_layers, widths and depths reach from the runs' to the target's, at aspects
    that either has, and params follow from the runs' own as b·n·d² + e·d. Otherwise only params and tokens vary. Runs
    dearer than `flops` are left out, unless all are.
    """
    params_n, tokens_n = column(runs, "params"), column(runs, "tokens")
    shape = _shapes(runs, target, params_n)
    known = {*list_columns(target), *derive(target)}
    largest = BEYOND * params_n.max()
    if "params" in known:
        largest = min(largest, float(column(target, "params").max()))
    if shape is None:
        low, high = float(params_n.min()), max(largest, float(params_n.max()))
        shape = {"params": np.unique(np.rint(_spread(low, high, SPACING)))}
    inside_c = (shape["params"] >= 0.9 * params_n.min()) & (shape["params"] <= 1.1 * max(largest, params_n.max()))
    shape = {name: values[inside_c] for name, values in shape.items()}
    ratios_n = tokens_n / params_n
    if {"params", "tokens"} <= known:
        ratios_n = np.concatenate([ratios_n, column(target, "tokens") / column(target, "params")])
    low = min(SPARSE, float(ratios_n.min()))
    ratio_m = _spread(low, max(float(ratios_n.max()), 8 * low), 2.0)
    count = len(shape["params"])
    grid = {name: np.repeat(values, len(ratio_m)) for name, values in shape.items()}
    tokens_c = grid["params"] * np.tile(ratio_m, count)
    digits_c = 10.0 ** (np.floor(np.log10(tokens_c)) - 2)
    grid["tokens"] = np.rint(tokens_c / digits_c) * digits_c
    cost_c = 6 * grid["params"] * grid["tokens"]
    if (cost_c <= flops).any():
        grid = {name: values[cost_c <= flops] for name, values in grid.items()}
    return grid


def _shapes(runs: Table, target: Table, params_n: Array) -> dict[str, NDArray[Any]] | None:
    names = {"d_model", "n_layers"}
    if not (names <= set(list_columns(runs)) and names <= set(list_columns(target))):
        return None
    d_n, n_n = column(runs, "d_model"), column(runs, "n_layers")
    d_t, n_t = column(target, "d_model"), column(target, "n_layers")
    # Relative least squares: what a block and a unit of width cost, as the runs were built.
    (block, embedding), _ = nnls(np.stack([n_n * d_n**2, d_n], axis=1) / params_n[:, None], np.ones(len(params_n)))
    widths = _spread(float(d_n.min()), max(float(d_n.max()), float(d_t.max())), SPACING)
    width_w = np.unique(np.maximum(WIDTH_STEP, WIDTH_STEP * np.rint(widths / WIDTH_STEP)))
    depth_d = np.unique(np.rint(_spread(float(n_n.min()), max(float(n_n.max()), float(n_t.max())), SPACING)))
    d_c, n_c = (a.ravel() for a in np.meshgrid(width_w, depth_d, indexing="ij"))
    aspects = np.concatenate([d_n / n_n, d_t / n_t])
    inside_c = (d_c / n_c >= 0.9 * aspects.min()) & (d_c / n_c <= 1.1 * aspects.max())
    d_c, n_c = d_c[inside_c], n_c[inside_c]
    params_c = np.rint(block * n_c * d_c**2 + embedding * d_c)
    return {"d_model": d_c.astype(np.int64), "n_layers": n_c.astype(np.int64), "params": params_c}


def _spread(low: float, high: float, ratio: float) -> Array:
    """Space values geometrically from low to high, about `ratio` apart."""
    return (
        np.geomspace(low, high, max(2, 1 + round(np.log(high / low) / np.log(ratio))))
        if high > low
        else np.array([low])
    )
