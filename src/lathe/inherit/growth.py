"""Say what a growth is asked, and what came out of it.

What is asked is a TOML file as `examples/grow.toml`: the keys are `Growth`'s, [recipe] and [execution] are those of
`lathe train`; paths in it are relative to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lathe import codec, documents
from lathe.errors import RecipeError, StudyError
from lathe.inherit.ledger import Ledger
from lathe.recipe import Recipe
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.request import read_tables

KIND, GROWN = "growth", "grown"
SAID = ("shape", "init", "distil")
"""Tables of a recipe that the growth itself says."""
OWN = ("out", "runs", "name", "branch_at")
"""Settings of an execution that the growth gives each round."""
QUIET = 10**9
"""Steps between lines of a training's log: a growth has lines of its own."""

End = Literal["matched", "rounds", "flops", "layers"]
ENDS: dict[End, str] = {
    "matched": "its loss matches the reference's",
    "rounds": "the rounds that it may have are over",
    "flops": "another round would take more FLOPs than it may spend",
    "layers": "it has all of the reference's layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Hold a growth as it is asked: Sanyal et al. 2024 (Inheritune), arXiv:2404.08634, algorithm 1.

    Args:
        reference: a checkpoint's folder.
        layers: how many of the reference's first layers to begin with; half of them if None.
        add: layers that are appended after a round that does not match.
        within_se: a round matches when its held-out loss is at most so many standard errors of the paired difference
            above the reference's.
        most_rounds: trainings at most.
        most_flops: FLOPs to spend at most on trainings and evaluations, the reference's own training left out.
        reference_tokens: what the reference was trained on, where its folder does not say it.
        recipe: the settings of a round's training, of as many tokens; its seed goes up by one a round, so that each
            reads the data in an order of its own.
        execution: how each is carried out.
    """

    reference: str
    layers: int | None = None
    add: int = 2
    within_se: float = 1.0
    most_rounds: int | None = None
    most_flops: float | None = None
    reference_tokens: float | None = None
    recipe: dict[str, Any]
    execution: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "add", "most_rounds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise StudyError(f"{name}={value}; wanted 1 or more")
        for name in ("most_flops", "reference_tokens"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise StudyError(f"{name}={value:g}; wanted a number above zero")
        if not 0 <= self.within_se < float("inf"):
            raise StudyError(f"within_se={self.within_se}; wanted a number of 0 or more")
        for table, own in (("recipe", SAID), ("execution", OWN)):
            if clash := sorted(set(own) & set(getattr(self, table))):
                raise StudyError(f"[{table}] gives {clash[0]}, which the growth says itself; leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Hold one round: so many layers, trained from the round before; losses are held out, in nats per token.

    `difference` is the loss less the reference's on the same text, `se` its standard error, paired by sequence.
    """

    number: int
    layers: int
    shape: Shape
    folder: str
    recipe_id: str
    tokens: int
    first_loss: float
    loss: float
    difference: float
    se: float | None
    matched: bool
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Hold what a growth came to, and why it ended; `checkpoint` is the last round's folder."""

    reference: str
    reference_layers: int
    reference_loss: float
    dataset: str
    rounds: tuple[Round, ...]
    ended: End
    checkpoint: str
    ledger: Ledger


def load_growth(path: str | Path) -> tuple[Growth, Recipe, Execution]:
    """Read a growth's file: what is asked, a round's recipe with the reference's shape, and how it is carried out.

    Raises CodecError and StudyError for a file that asks for no growth, and as `lathe.train.request.read_tables` does.
    """
    path = Path(path)
    body = codec.untag(documents.read_document(path), kind=KIND, source=str(path), required=False)
    if isinstance(body.get("reference"), str):
        body["reference"] = str((path.parent / body["reference"]).absolute())
    asked = codec.decode(Growth, body, source=str(path))
    tables = {**asked.recipe, "execution": {"log_every": QUIET, **asked.execution}}
    recipe, execution = read_tables(
        tables, {"init.checkpoint": asked.reference}, folder=path.parent, source=f"{path}: [recipe]"
    )
    if recipe.data is None:
        raise RecipeError(f"{path}: [recipe] names no data; give data.train, a dataset's folder or a mixture's file")
    return asked, recipe, execution
