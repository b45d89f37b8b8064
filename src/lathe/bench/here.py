"""Calibrate this machine: probe its rates, and fit its overheads to models that were measured on it."""

from __future__ import annotations

from collections.abc import Sequence

from lathe import codec
from lathe.bench.probe import probe_device
from lathe.bench.rows import Measurement
from lathe.latency.calibrate import Calibration, calibrate


def calibrate_here(measured: Sequence[Measurement], *, device: str, threads: int | None) -> Calibration:
    """Probe a device of this machine and fit it to measurements. Raises as `lathe.latency.calibrate.calibrate`."""
    table = [
        {
            # the whole alone: a prompt's fixed cost is no model's, and would be taken for slow arithmetic
            "name": one.name, "engine": one.latency.engine, "total_s": one.latency.total_s,
            **codec.encode(one.shape), **codec.encode(one.workload),
        }
        for one in measured
    ]  # fmt: skip
    columns = {key: [row[key] for row in table] for key in table[0]}
    return calibrate(columns, probe_device(device, threads=threads))
