"""Say what a machine can do, and where each number comes from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lathe.errors import DeviceError, nearest
from lathe.shape import DTYPE_BYTES

Kind = Literal["vendor", "published", "measured", "assumed"]
KINDS: tuple[str, ...] = get_args(Kind)
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
ARITHMETIC = ("fp32", "bf16", "fp16", "int8")
"""The dtypes that hardware multiplies in; int4 weights are always widened first."""
COMPUTED_IN: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "int8": ("bf16", "fp16", "fp32"),
    "int4": ("bf16", "fp16", "fp32"),
}
"""The dtypes whose arithmetic serves a workload, best first: weight-only int8 and int4 are widened before use."""

_MAY_BE_ZERO = ("cache_bytes", "launch_s", "step_s")
_FRACTIONS = ("compute_fraction", "bandwidth_fraction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Say where one number of a device comes from: its vendor, a published measurement, a calibration, or a guess.

    `source` names the document, or gives the reason of a guess. `low` and `high` are the 90 % interval of a measured
    number, both or neither. Raises DeviceError.
    """

    kind: Kind
    source: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DeviceError(f"kind={self.kind!r} is unknown{nearest(str(self.kind), KINDS)}")
        if not isinstance(self.source, str) or not self.source.strip():
            raise DeviceError(f"source={self.source!r}; name the document, or say why the number is assumed")
        if (self.low is None) != (self.high is None):
            raise DeviceError(f"low={self.low} and high={self.high}; an interval needs both ends")
        if self.low is None or self.high is None:
            return
        for name in ("low", "high"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        if self.low > self.high:
            raise DeviceError(f"low={self.low:g} is above high={self.high:g}; swap them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Hold the rates, sizes and overheads that predict latency.

    `flops_per_s` maps dtypes to dense peaks (no sparsity); `bytes_per_s` is main memory's peak. `compute_fraction` and
    `bandwidth_fraction` are the parts of these two peaks that kernels reach. `cache_bytes` is the size of the
    last-level cache, 0 where there is none, and `cache_bytes_per_s` the rate that kernels reach from it: no fraction is
    taken of that. `launch_s` is what the host needs to start one operation in eager mode, and `step_s` what a step
    costs besides (sampling, Python) in any. `price_per_hour` is in US dollars. `origins` says of every number where it
    comes from, of a dtype's peak as "flops_per_s.bf16".

    Raises DeviceError for a number that is missing, not positive, or without an origin.
    """

    name: str
    flops_per_s: dict[str, float]
    bytes_per_s: float
    memory_bytes: float
    cache_bytes: float
    cache_bytes_per_s: float
    launch_s: float
    step_s: float
    compute_fraction: float
    bandwidth_fraction: float
    origins: dict[str, Origin]
    price_per_hour: float | None = None
    notes: str = ""
    family: str = "other"

    def __post_init__(self) -> None:
        for name in ("name", "family"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise DeviceError(f"{name}={getattr(self, name)!r}; a device needs a {name}")
        try:
            _check_numbers(self)
            _check_origins(self)
        except DeviceError as error:
            raise DeviceError(f"device {self.name!r}: {error}") from None

    @property
    def numbers(self) -> dict[str, float]:
        """Name every number, a dtype's peak as "flops_per_s.bf16"; the price only where there is one."""
        peaks = {f"flops_per_s.{dtype}": rate for dtype, rate in self.flops_per_s.items()}
        price = {} if self.price_per_hour is None else {"price_per_hour": self.price_per_hour}
        return peaks | {name: getattr(self, name) for name in NUMBERS} | price

    @property
    def flops_per_byte(self) -> float:
        """Divide the peak that serves bf16 by memory's: work with fewer FLOPs a byte is bound by bandwidth."""
        return self.peak_flops("bf16") / self.bytes_per_s

    @property
    def has_host(self) -> bool:
        """Say whether another processor launches this one's operations, ahead of time; a CPU does so itself."""
        return self.family != "cpu"

    def peak_flops(self, dtype: str) -> float:
        """Give the dense peak that serves a workload's dtype, in FLOPs per second.

        Raises DeviceError for a dtype that the device cannot compute in.
        """
        if dtype not in COMPUTED_IN:
            raise DeviceError(f"unknown dtype {dtype!r}{nearest(str(dtype), COMPUTED_IN)}")
        for served in COMPUTED_IN[dtype]:
            if served in self.flops_per_s:
                return self.flops_per_s[served]
        raise DeviceError(f"device {self.name!r} has no rate for {dtype}; it computes in {', '.join(self.flops_per_s)}")

    def with_numbers(self, origins: Mapping[str, Origin], **numbers: float) -> Device:
        """Replace some numbers, and say of each where the new one comes from.

        Raises DeviceError for a number that is unknown, or replaced without its origin.
        """
        known = (*NUMBERS, "price_per_hour")
        for name in numbers:
            if name not in known:
                raise DeviceError(f"a device has no number {name!r}{nearest(name, known)}")
            if name not in origins:
                raise DeviceError(f"{name} is replaced without an origin; say where {numbers[name]!r} comes from")
        return dataclasses.replace(self, origins={**self.origins, **origins}, **numbers)


def _check_numbers(device: Device) -> None:
    """Check every number, and make it a Python float: numpy's become plain, and 0 has one sign only."""
    if not isinstance(device.flops_per_s, Mapping) or not device.flops_per_s:
        raise DeviceError(f"flops_per_s={device.flops_per_s!r}; give the dense peak of at least one dtype")
    for dtype in device.flops_per_s:
        if dtype not in ARITHMETIC:
            reason = "int4 weights are computed in a wider one" if dtype in DTYPE_BYTES else "it is unknown"
            raise DeviceError(f"flops_per_s has dtype {dtype!r}, but {reason}{nearest(str(dtype), ARITHMETIC)}")
    if set(device.flops_per_s) == {"int8"}:
        raise DeviceError("flops_per_s has int8 alone; weights are widened before use, so give fp32, bf16 or fp16 too")
    peaks = {dtype: _plain(f"flops_per_s.{dtype}", rate) for dtype, rate in device.flops_per_s.items()}
    object.__setattr__(device, "flops_per_s", peaks)
    for name in (*NUMBERS, *(["price_per_hour"] if device.price_per_hour is not None else [])):
        object.__setattr__(device, name, _plain(name, getattr(device, name)))
    for name, value in device.numbers.items():
        if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
            floor = "zero or more" if name in _MAY_BE_ZERO else "a number above zero"
            raise DeviceError(f"{name}={value:g}; wanted {floor}")
        if name in _FRACTIONS and value > 1:
            raise DeviceError(f"{name}={value:g}; a fraction of peak is at most 1")


def _check_origins(device: Device) -> None:
    numbers = device.numbers
    for name, origin in device.origins.items():
        if name not in numbers:
            raise DeviceError(f"origins speaks of {name!r}, which the device has no number for{nearest(name, numbers)}")
        if not isinstance(origin, Origin):
            raise DeviceError(f"the origin of {name} is {origin!r}; wanted an Origin")
    if missing := [name for name in numbers if name not in device.origins]:
        raise DeviceError(f"no origin for {', '.join(missing)}; say where each comes from")
    object.__setattr__(device, "origins", {name: device.origins[name] for name in numbers})


def _plain(name: str, value: Any) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise DeviceError(f"{name}={value!r}; wanted a number")
    number = float(value) + 0.0  # -0.0 becomes 0.0
    if not math.isfinite(number):
        raise DeviceError(f"{name}={number}; wanted a finite number")
    return number
