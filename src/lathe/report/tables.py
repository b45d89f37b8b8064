"""The house style of tables in the terminal: no frames, bold heads, numbers on the right and never broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def make_table(*titles: str, text: int = 1) -> Table:
    """Make an empty table; the first `text` columns hold words and stand on the left, the rest numbers."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(titles):
        table.add_column(name, justify="left" if i < text else "right", no_wrap=True)
    return table


def titled(title: str, table: Table, *notes: str) -> Group:
    """Set a title above a table and notes below it, neither folded at the table's width."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), table, *(Text(note, style="dim") for note in notes), "")


def format_count(value: float) -> str:
    """Write a count in four digits with a letter: 1.669B, 29B, 78.91M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def format_percent(value: float | None) -> str:
    """Write a share in per cent with two decimals, or a dash for none."""
    return "–" if value is None else f"{value:.2%}"
