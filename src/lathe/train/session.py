"""Hold one run while it is trained, and what of it a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.recipe import Recipe
from lathe.train.execution import Execution
from lathe.train.signals import Signals
from lathe.train.snapshots import list_steps
from lathe.train.state import Saver
from lathe.train.watch import Watch


@dataclass(slots=True, kw_only=True)
class Progress:
    """Hold what a checkpoint keeps besides tensors: steps done, batches passed over, spikes seen, and what watches."""

    step: int = 0
    left_out: int = 0
    spikes: int = 0
    energy_j: float | None = None
    meter: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Session:
    """Hold one run while it is trained."""

    recipe: Recipe
    folder: Path
    pinned: frozenset[int]
    progress: Progress
    saver: Saver
    watch: Watch
    signals: Signals


def name_run(recipe: Recipe, execution: Execution) -> str:
    """Give the run's name, or one made of its shape and its recipe's id."""
    return execution.name or f"{recipe.shape.d_model}x{recipe.shape.n_layers}-{recipe.id[:8]}"


def describe_saved(folder: Path) -> str:
    """Say which state a run's folder keeps."""
    steps = list_steps(folder)
    return f"the state of step {steps[-1]} is kept in {folder}" if steps else "no state was saved yet"
