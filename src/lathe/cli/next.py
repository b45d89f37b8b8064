"""The command that says which runs to add."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lathe.cli.terminal import Columns, Progress, Where, open_console, read_table

if TYPE_CHECKING:
    from lathe.shape import Shape


def next_runs(
    flops: float,
    runs: Positional[Annotated[str | None, arg(help="a table of runs, as `lathe fit` takes it")]] = None,
    study: Path | None = None,
    go: bool = False,
    shape: str | None = None,
    tokens: float | None = None,
    form: str = "auto",
    candidates: str | None = None,
    where: Where = None,
    columns: Columns = (),
    validation: str | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> None:
    """Say which further small trainings would most narrow the prediction at a target shape; and train them.

    Example: lathe next morph-2025 --where "params <= 126e6" --shape scale_open_lm_1b_v8 --tokens 29e9 --flops 1e20

    Args:
        flops: training FLOPs to spend on the new runs, 6 · params · tokens each.
        study: a study's folder instead of a table: its grid is filled in, and its choice is the target.
        go: train the runs and carry the study out anew; whatever does not hang on them stays as it is.
        shape: the target: a preset's name or a file.
        tokens: the target's training tokens.
        form: a form's name, or auto for all that fit.
        candidates: a table of runs to choose from (as RUNS); a grid of small shapes if not given.
        validation: the validation set whose loss to use, where a table has several.
        level: probability of the intervals.
        seed: of the search for the most probable parameters.
    """
    from lathe.design.next import next_runs as choose_runs
    from lathe.errors import BudgetError
    from lathe.presets.shapes import load_shape
    from lathe.report.next_table import next_table

    if (runs is None) == (study is None):
        raise BudgetError("give a table of runs, or --study and its folder")
    if (shape is None) != (tokens is None) or (study is None and shape is None):
        raise BudgetError("give --shape and --tokens: what to predict better, and trained on how much")
    target = None if shape is None or tokens is None else (load_shape(shape), tokens)
    if study is not None:
        _next_of_study(study, flops=flops, target=target, go=go)
        return
    if go:
        raise BudgetError("--go trains what a study lacks; give --study and its folder")
    assert runs is not None
    assert target is not None
    table = read_table(runs, columns, where, validation, (), None)
    others = None if candidates is None else read_table(candidates, columns, None, validation, (), None)
    with Progress("Choosing") as tick:
        tick("runs", 0.0)
        found = choose_runs(table, target, flops=flops, candidates=others, form=form, level=level, seed=seed)
    open_console().print(next_table(found))


def _next_of_study(folder: Path, *, flops: float, target: tuple[Shape, float] | None, go: bool) -> None:
    """Show what a study lacks most, and carry it out anew with that."""
    from lathe.cli.run import carry_out
    from lathe.report.next_table import next_table
    from lathe.sweep.more import add, propose

    found = propose(folder, flops=flops, target=target)
    open_console().print(next_table(found.found))
    if go and found.entries:
        add(folder, found.entries)
        carry_out(found.study, folder)
