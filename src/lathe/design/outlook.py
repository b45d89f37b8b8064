"""Predict loss, latency and memory of every candidate, before anything is refused.

Axes: n a candidate, b a bootstrap draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lathe.budget import Budget
from lathe.design.candidates import Candidates
from lathe.device import Device
from lathe.latency.roofline import predict_latency
from lathe.laws.axes import HELD
from lathe.laws.law import Law
from lathe.laws.optimum import tokens_to
from lathe.laws.system import Array
from lathe.shape import count_params
from lathe.workload import Workload

CHUNK = 1 << 15
"""Candidates predicted together: their columns stay in a core's cache."""
SERVING = ("first_token_s", "per_token_s", "total_s", "memory_bytes", "params")
"""What serving a candidate takes, and what a budget may limit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What is predicted of every candidate."""

    found: Candidates
    tokens_n: Array
    loss_n: Array
    """Infinite where a target loss cannot be reached."""
    cost_n: Array
    """What a plan minimises: the loss, or a whole life's FLOPs at the target loss. Infinite: out of the question."""
    serving: Mapping[str, Array]
    """A column for each name of `SERVING`."""
    visited_params_n: Array
    """The weights a token passes through, a shared block's at every visit."""
    device: Device
    workload: Workload
    engine: str

    def name_bounds(self, rows: np.ndarray) -> list[tuple[str, str]]:
        """Name what bounds prefill and decoding of some candidates; of a million nobody reads it."""
        some = self.found.take(rows)
        latency = predict_latency(some, device=self.device, workload=self.workload, engine=self.engine)
        return list(zip(latency.prefill_bound.tolist(), latency.decode_bound.tolist(), strict=True))


def look(found: Candidates, law: Law, device: Device, workload: Workload, budget: Budget, engine: str) -> Outlook:
    """Predict every candidate, a cacheful at a time."""
    parts = []
    for start in range(0, len(found), CHUNK):
        some = found.take(slice(start, start + CHUNK))
        served = serve(some, device, workload, engine)
        visited_n = served["params"] if some.sharing == "none" else some.visited_params
        parts.append(served | {"visited": visited_n} | _train(some, law, budget, served["params"], visited_n))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Outlook(
        found=found,
        tokens_n=joined["tokens"],
        loss_n=joined["loss"],
        cost_n=joined["cost"],
        serving={name: joined[name] for name in SERVING},
        visited_params_n=joined["visited"],
        device=device,
        workload=workload,
        engine=engine,
    )


def serve(found: Candidates, device: Device, workload: Workload, engine: str) -> dict[str, np.ndarray]:
    """Predict what serving each candidate takes: a column for each name of `SERVING`."""
    latency = predict_latency(found, device=device, workload=workload, engine=engine, bounds=False)
    return {
        "first_token_s": latency.first_token_s,
        "per_token_s": latency.decode_s / max(workload.new_tokens - 1, 1),
        "total_s": latency.total_s,
        "memory_bytes": np.asarray(latency.memory_bytes, dtype=np.float64),
        "params": np.asarray(count_params(found), dtype=np.float64),
    }


def _train(found: Candidates, law: Law, budget: Budget, params_n: Array, visited_n: Array) -> dict[str, Array]:
    """Predict what training each candidate within the budget gives; work goes by the weights visited."""
    table = found.law_columns(1.0)
    if budget.target_loss is not None:
        tokens_n = tokens_to(law, table, budget.target_loss)
    elif budget.tokens is not None:
        tokens_n = np.full(len(found), float(budget.tokens))
    else:
        assert budget.flops is not None
        tokens_n = budget.flops / (6 * visited_n)
    reached_n = np.isfinite(tokens_n)
    table["tokens"] = np.where(reached_n, tokens_n, 1.0)
    loss_n = np.where(reached_n, law.predict(table, assume=HELD), np.inf)
    cost_n = loss_n
    if budget.target_loss is not None:
        cost_n = 6 * visited_n * tokens_n + 2 * visited_n * (budget.inference_tokens or 0.0)
    if budget.min_params is not None:
        cost_n = np.where(params_n >= budget.min_params, cost_n, np.inf)
    return {"tokens": tokens_n, "loss": loss_n, "cost": cost_n}


def share_chances(law: Law, seen: Outlook, rows: np.ndarray, budget: Budget) -> Array:
    """Give each of some candidates its chance of being the best of them, over draws common to all.

    A draw's best is that of lowest loss; towards a target loss, that of lowest life cost, where a draw that predicts a
    loss off the target moves the training tokens along the law's slope.
    """
    some = seen.found.take(rows)
    table = some.law_columns(seen.tokens_n[rows])
    chance_n = np.zeros(len(rows))
    drawn = law.draws(table, assume=HELD)
    total = sum(weight for weight, _ in drawn)
    slope_n = None if budget.target_loss is None else _slope(law, table)
    for weight, loss_bn in drawn:
        value_bn = loss_bn
        if budget.target_loss is not None and slope_n is not None:
            tokens_bn = table["tokens"] * np.exp(np.clip((loss_bn - budget.target_loss) / slope_n, -5, 5))
            value_bn = seen.visited_params_n[rows] * (6 * tokens_bn + 2 * (budget.inference_tokens or 0.0))
        best_b = np.argmin(value_bn, axis=1)
        chance_n += weight / total * np.bincount(best_b, minlength=len(rows)) / len(best_b)
    return chance_n


def _slope(law: Law, table: Mapping[str, Any]) -> Array:
    """Give the loss a unit of log tokens buys at each row."""
    step = 0.05
    more = law.predict({**table, "tokens": table["tokens"] * np.exp(step)}, assume=HELD)
    return np.maximum((law.predict(table, assume=HELD) - more) / step, 1e-12)


def sort_by_cost(seen: Outlook, rows: np.ndarray) -> np.ndarray:
    """List rows by cost; of equals the fastest first, then what shares fewer layers, then the smallest.

    Most laws tell no shared layer from one of its own. So sharing comes first where it buys time, or where a limit on
    memory leaves the unshared shape out, and not to save memory that nobody asked to save.
    """
    return _sort(seen, rows, seen.serving["total_s"], seen.cost_n)


def sort_by_time(seen: Outlook, allowed_n: np.ndarray) -> np.ndarray:
    """List the allowed rows fastest first, of equals that of lowest cost, and further as `sort_by_cost`."""
    return _sort(seen, np.flatnonzero(allowed_n & np.isfinite(seen.cost_n)), seen.cost_n, seen.serving["total_s"])


def _sort(seen: Outlook, rows: np.ndarray, *by: Array) -> np.ndarray:
    """Sort by columns, the last first."""
    shared = () if seen.found.sharing == "none" else (seen.found.columns["sharing_count"],)
    return rows[np.lexsort([column[rows] for column in (seen.serving["memory_bytes"], *shared, *by)])]


def find_front(seen: Outlook, order: np.ndarray) -> np.ndarray:
    """Keep the rows that none of them beats in both cost and time; `order` is `sort_by_time`'s, or a part of it."""
    cost_n = seen.cost_n[order]
    keep_n = np.ones(len(order), dtype=bool)
    keep_n[1:] = cost_n[1:] < np.minimum.accumulate(cost_n)[:-1]
    return order[keep_n]
