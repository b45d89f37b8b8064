"""Start the processes of a training on this machine, and end them together.

They find one another by torchrun's environment variables, over one loopback port. torchrun itself forgets how processes
ended that it was asked to stop, and kills them 30 s later, which may be in the middle of a save; here both are kept.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import IO

STOPPED = 75
"""The exit code of a process that was asked to stop and has saved its state; sysexits.h calls it EX_TEMPFAIL."""
FINE = (0, STOPPED)
GRACE_S = 5.0
"""How long processes may take to end by themselves after one has failed."""
POLL_S = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TRACEBACK = "Traceback (most recent call last)"


def launch(command: Sequence[str], *, nproc: int) -> int:
    """Run a command in `nproc` processes, one a rank; gives the exit code that matters.

    That is the first failure's, else 75 where any process saved and stopped, else 0. SIGTERM and SIGINT are passed on
    to all. Rank 0 has the terminal; what another writes is shown if it failed for a reason of its own.
    """
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(nproc - 1)]
        shared = _environment(nproc)
        processes: list[subprocess.Popen] = []
        stack.callback(_kill, processes)
        stack.enter_context(_pass_on(processes))
        for rank in range(nproc):
            output = None if rank == 0 else outputs[rank - 1]
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # a group of its own: the terminal's Ctrl-C shall reach it once, through this process
            processes.append(subprocess.Popen(command, env=shared | own, stdout=output, stderr=output, process_group=0))
        failed = _wait(processes)
        if failed is None:
            return STOPPED if any(process.returncode == STOPPED for process in processes) else 0
        _show(failed, processes, outputs)
        return _exit_code(processes[failed].returncode)


def _environment(nproc: int) -> dict[str, str]:
    """Give the variables that all processes share: where they meet, and a fair part of the cores."""
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, _cores() // nproc))}
    count = str(nproc)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return {**os.environ, **threads, **meeting, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _pass_on(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Send what this process is asked to all processes that run."""

    def send(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)  # does nothing to one that has ended

    before = {number: signal.signal(number, send) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen]) -> int | None:
    """Wait until all have ended, killing the rest after a failure; gives the rank that failed first."""
    failed, deadline = None, float("inf")
    while None in [process.poll() for process in processes]:
        if failed is None and (failed := _first_failed(processes)) is not None:
            deadline = time.monotonic() + GRACE_S
        if time.monotonic() > deadline:
            _kill(processes)
        time.sleep(POLL_S)
    return _first_failed(processes) if failed is None else failed


def _first_failed(processes: Sequence[subprocess.Popen]) -> int | None:
    """Find a rank that failed; of several at once rank 0 comes last, whose error is on the terminal anyhow."""
    failed = [rank for rank, one in enumerate(processes) if one.returncode is not None and one.returncode not in FINE]
    return min(failed, key=lambda rank: (rank == 0, rank), default=None)


def _kill(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


def _show(failed: int, processes: Sequence[subprocess.Popen], outputs: Sequence[IO[bytes]]) -> None:
    """Show what the rank that failed first wrote, unless rank 0 has said the same.

    Mistakes of the user's end all ranks alike, with one line and one exit code; rank 0's is on the terminal already.
    """
    if failed == 0:
        return
    outputs[failed - 1].seek(0)
    text = outputs[failed - 1].read().decode(errors="replace").strip()
    if text and (TRACEBACK in text or processes[0].returncode != processes[failed].returncode):
        print(f"rank {failed}:\n{text}", file=sys.stderr)


def _exit_code(returncode: int) -> int:
    """Say how a process ended as a shell does: 128 + n for one that signal n ended."""
    return 128 - returncode if returncode < 0 else returncode
