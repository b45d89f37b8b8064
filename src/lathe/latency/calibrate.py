"""Fit a device's overheads and achieved fractions of peak to measured latencies, as far as these identify them.

1. A robust fit of the wanted numbers in logs, with the preset as a prior and from several starts, finds which resource
   binds what.
2. There, pivoting on the Jacobian's columns, a number is kept if the measurements alone say more about it than the
   preset does.
3. The kept ones are fitted again without the prior, the rest at their presets. The loss is soft-L1 on log times.
4. Intervals come from the Jacobian and the scatter of the residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lathe.device import Device, Origin
from lathe.errors import DeviceError, nearest
from lathe.latency.measurements import Measured, parse_measurements
from lathe.latency.roofline import Columns, predict_latency

Array = NDArray[np.float64]

PRIOR_SD = {"launch_s": 1.0, "step_s": 1.0, "compute_fraction": 0.3, "bandwidth_fraction": 0.3}
"""What can be fitted, and how far in logs a preset may be off: hosts differ by factors, kernels' efficiency less."""
BOUNDS = {"launch_s": (1e-9, 1.0), "step_s": (1e-9, 10.0), "compute_fraction": (1e-4, 1.0)}
BOUNDS["bandwidth_fraction"] = BOUNDS["compute_fraction"]
FROM_ZERO = {"launch_s": 1e-6, "step_s": 1e-4}
"""Where a fit starts from a preset of 0, in seconds; such a preset says little, and counts ZERO_SD times less."""
ZERO_SD = 3.0
NOISE = 0.02
"""Scatter of repeated latency measurements, relative: taken where few residuals say nothing of it."""
NOISE_WEIGHT = 4.0
"""Degrees of freedom that NOISE counts for beside the residuals'."""
LEVEL = 0.9
LARGE_ERROR = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """Hold one measured time beside its prediction; `error` is predicted / measured - 1."""

    name: str
    row: int
    phase: str
    engine: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Give the relative error."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Hold a device with the numbers that measurements fixed, and what they did not.

    `fitted` were replaced, with origins of kind "measured" and 90 % intervals; `assumed` keep the preset's values.
    """

    device: Device
    fitted: tuple[str, ...]
    assumed: tuple[str, ...]
    residuals: tuple[Residual, ...]
    warnings: tuple[str, ...]


def calibrate(
    measurements: Any, device: Device, *, engine: str | None = None, fit: Sequence[str] | None = None
) -> Calibration:
    """Fit launch_s, step_s, compute_fraction and bandwidth_fraction, as far as the measurements identify them.

    Two totals of different depth that launches bind fix launch_s and step_s; one total fixes the number of the resource
    that binds it.

    Args:
        measurements: columns of shapes, workloads and times, see `parse_measurements`.
        engine: "eager" or "graph", where the table has no column of that name; eager if not given.
        fit: the numbers to fit; those that the measurements identify if not given.

    Raises DeviceError for a table that is no measurement, and for numbers asked for by name that it cannot identify.
    """
    wanted = _check_names(fit)
    measured, warnings = parse_measurements(measurements, engine=engine)
    times = Times(measured, device)
    names = _identify(times, wanted, rough=_fit(times, wanted, prior=True))
    if fit is not None and (lost := [name for name in wanted if name not in names]):
        raise DeviceError(_explain(times, wanted, lost))
    while True:
        logs = _fit(times, names, prior=False)
        kept = _identify(times, names, rough=logs)
        if kept == names or fit is not None:
            break
        names = kept
    fitted = _replace(times, names, logs)
    assumed = tuple(name for name in PRIOR_SD if name not in names)
    predicted_n = times.predict(fitted)
    residuals = tuple(
        Residual(name=m.name, row=m.row, phase=m.phase, engine=m.engine, measured_s=m.seconds, predicted_s=float(p))
        for m, p in zip(measured, predicted_n, strict=True)
    )
    warnings += _warn(times, fitted, names, residuals)
    return Calibration(device=fitted, fitted=names, assumed=assumed, residuals=residuals, warnings=tuple(warnings))


class Times:
    """Predict all measured times for one device after another; rows that differ in numbers only go together."""

    def __init__(self, measured: Sequence[Measured], device: Device) -> None:
        self.measured, self.device = measured, device
        self.log_n = np.log([m.seconds for m in measured])
        groups: dict[Any, list[int]] = {}
        for i, m in enumerate(measured):
            words = tuple(getattr(m.shape, n) for n in ("sharing", "norm", "mlp", "position", "qk_norm", "bias"))
            groups.setdefault((words, m.workload, m.engine), []).append(i)
        self.groups = [(rows, _Stacked([measured[i].shape for i in rows])) for rows in groups.values()]

    def predict(self, device: Device) -> Array:
        """Predict every measured time, in the table's order."""
        found_n = np.empty(len(self.measured))
        for rows, shapes in self.groups:
            m = self.measured[rows[0]]
            found = predict_latency(shapes, device=device, workload=m.workload, engine=m.engine, bounds=False)
            by_phase = {phase: getattr(found, f"{phase}_s") for phase in ("prefill", "decode", "total")}
            found_n[rows] = [by_phase[self.measured[i].phase][at] for at, i in enumerate(rows)]
        return found_n

    def residuals(self, names: Sequence[str], logs: Array) -> Array:
        """Give predicted minus measured log times."""
        numbers = {n: float(np.clip(np.exp(v), *BOUNDS[n])) for n, v in zip(names, logs, strict=True)}
        origin = Origin(kind="measured", source="being fitted")
        return np.log(self.predict(self.device.with_numbers(dict.fromkeys(names, origin), **numbers))) - self.log_n

    def jacobian(self, names: Sequence[str], logs: Array) -> Array:
        """Differentiate log times by log numbers, centrally but at a bound."""
        columns = []
        for i, name in enumerate(names):
            low, high = np.log(BOUNDS[name])
            ends = [logs.copy(), logs.copy()]
            ends[0][i], ends[1][i] = max(logs[i] - 1e-4, low), min(logs[i] + 1e-4, high)
            rise = self.residuals(names, ends[1]) - self.residuals(names, ends[0])
            columns.append(rise / (ends[1][i] - ends[0][i]))
        return np.array(columns).T


class _Stacked:
    """Hold columns of shapes that agree in their words."""

    def __init__(self, shapes: Sequence[Any]) -> None:
        self.first = shapes[0]
        for name in (*Columns.NUMBERS, "max_seq_len", "position_offset"):
            setattr(self, name, np.array([getattr(shape, name) for shape in shapes], dtype=float))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)


def _check_names(fit: Sequence[str] | None) -> tuple[str, ...]:
    if fit is None:
        return tuple(PRIOR_SD)
    names = (fit,) if isinstance(fit, str) else tuple(fit)
    for name in names:
        if name not in PRIOR_SD:
            raise DeviceError(f"{name!r} cannot be fitted{nearest(str(name), PRIOR_SD)}")
    if not names:
        raise DeviceError(f"fit names nothing; choose from {', '.join(PRIOR_SD)}, or leave it out")
    return tuple(name for name in PRIOR_SD if name in names)


def _fit(times: Times, names: Sequence[str], *, prior: bool) -> Array:
    """Fit numbers in logs from several starts, since which resource binds makes valleys of their own."""
    if not names:
        return np.empty(0)
    preset = {name: getattr(times.device, name) for name in names}
    centre = np.log([preset[name] or FROM_ZERO[name] for name in names])
    sd = np.array([PRIOR_SD[name] * (1.0 if preset[name] else ZERO_SD) for name in names])
    bounds = np.log([BOUNDS[name] for name in names]).T

    def residuals(logs: Array) -> Array:
        data = times.residuals(names, logs) / NOISE
        return np.concatenate([data, (logs - centre) / sd]) if prior else data

    best = None
    for shift in (0.0, 1.5, -1.5):
        for fraction in (0.0, -1.0):
            steps = [shift if name in FROM_ZERO else fraction for name in names]
            start = np.clip(centre + steps, bounds[0] + 1e-6, bounds[1] - 1e-6)
            found = optimize.least_squares(
                residuals, start, bounds=tuple(bounds), loss="soft_l1", x_scale="jac", max_nfev=60
            )
            if best is None or found.cost < best.cost * (1 - 1e-9):
                best = found
    assert best is not None
    return best.x


def _identify(times: Times, names: Sequence[str], *, rough: Array) -> tuple[str, ...]:
    """Choose the numbers about which the measurements alone say more than the preset: half its error or less.

    Columns of the Jacobian are taken largest first, each without its part along those before. A step's overhead never
    comes first: a single time is laid to the resource that binds it.
    """
    rest = times.jacobian(names, rough)
    chosen: list[str] = []
    while len(chosen) < len(names):
        size = {name: float(np.linalg.norm(rest[:, i])) for i, name in enumerate(names) if name not in chosen}
        clear = [name for name in size if NOISE / max(size[name], 1e-12) <= PRIOR_SD[name] / 2]
        if len(clear) > 1 and not chosen and "step_s" in clear:
            clear.remove("step_s")
        if not clear:
            break
        name = max(clear, key=lambda n: size[n])
        chosen.append(name)
        along = rest[:, names.index(name)] / size[name]
        rest = rest - np.outer(along, along @ rest)
    return tuple(name for name in names if name in chosen)


def _replace(times: Times, names: Sequence[str], logs: Array) -> Device:
    """Put the fitted numbers with their intervals into the device."""
    if not names:
        return times.device
    residual_n = times.residuals(names, logs)
    weight_n = 1 / np.sqrt(1 + (residual_n / NOISE) ** 2)
    jacobian = times.jacobian(names, logs)
    free = len(residual_n) - len(names) + NOISE_WEIGHT
    scatter = math.sqrt((NOISE_WEIGHT * NOISE**2 + np.sum(weight_n * residual_n**2)) / free)
    spread = scatter * np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ (weight_n[:, None] * jacobian))))
    half = spread * stats.t.ppf((1 + LEVEL) / 2, free)
    rows = len({m.row for m in times.measured})
    source = (
        f"calibrated on {rows} measurement{'s' * (rows > 1)} ({len(residual_n)} time{'s' * (len(residual_n) > 1)}); "
        f"{LEVEL:.0%} interval from a scatter of {scatter:.1%}, of which {NOISE:.0%} is assumed"
    )
    values = {name: float(np.exp(v)) for name, v in zip(names, logs, strict=True)}
    origins = {}
    for name, log, width in zip(names, logs, half, strict=True):
        low, high = np.clip(np.exp([log - width, log + width]), *BOUNDS[name])
        origins[name] = Origin(kind="measured", source=source, low=float(low), high=float(high))
    return times.device.with_numbers(origins, **values)


def _explain(times: Times, wanted: Sequence[str], lost: Sequence[str]) -> str:
    """Say why numbers asked for by name cannot be had."""
    depths = {m.shape.n_layers for m in times.measured}
    what = f"the measurements cannot identify {' and '.join(lost)}"
    jacobian = times.jacobian(wanted, _fit(times, wanted, prior=True))
    distinct = len({(m.shape, m.workload, m.engine, m.phase) for m in times.measured})
    silent = [n for n in lost if np.linalg.norm(jacobian[:, wanted.index(n)]) < 2 * NOISE / PRIOR_SD[n]]
    if silent:
        return f"{what}: other resources bind every one of them, so {' and '.join(silent)} hardly changes any time"
    if {"launch_s", "step_s"} <= set(wanted) and len(depths) == 1:
        return (
            f"{what}: every row has n_layers={depths.pop()}, and at one depth launches and steps cannot be told apart; "
            "measure a shape of another depth too, or fit launch_s alone"
        )
    if distinct < len(wanted):
        return f"{what}: {len(wanted)} numbers were asked of {distinct} distinct time{'s' * (distinct > 1)}"
    return f"{what}: {' and '.join(wanted)} move all times alike; measure shapes or workloads that differ more"


def _warn(times: Times, device: Device, names: Sequence[str], residuals: Sequence[Residual]) -> list[str]:
    found = []
    if not names:
        found.append("the measurements fix none of the numbers; all keep their presets")
    if names and len(residuals) == len(names):
        found.append(f"as many numbers as times were fitted: the intervals rest on {NOISE:.0%} of noise, an assumption")
    found += [
        f"{name} is at its limit of 1: some times are shorter than {device.name}'s peak allows"
        for name in names
        if name.endswith("_fraction") and getattr(device, name) > 0.999
    ]
    found += [
        f"row {r.row} ({r.name}): {r.phase} is predicted {r.error:+.0%} off; another engine, framework or device?"
        for r in residuals
        if abs(r.error) > LARGE_ERROR
    ]
    for rows, shapes in times.groups:
        m = times.measured[rows[0]]
        latency = predict_latency(shapes, device=device, workload=m.workload, engine=m.engine, bounds=False)
        found += [
            f"row {times.measured[i].row} ({times.measured[i].name}) needs {needed / 1e9:.1f} GB; "
            f"{device.name} has {device.memory_bytes / 1e9:.1f} GB"
            for i, needed in zip(rows, latency.memory_bytes, strict=True)
            if needed > device.memory_bytes
        ]
    return list(dict.fromkeys(found))
