"""Put 95 % bootstrap intervals around a mean loss: over sequences, whose tokens err together, and over tokens.

The mean is a ratio, all nats by all targets. A draw takes as many units as there are, with replacement; its counts are
multinomial, so alike units can share a cell: the cost is draws times cells, not draws times units. A cell stands for
its members by their means, and what they vary inside it, which a draw of cells alone would miss, is added to each draw
as one normal number of that variance. So a draw's mean and variance are those of the plain bootstrap, to first order
in 1/n, however coarse the cells; only the third and higher moments within cells are lost, and these fade as 1/√n
against an interval's width. Up to `CELLS` sequences have a cell each: that is the plain bootstrap itself.

Axes in names: n units (tokens or sequences), g cells, r draws.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lathe.evals.results import Interval

LEVEL = 0.95
CELLS = 1024
"""Cells that sequences are gathered in, and most that have one each."""
BINS_PER_NAT, BINS = 64, 2048
"""Cells that token losses are gathered in: evenly up to 32 nats, and the last for all above."""


def sequence_interval(
    targets_n: NDArray[np.floating], nats_n: NDArray[np.floating], *, draws: int, seed: int
) -> Interval | None:
    """Give the interval of summed nats by summed targets over sequences; None for fewer than two."""
    if len(targets_n) < 2:
        return None
    targets_n, nats_n = targets_n.astype(np.float64), nats_n.astype(np.float64)
    residuals_n = nats_n - nats_n.sum() / targets_n.sum() * targets_n
    order_n = np.argsort(residuals_n, kind="stable")  # sequences of a cell should move the ratio alike
    starts_g = np.unique(np.linspace(0, len(order_n), min(CELLS, len(order_n)), endpoint=False, dtype=np.int64))
    counts_g = np.diff(starts_g, append=len(order_n))
    targets_g, nats_g, residuals_g, squares_g = (
        np.add.reduceat(x_n[order_n], starts_g) / counts_g
        for x_n in (targets_n, nats_n, residuals_n, residuals_n * residuals_n)
    )
    within = float((counts_g * np.maximum(squares_g - residuals_g * residuals_g, 0)).sum())
    return _bootstrap(counts_g, targets_g, nats_g, within=within, draws=draws, seed=seed)


class TokenLosses:
    """Keep how many token losses fell in each cell, their sum and their squares' sum, on the device that makes them."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.cells_3g = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, losses_n: Tensor, targets_n: Tensor) -> None:
        """Add losses whose targets are not below zero; it does not wait for the device."""
        losses_n, kept_n = losses_n.double(), (targets_n >= 0).double()
        cells_n = (losses_n.nan_to_num(0, 0, 0) * BINS_PER_NAT).clamp(0, BINS - 1).long()
        moments_3n = torch.stack([kept_n, losses_n * kept_n, losses_n.square() * kept_n])
        self.cells_3g.index_add_(1, cells_n, moments_3n)

    def interval(self, *, draws: int, seed: int) -> Interval | None:
        """Give the interval of the mean over tokens; None for fewer than two."""
        counts_g, sums_g, squares_g = self.cells_3g.cpu().numpy()
        used_g = counts_g > 0
        counts_g, sums_g, squares_g = counts_g[used_g], sums_g[used_g], squares_g[used_g]
        if counts_g.sum() < 2:
            return None
        within = float(np.maximum(squares_g - sums_g * sums_g / counts_g, 0).sum())
        return _bootstrap(
            counts_g.astype(np.int64), np.ones_like(counts_g), sums_g / counts_g, within=within, draws=draws, seed=seed
        )


def _bootstrap(
    counts_g: NDArray[np.int64],
    targets_g: NDArray[np.float64],
    nats_g: NDArray[np.float64],
    *,
    within: float,
    draws: int,
    seed: int,
) -> Interval:
    """Draw units by cell, and give the percentiles of their ratio.

    `within` is the units' summed squared distance from their cells' means.
    """
    random = np.random.default_rng(seed)
    units = int(counts_g.sum())
    drawn_rg = random.multinomial(units, counts_g / units, size=draws).astype(np.float64)
    inside_r = np.sqrt(within) * random.standard_normal(draws)
    ratios_r = (drawn_rg @ nats_g + inside_r) / (drawn_rg @ targets_g)
    low, high = np.quantile(ratios_r, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
