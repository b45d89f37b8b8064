"""Average the weights of a run's states: near the end of a training, the mean is often better than the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lathe import codec
from lathe.errors import CheckpointError
from lathe.model.checkpoint import RECIPE, save_checkpoint
from lathe.recipe import Recipe
from lathe.train.shards import find_tensors, read_tensors
from lathe.train.snapshots import CHECKPOINTS, check_snapshot, list_steps, step_folder
from lathe.train.state import MODEL


def average_checkpoints(
    folder: str | Path, out: str | Path, *, steps: Sequence[int] | None = None, last: int | None = None
) -> list[int]:
    """Write the mean of the weights that a run had after some steps as a checkpoint; returns the steps.

    All that the run's folder keeps, or only `steps`, or the `last` so many. Sums are fp32, one weight at a time; the
    mean has the dtype that the weights had. Raises CheckpointError for states that are missing or damaged.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise CheckpointError(f"the average would replace the run's own weights in {folder}; choose another --out")
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder} is no run's folder: it has no {RECIPE}")
    recipe = codec.load(Recipe, folder / RECIPE, kind="recipe")
    chosen = _choose(folder, steps=steps, last=last)
    states = [step_folder(folder, step) for step in chosen]
    for state in states:
        check_snapshot(state)
    weights = {
        name.removeprefix(MODEL): _average(states, name, size=size, dtype=dtype)
        for name, (size, dtype) in find_tensors(states[-1], MODEL).items()
    }
    save_checkpoint(out, recipe.shape, weights, companions=folder, recipe=recipe)
    return chosen


def _choose(folder: Path, *, steps: Sequence[int] | None, last: int | None) -> list[int]:
    kept = list_steps(folder)
    if not kept:
        raise CheckpointError(
            f"{folder / CHECKPOINTS} keeps no states; train with save_every and keep_last or keep_every"
        )
    if steps is not None and last is not None:
        raise CheckpointError("give either steps or last, not both")
    if last is not None and not 1 <= last <= len(kept):
        raise CheckpointError(f"last={last}; {folder} keeps {len(kept)} states, of steps {', '.join(map(str, kept))}")
    chosen = sorted(set(steps)) if steps is not None else kept[-(last or len(kept)) :]
    if missing := [step for step in chosen if step not in kept]:
        raise CheckpointError(f"{folder} keeps no state of step {missing[0]}; it keeps: {', '.join(map(str, kept))}")
    if not chosen:
        raise CheckpointError(f"no steps were named; {folder} keeps: {', '.join(map(str, kept))}")
    return chosen


def _average(states: Sequence[Path], name: str, *, size: torch.Size, dtype: torch.dtype) -> Tensor:
    total, one = torch.zeros(size), torch.empty(size, dtype=dtype)
    for state in states:
        read_tensors(state, {name: one})
        total += one
    return (total / len(states)).to(dtype)
