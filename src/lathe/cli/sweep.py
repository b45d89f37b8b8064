"""Commands that list a grid and train it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from lathe.cli.terminal import Words, need, open_console

if TYPE_CHECKING:
    from lathe.sweep.grid import Grid
    from lathe.sweep.sweep import SweepResult
    from lathe.train.execution import Execution

FAILED = 1
SWEEPS_OWN = ("out", "runs", "name", "branch_at")
"""Settings of an execution that a sweep gives itself."""
Pairs = Annotated[Words, arg(metavar="KEY=VALUE", help_behavior_hint="")]
Dataset = Annotated[Path | None, arg(metavar="DATASET", help_behavior_hint="(default: what the file says)")]


def grid(
    file: Positional[Path],
    data: Dataset = None,
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
) -> None:
    """List the recipes that a grid makes, and what training them takes.

    Example: lathe grid grid.toml --out recipes

    Args:
        file: a TOML file of settings, some of which are several.
        data: a dataset's folder, or a mixture's file, to train on.
        out: write each recipe to a file in this folder, its branches with it; `lathe train` and `lathe sweep` take it.
    """
    from lathe.sweep.entries import save_entries
    from lathe.sweep.grid import load_grid

    found = load_grid(file, data=None if data is None else str(data), report=_note)
    open_console().print(_lay_out(found))
    if out is not None:
        save_entries(found.entries, out)
        print(f"recipes: {out}")


def sweep(
    files: Annotated[Positional[Words], arg(metavar="GRID|RECIPE", help_behavior_hint="")] = (),
    out: Path = Path("runs"),
    data: Dataset = None,
    launcher: Annotated[str, arg(metavar="local|slurm|ray")] = "local",
    slots: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: one a GPU, or a core)")] = None,
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the cores over the slots)")] = None,
    retries: int = 1,
    with_: Annotated[Pairs, arg(name="with")] = (),
    set_: Annotated[Pairs, arg(name="set")] = (),
) -> None:
    """Train the recipes of a grid, or of files; the same command goes on, and leaves what is finished as it is.

    What fails is tried again and stops nothing else. Ends with exit code 1 where some failed in the end, and 75 where a
    signal asked to stop.

    Example: lathe sweep grid.toml --out runs/study --slots 2 --threads 1

    Args:
        files: a grid's TOML file, or recipes' files, such as those of `lathe grid --out`.
        out: the folder of all runs, and of their table, runs.jsonl.
        data: a dataset's folder, or a mixture's file, to train on.
        launcher: where trainings run.
        slots: how many run at once on this machine.
        threads: of each on this machine's CPU.
        retries: how often one that fails is tried again.
        with_: settings of the launcher, such as --with partition=gpu hours=12.
        set_: how each is trained, such as --set save_every=100 compile=true; see `lathe train --help`.
    """
    from lathe.errors import Stopped
    from lathe.sweep.grid import read_entries
    from lathe.sweep.launchers import make_launcher
    from lathe.sweep.sweep import sweep as sweep_entries
    from lathe.train.launch import STOPPED

    need(files, "GRID", "a grid's file, or recipes' files")
    own = {name: value for name, value in (("slots", slots), ("threads", threads)) if value is not None}
    chosen = make_launcher(launcher, {**own, **_split(with_, "--with")})
    execution = _read_execution(_split(set_, "--set"), out)
    entries = read_entries(files, data=None if data is None else str(data), report=_note)
    try:
        result = sweep_entries(entries, out, launcher=chosen, retries=retries, execution=execution)
    except Stopped as stopped:
        print(f"lathe: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    _print_result(result)


def _lay_out(found: Grid) -> Any:
    """Lay a grid out as a table."""
    from lathe.report.tables import format_count, make_table, titled

    table = make_table("run", "shape", "params", "tokens", "FLOPs", "lr", "recipe", text=2)
    for entry in found.entries:
        shape, recipe = entry.recipe.shape, entry.recipe
        tokens = ", ".join(map(format_count, entry.tokens))
        table.add_row(
            entry.name, f"{shape.d_model}×{shape.n_layers}", format_count(shape.params), tokens, f"{entry.flops:.3g}",
            f"{recipe.lr:.4g}", recipe.id,
        )  # fmt: skip
    runs = sum(len(entry.tokens) for entry in found.entries)
    dropped = f"; constraints took {found.dropped} combinations out" if found.dropped else ""
    return titled(f"{len(found.entries)} trainings, {runs} runs, {found.flops:.3g} FLOPs{dropped}", table)


def _split(pairs: Words, flag: str) -> dict[str, str]:
    from lathe.errors import RecipeError

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise RecipeError(f"{flag} {pair!r} is no KEY=VALUE")
        found[key] = value
    return found


def _read_execution(settings: dict[str, str], out: Path) -> Execution:
    """Read how each is trained. Raises RecipeError or CodecError."""
    from lathe import codec
    from lathe.errors import RecipeError
    from lathe.sweep.sweep import QUIET
    from lathe.train.execution import Execution
    from lathe.train.settings import fit_value, name_key, parse_setting

    given: dict[str, Any] = {"out": str(out), "log_every": QUIET}
    for key, text in settings.items():
        full = name_key(key if key.startswith("execution.") else f"execution.{key}")
        name = full.partition(".")[2]
        if name in SWEEPS_OWN:
            raise RecipeError(f"--set {key}: a sweep gives each run its own; --out names the folder of all")
        given[name] = parse_setting(full, text)
    return codec.decode(Execution, fit_value(Execution, given), source="--set")


def _print_result(result: SweepResult) -> None:
    if result.runs:
        print(f"runs: {result.table}")
    for failure in result.failures:
        print(f"lathe: {failure.name} failed: {failure.error}; its log is {failure.log}", file=sys.stderr)
    if result.failures:
        sys.exit(FAILED)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
