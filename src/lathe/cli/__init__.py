"""The command line: each command loads, calls, saves and prints. Heavy modules are imported inside commands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence

import tyro

from lathe.cli.analyse import analyse
from lathe.cli.bench import measure, probe
from lathe.cli.data import DATA_COMMANDS, data
from lathe.cli.evaluate import evaluate
from lathe.cli.grow import grow
from lathe.cli.hub import export_model, import_model
from lathe.cli.inherit import inherit
from lathe.cli.laws import compare, fit, optimal, predict
from lathe.cli.models import generate
from lathe.cli.next import next_runs
from lathe.cli.plans import calibrate, devices, latency, plan
from lathe.cli.run import report, run
from lathe.cli.shapes import shape, shapes
from lathe.cli.sweep import grid, sweep
from lathe.cli.train import average, train
from lathe.errors import LatheError, explain_import
from lathe.version import VERSION

COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "predict": predict,
    "compare": compare,
    "optimal": optimal,
    "plan": plan,
    "next": next_runs,
    "train": train,
    "average": average,
    "eval": evaluate,
    "latency": latency,
    "measure": measure,
    "probe": probe,
    "calibrate": calibrate,
    "import": import_model,
    "export": export_model,
    "analyse": analyse,
    "inherit": inherit,
    "grow": grow,
    "devices": devices,
    "generate": generate,
    "shapes": shapes,
    "shape": shape,
    "data": data,
    "grid": grid,
    "sweep": sweep,
    "run": run,
    "report": report,
}
GROUPS: dict[str, dict[str, Callable[..., None]]] = {"data": DATA_COMMANDS}
"""Commands that have commands of their own."""


DESCRIPTION = """Shape language models to their latency budget.

Example: lathe fit morph-2025 --out law.json

Each command says more: lathe fit --help"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can mend ends in one line on stderr and exit code 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given == ["--version"]:
        print(f"lathe {VERSION}")
        return
    prog, commands, description, rest = "lathe", COMMANDS, DESCRIPTION, given
    if given and given[0] in GROUPS:
        group, *rest = given
        prog, commands, description = f"lathe {group}", GROUPS[group], inspect.getdoc(COMMANDS[group])
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=rest)
    except (LatheError, ModuleNotFoundError) as error:
        if not isinstance(explained := _explain(error, given), LatheError):
            raise
        print(f"lathe: {explained}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _explain(error: LatheError | ModuleNotFoundError, given: Sequence[str]) -> Exception:
    """Name the extra whose package a command could not import."""
    return error if isinstance(error, LatheError) else explain_import(error, feature=f"lathe {given[0]}")
