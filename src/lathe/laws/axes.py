"""The axes of a law: what the fitted runs varied, over what range, and what they held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lathe.laws.system import Array
from lathe.runs import Table, derive, list_columns

if TYPE_CHECKING:
    from lathe.shape import Shape

HELD = ("vocab_size", "tied", "ff_ratio", "kv_ratio", "sharing")
"""Axes no form reads. Where the runs held one at a single value, a law is silent about any other.

`sharing` is the share of layers that are stored, 1 where none is shared.
"""
SCALES = ("params", "tokens", "d_model", "n_layers", "aspect", "tokens_per_param")
"""Axes whose range a prediction may leave, at its peril."""
BLOCK = "block_ratio"
"""Weights of a stored block over d_model²: what ties params to width and depth among the fitted runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The range of one axis over the fitted runs, and how many distinct values it took."""

    low: float
    high: float
    distinct: int


def shape_columns(shape: Shape, *, tokens: float) -> dict[str, Array]:
    """Lay one shape trained on `tokens` out as the columns that laws read."""
    names = ("params", "non_embedding_params", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
    columns = {name: np.array([float(getattr(shape, name))]) for name in names}
    columns |= {"tied": np.array([float(shape.tied)]), "tokens": np.array([float(tokens)])}
    return columns | {"stored_ratio": np.array([shape.stored_layers / shape.n_layers])}


def measure_axes(columns: Table) -> dict[str, Axis]:
    """Find the range of every axis that the columns hold; runs that say nothing of sharing layers shared none."""
    axes = {"sharing": Axis(low=1.0, high=1.0, distinct=1)}
    for name, values_n in axis_values({c: columns[c] for c in list_columns(columns)}).items():
        finite_n = values_n[np.isfinite(values_n)]
        if len(finite_n):
            tolerance = 0.005 if name == "ff_ratio" else 1e-9
            axes[name] = Axis(
                low=float(finite_n.min()), high=float(finite_n.max()), distinct=_count_distinct(finite_n, tolerance)
            )
    return axes


def _count_distinct(values_n: Array, tolerance: float) -> int:
    sorted_n = np.sort(values_n)
    return 1 + int(np.sum(np.diff(sorted_n) > tolerance * np.maximum(np.abs(sorted_n[1:]), 1e-300)))


def axis_values(table: Mapping[str, object]) -> dict[str, Array]:
    """Read the axes a law keeps: scales, and the ratios d_ff/d_model and n_kv_heads/n_heads."""
    table = {**table, **derive(table)}
    values = {n: np.atleast_1d(np.asarray(table[n], dtype=np.float64)) for n in (*SCALES, *HELD) if n in table}
    if "stored_ratio" in table:
        values["sharing"] = np.asarray(table["stored_ratio"], dtype=np.float64)
    for name, top, bottom in (("ff_ratio", "d_ff", "d_model"), ("kv_ratio", "n_kv_heads", "n_heads")):
        if top in table and bottom in table:
            values[name] = np.asarray(table[top], dtype=np.float64) / np.asarray(table[bottom], dtype=np.float64)
    if {"params", "d_model", "n_layers"} <= set(table):
        params, d, n = (np.asarray(table[c], dtype=np.float64) for c in ("params", "d_model", "n_layers"))
        copies = 2 - np.asarray(table.get("tied", 0.0), dtype=np.float64)
        embedded = copies * np.asarray(table.get("vocab_size", 0.0), dtype=np.float64) * d
        stored = np.asarray(table.get("non_embedding_params", params - embedded), dtype=np.float64)
        values[BLOCK] = stored / (n * values.get("sharing", 1.0) * d**2)
    return {n: np.atleast_1d(v) for n, v in values.items()}
