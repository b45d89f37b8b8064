"""Keep measurements in a .jsonl file, a row each, which `lathe calibrate` reads.

A row is appended in one write as soon as it is measured: a killed sweep loses nothing that was measured. A last line
that was cut short all the same is taken off, and its row is measured again. A measurement made again takes the place
of the old one, in a new file that replaces the old file whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.documents import check_path, write_atomic
from lathe.errors import DeviceError
from lathe.shape import Shape
from lathe.workload import Latency, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Hold what was measured: of which shape and workload, and the latency with its conditions."""

    name: str
    shape: Shape
    workload: Workload
    latency: Latency

    @property
    def key(self) -> tuple[Any, ...]:
        """Say what makes two measurements the same one, repeated."""
        at, where = self.latency, self.latency.conditions or {}
        return make_key(
            self.shape, self.workload, engine=at.engine, backend=at.backend, device=where.get("device"),
            threads=where.get("threads"),
        )  # fmt: skip


def make_key(
    shape: Shape, workload: Workload, *, engine: str, backend: str | None, device: str | None, threads: str | None
) -> tuple[Any, ...]:
    """Make a measurement's key before it is made."""
    return shape, workload, engine, backend, device, threads


def write_row(measurement: Measurement, path: str | Path) -> None:
    """Append one measurement, and see it on the disk. Raises DeviceError where it cannot be written."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, _write_line(measurement))
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise DeviceError(f"{path}: the measurement cannot be written: {error.strerror}") from None


def replace_row(measurement: Measurement, path: str | Path) -> None:
    """Append one measurement and take off all others of its key; a kill leaves the old file or the new one.

    Raises CodecError where it cannot be written, DeviceError for a line that is no measurement.
    """
    content = Path(path).read_bytes() if Path(path).exists() else b""
    lines = [line for line, row in _read_lines(content, source=path) if row.key != measurement.key]
    write_atomic(path, b"".join([*lines, _write_line(measurement)]))


def open_rows(path: str | Path) -> tuple[list[Measurement], str | None]:
    """Read the measurements so far, and take off a last line that was cut short; a warning says so.

    Raises CodecError for a name that is no .jsonl, DeviceError for a line that is no measurement.
    """
    path = Path(path)
    check_path(path, ".jsonl")
    if not path.exists():
        return [], None
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    except OSError as error:
        raise DeviceError(f"{path} cannot be read and repaired: {error.strerror}") from None
    rows = [row for _, row in _read_lines(content[:whole], source=path)]
    cut = f"{path}: the last line was cut short and is dropped; it will be measured again"
    return rows, cut if whole < len(content) else None


def _write_line(measurement: Measurement) -> bytes:
    row: dict[str, Any] = {"name": measurement.name}
    for word in (measurement.shape, measurement.workload, measurement.latency):
        row |= codec.encode(word)
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _read_lines(content: bytes, *, source: str | Path) -> list[tuple[bytes, Measurement]]:
    return [
        (line, _read_row(line, source=f"{source}, line {number}"))
        for number, line in enumerate(content.splitlines(keepends=True), start=1)
        if line.strip()
    ]


def _read_row(line: bytes, *, source: str) -> Measurement:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DeviceError(f"{source}: not JSON ({error}); remove the line, or write to another file") from None
    if not isinstance(row, dict):
        raise DeviceError(f"{source}: no measurement; remove the line, or write to another file")
    parts = {word: _part(row, word) for word in (Shape, Workload, Latency)}
    missing = [name for name in ("prefill_s", "decode_s", "engine", "backend") if name not in row]
    if missing:
        raise DeviceError(f"{source}: {', '.join(missing)} is missing: `lathe measure` did not write it")
    shape = codec.decode(Shape, parts[Shape], source=source)
    workload = codec.decode(Workload, parts[Workload], source=source)
    try:
        latency = Latency(**parts[Latency])
    except TypeError as error:
        raise DeviceError(f"{source}: {error}; `lathe measure` did not write it") from None
    return Measurement(name=str(row.get("name", source)), shape=shape, workload=workload, latency=latency)


def _part(row: dict[str, Any], word: type) -> dict[str, Any]:
    return {f.name: row[f.name] for f in dataclasses.fields(word) if f.name in row}
