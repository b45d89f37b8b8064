"""What a budget forbids, which of it binds, and what to relax when nothing fits.

Axes: n a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lathe.budget import Budget
from lathe.design.candidates import Candidates
from lathe.device import Device
from lathe.errors import BudgetError
from lathe.laws.system import Array
from lathe.shape import Shape

RELAXED = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One thing a budget limits: `value` in its unit, and what 10 % more of it would buy.

    `gain` is how far the best choice's loss (or life cost) falls, `best` names the shape that would then be best; zero
    and empty where the limit does not bind.
    """

    name: str
    value: float
    source: str
    gain: float = 0.0
    best: str = ""

    @property
    def timed(self) -> bool:
        """Say whether it limits latency."""
        return self.name.endswith("_s")

    @property
    def binds(self) -> bool:
        """Say whether a little more of it would change the choice for the better."""
        return self.gain > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The shape that breaks a budget least, when every shape breaks it."""

    name: str
    shape: Shape
    limit: str
    wanted: float
    needed: float


def list_limits(budget: Budget, device: Device) -> tuple[Limit, ...]:
    """List what budget and device allow. Raises BudgetError for what the device, or the budget itself, rules out."""
    given = [(name, getattr(budget, name)) for name in ("first_token_s", "per_token_s", "total_s", "params")]
    limits = [Limit(name=name, value=value, source="budget") for name, value in given if value is not None]
    if budget.memory_bytes is None:
        limits.append(Limit(name="memory_bytes", value=device.memory_bytes, source=device.name))
    elif budget.memory_bytes > device.memory_bytes:
        raise BudgetError(
            f"budget memory_bytes = {budget.memory_bytes:.4g} is above the {device.memory_bytes:.4g} of {device.name}"
        )
    else:
        limits.append(Limit(name="memory_bytes", value=budget.memory_bytes, source="budget"))
    if budget.first_token_s is not None and budget.total_s is not None and budget.first_token_s > budget.total_s:
        raise BudgetError(
            f"budget first_token_s = {budget.first_token_s:g} is above total_s = {budget.total_s:g}: the first token"
            " cannot come after the last"
        )
    return tuple(limits)


def fitting(limits: Sequence[Limit], serving: Mapping[str, Array], cost_n: Array) -> np.ndarray:
    """Mark the candidates within every limit."""
    fits_n = np.isfinite(cost_n)
    for limit in limits:
        fits_n &= serving[limit.name] <= limit.value
    return fits_n


def relax(
    limit: Limit, limits: Sequence[Limit], serving: Mapping[str, Array], found: Candidates, cost_n: Array
) -> Limit:
    """Say what 10 % more of one limit would buy, the others unchanged."""
    strict_n = fitting(limits, serving, cost_n)
    others_n = fitting([other for other in limits if other is not limit], serving, cost_n)
    loose_n = others_n & (serving[limit.name] <= RELAXED * limit.value)
    if not loose_n.any() or not strict_n.any():
        return limit
    best = int(np.flatnonzero(loose_n)[cost_n[loose_n].argmin()])
    gain = float(cost_n[strict_n].min() - cost_n[best])
    if gain <= 0:
        return limit
    return Limit(name=limit.name, value=limit.value, source=limit.source, gain=gain, best=found.name(best))


def find_nearest(
    limits: Sequence[Limit], serving: Mapping[str, Array], cost_n: Array, found: Candidates
) -> Nearest | None:
    """Find the candidate whose worst excess over a limit is least; None if none can be trained as asked."""
    possible_n = np.isfinite(cost_n)
    if not possible_n.any():
        return None
    excess = np.stack([serving[limit.name] / limit.value for limit in limits])
    worst_n = np.where(possible_n, excess.max(axis=0), np.inf)
    tied = np.flatnonzero(worst_n <= worst_n.min() * (1 + 1e-9))
    row = int(tied[cost_n[tied].argmin()])
    limit = limits[int(excess[:, row].argmax())]
    return Nearest(
        name=found.name(row),
        shape=found.shape(row),
        limit=limit.name,
        wanted=limit.value,
        needed=float(serving[limit.name][row]),
    )
