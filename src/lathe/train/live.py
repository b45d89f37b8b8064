"""Show how training goes: one line that renews itself in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

REFRESH_S = 0.2
"""The shortest time between two pictures of the line."""
MEMORY = 0.95
"""How much of the usual time of a step stays with each step, in judging the time left."""


class LiveLine:
    """Show the last step; use it as a context.

    Args:
        log_every: steps between lines where the output is no terminal.
        console: where to show; standard error if not given.
    """

    def __init__(self, *, steps: int, log_every: int = 10, console: Console | None = None) -> None:
        self.steps, self.log_every = steps, log_every
        self.console = console or Console(stderr=True, highlight=False)
        self._held_out: Mapping[str, float] = {}
        self._step_s: float | None = None
        self._row: Mapping[str, Any] | None = None
        self._shown = 0.0
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> LiveLine:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._show()
            self._live.stop()

    def step(self, row: Mapping[str, Any]) -> None:
        """Take a step's line of metrics; most are not shown."""
        seconds = row["seconds"]
        self._step_s = seconds if self._step_s is None else MEMORY * self._step_s + (1 - MEMORY) * seconds
        self._row = row
        if self._live is None:
            if row["step"] % self.log_every == 0 or row["step"] == self.steps:
                self._print(self.describe())
        elif time.monotonic() - self._shown >= REFRESH_S:
            self._show()

    def evaluated(self, losses: Mapping[str, float]) -> None:
        """Take held-out losses, by validation set; each step's line ends with the last ones."""
        self._held_out = {**self._held_out, **losses}

    def say(self, message: str) -> None:
        """Print a message above the line."""
        self._print(message)

    def describe(self) -> str:
        """Put the last step in one line."""
        row = self._row
        if row is None:
            return f"step 0/{self.steps}"
        left_s = (self.steps - row["step"]) * (self._step_s or 0.0)
        parts = [
            f"step {row['step']}/{self.steps}",
            f"loss {row['loss']:.4f}",
            f"lr {row['lr']:.3g}",
            f"{format_rate(row['tokens_per_s'])} tokens/s",
            f"MFU {row['mfu']:.1%}",
            f"grad norm {row['grad_norm']:.3g}",
            f"{format_seconds(left_s)} left",
            *(f"{name} {loss:.4f}" for name, loss in self._held_out.items()),
        ]
        return " · ".join(parts)

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(Text(self.describe(), no_wrap=True, overflow="ellipsis"), refresh=True)
            self._shown = time.monotonic()

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)


def format_rate(per_s: float) -> str:
    """Write a rate in three digits: 812, 20.4k, 1.31M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if per_s >= size:
            return f"{per_s / size:.3g}{letter}"
    return f"{per_s:.3g}"


def format_seconds(seconds: float) -> str:
    """Write a time with its two largest units: 42s, 3m 05s, 7h 12m, 2d 03h."""
    whole = max(0, round(seconds))
    for unit, size, smaller, letter in ((86400, 3600, "h", "d"), (3600, 60, "m", "h"), (60, 1, "s", "m")):
        if whole >= unit:
            return f"{whole // unit}{letter} {whole % unit // size:02d}{smaller}"
    return f"{whole}s"
