"""Say what a machine can do, and where each number comes from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lathe.errors import DeviceError, nearest
from lathe.shape import DTYPE_BYTES

Kind = Literal["vendor", "published", "measured", "assumed"]
NUMBERS = (
    "bytes_per_s",
    "memory_bytes",
    "cache_bytes",
    "cache_bytes_per_s",
    "launch_s",
    "step_s",
    "compute_fraction",
    "bandwidth_fraction",
)
COMPUTED_IN: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "int8": ("bf16", "fp16", "fp32"),
    "int4": ("bf16", "fp16", "fp32"),
}
"""The dtypes whose arithmetic serves a workload, best first: weight-only int8 and int4 are widened before use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one number of a device comes from: its vendor, a published measurement, a calibration, or a guess."""

    kind: Kind
    source: str
    low: float | None = None
    high: float | None = None
    """90 % interval of a measured number, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Hold the rates, sizes and overheads that predict latency.

    `flops_per_s` maps dtypes to dense peaks; `bytes_per_s` is main memory's peak. `compute_fraction` and
    `bandwidth_fraction` are the parts of these peaks that kernels reach. `launch_s` is what the host needs to start one
    operation and `step_s` what a step costs besides (sampling, Python), both in eager mode. `cache_bytes` is the
    last-level cache's size, `cache_bytes_per_s` its rate. `origins` says of every number (flops as "flops_per_s.bf16")
    where it comes from. `price_per_hour` is in US dollars.

    Raises DeviceError for a number that is missing, not positive, or without an origin.
    """

    name: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    memory_bytes: float
    cache_bytes: float
    cache_bytes_per_s: float
    launch_s: float
    step_s: float
    compute_fraction: float
    bandwidth_fraction: float
    origins: Mapping[str, Origin]
    price_per_hour: float | None = None
    notes: str = ""
    family: str = field(default="other")

    def __post_init__(self) -> None:
        if unknown := set(self.flops_per_s) - set(DTYPE_BYTES):
            name = sorted(unknown)[0]
            raise DeviceError(f"device {self.name!r}: flops_per_s has dtype {name!r}{nearest(name, DTYPE_BYTES)}")
        if not self.flops_per_s:
            raise DeviceError(f"device {self.name!r}: flops_per_s is empty; give at least one dtype's dense peak")
        for name, value in self.numbers.items():
            may_be_zero = name in ("launch_s", "step_s", "cache_bytes")
            if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
                raise DeviceError(f"device {self.name!r}: {name} = {value}; wanted a number above zero")
        for name in ("compute_fraction", "bandwidth_fraction"):
            if getattr(self, name) > 1:
                raise DeviceError(
                    f"device {self.name!r}: {name} = {getattr(self, name)}; a fraction of peak is at most 1"
                )
        if missing := set(self.numbers) - set(self.origins):
            raise DeviceError(
                f"device {self.name!r}: no origin for {', '.join(sorted(missing))}; say where each is from"
            )

    @property
    def numbers(self) -> dict[str, float]:
        """Name every number, a dtype's peak as "flops_per_s.bf16"."""
        peaks = {f"flops_per_s.{dtype}": rate for dtype, rate in self.flops_per_s.items()}
        return peaks | {name: getattr(self, name) for name in NUMBERS}

    def peak_flops(self, dtype: str) -> float:
        """Give the dense peak that serves a workload's dtype, in FLOPs per second.

        Raises DeviceError for a dtype that the device cannot compute in.
        """
        if dtype not in COMPUTED_IN:
            raise DeviceError(f"unknown dtype {dtype!r}{nearest(dtype, COMPUTED_IN)}")
        for served in COMPUTED_IN[dtype]:
            if served in self.flops_per_s:
                return self.flops_per_s[served]
        raise DeviceError(f"device {self.name!r} has no rate for {dtype}; it computes in {', '.join(self.flops_per_s)}")

    def with_numbers(self, origins: Mapping[str, Origin], **numbers: float) -> Device:
        """Replace some numbers and say where the new ones come from."""
        return dataclasses.replace(self, origins={**self.origins, **origins}, **numbers)


KINDS: tuple[str, ...] = get_args(Kind)
