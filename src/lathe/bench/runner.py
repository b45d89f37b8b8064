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
from lathe.bench.rows import Measurement, make_key, write_row
from lathe.bench.sweeps import sweep
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
) -> list[Wanted]:
    """List every measurement of shapes (or the sweeps around them) by backends and engines, and check each.

    Without engines, every backend's first. Raises what `measure` does, before anything is measured.
    """
    place = check_device(device)
    points: list[tuple[Target, Workload]] = []
    for target in map(find_target, shapes):
        if not sweeps:
            points.append((target, workload))
        for kind in sweeps:
            family = sweep(kind, target.name, target.shape, workload)
            points += [(Target(name=name, shape=shape), work) for name, shape, work in family]
    found = []
    for target, work in points:
        for backend in backends:
            for engine in engines or find_backend(backend).engines[:1]:
                job = Job(target=target, workload=work, engine=engine, device=place, seed=seed)
                check_job(job, backend=backend)
                found.append(Wanted(job=job, backend=backend, threads=threads))
    return found


def run_all(
    wanted: Sequence[Wanted],
    *,
    known: Sequence[Measurement] = (),
    out: str | Path | None = None,
    runs: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure what is not known yet, and append each to `out` as soon as it is measured.

    Returns the measurements in the order wanted, known ones among them.
    """
    by_key = {m.key: m for m in known}
    found = []
    for i, one in enumerate(wanted):
        name, engine = one.job.target.name, f"{one.backend} {one.job.engine}"
        if progress is not None:
            progress(f"{name}, {engine} ({i + 1} of {len(wanted)})", i / len(wanted))
        if one.key not in by_key:
            latency = measure_job(one.job, backend=one.backend, runs=runs, threads=one.threads)
            row = Measurement(name=name, shape=one.job.shape, workload=one.job.workload, latency=latency)
            if out is not None:
                write_row(row, out)
            by_key[one.key] = row
        found.append(by_key[one.key])
    return found
