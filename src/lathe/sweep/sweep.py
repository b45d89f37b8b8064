"""Train many recipes: skip what is done, try again what failed, and keep one table of what came out.

A sweep's folder holds a folder for each entry, named by its recipe's id (see `lathe.sweep.jobs`), and runs.jsonl. That
is all its state: a sweep that was killed goes on when it is called again, and gives the table it would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from lathe.errors import LatheError, Stopped, StudyError
from lathe.runs import Run
from lathe.sweep.entries import Entry, check_distinct
from lathe.sweep.jobs import Job, Launcher, Outcome, read_outcome, read_tail
from lathe.sweep.live_table import LiveTable
from lathe.sweep.table import write_table
from lathe.train.execution import Execution
from lathe.train.folder import hold_folder
from lathe.train.live import format_seconds
from lathe.train.record import TABLE, append_run
from lathe.train.signals import Signals

ID_DIGITS = 12
"""Of a recipe's id, in its folder's name."""
QUIET = 10**9
"""Steps between the lines of a job's log."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Hold an entry that no attempt could train, and where its log is."""

    name: str
    folder: Path
    error: str
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """Hold what a sweep gave: the runs in the order of its entries, branches first, and the table they are in.

    `skipped` counts the entries that were trained before, and `before_s` is what those took, one after another.
    """

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    skipped: int
    table: Path
    seconds: float
    before_s: float = 0.0


def sweep(
    entries: Sequence[Entry],
    folder: str | Path,
    *,
    launcher: Launcher,
    retries: int = 1,
    execution: Execution | None = None,
    report: Report = print,
    live: bool = True,
) -> SweepResult:
    """Train entries in a folder, those that take longest first; call it again to go on.

    Args:
        retries: how often an entry that failed is tried again, after all others.
        execution: how each entry is trained; its folders, table, name and branches are the sweep's to say.
        report: is told of every entry that ends, and of the end of its log where it failed.
        live: whether to show those that run, where standard error is a terminal.

    An entry that fails stops nothing, and is among the result's failures. Raises:
        Stopped: SIGINT or SIGTERM asked to end; what ran is saved.
        StudyError: entries without data, or the same twice.
        CheckpointError: a folder that cannot be written, or that another process holds.
        RunsError: a table that cannot be written.
    """
    _check(entries, retries)
    folder, started = Path(folder), time.monotonic()
    order = sorted(entries, key=lambda entry: -entry.effort)
    jobs = [make_job(entry, folder, execution) for entry in order]
    with hold_folder(folder):
        state = _State(table=folder / TABLE, jobs=jobs, report=report)
        pending = [job for job in jobs if not state.is_settled(job)]
        skipped = len(state.runs)
        before_s = sum(_took(entry, state.runs.get(job.name)) for entry, job in zip(order, jobs, strict=True))
        if skipped:
            report(f"{skipped} of {len(jobs)} are trained already")
        with Signals() as signals, LiveTable(order, show=live) as table:
            for attempt in range(1 + retries):
                pending = _launch(pending, launcher, state, signals, table, last=attempt == retries)
        runs = [run for job in _in_order(entries, jobs) for run in state.runs.get(job.name, ())]
        if runs:
            write_table(state.table, runs)
        failures = tuple(state.failures[job.name] for job in _in_order(entries, jobs) if job.name in state.failures)
    seconds = time.monotonic() - started
    return SweepResult(
        runs=tuple(runs), failures=failures, skipped=skipped, table=state.table, seconds=seconds, before_s=before_s
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _State:
    """Hold what is known of each job, by name."""

    table: Path
    jobs: Sequence[Job]
    report: Report
    runs: dict[str, tuple[Run, ...]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def is_settled(self, job: Job) -> bool:
        """Look whether a job is done, or cannot be: its folder is another recipe's."""
        try:
            runs = read_outcome(job)
        except LatheError as error:
            self._fail(job, str(error))
            self.report(f"{job.name} cannot be trained: {error}")
            return True
        if runs is not None:
            self._finish(job, runs)
        return runs is not None

    def take(self, outcome: Outcome, *, last: bool) -> None:
        """Take in how a job ended; `last` says that it is not tried again."""
        job = outcome.job
        if outcome.error is None:
            self._finish(job, outcome.runs)
            run = outcome.runs[-1]
            took = f"in {format_seconds(outcome.seconds)}"
            self.report(
                f"{len(self.runs)}/{len(self.jobs)} {job.name}: loss {run.loss:.4f} at {run.tokens:,} tokens, {took}"
            )
            return
        tail = read_tail(job.log)
        shown = f"; the end of {job.log}:\n{tail}" if tail else ""
        self.report(f"{job.name} failed{'' if last else ', and is tried again'}: {outcome.error}{shown}")
        if last:
            self._fail(job, outcome.error)

    def _finish(self, job: Job, runs: tuple[Run, ...]) -> None:
        self.runs[job.name] = runs
        for run in runs:
            append_run(self.table, run)

    def _fail(self, job: Job, error: str) -> None:
        self.failures[job.name] = Failure(name=job.name, folder=job.folder, error=error, log=job.log)


def _check(entries: Sequence[Entry], retries: int) -> None:
    if retries < 0:
        raise StudyError(f"retries={retries}; wanted 0 or more")
    if not entries:
        raise StudyError("a sweep of no recipes; give a grid or recipes")
    check_distinct(entries)
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            raise StudyError(f"two entries are called {entry.name!r}; rename one")
        if entry.recipe.data is None:
            raise StudyError(f"{entry.name} names no data to train on; give data.train in the grid's [base], or --data")


def make_job(entry: Entry, folder: Path, execution: Execution | None) -> Job:
    """Make the job of an entry in a sweep's folder."""
    out = folder / entry.recipe.id[:ID_DIGITS]
    shared = execution or Execution(out=str(out), log_every=QUIET)
    own = replace(shared, out=str(out), runs=str(out / TABLE), name=None, branch_at=entry.branch_at)
    return Job(name=entry.name, recipe=entry.recipe, execution=own)


def _took(entry: Entry, runs: tuple[Run, ...] | None) -> float:
    """Say how long an entry's training took, branches included; 0 where that is not known."""
    if not runs or runs[-1].seconds is None:
        return 0.0
    return runs[-1].seconds * entry.steps / entry.recipe.steps  # a branch's own seconds count its trunk's, too


def _in_order(entries: Sequence[Entry], jobs: Sequence[Job]) -> list[Job]:
    """List jobs as entries stand."""
    named = {job.name: job for job in jobs}
    return [named[entry.name] for entry in entries]


def _launch(
    jobs: Sequence[Job], launcher: Launcher, state: _State, signals: Signals, table: LiveTable, *, last: bool
) -> list[Job]:
    """Run jobs once; gives those that failed. Raises Stopped."""

    def watch(running: Sequence[Job]) -> None:
        table.show(running, done=state.runs.keys() | state.failures.keys())
        if signals.caught is not None:
            raise Stopped(
                f"stopped by {signals.caught} with {len(state.runs)} of {len(state.jobs)} trained; what ran is saved, "
                "and the same command goes on"
            )

    failed = []
    with closing(launcher.launch(jobs, watch=watch)) as outcomes:
        for outcome in outcomes:
            state.take(outcome, last=last)
            if outcome.error is not None:
                failed.append(outcome.job)
    return failed
