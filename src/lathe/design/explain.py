"""Say why a plan chose as it did, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lathe.budget import Budget
from lathe.design.candidates import AXIS_FIELDS, FREE, Space, find_departures
from lathe.design.limits import Limit, fitting
from lathe.design.outlook import CHUNK, Outlook, serve
from lathe.latency.roofline import count_launches, predict_latency
from lathe.laws.axes import HELD
from lathe.laws.law import Law

SIZES = ("params", "non_embedding_params", "tokens_per_param")
COUNTED = {
    ("n_layers", "aspect"): "each visit of a block as a layer of its own",
    SIZES: "the weights of a block once, however often it is visited",
}
"""What laws take a shared block for, by the columns they read."""


def explain(
    law: Law, budget: Budget, seen: Outlook, order: np.ndarray, limits: Sequence[Limit], space: Space
) -> tuple[str, ...]:
    """List what bounds the best choice, what the other engine would choose, and what the law has not seen."""
    if not len(order):
        return tuple(f"law: {text}" for text in law.warnings)
    best = int(order[0])
    notes = [_bound(seen, best)]
    if any(limit.timed for limit in limits):
        notes.append(_other_engine(seen, best, limits))
    if budget.target_loss is None:
        more = seen.found.take(np.array([best])).law_columns(1.1 * seen.tokens_n[[best]])
        gain = float(seen.loss_n[best] - law.predict(more, assume=HELD)[0])
        notes.append(f"10 % more training tokens would lower its loss by {gain:.4f}")
    for name in space.guessed:
        held = ", ".join(f"{value:.4g}" for value in getattr(space, AXIS_FIELDS[name]))
        notes.append(f"the fitted runs say nothing of {name} ({FREE[name]}); {held} is a guess")
    if space.assumed:
        notes.append(_assumption(seen, order, space, law))
    if seen.found.sharing != "none":
        notes.append(_say_sharing(law, seen.found.sharing))
    one = seen.found.take(np.array([best])).law_columns(seen.tokens_n[[best]])
    notes += [f"extrapolation: {text}" for text in law.extrapolation(one)]
    return tuple(notes) + tuple(f"law: {text}" for text in law.warnings)


def _bound(seen: Outlook, best: int) -> str:
    """Say what limits decoding of the best choice."""
    name, (_, bound) = seen.found.name(best), seen.name_bounds(np.array([best]))[0]
    if bound == "launch":
        row = seen.found.take(np.array([best]))
        layer_s = float(np.asarray(count_launches(row))[0]) * seen.device.launch_s / float(row.n_layers[0])
        return (
            f"decoding of {name} is bound by launches: a layer costs {1e3 * layer_s:.3g} ms a token whatever its width,"
            " so width is free and depth is not"
        )
    what = "reading weights and cache from memory" if bound == "bandwidth" else "arithmetic"
    return f"decoding of {name} is bound by {what}" + (
        ": launches are captured, so width costs what it weighs" if seen.engine == "graph" else ""
    )


def _other_engine(seen: Outlook, best: int, limits: Sequence[Limit]) -> str:
    """Find what the other engine would choose within the same limits: the first that fits, from the lowest loss up."""
    other = "eager" if seen.engine == "graph" else "graph"
    allowed = np.flatnonzero(fitting([limit for limit in limits if not limit.timed], seen.serving, seen.cost_n))
    order = allowed[np.argsort(seen.cost_n[allowed], kind="stable")]
    row = None
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        served = serve(seen.found.take(rows), seen.device, seen.workload, other)
        fits = np.flatnonzero(fitting(limits, served, seen.cost_n[rows]))
        if len(fits):
            ties = fits[seen.cost_n[rows[fits]] == seen.cost_n[rows[fits[0]]]]
            row = int(rows[ties[served["total_s"][ties].argmin()]])
            break
    mine = seen.found.name(best)
    if row is None:
        return f"with engine={other!r} no shape fits this budget"
    theirs = seen.found.name(row)
    if row == best:
        return f"engine={other!r} would choose {theirs} as well"
    layers = seen.found.columns["n_layers"]
    eager, graph = (row, best) if other == "eager" else (best, row)
    reason = ""
    if layers[graph] > layers[eager] and _is_launch_bound(seen, eager):
        reason = (
            f": launch overhead is what makes depth costly, {layers[eager]:.0f} layers eagerly where a graph affords"
            f" {layers[graph]:.0f}"
        )
    return f"within the same budget engine={other!r} would choose {theirs} over {mine}{reason}"


def _is_launch_bound(seen: Outlook, row: int) -> bool:
    """Say whether launches bound decoding of a candidate when run eagerly."""
    found = seen.found.take(np.array([row]))
    return bool(predict_latency(found, device=seen.device, workload=seen.workload).decode_bound[0] == "launch")


def _assumption(seen: Outlook, order: np.ndarray, space: Space, law: Law) -> str:
    """Say what freeing axes that no run varied has bought, which nothing in the data supports."""
    left_n = np.any(list(find_departures(seen.found, space, law.axes).values()), axis=0)
    supported = order[~left_n[order]][:1].tolist()
    named = ", ".join(f"{name} ({FREE[name]})" for name in space.assumed)
    best = int(order[0])
    if not supported:
        return f"assumed and not supported by any run: {named}; without it nothing fits"
    gain = float(seen.loss_n[supported[0]] - seen.loss_n[best])
    return (
        f"assumed and not supported by any run: {named}. It buys {gain:.4f} of predicted loss over"
        f" {seen.found.name(supported[0])}, the best the runs can speak for"
    )


def _say_sharing(law: Law, pattern: str) -> str:
    """Say what a shared block counts for in the columns that the law reads."""
    reads = {column for member in law.averaged for column in member.form.columns}
    counted = [text for columns, text in COUNTED.items() if reads & set(columns)]
    free = "" if reads & set(SIZES) else ", so sharing itself costs nothing in its predictions, whatever it costs"
    return f"assumed of sharing ({pattern}): the law counts {' and '.join(counted)}{free}"
