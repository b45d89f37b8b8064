"""Show a sweep in a terminal: the runs that are trained now, how far each is, and the time left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lathe.recipe import Recipe
from lathe.sweep.entries import Entry
from lathe.sweep.jobs import Job
from lathe.train.branches import branch_recipes
from lathe.train.folder import BRANCHES
from lathe.train.live import format_seconds
from lathe.train.meter import METRICS
from lathe.train.schedule import decay_start

LINES_BYTES = 4096
"""From the end of a file of metrics: several lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Hold how far a job is: steps of trunk and branches, and the last loss."""

    done: int
    steps: int
    loss: float | None

    @property
    def share(self) -> float:
        """Give the share of the steps that is done."""
        return self.done / self.steps


class LiveTable:
    """Renew a table of what runs; use it as a context. Without a terminal it shows nothing."""

    def __init__(self, entries: Sequence[Entry], *, show: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if show and self._console.is_terminal else None
        self._efforts = {entry.name: entry.effort for entry in entries}
        self._begun: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Table.grid(), refresh=True)
            self._live.stop()

    def show(self, running: Sequence[Job], *, done: Collection[str]) -> None:
        """Show the jobs that run, and how many are `done`."""
        if self._live is not None:
            self._live.update(self.draw(running, done=done), refresh=True)

    def draw(self, running: Sequence[Job], *, done: Collection[str]) -> Table:
        """Draw the table."""
        found = {job.name: read_progress(job) for job in running}
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("run", "step", "loss", "left"):
            table.add_column(title, justify="left" if title == "run" else "right")
        for name, one in found.items():
            loss = "" if one.loss is None else f"{one.loss:.4f}"
            table.add_row(name, f"{one.done}/{one.steps}", loss, self._time_left(name, one.share))
        table.add_row(
            f"{len(done)} of {len(self._efforts)} ended",
            "",
            "",
            self._time_left("", self._share(found, done)),
            style="dim",
        )
        return table

    def _share(self, found: dict[str, Progress], done: Collection[str]) -> float:
        """Give the share of all efforts that is spent."""
        spent = sum(self._efforts[name] for name in done)
        spent += sum(self._efforts[name] * one.share for name, one in found.items())
        return spent / sum(self._efforts.values())

    def _time_left(self, name: str, share: float) -> str:
        """Judge the time left by how fast the share has grown since it was first seen."""
        now = time.monotonic()
        began, first = self._begun.setdefault(name, (now, share))
        if share <= first:
            return ""
        return format_seconds((now - began) * (1 - share) / (share - first))


def read_progress(job: Job) -> Progress:
    """Read from its files of metrics how far a job is."""
    done, steps, loss = 0, 0, None
    for folder, recipe, start in _list_parts(job):
        row = read_last_step(folder / METRICS)
        steps += recipe.steps - start
        if row is not None:
            done += max(0, row["step"] - start)
            loss = row["loss"]
    return Progress(done=done, steps=steps, loss=loss)


def _list_parts(job: Job) -> Iterator[tuple[Path, Recipe, int]]:
    """Yield the folder of trunk and branches in the order they are trained, and the step each begins after."""
    yield job.folder, job.recipe, 0
    for branch in branch_recipes(job.recipe, job.execution.branch_at):
        yield job.folder / BRANCHES / str(branch.tokens), branch, decay_start(branch)


def read_last_step(path: Path) -> dict[str, Any] | None:
    """Read the last whole line of a step; None if there is none yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LINES_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off where the reading began
        if row.get("kind") == "step":
            return row
    return None
