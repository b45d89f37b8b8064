"""List what can serve a shape: Lathe's own engines, and other libraries on the same weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lathe.bench.foreign import open_hf, open_llama_cpp, open_vllm
from lathe.bench.job import Job, Session
from lathe.bench.native import open_lathe
from lathe.errors import DeviceError, MissingBackendError, MissingExtraError, WorkloadError, nearest
from lathe.latency.roofline import check_context
from lathe.model.checkpoint import check_dtype

PLAIN = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Hold how a backend is opened, and what it can do.

    `engines` come default first. `modules` are what it imports, and `packages` whose versions a measurement names.
    `extra` is Lathe's own that installs it, `install` the pip requirement where no extra does. `opens_fast` says
    that a tiny model is ready in seconds.
    """

    open: Callable[[Job], AbstractContextManager[Session]]
    engines: tuple[str, ...]
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str | None = None
    install: str | None = None
    dtypes: tuple[str, ...] = PLAIN
    devices: tuple[str, ...] = ("cpu", "cuda")
    max_batch: int | None = None
    opens_fast: bool = True


BACKENDS: dict[str, Backend] = {
    "lathe": Backend(open=open_lathe, engines=("eager", "compile", "graph"), dtypes=(*PLAIN, "int8", "int4")),
    "hf": Backend(
        open=open_hf, engines=("eager",), modules=("transformers",), packages=("transformers",), extra="hf"
    ),
    "vllm": Backend(
        open=open_vllm, engines=("graph", "eager"), modules=("vllm",), packages=("vllm",), install="vllm",
        devices=("cuda",), opens_fast=False,
    ),
    "llama.cpp": Backend(
        open=open_llama_cpp, engines=("graph",), modules=("llama_cpp",), packages=("llama-cpp-python",),
        install="llama-cpp-python", max_batch=1,
    ),
}  # fmt: skip
"""Every backend by name. llama.cpp has one engine: a graph of its own kernels, nothing launched from Python."""


def find_backend(name: str) -> Backend:
    """Look a backend up.

    Raises:
        WorkloadError: no such backend.
        MissingExtraError, MissingBackendError: its packages are not installed.
    """
    if name not in BACKENDS:
        raise WorkloadError(f"unknown backend {name!r}{nearest(str(name), BACKENDS)}")
    found = BACKENDS[name]
    if all(importlib.util.find_spec(module) for module in found.modules):
        return found
    if found.extra is not None:
        raise MissingExtraError(f"measuring with the backend {name}", extra=found.extra)
    raise MissingBackendError(f"the backend {name} is not installed; run: pip install {found.install}")


def check_job(job: Job, *, backend: str) -> None:
    """Refuse what a backend cannot do. Raises WorkloadError or DeviceError, or as `find_backend`."""
    able, work = find_backend(backend), job.workload
    if job.engine not in able.engines:
        raise WorkloadError(f"the backend {backend} has no engine {job.engine!r}{nearest(job.engine, able.engines)}")
    if job.device.type not in able.devices:
        raise DeviceError(f"the backend {backend} does not run on {job.device}; it needs {' or '.join(able.devices)}")
    if work.dtype not in able.dtypes:
        raise DeviceError(f"the backend {backend} cannot serve {work.dtype} here; it can {', '.join(able.dtypes)}")
    if able.max_batch is not None and work.batch > able.max_batch:
        raise WorkloadError(f"batch={work.batch}; the backend {backend} serves {able.max_batch} at a time")
    check_context(job.shape, work)
    check_dtype(work.activation_dtype, job.device)
