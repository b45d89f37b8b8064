"""Repeat a timed run until its time has settled, and say what the settled runs took.

How many runs warm caches, clocks and allocators is found, not assumed: the times are steady once the medians of two
consecutive windows of WINDOW runs agree within TOLERANCE. All runs before those two windows are the warm-up; the six
in them are measurements already. Medians, since one disturbed run must neither end the warm-up nor prolong it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 3
TOLERANCE = 0.03
MAX_WARMUP = 20
"""Runs after which waiting for steady times ends: a busy machine may never settle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Hold what one run of a workload took, and the tokens that came out: those of each sequence."""

    prefill_s: float
    decode_s: float
    tokens: tuple[tuple[int, ...], ...] = ()

    @property
    def total_s(self) -> float:
        """Add prompt and decoding."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Hold the measured runs, how many went before, and whether the times had settled by then."""

    trials: tuple[Trial, ...]
    warmup_runs: int
    steady: bool

    def median(self, phase: str) -> float:
        """Give the median of "prefill_s", "decode_s" or "total_s"."""
        return float(np.median([getattr(t, phase) for t in self.trials]))

    def p95(self, phase: str) -> float:
        """Give the 95th percentile, between two runs by straight line."""
        return float(np.percentile([getattr(t, phase) for t in self.trials], 95))

    @property
    def spread(self) -> float:
        """Give (p95 - p50)/p50 of the total."""
        middle = self.median("total_s")
        return (self.p95("total_s") - middle) / middle


def find_steady(totals: Sequence[float]) -> int | None:
    """Find the run with which steady times begin; None while there is none."""
    for start in range(len(totals) - 2 * WINDOW + 1):
        first = statistics.median(totals[start : start + WINDOW])
        second = statistics.median(totals[start + WINDOW : start + 2 * WINDOW])
        if abs(second - first) <= TOLERANCE * first:
            return start
    return None


def collect(once: Callable[[], Trial], *, runs: int) -> Sample:
    """Run until the times are steady and `runs` of them were measured; after MAX_WARMUP runs, measure all the same."""
    trials: list[Trial] = []
    while True:
        trials.append(once())
        start = find_steady([t.total_s for t in trials[: MAX_WARMUP + 2 * WINDOW]])
        first = MAX_WARMUP if start is None else start
        if (start is not None or len(trials) >= MAX_WARMUP + 2 * WINDOW) and len(trials) - first >= runs:
            return Sample(trials=tuple(trials[first:]), warmup_runs=first, steady=start is not None)
