"""Lay a growth out for the terminal: its rounds beside the reference, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group

from lathe.report.tables import format_count, make_table, titled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lathe.inherit.growth import End, Grown
    from lathe.inherit.ledger import Ledger


def grown_table(grown: Grown, ends: Mapping[End, str]) -> Group:
    """Lay out rounds and ledger; `ends` says what each reason to end means."""
    table = make_table("round", "layers", "params", "tokens", "loss before", "loss", "to the reference", "FLOPs")
    for one in grown.rounds:
        error = "" if one.se is None else f" ± {one.se:.4f}"
        table.add_row(
            str(one.number), str(one.layers), format_count(one.shape.params), format_count(one.tokens),
            f"{one.first_loss:.4f}", f"{one.loss:.4f}", f"{one.difference:+.4f}{error}", f"{one.flops:.3g}",
        )  # fmt: skip
    last = grown.rounds[-1]
    title = (
        f"Grown to {last.layers} of {grown.reference_layers} layers: loss {last.loss:.4f}, the reference's "
        f"{grown.reference_loss:.4f}; ended because {ends[grown.ended]}"
    )
    return Group(titled(title, table), "", ledger_table(grown.ledger))


def ledger_table(ledger: Ledger) -> Group:
    """Lay out what was charged, without and with the reference's own training."""
    table = make_table("charged for", "kind", "FLOPs", "seconds", text=2)
    for one in ledger.charges:
        table.add_row(one.what, one.kind, _count(one.flops), "" if one.seconds is None else f"{one.seconds:,.0f}")
    table.add_section()
    table.add_row("all but the reference's training", "", _count(ledger.flops), "")
    table.add_row("with it", "", _count(ledger.flops_with_reference), "")
    return titled("Ledger", table)


def _count(flops: float | None) -> str:
    return "not known" if flops is None else f"{flops:.3g}"
