"""The command that grows a small model from a larger one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lathe.cli.terminal import open_console

if TYPE_CHECKING:
    from lathe.recipe import Recipe
    from lathe.runs import Run
    from lathe.train.execution import Execution


def grow(
    growth: Annotated[Positional[Path], arg(help="a growth's TOML file, such as examples/grow.toml")],
    out: Path | None = None,
    nproc: int = 1,
) -> None:
    """Grow a small model from a large one's first layers until its held-out loss matches the large one's.

    Each round trains what there is, sets its loss beside the reference's on the same text, and appends the reference's
    next layers; the growth ends at a match, or at the budget that the file allows. The same command goes on with one
    that was stopped.

    Example: lathe grow examples/grow.toml --out runs/grown

    Args:
        out: the growth's folder; runs/ and the file's name if not given.
        nproc: processes to train with on this machine.
    """
    from lathe.errors import RecipeError, Stopped
    from lathe.inherit.grow import grow as carry_out
    from lathe.inherit.growth import ENDS, load_growth
    from lathe.report.grown_table import grown_table
    from lathe.train.launch import STOPPED
    from lathe.train.loop import train
    from lathe.train.request import check_request

    if nproc < 1:
        raise RecipeError(f"nproc={nproc}; wanted 1 or more")
    folder = out or Path("runs") / growth.stem
    asked, recipe, execution = load_growth(growth)
    check_request(recipe, execution, world=nproc)

    def train_together(recipe: Recipe, execution: Execution) -> Run:
        return _launch(recipe, execution, nproc)

    console = open_console()
    try:
        grown = carry_out(
            asked, recipe, execution, folder, train_with=train if nproc == 1 else train_together, report=console.print
        )
    except Stopped as stopped:
        print(f"lathe: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    console.print(grown_table(grown, ENDS))
    print(f"checkpoint: {grown.checkpoint}")


def _launch(recipe: Recipe, execution: Execution, nproc: int) -> Run:
    """Train in several processes, each a `lathe train` of the round's file; exits as they do where they fail."""
    import json

    from lathe import codec
    from lathe.documents import write_atomic
    from lathe.runs import Run
    from lathe.train.folder import RUN
    from lathe.train.launch import launch

    path = Path(execution.out).with_suffix(".json")
    body = {**codec.encode(recipe), "execution": codec.encode(execution)}
    write_atomic(path, json.dumps(codec.tag(body, kind="recipe"), indent=2) + "\n")
    code = launch([sys.executable, "-m", "lathe", "train", str(path)], nproc=nproc)
    if code:
        sys.exit(code)
    return codec.load(Run, Path(execution.out) / RUN, kind="run")
