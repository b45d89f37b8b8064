"""Hold what a study found: the candidates it trained, predicted beside true, and the one it chose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lathe.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Hold a plan's choice that was trained: what was predicted of it and what came out.

    Losses are in nats per token on held-out text, seconds the workload's total (the median, and the 95th percentile),
    `memory_bytes` of serving it. `folder` is its checkpoint, relative to the study's. `within_budget` goes by what was
    measured.
    """

    name: str
    rank: int
    recipe_id: str
    folder: str
    shape: Shape
    tokens: int
    predicted_loss: float
    loss_low: float
    loss_high: float
    true_loss: float
    true_loss_se: float | None
    predicted_s: float
    measured_s: float | None
    measured_p95_s: float | None
    memory_bytes: float
    measured_memory_bytes: float | None
    train_seconds: float
    train_flops: float
    accuracies: dict[str, float] = field(default_factory=dict)
    accuracy_ses: dict[str, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    within_budget: bool = True

    @property
    def loss_error(self) -> float:
        """Give the prediction's relative error."""
        return self.predicted_loss / self.true_loss - 1

    @property
    def inside(self) -> bool:
        """Say whether the true loss lies in the predicted interval."""
        return self.loss_low <= self.true_loss <= self.loss_high


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Hold a shape that the chosen one is set beside, as habit would pick it: predicted, not trained."""

    name: str
    why: str
    shape: Shape
    predicted_loss: float
    loss_low: float
    loss_high: float
    predicted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Hold what a stage took; FLOPs of training count attention."""

    seconds: float
    flops: float = 0.0
    runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Hold all that a study's report says, or where it stands: files are relative to the study's folder.

    `budget_s` is the most that the workload may take; `chosen` the name of the candidate that was picked, None where
    none was within the budget, and `reason` says why.
    """

    name: str
    study: dict[str, Any]
    key: str
    created: str
    level: float
    budget_s: float | None
    candidates: tuple[Candidate, ...]
    chosen: str | None
    reason: str
    rivals: tuple[Rival, ...] = ()
    runs_table: str
    law_file: str
    device_file: str
    plan_file: str
    measurements_file: str | None = None
    exported: str | None = None
    prompt: str = ""
    sample: str = ""
    costs: dict[str, Cost] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
