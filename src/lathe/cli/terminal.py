"""What commands share: their common flags, tables of runs, standard output, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

WIDTH = 200
Words = tuple[str, ...]
Runs = Annotated[str, arg(help="a published table's name (morph-2025), a .jsonl, .csv or .parquet file, or a folder")]
Where = Annotated[str | None, arg(help="rows to keep, such as \"tokens_per_param >= 20 and size != '1B'\"")]
Columns = Annotated[Words, arg(help="theirs=ours, for tables with column names of their own", metavar="THEIRS=OURS")]


def need(words: Sequence[str], flag: str, wanted: str) -> None:
    """Refuse a flag that was given without a value."""
    from lathe.errors import LatheError

    if not words:
        raise LatheError(f"{flag} was given nothing; wanted {wanted}")


def check_level(level: float) -> None:
    """Refuse a level that is no probability, before the work whose intervals it shapes."""
    from lathe.errors import LatheError

    if not 0 < level < 1:
        raise LatheError(f"--level {level:g} is no probability; give a number between 0 and 1, such as 0.9")


def open_console() -> Console:
    """Open standard output for tables: never so narrow that a number is cut (a narrower terminal folds the line)."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    return console


def read_table(
    runs: str, columns: Words, where: str | None, validation: str | None, tasks: Words, target: str | None
) -> pd.DataFrame:
    """Read the table of runs that a command names."""
    from lathe.errors import RunsError
    from lathe.laws.importers import read_runs

    broken = [c for c in columns if c.count("=") != 1]
    if broken:
        raise RunsError(f"--columns {broken[0]!r} is no THEIRS=OURS, such as --columns 'Model Size=params'")
    renamed = dict(c.split("=") for c in columns)
    named = tasks[0] if len(tasks) == 1 else tasks
    return read_runs(
        runs, columns=renamed or None, where=where, validation=validation, tasks=named or None, target=target or "loss"
    )


def split_table(table: pd.DataFrame, hold_out: str | None, *, source: str) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Keep rows from a table: returns the rest, and the rows held out (None if none was asked for)."""
    from lathe.errors import RunsError
    from lathe.laws.importers import match_rows

    if hold_out is None:
        return table, None
    held = match_rows(table, hold_out, source=source)
    if held.all():
        raise RunsError(f"--hold-out {hold_out!r} leaves no run to fit")
    return table.loc[~held], table.loc[held]


class Progress:
    """Show a bar on stderr that says what is being done, for a terminal and only while it runs."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._title = title

    def __enter__(self) -> Callable[[str, float], None]:
        self._bar.start()
        task = self._bar.add_task(self._title, total=1.0)
        return lambda what, share: self._bar.update(task, description=f"{self._title}: {what}", completed=share)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
