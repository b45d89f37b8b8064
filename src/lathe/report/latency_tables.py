"""Lay out latencies for the terminal: predictions side by side, and what a calibration fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lathe.bench.compare import Comparison
from lathe.bench.rows import Measurement
from lathe.device import Device
from lathe.latency.calibrate import Calibration
from lathe.report.tables import make_table, titled
from lathe.workload import Latency, Workload

if TYPE_CHECKING:
    from rich.console import Group

USED = ("launch_s", "step_s", "compute_fraction", "bandwidth_fraction")
DISTURBED = 0.25
"""How far the 95th percentile may lie above the median before a measurement is doubted."""


def latency_table(
    names: Sequence[str], latencies: Sequence[Latency], *, devices: Sequence[Device], workload: Workload
) -> Group:
    """Lay out one latency a row; device and engine have columns where rows differ in them.

    Args:
        devices: what each latency was predicted for, in the same order.
    """
    several = len({d.name for d in devices}) > 1
    engines = sorted({latency.engine for latency in latencies})
    text = ["shape", *(["device"] if several else []), *(["engine"] if len(engines) > 1 else [])]
    numbers = ["first token", "decode", "total", "tokens/s", "memory", "weights", "KV cache", "activations"]
    table = make_table(*text, *numbers, "bound by", text=len(text))
    for name, latency, device in zip(names, latencies, devices, strict=True):
        words = [name, *([device.name] if several else []), *([latency.engine] if len(engines) > 1 else [])]
        times = [format_seconds(s) for s in (latency.first_token_s, latency.decode_s, latency.total_s)]
        parts = (latency.memory_bytes, latency.weight_bytes, latency.kv_bytes, latency.activation_bytes)
        cells = [*times, f"{latency.tokens_per_s:.4g}", *(format_bytes(p) for p in parts)]
        table.add_row(*words, *cells, _bounds(latency, workload))
    per_token = f"{workload.batch} × ({workload.prompt_tokens} prompt + {workload.new_tokens} new tokens)"
    where = "" if several else f" on {devices[0].name}"
    engine = f", {engines[0]}" if len(engines) == 1 else ""
    title = f"Predicted latency{where}{engine}: {per_token}, {workload.dtype}"
    return titled(title, table, *_latency_notes(names, latencies, devices, engines))


def calibration_table(calibration: Calibration) -> Group:
    """Lay out the four numbers with what is known of each, and the measured times beside their predictions."""
    from rich.console import Group

    device = calibration.device
    table = make_table("number", "value", "90% interval", "from")
    for name in USED:
        origin = device.origins[name]
        show = format_seconds if name.endswith("_s") else "{:.4g}".format
        band = "–" if origin.low is None or origin.high is None else f"{show(origin.low)} – {show(origin.high)}"
        source = "measured here" if name in calibration.fitted else f"{origin.kind}, not fitted"
        table.add_row(name, show(getattr(device, name)), band, source)
    times = make_table("measurement", "engine", "phase", "measured", "predicted", "error", text=3)
    for r in calibration.residuals:
        seconds = (format_seconds(r.measured_s), format_seconds(r.predicted_s))
        times.add_row(r.name, r.engine, r.phase, *seconds, f"{round(r.error, 3) + 0.0:+.1%}")
    notes = [f"! {text}" for text in calibration.warnings]
    return Group(titled(f"Calibrated: {device.name}", table), titled("Measured times", times, *notes))


def measured_table(measured: Sequence[Measurement]) -> Group:
    """Lay out measurements: medians, the total's 95th percentile, and what memory they took."""
    numbers = ["first token", "decode", "total", "p95", "tokens/s", "memory", "runs", "warm-up"]
    table = make_table("shape", "backend", "engine", "workload", *numbers, text=4)
    for m in measured:
        at = m.latency
        p95 = "–" if at.p95 is None else format_seconds(at.p95["total_s"])
        times = (format_seconds(s) for s in (at.first_token_s, at.decode_s, at.total_s))
        cells = [*times, p95, f"{at.tokens_per_s:.4g}", format_bytes(at.memory_bytes)]
        counts = (str(at.runs), str(at.warmup_runs))
        table.add_row(m.name, str(at.backend), at.engine, _describe_workload(m.workload), *cells, *counts)
    notes = dict.fromkeys(note for m in measured if (note := _doubt(m)))
    where = {_describe_conditions(m.latency.conditions or {}): None for m in measured}
    return titled("Measured latency", table, *notes, *where)


def comparison_table(comparison: Comparison) -> Group:
    """Lay out predicted against measured times, with errors and ranks."""
    titles = ["measured", "predicted", "total", "first token", "decode"]
    table = make_table("shape", "backend", "engine", "workload", *titles, text=4)
    errors = zip(*(comparison.errors(phase) for phase in ("total_s", "prefill_s", "decode_s")), strict=True)
    for m, p, row in zip(comparison.measured, comparison.predicted, errors, strict=True):
        words = (m.name, str(m.latency.backend), m.latency.engine, _describe_workload(m.workload))
        times = (format_seconds(m.latency.total_s), format_seconds(p.total_s))
        table.add_row(*words, *times, *(f"{round(error, 3) + 0.0:+.1%}" for error in row))
    rank = "" if comparison.spearman is None else f"; Spearman {comparison.spearman:.3f}"
    means = ", ".join(
        f"{comparison.mean_error(phase):.1%} of the {what}"
        for phase, what in (("total_s", "total"), ("prefill_s", "first token"), ("decode_s", "decoding"))
    )
    return titled(
        f"Predicted for {comparison.device.name} against measured", table, f"mean absolute error: {means}{rank}"
    )


def format_seconds(value: float) -> str:
    """Write a time in four digits with its unit: 3.61 s, 15.6 ms, 17.9 µs."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return "0 s" if value == 0 else f"{value / 1e-9:.4g} ns"


def format_bytes(value: float) -> str:
    """Write a size in three digits with its decimal unit: 2.88 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _doubt(measured: Measurement) -> str | None:
    at, name = measured.latency, f"{measured.name} ({measured.latency.backend} {measured.latency.engine})"
    if at.steady is False:
        return f"! {name} never settled: its times still varied after warming up; measure it --again"
    if (at.spread or 0.0) > DISTURBED:
        return f"! {name} was disturbed: its p95 is {at.spread:.0%} above its median; measure it --again"
    return None


def _describe_workload(workload: Workload) -> str:
    return f"{workload.batch} × ({workload.prompt_tokens} + {workload.new_tokens}) {workload.dtype}"


def _describe_conditions(conditions: Mapping[str, str]) -> str:
    """Name what a reader must know to judge a time; the row itself has the rest. A clock changes from row to row."""
    count = conditions.get("threads")
    threads = count and f"{count} thread{'' if count == '1' else 's'}"
    versions = [f"{name} {conditions[name]}" for name in ("torch", "cuda", "lathe") if name in conditions]
    return ", ".join(text for text in (conditions.get("device"), threads, *versions) if text)


def _bounds(latency: Latency, workload: Workload) -> str:
    """Name what bounds reading the prompt and decoding, once where both are bound alike."""
    prefill, decode = latency.prefill_bound, latency.decode_bound
    if prefill is None:
        return "–"
    return str(prefill) if prefill == decode or workload.new_tokens == 1 else f"{prefill}, then {decode}"


def _latency_notes(
    names: Sequence[str], latencies: Sequence[Latency], devices: Sequence[Device], engines: Sequence[str]
) -> list[str]:
    notes = [
        f"! {name} needs {format_bytes(latency.memory_bytes)}; {device.name} has {format_bytes(device.memory_bytes)}"
        for name, latency, device in zip(names, latencies, devices, strict=True)
        if latency.memory_bytes > device.memory_bytes
    ]
    used = [name for name in USED if name != "launch_s" or "eager" in engines]
    return list(dict.fromkeys(notes)) + [
        f"{device.name}: {', '.join(assumed)} assumed, not measured; `lathe calibrate` fits them"
        for device in {d.name: d for d in devices}.values()
        if (assumed := [name for name in used if device.origins[name].kind == "assumed"])
    ]
