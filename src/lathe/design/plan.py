"""Plan: from a law, a device, a workload and a budget to a ranked list of shapes, with the reasons.

Axes: n a candidate. Bian et al. 2025 (arXiv:2501.18107) describe the procedure and publish no code for its middle:
enumerate, predict loss and latency, keep what fits, rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lathe.budget import Budget
from lathe.design.candidates import Space, candidates, find_departures, find_space
from lathe.design.choice import Choice, Plan
from lathe.design.explain import explain
from lathe.design.limits import find_nearest, fitting, list_limits, relax
from lathe.design.outlook import Outlook, find_front, look, share_chances, sort_by_cost, sort_by_time
from lathe.device import Device
from lathe.errors import BudgetError, DeviceError
from lathe.laws.axes import HELD
from lathe.laws.downstream import Chain, chain
from lathe.laws.law import Law
from lathe.laws.optimum import SHAPE_COLUMNS, refuse_run_mean
from lathe.laws.sigmoid import SigmoidLaw
from lathe.shape import count_train_flops
from lathe.workload import Workload

SHORTLIST = 2000
"""Candidates of lowest loss among which the chance of being best is shared out."""
MEMORY_RUNGS = 24


def plan(
    law: Law,
    device: Device,
    workload: Workload,
    budget: Budget,
    *,
    engine: str = "eager",
    top: int = 5,
    assume: Collection[str] = (),
    space: Space | None = None,
    error_law: Law | SigmoidLaw | None = None,
    level: float = 0.9,
) -> Plan:
    """Rank the shapes that a budget allows by the loss the law predicts for them.

    Args:
        engine: "eager" or "graph", see `predict_latency`.
        top: choices to keep.
        assume: axes that no fitted run varied, to free all the same (`lathe.design.candidates.FREE`).
        space: the shapes to consider; by default all aligned ones, held at the runs' values where the law is blind.
        error_law: a law from loss to downstream error or accuracy (see `lathe.laws.downstream.chain`): choices then
            show their accuracy, and a budget may name a `target_accuracy`.
        level: probability of the intervals.

    Raises:
        BudgetError: the law cannot rank shapes, or the budget contradicts itself or the device.
        LawError: training tokens left to a law of run-mean losses, which asks for too many.
    """
    if not isinstance(device, Device):
        raise DeviceError(f"device={device!r} is no Device; look a preset up with load_device")
    _check_law(law, budget)
    if top < 1:
        raise BudgetError(f"top={top}; a plan shows 1 choice or more")
    scores = None if error_law is None else chain(law, error_law)
    budget = _reach(budget, scores)
    limits = list_limits(budget, device)
    space = space or find_space(law.axes, assume=assume)
    seen = look(candidates(space), law, device, workload, budget, engine)
    fits_n = fitting(limits, seen.serving, seen.cost_n)
    order = sort_by_cost(seen, np.flatnonzero(fits_n))
    untimed_n = fitting([limit for limit in limits if not limit.timed], seen.serving, seen.cost_n)
    fastest = sort_by_time(seen, untimed_n)
    front = find_front(seen, fastest)
    twins = _find_twins(seen, order)
    own = order[~np.isin(order, list(twins))]
    short = own[:SHORTLIST]
    chances = share_chances(law, seen, short, budget) if law.has_draws and len(short) else np.zeros(len(short))
    writer = _Writer(
        law=law, scores=scores, seen=seen, space=space, budget=budget, level=level, front=front,
        twins=twins, rank_n=_rank(seen, own),
        chance_of=dict(zip(short.tolist(), chances.tolist(), strict=True)),
    )  # fmt: skip
    return Plan(
        law=law.name,
        device=device,
        workload=workload,
        engine=engine,
        budget=budget,
        considered=len(seen.found),
        fitting=len(order),
        choices=writer.choices(own[:top]),
        references=writer.choices(order[np.isin(order, list(seen.found.references))]),
        front=writer.choices(front),
        alternatives=writer.choices(_alternatives(seen, fastest)),
        limits=tuple(relax(limit, limits, seen.serving, seen.found, seen.cost_n) for limit in limits),
        nearest=None if len(order) else find_nearest(limits, seen.serving, seen.cost_n, seen.found),
        assumed=space.assumed,
        notes=explain(law, budget, seen, order, limits, space),
        level=level,
    )


def _reach(budget: Budget, scores: Chain | None) -> Budget:
    """Turn a target accuracy into the loss at which the error law gives it."""
    if budget.target_accuracy is None:
        return budget
    if scores is None:
        raise BudgetError("target_accuracy needs an error law, from loss to accuracy; fit one with form='error'")
    target_loss = scores.loss_at(budget.target_accuracy)
    return replace(budget, target_loss=target_loss, target_accuracy=None)


def _rank(seen: Outlook, order: np.ndarray) -> np.ndarray:
    """Number the candidates in an order from 1, the others 0."""
    rank_n = np.zeros(len(seen.found), dtype=np.int32)
    rank_n[order] = np.arange(1, len(order) + 1)
    return rank_n


def _find_twins(seen: Outlook, order: np.ndarray) -> dict[int, int]:
    """Map each published shape that differs from a candidate in its heads alone to that candidate.

    Such a shape stands among the references, with the rank and the chance of its twin. `order` is by cost, then time.
    """
    published_n = np.isin(order, list(seen.found.references))
    own, published = order[~published_n], order[published_n]
    time_n, memory_n, cost_n = seen.serving["total_s"], seen.serving["memory_bytes"], seen.cost_n
    firsts, lasts = (np.searchsorted(cost_n[own], cost_n[published], side) for side in ("left", "right"))
    found = {}
    for row, first, last in zip(published.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        near = own[first:last]
        same = near[(time_n[near] == time_n[row]) & (memory_n[near] == memory_n[row])]
        if len(same):
            found[row] = int(same[0])
    return found


def _alternatives(seen: Outlook, fastest: np.ndarray) -> np.ndarray:
    """Gather the fronts under a ladder of memory budgets, so that any budget on its rungs finds its best here."""
    memory_n = seen.serving["memory_bytes"][fastest]
    if not len(fastest):
        return fastest
    rungs = np.geomspace(memory_n.min(), memory_n.max(), MEMORY_RUNGS)
    rows = np.unique(np.concatenate([find_front(seen, fastest[memory_n <= rung]) for rung in rungs]))
    return rows[np.argsort(seen.cost_n[rows], kind="stable")]


def _check_law(law: Law, budget: Budget) -> None:
    if law.target != "loss":
        raise BudgetError(f"this law predicts {law.target!r}; a plan ranks shapes by loss")
    if not any(SHAPE_COLUMNS & set(m.form.columns) for m in law.averaged):
        read = ", ".join(dict.fromkeys(c for m in law.averaged for c in m.form.columns))
        raise BudgetError(
            f"the law {law.name} reads {read} and cannot tell two shapes of one size apart, so it cannot rank them; fit"
            " a form that reads shape, such as width-depth or aspect, to runs that vary it"
        )
    if budget.tokens is None:
        refuse_run_mean(law, "choose each shape's training tokens")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Writer:
    """Everything a row of candidates needs to become a choice."""

    law: Law
    scores: Chain | None
    seen: Outlook
    space: Space
    budget: Budget
    level: float
    front: np.ndarray
    twins: dict[int, int]
    rank_n: np.ndarray
    chance_of: dict[int, float]

    def choices(self, rows: np.ndarray) -> tuple[Choice, ...]:
        """Write out the choices at some rows."""
        if not len(rows):
            return ()
        table = self.seen.found.take(rows).law_columns(self.seen.tokens_n[rows])
        band = self.law.interval(table, level=self.level, assume=HELD) if self.law.has_draws else None
        bounds = self.seen.name_bounds(rows)
        left = find_departures(self.seen.found.take(rows), self.space, self.law.axes)
        edges = (
            [(None, None)] * len(rows)
            if band is None
            else list(zip(band.low.tolist(), band.high.tolist(), strict=True))
        )
        accuracy = self._accuracies(table, len(rows))
        return tuple(
            self._choice(
                row, bounds=bounds[i], edges=edges[i], accuracy=accuracy[i],
                unsupported=tuple(a for a in left if left[a][i]),
            )
            for i, row in enumerate(rows.tolist())
        )  # fmt: skip

    def _accuracies(self, table: Mapping[str, np.ndarray], count: int) -> list[tuple[float | None, ...]]:
        """Send the rows through the error law: accuracy, and its interval's ends, of each."""
        if self.scores is None:
            return [(None, None, None)] * count
        value_n = self.scores.accuracy(table, assume=HELD)
        if not self.law.has_draws:
            return [(float(value), None, None) for value in value_n]
        band = self.scores.interval(table, level=self.level, assume=HELD)
        return list(zip(value_n.tolist(), band.low.tolist(), band.high.tolist(), strict=True))

    def _choice(
        self,
        row: int,
        *,
        bounds: tuple[str, str],
        edges: tuple[float | None, float | None],
        accuracy: tuple[float | None, ...],
        unsupported: tuple[str, ...],
    ) -> Choice:
        seen, on_front = self.seen, not _dominated(self.seen, row, self.front)
        same = self.twins.get(row, row)
        shape, tokens = seen.found.shape(row), float(seen.tokens_n[row])
        train_flops = float(count_train_flops(shape, tokens, shape.max_seq_len))
        train_days, dollars = self.budget.training_cost(train_flops)
        return Choice(
            rank=int(self.rank_n[same]),
            name=seen.found.name(row),
            shape=shape,
            tokens=tokens,
            loss=float(seen.loss_n[row]),
            loss_low=edges[0],
            loss_high=edges[1],
            accuracy=accuracy[0],
            accuracy_low=accuracy[1],
            accuracy_high=accuracy[2],
            chance=self.chance_of.get(same, 0.0),
            prefill_bound=bounds[0],
            decode_bound=bounds[1],
            train_flops=train_flops,
            train_days=train_days,
            dollars=dollars,
            lifetime_flops=None if self.budget.target_loss is None else float(seen.cost_n[row]),
            on_front=on_front,
            unsupported=unsupported,
            beaten_by="" if on_front else _beaten_by(seen, row, self.front),
            **{name: float(values[row]) for name, values in seen.serving.items()},
        )


def _dominated(seen: Outlook, row: int, front: np.ndarray) -> bool:
    """Say whether some shape of the front is no worse in both loss and time and better in one."""
    time, cost = seen.serving["total_s"][row], seen.cost_n[row]
    times, costs = seen.serving["total_s"][front], seen.cost_n[front]
    return bool(((times <= time) & (costs <= cost) & ((times < time) | (costs < cost))).any())


def _beaten_by(seen: Outlook, row: int, front: np.ndarray) -> str:
    """Name the best shape of the front that is no slower."""
    time_n, cost_n = seen.serving["total_s"], seen.cost_n
    faster = front[time_n[front] <= time_n[row]]
    if not len(faster):
        return ""
    best = int(faster[cost_n[faster].argmin()])
    return seen.found.name(best) if cost_n[best] <= cost_n[row] else ""
