"""Charge what a small model cost: every training, every teacher's forward pass, every look at held-out text.

What the reference's own training took is kept apart: who has the reference already has paid it, who trains it for this
has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lathe import codec
from lathe.model.checkpoint import RECIPE
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.folder import RUN

Kind = Literal["training", "analysis", "evaluation", "reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Hold what one piece of work took; FLOPs and seconds are None where nobody knows them."""

    what: str
    kind: Kind
    flops: float | None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Hold all charges of a model, in the order of the work."""

    charges: tuple[Charge, ...] = ()

    @property
    def flops(self) -> float | None:
        """Sum the FLOPs of all but the reference's own training; None where one is unknown."""
        return sum_flops([one for one in self.charges if one.kind != "reference"])

    @property
    def flops_with_reference(self) -> float | None:
        """Sum the FLOPs with the reference's own training; None where one is unknown."""
        return sum_flops(self.charges)


def sum_flops(charges: list[Charge] | tuple[Charge, ...]) -> float | None:
    """Sum the FLOPs of charges; None where one is unknown."""
    counted = [one.flops for one in charges if one.flops is not None]
    return sum(counted) if len(counted) == len(charges) else None


def charge_training(what: str, run: Run) -> Charge:
    """Charge a run, its teacher's forward passes included."""
    return Charge(what=what, kind="training", flops=run.flops, seconds=run.seconds)


def charge_evaluation(what: str, shape: Shape, *, tokens: int, seq_len: int) -> Charge:
    """Charge the forward passes over a held-out text."""
    return Charge(what=what, kind="evaluation", flops=tokens * shape.forward_flops((seq_len + 1) / 2))


def charge_reference(folder: str | Path, shape: Shape, *, tokens: float | None, seq_len: int) -> Charge:
    """Charge the reference's own training: its run's, its recipe's, or that on `tokens` in sequences of `seq_len`.

    Given `tokens` count first; where nothing says what it was trained on, the charge is unknown. Raises CodecError for
    a run or recipe that cannot be read.
    """
    folder, what = Path(folder), "training the reference"
    if tokens is not None:
        return Charge(what=what, kind="reference", flops=shape.train_flops(tokens, seq_len))
    if (folder / RUN).is_file():
        run = codec.load(Run, folder / RUN, kind="run")
        return Charge(what=what, kind="reference", flops=run.flops, seconds=run.seconds)
    if (folder / RECIPE).is_file():
        recipe = codec.load(Recipe, folder / RECIPE, kind="recipe")
        flops = recipe.shape.train_flops(recipe.steps * recipe.batch_tokens, recipe.seq_len)
        return Charge(what=what, kind="reference", flops=flops)
    return Charge(what=what, kind="reference", flops=None)
