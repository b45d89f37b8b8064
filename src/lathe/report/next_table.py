"""Lay out the runs to add for the terminal: what to train, at what cost, and what the target gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.text import Text

from lathe.report.tables import format_count, make_table, titled

if TYPE_CHECKING:
    from lathe.design.greedy import Expected
    from lathe.design.next import NextRuns

SHOWN = ("name", "d_model", "n_layers", "params", "tokens")


def next_table(found: NextRuns) -> Group:
    """Lay out the chosen runs in order, with the target's interval before and after each."""
    heads = [name for name in SHOWN if name in found.columns]
    table = make_table("", *heads, "FLOPs", "spent", "predicted loss", f"target, ± at {found.before.level:.0%}", text=1)
    table.add_row("now", *[""] * (len(heads) + 3), _width(found.before))
    for i, run in enumerate(found.chosen, start=1):
        cells = [_cell(run.columns[name], name) for name in heads]
        costs = (f"{run.flops:.3g}", f"{run.spent / found.flops:.0%}", f"{run.loss:.4f}")
        table.add_row(str(i), *cells, *costs, _width(run.after))
    believed = ", ".join(f"{name} {weight:.0%}" for name, weight in found.weights.items())
    notes = [
        f"{len(found.chosen)} runs for {found.spent:.3g} of {found.flops:.3g} FLOPs; forms by belief: {believed}",
        f"parts of the interval, as standard deviations: {_parts(found.before)} now; {_parts(found.after)} after",
    ]
    title = f"Next runs: target loss {_losses(found.before)} now, narrowed to ±{_width(found.after)} expected"
    return Group(titled(title, table, *notes), *(Text(f"! {text}", style="yellow") for text in found.warnings))


def _cell(value: object, name: str) -> str:
    if isinstance(value, str) or name in ("d_model", "n_layers"):
        return str(value)
    return format_count(float(value))  # pyright: ignore[reportArgumentType]


def _width(expected: Expected) -> str:
    return f"{_rms(expected.half_width):.2%}"


def _parts(expected: Expected) -> str:
    return f"fit {_rms(expected.fit):.2%}, forms {_rms(expected.forms):.2%}, new run {expected.noise:.2%}"


def _losses(expected: Expected) -> str:
    each = [f"{v:.4f} ({a:.4f} – {b:.4f})" for v, a, b in zip(expected.loss, expected.low, expected.high, strict=True)]
    return each[0] if len(each) == 1 else f"{each[0]} and {len(each) - 1} more rows"


def _rms(values_t: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values_t))))
