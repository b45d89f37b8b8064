"""Measure what this machine can do, so that calibrating can start from its own rates: no data sheet is needed.

- arithmetic: the best rate of large square matmuls, per dtype;
- memory: the best rate of summing an array far beyond every cache;
- the last-level cache: the rate of matrix-vector products, as decoding does, with a matrix that fits; and as its size,
  the largest matrix that still goes at that rate rather than at memory's, since a machine's guests share its cache;
- launches: the time of one operation on one number, of many in a row.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lathe.bench.conditions import describe_conditions, name_device, synchronise, use_threads
from lathe.device import Device, Origin
from lathe.errors import DeviceError
from lathe.model.checkpoint import DTYPES, check_device, check_dtype, free_bytes
from lathe.model.linear import multiply

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MATMUL = {"cpu": 1024, "cuda": 8192}
STREAM_BYTES = {"cpu": 2**28, "cuda": 2**31}
VECTOR = 512
CACHE_PARTS = (0.25, 0.35, 0.5, 0.7, 1.0)
"""Matrices to try, as parts of the cache's size by the system."""
OPERATIONS = 2000
SECONDS = 0.6
"""How long each rate is tried; the best counts, since whatever else runs on the machine only slows it."""
SPARE = 0.8
"""Part of its measured peaks that a model's kernels are taken to reach, until `calibrate` knows."""


def probe_device(device: str | torch.device = "cpu", *, threads: int | None = None) -> Device:
    """Measure a device's arithmetic, memory and launch rates, in a few seconds.

    The peaks are those of the threads given (torch's if not). Raises DeviceError for a device that is not there.
    """
    place = check_device(device)
    with use_threads(threads), torch.inference_mode():
        conditions = describe_conditions(place)
        how = f"lathe probe, {conditions['threads']} threads, torch {conditions['torch']}"
        flops_per_s = {dtype: rate for dtype in DTYPES if (rate := _matmul_rate(place, dtype))}
        bytes_per_s = _sum_rate(place, STREAM_BYTES[place.type])
        cache_bytes, cache_bytes_per_s = _find_cache(place, told=_cache_bytes(place)) or (0.0, bytes_per_s)
        numbers: dict[str, Any] = {
            "bytes_per_s": bytes_per_s,
            "memory_bytes": _memory_bytes(place),
            "cache_bytes": cache_bytes,
            "cache_bytes_per_s": cache_bytes_per_s,
            "launch_s": _launch_s(place),
        }
    sources = {
        "bytes_per_s": f"{how}: the best of many sums over {STREAM_BYTES[place.type] / 1e9:.2g} GB",
        "memory_bytes": "as the system tells",
        "cache_bytes": f"{how}: the largest matrix that is multiplied with a vector at the cache's rate",
        "cache_bytes_per_s": f"{how}: the best of many products of a matrix in cache and a vector",
        "launch_s": f"{how}: an operation on one number, {OPERATIONS} in a row",
        **{
            f"flops_per_s.{dtype}": f"{how}: the best of many matmuls of up to {MATMUL[place.type]}²"
            for dtype in flops_per_s
        },
    }
    origins = {name: Origin(kind="measured", source=source) for name, source in sources.items()}
    guess = "a model's kernels against the peaks measured here; calibrate to know"
    assumed: dict[str, Any] = {"step_s": 1e-4, "compute_fraction": SPARE, "bandwidth_fraction": SPARE}
    origins |= {name: Origin(kind="assumed", source=guess) for name in assumed}
    title = f"{name_device(place)}, {conditions['threads']} threads" if place.type == "cpu" else name_device(place)
    family = "cpu" if place.type == "cpu" else "other"
    return Device(name=title, flops_per_s=flops_per_s, origins=origins, family=family, **numbers, **assumed)


def _best_s(call: Callable[[], object], place: torch.device) -> float:
    """Time a call again and again for SECONDS, and give the shortest."""
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        synchronise(place)
        start = time.perf_counter()
        call()
        synchronise(place)
        best = min(best, time.perf_counter() - start)
    return best


def _matmul_rate(place: torch.device, dtype: str) -> float | None:
    """Give FLOPs per second; None for a dtype that the device lacks."""
    try:
        kind = check_dtype(dtype, place)
    except DeviceError:
        return None
    rate = 0.0
    for side in (MATMUL[place.type] // 8, MATMUL[place.type]):
        if rate and 2 * side**3 > SECONDS * rate:  # emulated, as fp16 is on most CPUs: the small one will do
            break
        left, right = (torch.ones(side, side, dtype=kind, device=place) for _ in range(2))
        rate = 2 * side**3 / _best_s(functools.partial(multiply, left, right), place)
    return rate


def _sum_rate(place: torch.device, size: int) -> float:
    array = torch.ones(size // 4, dtype=torch.float32, device=place)
    return size / _best_s(array.sum, place)


def _vector_rate(place: torch.device, size: float) -> float:
    weight = torch.ones(max(int(size / 4 / VECTOR), 1), VECTOR, dtype=torch.float32, device=place)
    x = torch.ones(1, VECTOR, device=place)
    return 4 * weight.numel() / _best_s(lambda: torch.nn.functional.linear(x, weight), place)


def _find_cache(place: torch.device, *, told: int) -> tuple[float, float] | None:
    """Give the cache's usable bytes and its rate; None where the system names no cache."""
    if not told:
        return None
    rates = {told * part: _vector_rate(place, told * part) for part in CACHE_PARTS}
    inside, outside = rates[told * CACHE_PARTS[0]], _vector_rate(place, 8 * told)
    size = max(size for size, rate in rates.items() if size == told * CACHE_PARTS[0] or rate**2 >= inside * outside)
    return float(size), inside


def _launch_s(place: torch.device) -> float:
    one = torch.ones(1, device=place)

    def launch() -> None:
        for _ in range(OPERATIONS):
            one.add_(1.0)

    return _best_s(launch, place) / OPERATIONS


def _memory_bytes(place: torch.device) -> float:
    if place.type == "cuda":
        return float(torch.cuda.get_device_properties(place).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return free_bytes(place)


def _cache_bytes(place: torch.device) -> int:
    """Size the last-level cache; 0 where the system does not tell."""
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).L2_cache_size)
    sizes = {}
    for index in CACHES.glob("index*"):
        try:
            text = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}[text[-1]]
        except (OSError, ValueError, KeyError):
            continue
    return sizes[max(sizes)] if sizes else 0
