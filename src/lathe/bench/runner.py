"""Measure one thing after another, each kept as soon as it is known, none made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lathe.bench.backends import check_job, find_backend
from lathe.bench.conditions import name_device, use_threads
from lathe.bench.job import Job, Target, find_target
from lathe.bench.measure import measure_job
from lathe.bench.rows import Measurement, make_key, replace_row, write_row
from lathe.bench.sweeps import sweep
from lathe.errors import ShapeError
from lathe.model.checkpoint import check_device
from lathe.workload import Workload

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Hold one measurement to make, and the key that its row will have."""

    job: Job
    backend: str
    threads: int | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Say what the row's key will be."""
        with use_threads(self.threads):
            return make_key(
                self.job.shape, self.job.workload, engine=self.job.engine, backend=self.backend,
                device=name_device(self.job.device), threads=str(torch.get_num_threads()),
            )  # fmt: skip


def list_wanted(
    shapes: Iterable[str | Path],
    workload: Workload,
    *,
    sweeps: Sequence[str] = (),
    engines: Sequence[str] = (),
    backends: Sequence[str] = ("lathe",),
    device: str | torch.device = "cpu",
    threads: int | None = None,
    seed: int = 0,
) -> tuple[list[Wanted], list[str]]:
    """List every measurement of shapes (or the sweeps around them) by backends and engines once, and check each.

    Without engines, every backend's first. Returns notes, too: of sweeps left out, for which a shape leaves no room.
    Raises what `measure` does, before anything is measured, and ShapeError where no sweep has room.
    """
    place = check_device(device)
    points, notes = _list_points(shapes, workload, sweeps)
    found: dict[tuple[Any, ...], Wanted] = {}
    for target, work in points:
        for backend in backends:
            for engine in engines or find_backend(backend).engines[:1]:
                job = Job(target=target, workload=work, engine=engine, device=place, seed=seed)
                check_job(job, backend=backend)
                one = Wanted(job=job, backend=backend, threads=threads)
                found.setdefault(one.key, one)  # sweeps of one shape share it
    return list(found.values()), notes


def _list_points(
    shapes: Iterable[str | Path], workload: Workload, sweeps: Sequence[str]
) -> tuple[list[tuple[Target, Workload]], list[str]]:
    points: list[tuple[Target, Workload]] = []
    notes: list[str] = []
    for target in map(find_target, shapes):
        if not sweeps:
            points.append((target, workload))
        for kind in sweeps:
            try:
                family = sweep(kind, target.name, target.shape, workload)
            except ShapeError as error:
                notes.append(str(error))
                continue
            points += [(Target(name=name, shape=shape), work) for name, shape, work in family]
    if not points and notes:
        raise ShapeError("; ".join(notes))
    return points, notes


def run_all(
    wanted: Sequence[Wanted],
    *,
    known: Sequence[Measurement] = (),
    again: bool = False,
    out: str | Path | None = None,
    runs: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure what is not known yet (or all of it `again`), and keep each in `out` as soon as it is measured.

    A measurement made again replaces the known one there. Returns all in the order wanted, known ones among them.
    """
    by_key = {m.key: m for m in known}
    found = []
    for i, one in enumerate(wanted):
        name, engine = one.job.target.name, f"{one.backend} {one.job.engine}"
        if progress is not None:
            progress(f"{name}, {engine} ({i + 1} of {len(wanted)})", i / len(wanted))
        if again or one.key not in by_key:
            latency = measure_job(one.job, backend=one.backend, runs=runs, threads=one.threads)
            row = Measurement(name=name, shape=one.job.shape, workload=one.job.workload, latency=latency)
            if out is not None:
                (replace_row if one.key in by_key else write_row)(row, out)
            by_key[one.key] = row
        found.append(by_key[one.key])
    return found
