"""Ask a cluster which jobs it has, and have it cancel some: Slurm's commands, or processes of this machine."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import StudyError

POLL_S = 1.0
"""Between looks at files; Slurm itself is asked every `ask_s`."""


def _find_queued(tasks: Sequence[Any]) -> set[str] | None:
    """Give the ids of all jobs of this user's that are queued or run; None if Slurm does not answer."""
    said = _ask("squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}")
    return None if said is None else set(said.split())


def _find_alive(tasks: Sequence[Any]) -> set[str]:
    """Give the ids of tasks whose processes on this machine live."""
    alive = set()
    for task in tasks:
        task.done()  # takes note of the end of a child of this process, whose id would else stay
        try:
            os.kill(int(task.job_id), 0)
        except OSError:
            continue
        alive.add(task.job_id)
    return alive


def _cancel_named(name: str) -> None:
    """Cancel all jobs of a name, and wait until they are gone. Raises StudyError."""
    if _ask("scancel", f"--name={name}", f"--user={getpass.getuser()}") is None:
        raise StudyError(f"scancel does not answer, and jobs called {name} may be running; try again")
    while _ask("squeue", "--noheader", f"--name={name}", "--format=%i", f"--user={getpass.getuser()}") != "":
        time.sleep(POLL_S)


def _leave(name: str) -> None:
    """Leave local processes nobody knows of: a job waits for the folder that one of them holds."""


def _ask(*command: str) -> str | None:
    """Run a command of Slurm's; gives what it says, None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Hold how to deal with a kind of cluster: submitit's name for its jobs, how people end them, and two questions."""

    job: str
    end: str
    find_present: Callable[[Sequence[Any]], set[str] | None]
    cancel: Callable[[str], None]


CLUSTERS = {
    "slurm": Cluster(job="SlurmJob", end="scancel", find_present=_find_queued, cancel=_cancel_named),
    "local": Cluster(job="LocalJob", end="kill", find_present=_find_alive, cancel=_leave),
}
