"""Measure what serving a shape or a checkpoint takes, in the same terms as `predict_latency`."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import torch

from lathe.bench.backends import BACKENDS, Backend, check_job, find_backend
from lathe.bench.conditions import MemoryMeter, describe_conditions, use_threads
from lathe.bench.job import Job, find_target
from lathe.bench.steady import Sample, collect
from lathe.errors import WorkloadError
from lathe.model.checkpoint import check_device, explain_memory
from lathe.shape import Shape
from lathe.workload import Latency, Workload

RUNS = 10
TINY = Shape.of(d_model=64, n_layers=1, n_heads=1, d_ff=64, vocab_size=64)
"""Small, and of sizes that every dtype takes."""


def measure(
    target: Shape | str | Path,
    workload: Workload,
    *,
    engine: str | None = None,
    backend: str = "lathe",
    device: str | torch.device = "cpu",
    runs: int | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Latency:
    """Serve a workload until its time is steady, and say what it takes: medians, 95th percentiles, memory.

    Decoding is greedy, as in service, and waits for no end token. See `lathe.bench.steady` for how warming up ends.

    Args:
        target: a shape, a preset's name or a shape file (random weights), or a checkpoint's folder (its own weights).
        engine: one of the backend's (see `lathe.bench.backends`); its first if not given.
        device: "cpu", "cuda" or another name that torch knows.
        runs: fewest measured runs, warm-up not counted; RUNS if not given.
        seed: of the prompts and of random weights.
        threads: CPU threads; torch's if not given.

    Raises:
        WorkloadError: an unknown backend or engine, or more tokens than learned positions.
        MissingExtraError, MissingBackendError: a backend that is not installed.
        DeviceError: no such device, a dtype that it lacks, or too little memory.
    """
    served_by = find_backend(backend)
    job = Job(
        target=find_target(target), workload=workload, engine=engine or served_by.engines[0],
        device=check_device(device), seed=seed,
    )  # fmt: skip
    check_job(job, backend=backend)
    return measure_job(job, backend=backend, runs=runs, threads=threads)


def measure_job(job: Job, *, backend: str, runs: int | None = None, threads: int | None = None) -> Latency:
    """Measure a job that `check_job` has passed. See `measure`."""
    for name, count in (("runs", runs), ("threads", threads)):
        if count is not None and count < 1:
            raise WorkloadError(f"{name}={count}; wanted a whole number of 1 or more")
    served_by = BACKENDS[backend]
    explain = explain_memory(job.shape, dtype=job.workload.dtype, device=job.device, more_bytes=job.kv_bytes)
    with use_threads(threads), explain:
        if served_by.opens_fast:
            _wake(served_by, job)
        gc.collect()
        meter = MemoryMeter(job.device)
        with served_by.open(job) as session:
            sample = collect(session.once, runs=RUNS if runs is None else runs)
        conditions = describe_conditions(job.device, packages=served_by.packages) | {"memory": meter.source}
        return _summarise(job, sample, backend, session.prepare_s, meter.peak_bytes(), conditions)


def _wake(backend: Backend, job: Job) -> None:
    """Serve a tiny model first: libraries and threads, once there, stay, and are no part of the job's memory."""
    work = dataclasses.replace(job.workload, batch=1, prompt_tokens=2, new_tokens=2)
    tiny = dataclasses.replace(job, target=find_target(TINY), workload=work, engine=backend.engines[0])
    with backend.open(tiny) as session:
        session.once()


def _summarise(
    job: Job, sample: Sample, backend: str, prepare_s: float, peak_bytes: float | None, conditions: dict[str, str]
) -> Latency:
    work = job.workload
    weight_bytes, kv_bytes = job.shape.weight_bytes(work.dtype), job.kv_bytes
    return Latency(
        prefill_s=sample.median("prefill_s"),
        decode_s=sample.median("decode_s"),
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        activation_bytes=max((peak_bytes or 0.0) - weight_bytes - kv_bytes, 0.0),
        tokens_per_s=work.batch * work.new_tokens / sample.median("total_s"),
        engine=job.engine,
        backend=backend,
        spread=sample.spread,
        runs=len(sample.trials),
        p95={phase: sample.p95(phase) for phase in ("prefill_s", "decode_s", "total_s")},
        warmup_runs=sample.warmup_runs,
        steady=sample.steady,
        prepare_s=prepare_s,
        conditions=conditions,
    )
