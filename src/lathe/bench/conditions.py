"""Say under what conditions a measurement was made: machine, clocks, threads, versions, and memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lathe.version import VERSION

CPU_INFO, STATUS, CLEAR = Path("/proc/cpuinfo"), Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe_conditions(device: torch.device, *, packages: Sequence[str] = ()) -> dict[str, str]:
    """Name the device, its clock where it can be read, the threads, and the versions of what runs there."""
    found = {
        "device": name_device(device),
        "clock": _clock(device),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lathe": VERSION,
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda}
    return {name: value for name, value in found.items() if value}


def name_device(device: torch.device) -> str:
    """Name the processor or the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"^model name\s*:\s*(.+)$", _read(CPU_INFO), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def use_threads(threads: int | None) -> Iterator[None]:
    """Compute with so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MemoryMeter:
    """Measure the most memory taken since it was made: the allocator's on a GPU, resident pages on a CPU.

    `source` says which; where the system tells nothing, `peak_bytes` is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        if device.type == "cuda":
            self.source = "torch.cuda.max_memory_allocated"
            torch.cuda.reset_peak_memory_stats(device)
            self.before = float(torch.cuda.memory_allocated(device))
        else:
            self.source = "rise of the peak resident memory"
            _give_back()
            self.before = _resident("VmRSS") or 0.0
            try:
                CLEAR.write_text("5")  # resets the peak: proc(5)
            except OSError:
                self.source = "not measured"

    def peak_bytes(self) -> float | None:
        """Give the peak since, less what was taken before."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) - self.before
        peak = _resident("VmHWM") if self.source != "not measured" else None
        return None if peak is None else max(peak - self.before, 0.0)


def _clock(device: torch.device) -> str | None:
    """Give the clock right now; the mean of a CPU's cores."""
    if device.type == "cuda":
        try:
            return f"{torch.cuda.clock_rate(device)} MHz"
        except Exception:  # the driver's library or its Python package is missing
            return None
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read(CPU_INFO), re.MULTILINE)]
    return f"{statistics.fmean(clocks):.0f} MHz" if clocks else None


def _give_back() -> None:
    """Return freed memory to the system, where that can be asked: else what comes next would seem to take none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _resident(name: str) -> float | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", _read(STATUS), re.MULTILINE)
    return float(found.group(1)) * 1024 if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
