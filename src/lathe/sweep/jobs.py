"""Say what a sweep asks of a launcher: jobs in, their outcomes out as they end; and what a worker does with a job.

A launcher is a frozen dataclass with one method. Nothing comes back from a worker but its exit: what a job gave is read
from its folder, so a worker may die at any moment, run anywhere the folder is seen, or have been started by a sweep
that is no more.

    <sweep>/<id>/                a job's folder: the trunk's checkpoint, run.json, branches/<tokens>/
    <sweep>/<id>/runs.jsonl      its own rows; the sweep's table, <sweep>/runs.jsonl, is written by the parent alone
    <sweep>/logs/<id>.log        all that its attempts printed
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lathe.documents import lock_file
from lathe.errors import LatheError, Stopped
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.branches import branch_recipes
from lathe.train.execution import Execution
from lathe.train.folder import BRANCHES, LOCK, finished
from lathe.train.launch import TRACEBACK

LOGS = "logs"
ERROR = "lathe: "
"""What a line of a log begins with that says what went wrong."""
TAIL_LINES = 20
TAIL_BYTES = 8192
FREE_S, FREE_POLL_S = 60.0, 0.1
"""How long a job waits for its folder while an earlier worker of it still saves, and between looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold one recipe to train, with its WSD branches, and how; `execution.out` is the job's own folder."""

    name: str
    recipe: Recipe
    execution: Execution

    @property
    def folder(self) -> Path:
        """Give the folder that the job trains in."""
        return Path(self.execution.out)

    @property
    def log(self) -> Path:
        """Give the file that all attempts at the job print to."""
        return self.folder.parent / LOGS / f"{self.folder.name}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold how a job ended: its runs, shortest first, or why there are none.

    `attempts` counts those that the launcher made itself.
    """

    job: Job
    runs: tuple[Run, ...] = ()
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 1


Watch = Callable[[Sequence[Job]], None]
"""What a launcher calls about every second with the jobs that run now. It may raise to end the sweep."""


class Launcher(Protocol):
    """Run jobs somewhere, some at once."""

    def launch(self, jobs: Sequence[Job], *, watch: Watch | None = None) -> Generator[Outcome, None, None]:
        """Run jobs, started in the order given, and give each one's outcome as it ends.

        A job that fails is an outcome with an error and stops no other. When the generator is closed, or `watch`
        raises, jobs that run are asked to save and end, and are waited for. Raises MissingExtraError, or LatheError for
        what no job could run on.
        """
        ...


def train_job(job: Job) -> str | None:
    """Train a job in this process, all that it prints going to its log; gives in a line what went wrong, if anything.

    A job that was trained in part goes on. Raises Stopped where a signal asked it to save and end.
    """
    from lathe.train.loop import is_main, train  # heavy; forked workers have it already

    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            if is_main():  # which is who holds a folder: other ranks would wait for their own
                _wait_until_free(job.folder)
            train(job.recipe, job.execution, report=print)
        except Stopped as stopped:
            print(f"{ERROR}{stopped}", file=sys.stderr)
            raise
        except LatheError as error:
            print(f"{ERROR}{error}", file=sys.stderr)
            return str(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


def read_outcome(job: Job) -> tuple[Run, ...] | None:
    """Read what a job gave, its branches first, shortest first; None unless all of it is there.

    Raises CheckpointError for a folder that is another recipe's, RecipeError for branches that cannot be.
    """
    branches = branch_recipes(job.recipe, job.execution.branch_at)
    runs = [finished(job.folder / BRANCHES / str(branch.tokens), branch) for branch in branches]
    runs.append(finished(job.folder, job.recipe))
    whole = tuple(run for run in runs if run is not None)
    return whole if len(whole) == len(runs) else None


def conclude(job: Job, *, error: str | None = None, seconds: float = 0.0, attempts: int = 1) -> Outcome:
    """Make the outcome of a job whose worker has ended, from its folder.

    `error` says what is known of a failure; else the end of the log may.
    """
    try:
        runs = read_outcome(job)
    except LatheError as unreadable:
        runs, error = None, error or str(unreadable)
    if runs is not None:
        return Outcome(job=job, runs=runs, seconds=seconds, attempts=attempts)
    error = error or _find_error(read_tail(job.log)) or "ended without a result"
    return Outcome(job=job, error=error, seconds=seconds, attempts=attempts)


def _find_error(tail: str) -> str | None:
    """Find what a log's last line says of an error, if it is one's."""
    last = tail.rpartition("\n")[2]
    if last.startswith(ERROR):
        return last.removeprefix(ERROR)
    return last if TRACEBACK in tail else None


def read_tail(log: Path, *, lines: int = TAIL_LINES) -> str:
    """Read the last lines of a log; empty if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _wait_until_free(folder: Path) -> None:
    """Wait while another process holds a run's folder, but not for long: training then says who does."""
    path, deadline = folder / LOCK, time.monotonic() + FREE_S
    while path.exists() and time.monotonic() < deadline:
        descriptor = os.open(path, os.O_RDWR)
        try:
            if lock_file(descriptor):
                return
        finally:
            os.close(descriptor)
        time.sleep(FREE_POLL_S)
