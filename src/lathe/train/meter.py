"""Measure training: rates, share of the peak, memory, waiting; and keep every step's numbers in metrics.jsonl.

A line of metrics.jsonl is one JSON object with a `kind` and a `step`:

- `step`: loss and z (means a target of the step's batch; with a teacher the divergence from it too), grad_norm (before
  clipping), lr, tokens (trained on so far); then what hangs on the machine: seconds, data_wait_s, tokens_per_s,
  flops_per_s, mfu, memory_bytes, elapsed_s.
- `evaluation`: held-out losses after that step.
- `analysis`: an `Analysis` of the layers after that step.
- `event`: what happened after that step, such as a spike, a resume or a save.

`DETERMINISTIC` fields are the same to the bit in a run that was killed and resumed. What is no number is null.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lathe.errors import CheckpointError
from lathe.model.linear import multiply
from lathe.presets.devices import device_presets
from lathe.shape import Shape

METRICS = "metrics.jsonl"
DETERMINISTIC = ("step", "loss", "z", "grad_norm", "lr", "tokens")
KINDS = ("step", "evaluation", "analysis", "event")
FLUSH_S = 1.0
"""The longest that a line waits to be written, if steps go on."""

GPUS = {
    r"NVIDIA A100-SXM4-40GB": "a100-40gb",
    r"NVIDIA A100-SXM4-80GB": "a100-80gb",
    r"NVIDIA A30": "a30",
    r"NVIDIA B200": "b200",
    r"NVIDIA H100 PCIe": "h100-pcie",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200": "h200",
    r"NVIDIA L4": "l4",
    r"NVIDIA L40S": "l40s",
    r"NVIDIA GeForce RTX 4090": "rtx-4090",
    r"NVIDIA GeForce RTX 5090": "rtx-5090",
    r"AMD Instinct MI300X.*": "mi300x",
}
"""How a driver names a GPU, whole → the preset with its peaks. A slice of one (MIG) has another name, and no preset."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16}
MATMUL = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the products that a peak is measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Hold one device's dense peak in FLOPs per second, and where the number comes from."""

    flops_per_s: float
    origin: str


def find_peak(device: torch.device, dtype: str) -> Peak:
    """Give the peak of a recipe's dtype: a preset's where the device is known, else measured in about a second."""
    known = _preset(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    # fp32 products in TF32 have another peak than the presets' fp32
    if known is None or (dtype == "fp32" and torch.get_float32_matmul_precision() != "highest"):
        return measure_peak(device, dtype)
    computed = "fp32" if dtype == "fp32" else "bf16"
    origin = known.origins[f"flops_per_s.{computed}"]
    return Peak(flops_per_s=known.flops_per_s[computed], origin=f"{known.name}, dense {computed}: {origin.source}")


def _preset(gpu: str) -> Any:
    name = next((preset for pattern, preset in GPUS.items() if re.fullmatch(pattern, gpu)), None)
    return None if name is None else device_presets()[name]


def measure_peak(device: torch.device, dtype: str, *, size: int | None = None) -> Peak:
    """Multiply two square matrices a few times, and take the fastest."""
    size = size or MATMUL.get(device.type, 1024)
    a = torch.full((size, size), 0.5, dtype=DTYPES[dtype], device=device)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest, begun = math.inf, time.perf_counter()
    for turn in range(10):
        wait()
        started = time.perf_counter()
        multiply(a, a)
        wait()
        fastest = min(fastest, time.perf_counter() - started)
        if turn >= 2 and time.perf_counter() - begun > 1:
            break
    threads = f" on {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    computed = str(DTYPES[dtype]).removeprefix("torch.")
    return Peak(flops_per_s=2 * size**3 / fastest, origin=f"measured: a {size}³ product in {computed}{threads}")


def peak_memory(device: torch.device) -> float | None:
    """Give the most memory taken so far: tensors' on a GPU, resident pages of the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


class Meter:
    """Turn what the loop knows of a step into a line of metrics.

    The sums that it keeps (loss weighed by tokens, tokens, time) go into checkpoints as `state`: floats come back from
    JSON to the bit, so a resumed run adds up to the same mean as one never stopped.

    Args:
        peak: of one device, which `world` have.
        teacher_flops: a teacher's for a token.
        state: what `state` gave.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        seq_len: int,
        device: torch.device,
        peak: Peak,
        world: int = 1,
        teacher_flops: float = 0.0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.device, self.peak, self.world = device, peak, world
        self.flops_per_token = shape.train_flops(1, seq_len) + teacher_flops
        state = state or {}
        self.tokens: int = state.get("tokens", 0)
        self._loss_sum: float = state.get("loss_sum", 0.0)
        self._before_s: float = state.get("elapsed_s", 0.0)
        self._started = time.perf_counter()

    def measure(
        self,
        step: int,
        *,
        loss: float,
        z: float,
        grad_norm: float,
        lr: float,
        tokens: int,
        seconds: float,
        data_wait_s: float,
        divergence: float | None = None,
    ) -> dict[str, Any]:
        """Count a step, and give its line. `tokens` are the whole batch's, `seconds` the whole step's."""
        self.tokens += tokens
        self._loss_sum += loss * tokens
        flops_per_s = self.flops_per_token * tokens / seconds
        return {
            "step": step,
            "loss": loss,
            "z": z,
            **({} if divergence is None else {"divergence": divergence}),
            "grad_norm": grad_norm,
            "lr": lr,
            "tokens": self.tokens,
            "seconds": seconds,
            "data_wait_s": data_wait_s,
            "tokens_per_s": tokens / seconds,
            "flops_per_s": flops_per_s,
            "mfu": flops_per_s / (self.peak.flops_per_s * self.world),
            "memory_bytes": peak_memory(self.device),
            "elapsed_s": self.elapsed_s,
        }

    @property
    def elapsed_s(self) -> float:
        """Give the time spent training, earlier processes' included."""
        return self._before_s + time.perf_counter() - self._started

    @property
    def mean_loss(self) -> float | None:
        """Give the mean training loss of the run so far, a token counting as much as any; None before a step."""
        return self._loss_sum / self.tokens if self.tokens else None

    def state(self) -> dict[str, Any]:
        """Give the sums, as JSON."""
        return {"tokens": self.tokens, "loss_sum": self._loss_sum, "elapsed_s": self.elapsed_s}


class MetricsFile:
    """Append lines to metrics.jsonl, whole ones only, at least every second.

    A disk that is full stops nothing: lines wait, `report` is told once, and they are written when there is room.

    Args:
        step: the step that training goes on from; lines of later ones, and torn ones, are dropped.

    Raises CheckpointError for a file that cannot be opened.
    """

    def __init__(self, path: str | Path, *, step: int = 0, report: Callable[[str], None] = print) -> None:
        self.path, self.report = Path(path), report
        self._pending: list[bytes] = []
        self._flushed, self._warned = time.monotonic(), False
        self._file, self._bytes = self._open(step)

    def _open(self, step: int) -> tuple[int, int]:
        try:
            truncate(self.path, step)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            return file, os.fstat(file).st_size
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a line; `values` has its `step`."""
        assert kind in KINDS, f"a line of metrics is no {kind!r}"
        assert "step" in values, "a line of metrics without its step could not be dropped upon resume"
        line = json.dumps({"kind": kind, **_finite(values)}, ensure_ascii=False, allow_nan=False)
        self._pending.append(line.encode() + b"\n")
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self, *, sync: bool = False) -> None:
        """Write what waits; with `sync` onto the disk itself, as before a checkpoint."""
        self._flushed = time.monotonic()
        content = b"".join(self._pending)
        try:
            if content:
                _write_all(self._file, content)
                self._bytes += len(content)
                self._pending.clear()
            if sync:
                os.fsync(self._file)
            self._warned = False
        except OSError as error:
            if self._pending:
                os.ftruncate(self._file, self._bytes)
            if not self._warned:
                self.report(
                    f"warning: {self.path} cannot be written ({error.strerror}); its lines wait, training goes on"
                )
            self._warned = True

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps, as a training that goes back does."""
        self.close()
        self._file, self._bytes = self._open(step)

    def close(self) -> None:
        """Write what waits, and close the file."""
        self.flush()
        os.close(self._file)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _finite(value: Any) -> Any:
    """Put null in place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and torn ones; a file that has none, or is not there, stays as it is."""
    if not path.is_file():
        return
    neighbour = path.with_name(f".{path.name}.part")
    with open(path, "rb") as old, open(neighbour, "wb") as new:
        for line in old:
            row = _parse(line)
            if row is not None and row["step"] <= step:
                new.write(line)
        same = old.tell() == new.tell()
    if same:
        neighbour.unlink()
    else:
        neighbour.replace(path)


def read_metrics(path: str | Path, *, kind: str = "step") -> Iterator[dict[str, Any]]:
    """Read the lines of a kind, but for torn ones. Raises CheckpointError without the file."""
    try:
        with open(path, "rb") as file:
            for line in file:
                row = _parse(line)
                if row is not None and row["kind"] == kind:
                    yield row
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) and row.get("kind") in KINDS else None
