"""Write what comes out of a training: the weights as a checkpoint, and its `Run`, alone and in the table of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from lathe import codec
from lathe.documents import write_atomic
from lathe.evals.loss import HeldOut
from lathe.model.checkpoint import GENERATION, save_checkpoint
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.execution import Execution
from lathe.train.folder import RUN
from lathe.train.meter import METRICS, Meter
from lathe.train.record import TABLE, append_run
from lathe.train.text import Text


def runs_table(execution: Execution) -> Path:
    """Name the table of runs: the one asked for, or that beside the run's folder."""
    return Path(execution.runs) if execution.runs is not None else Path(execution.out).parent / TABLE


def make_run(
    recipe: Recipe,
    *,
    name: str,
    trunk: str | None,
    losses: Mapping[str, HeldOut],
    meter: Meter,
    energy_j: float | None,
    conditions: Mapping[str, Any],
    teacher_flops: float = 0.0,
) -> Run:
    """Gather what a training gave; `teacher_flops` are a teacher's for a token."""
    tokens = recipe.steps * recipe.batch_tokens
    return Run(
        name=name, shape=recipe.shape, tokens=tokens, losses={name: one.loss for name, one in losses.items()},
        validation=next(iter(losses)), loss_ses={name: one.se for name, one in losses.items() if one.se is not None},
        train_loss=meter.mean_loss, seed=recipe.seed, trunk=trunk, recipe_id=recipe.id, steps=recipe.steps,
        seq_len=recipe.seq_len, batch_tokens=recipe.batch_tokens, lr=recipe.lr, device=conditions["machine"],
        flops=recipe.shape.train_flops(tokens, recipe.seq_len) + tokens * teacher_flops, seconds=meter.elapsed_s,
        energy_j=energy_j,
        git=conditions["git"], created=datetime.now(UTC).isoformat(timespec="seconds"), curve_file=METRICS,
        versions=conditions["versions"],
    )  # fmt: skip


def write_result(
    recipe: Recipe, run: Run, folder: Path, *, weights: Mapping[str, Tensor], text: Text, table: Path
) -> None:
    """Write the checkpoint, then the run, which says that the recipe is finished, after its row in the table.

    Raises CheckpointError or CodecError for a folder that cannot be written.
    """
    save_checkpoint(folder, recipe.shape, weights, companions=text.folder, recipe=recipe)
    if text.manifest.end_of_text is not None:
        write_atomic(folder / GENERATION, json.dumps({"eos_token_id": text.manifest.end_of_text}) + "\n")
    append_run(table, run)
    codec.save(run, folder / RUN, kind="run")
