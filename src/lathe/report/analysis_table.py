"""Lay out what a decoder's layers do for the terminal, one layer a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lathe.evals.analysis import LAZY, Analysis
from lathe.report.tables import format_count, make_table, titled

if TYPE_CHECKING:
    from rich.console import Group

Cell = str | int | float | None


def analysis_table(found: Analysis) -> Group:
    """Lay out the largest rank and mass of each layer's heads, its influence and the loss after it."""
    table = make_table(*list_heads(found))
    for row in list_rows(found):
        table.add_row(*map(_show, row))
    return titled(f"Layers of {found.name}", table, *list_notes(found))


def list_heads(found: Analysis) -> list[str]:
    """Name the columns of `list_rows`."""
    visited = ["stored layer"] if found.shape.sharing != "none" else []
    losses = ["loss after it"] if found.lens_losses else []
    return [name_unit(found), *visited, "largest rank", "largest mass", "influence", *losses, ""]


def list_rows(found: Analysis) -> list[list[Cell]]:
    """List a row for each layer or visit; with losses, the embedding's comes first."""
    shared = found.shape.sharing != "none"
    rows: list[list[Cell]] = []
    if found.lens_losses:
        rows.append(["embedding", *([None] if shared else []), None, None, None, found.lens_losses[0], ""])
    for visit, stored in enumerate(found.shape.visits):
        lazy = "lazy" if visit in found.lazy_visits else ""
        loss = [found.lens_losses[visit + 1]] if found.lens_losses else []
        numbers = (round(found.rank_max[visit], 2), round(found.mass_max[visit], 2), found.influence[visit])
        rows.append([str(visit), *([stored] if shared else []), *numbers, *loss, lazy])
    return rows


def list_notes(found: Analysis) -> list[str]:
    """Say in sentences what the numbers are, and what they come to."""
    return [
        f"{describe_lazy(found)}; effective depth {found.effective_depth} of {found.shape.n_layers}: so many "
        f"{name_unit(found)}s have {found.share:.0%} of all influence.",
        f"{found.sequences:,} sequences of {found.seq_len:,} tokens of {found.dataset}; "
        f"{format_count(found.flops)} FLOPs. Ranks and masses hold {found.share:.0%} of a head's squares.",
    ]


def describe_lazy(found: Analysis) -> str:
    """List the lazy layers."""
    unit, lazy = name_unit(found), found.lazy_visits
    if not lazy:
        return f"no {unit} is lazy (largest rank at most {LAZY:g})"
    several = len(lazy) > 1
    return f"lazy {unit}{'s' * several} (largest rank at most {LAZY:g}): {_list_ranges(lazy)}"


def name_unit(found: Analysis) -> str:
    """Name what is counted: layers, or visits of shared ones."""
    return "layer" if found.shape.sharing == "none" else "visit"


def _list_ranges(numbers: tuple[int, ...]) -> str:
    """Write numbers in order, neighbours as a range: 0, 4–7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _show(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
