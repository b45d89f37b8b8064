"""Fork a process for each job that the sweep names, from one that has imported the trainer and run nothing.

Importing torch and the trainer takes seconds; a fork takes milliseconds. Requests come as lines of JSON on standard
input: {"number", "gpu", "job"}; as each process ends, a line {"number", "code"} goes to standard output, the code as
`subprocess` has it. When the input ends, as it does when the sweep dies, processes are asked to save and end.

Run by `lathe.sweep.local` as python -m lathe.sweep.server.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

import torch

import lathe.train.loop  # noqa: F401  what jobs need is here before they are
from lathe import codec
from lathe.errors import Stopped
from lathe.sweep.jobs import Job, train_job
from lathe.train.launch import STOPPED

SAVE_S = 60.0
"""How long processes that are asked to end may take to save before they are killed."""
PARENT_S = 0.5
"""Time between a process's looks at whether the server lives."""
FAILED = 1
INPUT, OUTPUT, ERRORS = 0, 1, 2


def serve() -> None:
    """Start what is asked for, and tell what ends, until the input does."""
    replies = os.dup(OUTPUT)
    os.dup2(ERRORS, OUTPUT)  # what imports print is no reply
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numbers: dict[int, int] = {}
    held = b""
    while True:
        ready, _, _ = select.select([INPUT, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        for pid, code in _reap():
            with suppress(BrokenPipeError):  # a sweep that has died
                os.write(replies, json.dumps({"number": numbers.pop(pid), "code": code}).encode() + b"\n")
        if INPUT in ready:
            read = os.read(INPUT, 65536)
            if not read:
                break
            *requests, held = (held + read).split(b"\n")
            for request in map(json.loads, requests):
                numbers[_fork(request, close=(replies, woken, wake))] = request["number"]
    _stop(set(numbers))


def _reap() -> Iterator[tuple[int, int]]:
    """Yield the processes that have ended, and how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _fork(request: dict[str, Any], *, close: tuple[int, ...]) -> int:
    """Start a process for a job; gives its number to the system."""
    server = os.getpid()
    if pid := os.fork():
        return pid
    code = FAILED
    try:  # nothing may get out of here: above is the server's own loop
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in close:
            os.close(descriptor)
        code = _work(codec.decode(Job, request["job"]), gpu=request["gpu"], server=server)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(job: Job, *, gpu: str | None, server: int) -> int:
    """Train a job in this process, which is its own; gives the exit code."""
    _attach(job)
    threading.Thread(target=_end_with, args=(server,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if job.execution.threads is not None:
        torch.set_num_threads(job.execution.threads)
    try:
        return FAILED if train_job(job) else 0
    except Stopped:
        return STOPPED


def _attach(job: Job) -> None:
    """Read nothing, and send to the job's log what native code prints, too."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    for descriptor, path, flags in (
        (INPUT, os.devnull, os.O_RDONLY),
        (OUTPUT, job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(OUTPUT, ERRORS)


def _end_with(server: int) -> NoReturn:
    """Ask this process to save and end once the server is dead, however it died."""
    while os.getppid() == server:
        time.sleep(PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_S)
    os._exit(FAILED)


def _stop(pids: set[int]) -> None:
    """Ask processes to save and end, and kill those that take too long."""
    deadline, ask = time.monotonic() + SAVE_S, signal.SIGTERM
    for pid in pids:
        os.kill(pid, ask)
    while pids:
        pids -= {pid for pid, _ in _reap()}
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    serve()
