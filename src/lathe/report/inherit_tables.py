"""Lay out a comparison of ways to start as tables: in the terminal, and for its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lathe.evals.compare import Difference
from lathe.inherit.ledger import Charge, Kind
from lathe.inherit.results import InheritResult, ReferenceRow, Row, Serving
from lathe.report.html import Cell, DataTable
from lathe.report.latency_tables import format_seconds
from lathe.report.study_tables import format_duration, format_error, format_loss
from lathe.report.tables import format_count, make_table, titled

if TYPE_CHECKING:
    from rich.console import Group

KINDS: tuple[Kind, ...] = ("training", "analysis", "evaluation", "reference")
EQUAL = {"flops": "FLOPs", "latency": "latency"}
HEAD = (
    "arm", "shape", "params", "tokens", "equal", "loss before", "loss ± s.e.", "against random ± s.e.", "lower in",
    "against the reference", "predicted", "measured",
)  # fmt: skip
LEDGER = ("arm", "what", "kind", "FLOPs", "time")


def inherit_table(result: InheritResult) -> Group:
    """Lay the arms out for the terminal, the lowest loss first, and the reference below them."""
    from rich.console import Group

    table = make_table(*HEAD)
    for row in _rows(result):
        table.add_row(*("–" if cell is None else str(cell) for cell in row))
    costs = make_table("arm", *KINDS, "together", "with the reference")
    for row in result.ranked():
        costs.add_row(row.name, *("–" if cell is None else cell for cell in _sums(row)))
    seeds = f"{result.seeds} seed{'s' * (result.seeds > 1)}"
    spent = f"all spend {result.budget_flops:.4g} FLOPs on training and analyses, to half a step"
    return Group(
        titled(f"Ways to start from layers {name_layers(result)} of {result.reference.folder}, {seeds}", table, spent),
        titled("FLOPs, a seed", costs),
        *(f"! {note}" for note in result.notes),
    )


def arms_table(result: InheritResult) -> DataTable:
    """Show every arm, the lowest loss first, and the reference below them."""
    return DataTable(head=HEAD, rows=_rows(result))


def _rows(result: InheritResult) -> list[tuple[Cell, ...]]:
    rows = [_row(row, result) for row in result.ranked()]
    return [*rows, _reference(result.reference)]


def _row(row: Row, result: InheritResult) -> tuple[Cell, ...]:
    lower = None if row.lower is None else f"{row.lower} of {result.seeds}"
    return (
        row.name, name_shape(row), format_count(row.shape.params), format_count(row.tokens),
        ", ".join(EQUAL[one] for one in row.equal), format_loss(row.start_loss),
        format_error(row.loss, row.loss_se), format_difference(row.versus_random), lower,
        format_difference(row.versus_reference), *_seconds(row.serving),
    )  # fmt: skip


def _reference(one: ReferenceRow) -> tuple[Cell, ...]:
    return (
        "the reference", f"{one.shape.d_model}×{one.shape.n_layers}", format_count(one.shape.params), None, None, None,
        format_error(one.loss, one.loss_se), None, None, None, *_seconds(one.serving),
    )  # fmt: skip


def _seconds(serving: Serving) -> tuple[Cell, Cell]:
    measured = None if serving.measured_s is None else format_seconds(serving.measured_s)
    return format_seconds(serving.predicted_s), measured


def totals_table(result: InheritResult) -> DataTable:
    """Show what each arm cost in FLOPs, by kind, together, and with the reference's own training."""
    head = ("arm", *KINDS, "together", "with the reference")
    return DataTable(head=head, rows=[(row.name, *_sums(row)) for row in result.ranked()])


def _sums(row: Row) -> tuple[str | None, ...]:
    by_kind = {kind: [one.flops for one in row.ledger.charges if one.kind == kind] for kind in KINDS}
    sums = [None if not found or None in found else sum(x for x in found if x) for found in by_kind.values()]
    return tuple(map(_flops, [*sums, row.ledger.flops, row.ledger.flops_with_reference]))


def ledger_table(result: InheritResult) -> DataTable:
    """List every charge of every arm."""
    rows = [(row.name, *_charge(charge)) for row in result.ranked() for charge in row.ledger.charges]
    return DataTable(head=LEDGER, rows=rows)


def _charge(charge: Charge) -> tuple[str | None, ...]:
    seconds = None if charge.seconds is None else format_duration(charge.seconds)
    return charge.what, charge.kind, _flops(charge.flops), seconds


def trials_table(result: InheritResult) -> DataTable:
    """List every training."""
    head = ("arm", "seed", "loss before", "loss", "trained in", "recipe", "folder")
    rows = [
        (
            *(row.name, trial.seed, format_loss(trial.start_loss), format_loss(trial.loss)),
            *(format_duration(trial.seconds), trial.recipe_id, trial.folder),
        )
        for row in result.ranked()
        for trial in row.trials
    ]
    return DataTable(head=head, rows=rows)


def about_table(result: InheritResult) -> DataTable:
    """Say what each arm is."""
    return DataTable(head=("arm", "what it starts as"), rows=[(row.name, row.what) for row in result.rows])


def name_shape(row: Row) -> str:
    """Name a shape by width and depth, shared layers by those that are stored: 64×6, 64×12 (6 stored)."""
    shape = row.shape
    stored = "" if shape.stored_layers == shape.n_layers else f" ({shape.stored_layers} stored)"
    return f"{shape.d_model}×{shape.n_layers}{stored}"


def name_layers(result: InheritResult) -> str:
    """Name the layers that were inherited: 0:6, or 0, 2, 5."""
    layers = result.layers
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}:{layers[-1] + 1}"
    return ", ".join(map(str, layers))


def format_difference(found: Difference | None) -> str | None:
    """Write a difference with its sign and standard error: -0.1234 ± 0.0056."""
    if found is None:
        return None
    return f"{found.difference:+.4f}" + ("" if found.se is None else f" ± {found.se:.4f}")


def _flops(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
