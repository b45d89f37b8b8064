"""Plan: from a law, a device, a workload and a budget to a ranked list of shapes, with the reasons.

Axes: n a candidate. Bian et al. 2025 (arXiv:2501.18107) describe the procedure and publish no code for its middle:
enumerate, predict loss and latency, keep what fits, rank.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lathe.budget import Budget
from lathe.design.candidates import Candidates, Space, candidates, find_space
from lathe.design.explain import explain
from lathe.design.limits import Limit, Nearest, find_nearest, fitting, list_limits, name_shape, relax
from lathe.design.outlook import Outlook, find_front, look, share_chances
from lathe.device import Device
from lathe.errors import BudgetError
from lathe.laws.axes import HELD
from lathe.laws.hyper import step_law
from lathe.laws.law import Law
from lathe.laws.optimum import refuse_run_mean
from lathe.recipe import Recipe
from lathe.shape import Shape, count_train_flops
from lathe.workload import Workload

SHORTLIST = 2000
"""Candidates of lowest loss among which the chance of being best is shared out."""
SHAPE_COLUMNS = frozenset({"d_model", "n_layers", "aspect"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One shape of a plan. Seconds and bytes are those of the plan's workload.

    `rank` counts from 1 among all that fit; `chance` is that of being the best of the plan's shortlist. `train_flops`
    counts attention, as the shape does, while a budget's FLOPs are 6 · params · tokens.
    """

    rank: int
    name: str
    shape: Shape
    params: float
    tokens: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    chance: float
    first_token_s: float
    per_token_s: float
    total_s: float
    memory_bytes: float
    prefill_bound: str
    decode_bound: str
    train_flops: float
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
    """What nothing on this device beats in both loss and total latency, fastest first, within budget or not."""
    limits: tuple[Limit, ...]
    nearest: Nearest | None
    """Where nothing fits: the shape that breaks the budget least."""
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    level: float

    def recipe(self, rank: int = 1, *, seq_len: int | None = None, seed: int = 0) -> Recipe:
        """Make a choice ready to train, with the step law's learning rate and batch.

        Raises BudgetError for a rank the plan does not have.
        """
        if not 1 <= rank <= len(self.choices):
            raise BudgetError(f"the plan has {len(self.choices)} choices, so no rank {rank}")
        choice = self.choices[rank - 1]
        length = seq_len or choice.shape.max_seq_len
        advice = step_law(choice.shape, choice.tokens)
        tokens = round(choice.tokens)
        sequences = max(1, min(round(advice.batch_tokens / length), tokens // length))
        return Recipe(
            shape=choice.shape, tokens=tokens, seq_len=length, batch_tokens=sequences * length, lr=advice.lr, seed=seed
        )


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
    level: float = 0.9,
) -> Plan:
    """Rank the shapes that a budget allows by the loss the law predicts for them.

    Args:
        engine: "eager" or "graph", see `predict_latency`.
        top: choices to keep.
        assume: axes that no fitted run varied, to free all the same (`lathe.design.candidates.FREE`).
        space: the shapes to consider; by default all aligned ones, held at the runs' values where the law is blind.
        level: probability of the intervals.

    Raises:
        BudgetError: the law cannot rank shapes, or the budget contradicts itself or the device.
        LawError: training tokens left to a law of run-mean losses, which asks for too many.
    """
    _check_law(law, budget)
    limits = list_limits(budget, device)
    space = space or find_space(law.axes, assume=assume)
    seen = look(candidates(space), law, device, workload, budget, engine)
    fits_n = fitting(limits, seen.serving, seen.cost_n)
    order = np.flatnonzero(fits_n)
    order = order[np.argsort(seen.cost_n[order], kind="stable")]
    front = find_front(seen.cost_n, seen.serving["total_s"], seen.serving["memory_bytes"] <= device.memory_bytes)
    short = order[:SHORTLIST]
    chances = share_chances(law, seen, short, budget) if law.has_draws and len(short) else np.zeros(len(short))
    chance_of = dict(zip(short.tolist(), chances.tolist(), strict=True))
    rank_of = {int(row): i + 1 for i, row in enumerate(order)} if seen.found.references else {}
    marked = [row for row in order.tolist() if row in seen.found.references]

    def choose(rows: list[int]) -> tuple[Choice, ...]:
        ranks = [rank_of.get(row, 0) or int(np.flatnonzero(order == row)[0]) + 1 if fits_n[row] else 0 for row in rows]
        return _choices(law, seen, rows, ranks, chance_of, set(front.tolist()), front, space, budget, level)

    return Plan(
        law=law.name,
        device=device,
        workload=workload,
        engine=engine,
        budget=budget,
        considered=len(seen.found),
        fitting=len(order),
        choices=choose(order[:top].tolist()),
        references=choose(marked),
        front=choose(front.tolist()),
        limits=tuple(relax(limit, limits, seen.serving, seen.found, seen.cost_n) for limit in limits),
        nearest=None if len(order) else find_nearest(limits, seen.serving, seen.cost_n, seen.found),
        assumed=space.assumed,
        notes=explain(law, device, workload, budget, engine, seen, order, limits, space),
        level=level,
    )


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


def _choices(
    law: Law,
    seen: Outlook,
    rows: list[int],
    ranks: list[int],
    chance_of: dict[int, float],
    on_front: set[int],
    front: np.ndarray,
    space: Space,
    budget: Budget,
    level: float,
) -> tuple[Choice, ...]:
    if not rows:
        return ()
    table = seen.found.take(np.array(rows)).law_columns(seen.tokens_n[rows])
    band = law.interval(table, level=level, assume=HELD) if law.has_draws else None
    made = []
    for i, row in enumerate(rows):
        shape, tokens = seen.found.shape(row), float(seen.tokens_n[row])
        served = {name: float(values[row]) for name, values in seen.serving.items()}
        made.append(
            Choice(
                rank=ranks[i],
                name=name_shape(seen.found, row),
                shape=shape,
                tokens=tokens,
                loss=float(seen.loss_n[row]),
                loss_low=None if band is None else float(band.low[i]),
                loss_high=None if band is None else float(band.high[i]),
                chance=chance_of.get(row, 0.0),
                prefill_bound=str(seen.prefill_bound_n[row]),
                decode_bound=str(seen.decode_bound_n[row]),
                train_flops=float(count_train_flops(shape, tokens, shape.max_seq_len)),
                lifetime_flops=None if budget.target_loss is None else float(seen.cost_n[row]),
                on_front=row in on_front,
                unsupported=_unsupported(seen.found, row, space, law),
                beaten_by="" if row in on_front else _beaten_by(seen, row, front),
                **served,
            )
        )
    return tuple(made)


def _beaten_by(seen: Outlook, row: int, front: np.ndarray) -> str:
    """Name the best shape of the front that is no slower."""
    time_n, cost_n = seen.serving["total_s"], seen.cost_n
    faster = front[time_n[front] <= time_n[row]]
    if not len(faster):
        return ""
    best = int(faster[cost_n[faster].argmin()])
    return name_shape(seen.found, best) if cost_n[best] <= cost_n[row] else ""


def _unsupported(found: Candidates, row: int, space: Space, law: Law) -> tuple[str, ...]:
    """List the assumed axes on which a candidate leaves what the runs had."""
    columns = found.columns
    has = {
        "ff_ratio": columns["d_ff"][row] / columns["d_model"][row],
        "kv_ratio": columns["n_kv_heads"][row] / columns["n_heads"][row],
        "vocab_size": columns["vocab_size"][row],
        "tied": float(columns["tied"][row]),
    }
    off = [
        n
        for n in has
        if n in space.assumed and n in law.axes and not _within(has[n], law.axes[n].low, law.axes[n].high)
    ]
    return tuple(off + (["sharing"] if columns["sharing_count"][row] > 1 else []))


def _within(value: float, low: float, high: float) -> bool:
    return 0.95 * low <= value <= 1.05 * high
