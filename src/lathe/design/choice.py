"""The words of a plan: one choice, and all of them with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

from lathe.budget import Budget
from lathe.design.limits import Limit, Nearest
from lathe.device import Device
from lathe.errors import BudgetError, RecipeError
from lathe.laws.hyper import step_law
from lathe.recipe import Recipe
from lathe.shape import Shape
from lathe.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One shape of a plan. Seconds and bytes are those of the plan's workload.

    `rank` counts from 1 among all that fit, and is 0 for what does not; `chance` is that of being the best of the
    plan's shortlist. `train_flops` counts attention, as the shape does, while a budget's FLOPs are 6 · params · tokens.
    """

    rank: int
    name: str
    shape: Shape
    params: float
    tokens: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    """Through the error law; None without one."""
    chance: float
    first_token_s: float
    per_token_s: float
    total_s: float
    memory_bytes: float
    prefill_bound: str
    decode_bound: str
    train_flops: float
    train_days: float | None
    dollars: float | None
    """What training it takes on the budget's training devices; None where it names none."""
    lifetime_flops: float | None
    on_front: bool
    unsupported: tuple[str, ...] = ()
    """Axes on which it leaves the fitted runs by assumption."""
    beaten_by: str = ""
    """Of a shape off the front: the best that is no slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ranked choices within a budget, the front they lie on, and what the budget's limits cost."""

    law: str
    device: Device
    workload: Workload
    engine: str
    budget: Budget
    considered: int
    fitting: int
    choices: tuple[Choice, ...]
    references: tuple[Choice, ...]
    """Published shapes within the budget, best first."""
    front: tuple[Choice, ...]
    """What nothing beats in both loss and total latency, fastest first: within every limit but those on time."""
    alternatives: tuple[Choice, ...]
    """The fronts under smaller memory budgets too, lowest loss first: what an interactive page chooses from."""
    limits: tuple[Limit, ...]
    nearest: Nearest | None
    """Where nothing fits: the shape that breaks the budget least."""
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    level: float

    def recipe(self, rank: int = 1, *, seq_len: int | None = None, seed: int = 0) -> Recipe:
        """Make a choice ready to train, with the step law's learning rate and batch.

        Raises BudgetError for a rank the plan does not have, RecipeError for fewer tokens than one sequence.
        """
        if not 1 <= rank <= len(self.choices):
            raise BudgetError(f"the plan has {len(self.choices)} choices, so no rank {rank}")
        choice = self.choices[rank - 1]
        length = choice.shape.max_seq_len if seq_len is None else seq_len
        if length < 1:
            raise RecipeError(f"seq_len={length}; wanted 1 or more")
        advice = step_law(choice.shape, choice.tokens)
        tokens = round(choice.tokens)
        sequences = max(1, min(round(advice.batch_tokens / length), tokens // length))
        return Recipe(
            shape=choice.shape, tokens=tokens, seq_len=length, batch_tokens=sequences * length, lr=advice.lr, seed=seed
        )
