"""Hold what a comparison of ways to start found: a row an arm and shape, its trainings, and the reference beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lathe.evals.compare import Difference
from lathe.inherit.ledger import Ledger
from lathe.shape import Shape
from lathe.workload import Workload

Equal = Literal["flops", "latency"]
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Hold the seconds a workload takes in all: predicted, and measured (median, 95th percentile) where it was."""

    predicted_s: float
    measured_s: float | None = None
    measured_p95_s: float | None = None

    @property
    def best_s(self) -> float:
        """Give the measured time, or else the predicted one."""
        return self.predicted_s if self.measured_s is None else self.measured_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Hold one training of an arm: losses are held out, in nats per token; `start_loss` is that before training.

    `folder` is its checkpoint, relative to the study's.
    """

    seed: int
    recipe_id: str
    folder: str
    start_loss: float
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold what an arm gave at one shape, over all seeds.

    Losses are means over the trials, `loss_se` the standard error of that over held-out sequences, `loss_sd` the
    deviation between seeds (None of one). `versus_random` and `versus_reference` are this arm's loss less theirs,
    paired by sequence; `lower` counts the seeds whose loss is below the random arm's. `tokens` and `ledger` are one
    seed's. `curve` is one seed's training loss over the FLOPs spent so far.
    """

    name: str
    arm: str
    what: str
    equal: tuple[Equal, ...]
    shape: Shape
    tokens: int
    start_loss: float
    loss: float
    loss_se: float | None
    loss_sd: float | None
    versus_random: Difference | None
    versus_reference: Difference
    lower: int | None
    ledger: Ledger
    serving: Serving
    trials: tuple[Trial, ...]
    curve: Curve = ()

    @property
    def spent(self) -> float:
        """Count the FLOPs that the arms spend alike: those of training and of analyses."""
        return sum(one.flops or 0.0 for one in self.ledger.charges if one.kind in ("training", "analysis"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRow:
    """Hold the reference, on the same held-out text and workload; its ledger is its own training."""

    folder: str
    shape: Shape
    loss: float
    loss_se: float | None
    ledger: Ledger
    serving: Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritResult:
    """Hold a comparison: what was asked, the layers that were inherited, the budget that all arms spent, and its rows.

    `target_s` is the inherited shape's predicted latency, which arms were made to match.
    """

    name: str
    study: dict[str, Any]
    created: str
    dataset: str
    layers: tuple[int, ...]
    budget_flops: float
    target_s: float
    device: str
    workload: Workload
    reference: ReferenceRow
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """Count the trainings of each row."""
        return len(self.rows[0].trials)

    def ranked(self) -> list[Row]:
        """List the rows, the lowest loss first."""
        return sorted(self.rows, key=lambda row: row.loss)
