"""Estimate means with their standard errors, and test paired answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from scipy.special import bdtr

Z_95 = 1.959963984540054
"""How many standard errors on either side hold a normal variable 95 % of the time."""


def estimate(values: Sequence[float], *, strata: Sequence[str] | None = None) -> tuple[float, float | None]:
    """Average values, or their strata's averages with equal weights, and give the mean's standard error.

    The error is that of values drawn anew from the same strata, from their sample variances (n − 1 below). It is None
    if a stratum has one value.
    """
    groups: dict[str, list[float]] = {}
    for value, stratum in zip(values, strata or [""] * len(values), strict=True):
        groups.setdefault(stratum, []).append(value)
    means = [float(np.mean(group)) for group in groups.values()]
    ses = [float(np.std(g, ddof=1)) / math.sqrt(len(g)) if len(g) > 1 else None for g in groups.values()]
    return float(np.mean(means)), se_of_mean(ses)


def se_of_mean(ses: Sequence[float | None]) -> float | None:
    """Give the standard error of the mean of independent values from theirs; None if one is unknown."""
    known = [se for se in ses if se is not None]
    return math.hypot(*known) / len(known) if len(known) == len(ses) else None


def mcnemar(gained: int, lost: int) -> float:
    """Give the chance that even odds divide gained + lost items at least as unevenly; 1 for none."""
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, so that the chance of any false alarm stays below the level (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    steps = (min(1.0, (len(ps) - rank) * ps[i]) for rank, i in enumerate(order))
    adjusted = dict(zip(order, accumulate(steps, max), strict=True))
    return [adjusted[i] for i in range(len(ps))]
