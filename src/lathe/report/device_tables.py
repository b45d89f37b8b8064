"""Lay out devices for the terminal: all in brief, or one with the source of every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lathe.device import Device, Origin
from lathe.report.tables import make_table, titled

if TYPE_CHECKING:
    from rich.console import Group

_UNITS: dict[str, tuple[float, str]] = {
    "flops_per_s": (1e12, "TFLOP/s"),
    "bytes_per_s": (1e9, "GB/s"),
    "memory_bytes": (2**30, "GiB"),
    "cache_bytes": (2**20, "MiB"),
    "cache_bytes_per_s": (1e9, "GB/s"),
    "launch_s": (1e-6, "µs"),
    "step_s": (1e-3, "ms"),
    "compute_fraction": (0.01, "%"),
    "bandwidth_fraction": (0.01, "%"),
    "price_per_hour": (1, "$/h"),
}


def devices_table(devices: Mapping[str, Device]) -> Group:
    """Lay out devices, one row each, under the names they are typed by."""
    table = make_table("name", "device", "bf16 TFLOP/s", "GB/s", "memory GiB", "cache MiB", "FLOP/byte", text=2)
    for name, device in devices.items():
        table.add_row(
            name,
            device.name,
            _digits(device.peak_flops("bf16") / 1e12),
            _digits(device.bytes_per_s / 1e9),
            _digits(device.memory_bytes / 2**30),
            _digits(device.cache_bytes / 2**20),
            f"{device.flops_per_byte:.3g}",
        )
    return titled(
        "Devices",
        table,
        "Dense peaks; fp16 or fp32 arithmetic serves bf16 weights where the device has no bf16.",
        "FLOP/byte: work with fewer is bound by memory. `lathe devices NAME` shows every number's source.",
    )


def device_table(device: Device) -> Group:
    """Lay out every number of one device with its kind and source."""
    intervals = any(origin.low is not None for origin in device.origins.values())
    table = make_table("number", "kind", "value", *(["90 % interval"] if intervals else []), text=2)
    table.add_column("source", overflow="fold")
    for name, value in device.numbers.items():
        origin = device.origins[name]
        interval = [_interval(name, origin)] if intervals else []
        table.add_row(name, origin.kind, _show(name, value), *interval, origin.source)
    balance = f"{device.flops_per_byte:.3g} FLOP per byte: work with fewer is bound by memory."
    return titled(f"{device.name}  ({device.family})", table, balance, *([device.notes] if device.notes else []))


def _show(name: str, value: float) -> str:
    size, unit = _UNITS[name.split(".")[0]]
    return f"{_digits(value / size)} {unit}"


def _interval(name: str, origin: Origin) -> str:
    if origin.low is None or origin.high is None:
        return "–"
    size, unit = _UNITS[name.split(".")[0]]
    return f"{_digits(origin.low / size)}–{_digits(origin.high / size)} {unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
