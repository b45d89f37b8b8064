"""Run jobs as processes of this machine, one for each core or GPU at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lathe import codec
from lathe.errors import StudyError
from lathe.sweep.jobs import Job, Outcome, Watch, conclude
from lathe.train.launch import STOPPED
from lathe.train.mesh import choose_device

WATCH_S = 0.5
"""The time between two calls of `watch`."""
END_S = 90.0
"""How long the server may take to end; it gives its processes less."""
SERVER_LOG = "local.log"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Run so many jobs at once, each with so many threads.

    Where they are None, `slots` are the GPUs there are, else the cores over `threads`, and `threads` the cores over the
    slots.
    """

    slots: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise StudyError(f"{name}={value}; wanted 1 or more")

    def launch(self, jobs: Sequence[Job], *, watch: Watch | None = None) -> Generator[Outcome, None, None]:
        """Run jobs as slots get free; see `lathe.sweep.jobs.Launcher`."""
        if not jobs:
            return
        if not hasattr(os, "fork"):
            raise StudyError(
                "the local launcher needs a system that forks, such as Linux or macOS; on Windows take WSL"
            )
        gpus = _list_gpus() if any(choose_device(job.execution) == "cuda" for job in jobs) else []
        cores = _count_cores()
        slots = self.slots or (len(gpus) if gpus else max(1, cores // (self.threads or 1)))
        threads = self.threads or max(1, cores // slots)
        waiting, free, running = list(enumerate(jobs)), list(reversed(range(slots))), dict[int, _Running]()
        server: _Server | None = None
        try:
            while waiting or running:
                if server is not None and not server.alive:
                    server.stop()
                    server = None
                server = server or _Server(jobs[0].log.parent, threads)
                while waiting and free:
                    number, job = waiting.pop(0)
                    running[number] = _Running(job=job, slot=free.pop(), started=time.monotonic())
                    gpu = gpus[running[number].slot % len(gpus)] if gpus else None
                    server.start(number, _set_threads(job, threads), gpu)
                for number, code in server.wait(list(running)):
                    ended = running.pop(number)
                    free.append(ended.slot)
                    seconds = time.monotonic() - ended.started
                    yield conclude(ended.job, error=_explain(code), seconds=seconds)
                if watch is not None:
                    watch([one.job for one in running.values()])
        finally:
            if server is not None:
                server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """Hold a job that runs, where and since when."""

    job: Job
    slot: int
    started: float


class _Server:
    """Hold the process that jobs are forked from; a group of its own, so that a terminal's Ctrl-C does not reach it."""

    def __init__(self, logs: Path, threads: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        with open(logs / SERVER_LOG, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lathe.sweep.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=os.environ | dict.fromkeys(THREADS, str(threads)), process_group=0, bufsize=0,
            )  # fmt: skip
        self._held, self.alive = b"", True

    def start(self, number: int, job: Job, gpu: str | None) -> None:
        """Ask for a job to be started."""
        assert self._process.stdin is not None
        line = json.dumps({"number": number, "gpu": gpu, "job": codec.encode(job)}).encode() + b"\n"
        try:
            while line:
                line = line[self._process.stdin.write(line) or 0 :]
        except BrokenPipeError:
            self.alive = False

    def wait(self, running: Sequence[int]) -> Iterator[tuple[int, int | None]]:
        """Yield the jobs that end within a moment, and how; of a server that died all, their ends unknown."""
        assert self._process.stdout is not None
        if self.alive and select.select([self._process.stdout], [], [], WATCH_S)[0]:
            read = os.read(self._process.stdout.fileno(), 65536)
            *lines, self._held = (self._held + read).split(b"\n")
            for reply in map(json.loads, lines):
                yield reply["number"], reply["code"]
            if read:
                return
            self.alive = False
        if not self.alive:
            yield from ((number, None) for number in running)

    def stop(self) -> None:
        """Let all processes save and end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except BaseException as error:  # a second Ctrl-C waits for nothing
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            self._process.stdout.close()


def _set_threads(job: Job, threads: int) -> Job:
    asked = job.execution.threads
    return job if asked is not None else replace(job, execution=replace(job.execution, threads=threads))


def _explain(code: int | None) -> str | None:
    """Say what an exit code means; the log says the rest."""
    if code is None:
        return f"the server of the local launcher died; its log is logs/{SERVER_LOG}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "was asked to stop, and saved" if code == STOPPED else None


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list_gpus() -> list[str]:
    """Name the GPUs that this process may use, as CUDA_VISIBLE_DEVICES does."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
