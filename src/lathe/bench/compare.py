"""Set predicted latencies beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lathe.bench.rows import Measurement
from lathe.device import Device
from lathe.latency.roofline import predict_latency
from lathe.workload import PREDICTED_AS, Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Hold a prediction for every measurement; errors are predicted / measured - 1.

    `spearman` ranks the totals, and is None where there are fewer than three.
    """

    device: Device
    measured: tuple[Measurement, ...]
    predicted: tuple[Latency, ...]
    spearman: float | None

    def errors(self, phase: str) -> list[float]:
        """Give the errors of "prefill_s", "decode_s" or "total_s"; 0 where nothing was to do."""
        pairs = zip(self.measured, self.predicted, strict=True)
        times = [(getattr(m.latency, phase), getattr(p, phase)) for m, p in pairs]
        return [predicted / measured - 1 if measured else 0.0 for measured, predicted in times]

    def mean_error(self, phase: str = "total_s") -> float:
        """Give the mean absolute error."""
        return float(np.mean(np.abs(self.errors(phase))))


def compare(measured: Sequence[Measurement], device: Device) -> Comparison:
    """Predict every measurement's latency. Raises DeviceError for a dtype that the device cannot compute in."""
    predicted = tuple(
        predict_latency(m.shape, device=device, workload=m.workload, engine=PREDICTED_AS[m.latency.engine])
        for m in measured
    )
    totals = [m.latency.total_s for m in measured], [p.total_s for p in predicted]
    varied = len(measured) > 2 and all(len(set(column)) > 1 for column in totals)
    rank = float(stats.spearmanr(*totals).statistic) if varied else None
    return Comparison(device=device, measured=tuple(measured), predicted=predicted, spearman=rank)
