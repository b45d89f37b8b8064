"""Say under what conditions a training runs, what of them would change its bits, and how much energy it takes."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lathe.bench.conditions import name_device
from lathe.version import VERSION

POWERCAP = Path("/sys/class/powercap")
ENVIRONMENT = ("MKL_NUM_THREADS", "MKL_CBWR", "MKL_DYNAMIC", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")
GIT_S = 5.0
"""How long git may take to answer."""

DECISIVE: Mapping[str, str] = {
    "lathe": "Lathe's version",
    "torch": "torch's version",
    "numpy": "NumPy's version",
    "cuda": "CUDA's version",
    "cudnn": "cuDNN's version",
    "machine": "the device",
    "processor": "the processor",
    "instructions": "the instructions that torch uses on the CPU",
    "threads": "the number of threads",
    "ranks": "the number of ranks",
    "deterministic": "whether torch is held to deterministic algorithms",
    "matmul_precision": "the precision of fp32 products",
    **{name: f"${name}" for name in ENVIRONMENT},
}
"""Conditions that the bits of a result may hang on, and what to call them."""


def record(device: torch.device | str) -> dict[str, Any]:
    """Describe versions, machine, threads and settings, as JSON; what is unset is None."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    versions = {
        "lathe": VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }
    return {
        "versions": {name: str(version) for name, version in versions.items() if version is not None},
        "git": git_state(),
        "system": platform.platform(),
        "machine": name_device(device),
        "processor": name_device(torch.device("cpu")),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name: os.environ.get(name) for name in ENVIRONMENT},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name, a sentence each, what may keep a training from going on bit by bit as it would have."""
    before, after = ({**conditions, **conditions.get("versions", {})} for conditions in (then, now))
    return [
        f"{called} was {_show(before.get(name))} and is {_show(after.get(name))} now"
        for name, called in DECISIVE.items()
        if before.get(name) != after.get(name)
    ]


def git_state(folder: str | Path = ".") -> str | None:
    """Name the commit that a folder is at, with "-dirty" behind it if files have changed; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: str | Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=GIT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)


class EnergyMeter:
    """Add up the energy that processor packages (RAPL) and the CUDA device (NVML) have taken since it was made.

    Where no counter can be read there is none: `read` gives None. Other programs' use counts too. RAPL's counters
    overflow after some minutes to hours at full load, so `read` should be called every few minutes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._before = read_counters(self.device)
        self._joules = 0.0

    def read(self) -> float | None:
        """Give the joules so far."""
        now = read_counters(self.device)
        for name, (joules, span) in now.items():
            used = joules - self._before.get(name, (joules, span))[0]
            self._joules += used if used >= 0 else max(used + span, 0.0)
        self._before |= now
        return self._joules if self._before else None


def read_counters(device: torch.device) -> dict[str, tuple[float, float]]:
    """Read the energy counters that can be read: joules, and at how many the counter begins anew."""
    found = {}
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:  # parts of a package, which count within it, have two
            with contextlib.suppress(OSError, ValueError):
                joules, span = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
                found[zone.name] = joules, span
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # whatever the optional library, or a driver without counters, raises
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
            found["nvml"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0
    return found
