"""Train a sweep's jobs as tasks of a Ray cluster, on this machine or on many that see the same folders.

A task asks for its share of cores and GPUs, and Ray finds it a place. A worker that dies, or is asked to end, has its
task run again, which goes on from the job's last checkpoint. What a job gave is read from its folder, so that no more
than a line of text passes through Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lathe.errors import MissingExtraError, Stopped, StudyError
from lathe.sweep.jobs import Job, Outcome, Watch, conclude, train_job

POLL_S = 0.5
SAVE_S = 120.0
"""How long jobs may take to save when the sweep ends before them."""
STORE_BYTES = 80 * 2**20
"""Of memory that a local cluster keeps for values: hardly any pass, and less Ray does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    """Run jobs on a Ray cluster, whose machines see the sweep's folder and the data; says what each asks for.

    Args:
        address: "local" starts a cluster on this machine, which ends with the sweep; "auto" finds the one that this
            machine is of; or the address of one's head, as host:port.
        slots: cores that a local cluster has; as many as the machine if None.
        cpus: cores of a job.
        gpus: GPUs of a job; less than 1 lets jobs share one.
        memory_gb: memory that a job is counted with; Ray sees to it that a machine has so much.
        resources: custom resources of a job, by the names that the cluster gave them.
        retries: how often a job is run again whose worker died.
    """

    address: str = "local"
    slots: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    retries: int = 3

    def __post_init__(self) -> None:
        wanted = {"slots": 1, "cpus": 0, "gpus": 0, "memory_gb": 0, "retries": 0}
        for name, least in wanted.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise StudyError(f"{name}={value}; wanted {least} or more")
        for name in ("cpus", "gpus"):
            if (value := getattr(self, name)) > 1 and value != int(value):
                raise StudyError(f"{name}={value}; above 1 Ray gives out whole ones")
        if self.slots is not None and self.address != "local":
            raise StudyError(f"slots={self.slots} is a local cluster's, and address is {self.address!r}; leave one out")

    def launch(self, jobs: Sequence[Job], *, watch: Watch | None = None) -> Generator[Outcome, None, None]:
        """Run jobs; see `lathe.sweep.jobs.Launcher`. Raises MissingExtraError, or StudyError for no such cluster."""
        if not jobs:
            return
        with _open_cluster(self) as ray:
            task, place = _make_task(ray, self), os.getcwd()
            left = {task.remote(job, place): job for job in jobs}
            try:
                yield from _follow(ray, left, watch)
            finally:
                _stop(ray, list(left))


def _follow(ray: Any, left: dict[Any, Job], watch: Watch | None) -> Iterator[Outcome]:
    """Give the outcome of each task as it ends, taking it out of `left`."""
    sizes = {job.log: _size(job) for job in left.values()}
    begun: dict[str, float] = {}
    while left:
        ended, _ = ray.wait(list(left), num_returns=len(left), timeout=POLL_S)  # all that have ended by then
        for job in left.values():
            if _size(job) != sizes[job.log]:  # queued tasks print nothing
                begun.setdefault(job.execution.out, time.monotonic())
        for reference in ended:
            job = left.pop(reference)
            seconds = time.monotonic() - begun.get(job.execution.out, time.monotonic())
            yield conclude(job, error=_find_error(ray, reference), seconds=seconds)
        if watch is not None:
            watch([job for job in left.values() if job.execution.out in begun])


def _size(job: Job) -> int:
    return job.log.stat().st_size if job.log.exists() else 0


def _find_error(ray: Any, reference: Any) -> str | None:
    """Say what went wrong with a task, if anything."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause)
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _make_task(ray: Any, settings: Ray) -> Any:
    memory = None if settings.memory_gb is None else int(settings.memory_gb * 2**30)
    asks = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "resources": settings.resources, "memory": memory}
    # a worker that was asked to end has saved: its job goes on elsewhere, like that of one that died
    return ray.remote(_train_there).options(max_retries=settings.retries, retry_exceptions=[Stopped], **asks)


def _train_there(job: Job, place: str) -> str | None:
    """Train a job in a Ray worker, with the folder of the one who asked as its own."""
    try:
        os.chdir(place)
    except OSError as error:
        return (
            f"{socket.gethostname()} has no folder {place} ({error.strerror}); a sweep over several machines needs "
            "a folder that all of them see"
        )
    return train_job(job)


def _stop(ray: Any, references: list[Any]) -> None:
    """Ask tasks that are left to save and end, and wait for them."""
    for reference in references:
        ray.cancel(reference)  # like Ctrl-C there, which a training takes as being asked to save and end
    if references:
        ray.wait(references, num_returns=len(references), timeout=SAVE_S)


@contextmanager
def _open_cluster(settings: Ray) -> Iterator[Any]:
    """Join a cluster, or start one; ends what it started. Raises MissingExtraError or StudyError."""
    # Ray tells its makers what it is used for unless it is told not to
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("launching on Ray", extra="ray") from None
    if ray.is_initialized():
        yield ray
        return
    local = settings.address == "local"
    own = {"num_cpus": settings.slots, "object_store_memory": STORE_BYTES, "include_dashboard": False} if local else {}
    try:
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster to be had at {settings.address!r}: {str(error).strip().splitlines()[0]}; start one with "
            "`ray start --head`, or give address=local"
        ) from None
    try:
        if local:
            _check_room(settings, ray.cluster_resources())
        yield ray
    finally:
        ray.shutdown()


def _check_room(settings: Ray, there: Mapping[str, float]) -> None:
    """Refuse jobs that would wait forever. Raises StudyError."""
    for name, key in (("cpus", "CPU"), ("gpus", "GPU")):
        wanted, most = getattr(settings, name), there.get(key, 0.0)
        if wanted > most:
            raise StudyError(f"a job asks for {name}={wanted:g}, and this machine's cluster has {most:g}; ask for less")
    for name, wanted in settings.resources.items():
        if wanted > there.get(name, 0.0):
            raise StudyError(f"a job asks for {name}={wanted:g}, which a cluster of this machine alone does not have")
