"""Chart a plan: predicted loss against latency, where a reader moves the budgets and sees what is then best.

What fits, the front, and the best are worked out by the chart itself, wherever it is shown. A plan's alternatives hold
the best under any latency and memory, so nothing else needs to travel with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lathe.design.choice import Choice, Plan
from lathe.design.limits import Limit
from lathe.report.html import Readout
from lathe.report.latency_tables import format_bytes, format_seconds
from lathe.report.plan_marks import (
    Trained,
    mark_best,
    mark_edge,
    mark_nearest,
    mark_published,
    mark_trained,
)
from lathe.report.tables import format_count

if TYPE_CHECKING:
    import altair as alt

Row = dict[str, Any]

HEIGHT = 400
LATENCY, MEMORY = "latency_s", "memory_gb"
"""The chart's two params, which the reader moves."""
ANSWER = "answer"
"""The layer whose one row is the best shape within both."""
STEPS = 200
"""A slider has at least this many."""
WIDE = 8.0
"""Latencies that span more than this factor go on a logarithmic axis."""
NEARBY = 2.5
"""A budget up to this many times what any shape takes is where its slider ends; beyond, the shapes are."""
WORSE = 1.2
"""Shapes with more than this many times the lowest loss, and not needed to show the best, are off the chart."""
_FITS = f"datum.total <= {LATENCY} && datum.memory <= {MEMORY}"


def chart_plan(plan: Plan, *, trained: Sequence[Trained] = ()) -> alt.LayerChart:
    """Chart cost against total latency: alternatives, front, published shapes, and the best within two movable budgets.

    Cost is predicted loss, or a whole life's FLOPs where the budget names a target loss.

    Args:
        trained: shapes that were trained since, to mark where they came out; their cost is the true loss.
    """
    import altair as alt

    rows = list_rows(plan)
    latency = _param(LATENCY, [row["total"] for row in rows], _find(plan, "total_s"), "total latency, at most (s)")
    room = (_find(plan, "memory_bytes") or math.inf) / 1e9
    memory = _param(MEMORY, [row["memory"] for row in rows], room, "memory, at most (GB)")
    top = find_top(plan, rows)
    x, y = _axes(plan, rows, top, trained)
    base = alt.Chart(alt.InlineData(values=rows))
    held = base.transform_filter(f"datum.memory <= {MEMORY}")
    front = held.transform_window(
        frame=[None, 0], sort=[alt.SortField("total"), alt.SortField("order")], least="min(cost)"
    ).transform_filter("datum.cost <= datum.least")
    best = base.transform_filter(_FITS).transform_window(
        sort=[alt.SortField("order")], place="row_number()"
    ).transform_filter("datum.place == 1").transform_calculate(shown=f"min(datum.cost, {top})")  # fmt: skip
    fits = alt.condition(_FITS, alt.value(0.95), alt.value(0.35))
    tooltip = _tooltip(plan)
    layers: list[Any] = []
    if "low" in rows[0]:
        band = front.mark_area(style="band", interpolate="step-after", clip=True)
        layers.append(band.encode(x=x, y=y("low"), y2="high:Q"))
    layers.append(front.mark_line(style="curve", interpolate="step-after", clip=True).encode(x=x, y=y("cost")))
    layers.append(mark_edge(x, LATENCY))
    specks = base.mark_point(style="speck", filled=True, size=16, clip=True)
    layers.append(specks.encode(x=x, y=y("cost"), opacity=alt.condition(_FITS, alt.value(0.5), alt.value(0.2))))
    dots = front.mark_point(style="dot", filled=True, size=30, clip=True)
    layers.append(dots.encode(x=x, y=y("cost"), opacity=fits))
    published = [_row(plan, choice) for choice in plan.references]
    layers += mark_published(published, x, y, fits, tooltip)
    # Larger than what is seen, so that a finger finds it.
    layers.append(base.mark_point(filled=True, size=90, opacity=0, clip=True).encode(x=x, y=y("cost"), tooltip=tooltip))
    nearest = [row for row in rows if plan.nearest is not None and row["name"] == plan.nearest.name]
    layers += [*mark_trained(trained, x, y), *mark_nearest(nearest[:1], x, y)]
    layers += mark_best(best, x, y, tooltip, name=ANSWER)
    chart: Any = alt.layer(*layers)
    return chart.add_params(latency, memory).properties(height=HEIGHT)


def readout(plan: Plan) -> Readout:
    """Say what to write out of the chart's best shape."""
    fields = [("best within both", "name"), (_cost_name(plan), "cost_text"), ("total latency", "total_text")]
    fields += [("memory", "memory_text"), ("params", "params_text"), ("decoding bound by", "bound")]
    empty = "No shape fits: allow more time or more memory."
    return Readout(layer=ANSWER, fields=tuple(fields), empty=empty)


def list_rows(plan: Plan) -> list[Row]:
    """List what the chart chooses from, best first: the alternatives, and choices that are not among them.

    Other limits on time than the total's have no slider and hold throughout, unless nothing meets them.
    """
    known = {choice.name for choice in plan.choices}
    pool = [*(choice for choice in plan.alternatives if choice.name not in known), *plan.choices]
    fixed = [limit for limit in plan.limits if limit.timed and limit.name != "total_s"]
    timely = [choice for choice in pool if _meets(choice, fixed)]
    ordered = sorted(timely or pool, key=lambda choice: (_cost(plan, choice), choice.total_s, choice.memory_bytes))
    return [{**_row(plan, choice), "order": i} for i, choice in enumerate(ordered)]


def format_cost(choice: Choice) -> str:
    """Write what the plan minimises: a life's FLOPs, or the loss with its interval, if any: 2.915 (2.898–2.932)."""
    if choice.lifetime_flops is not None:
        return f"{choice.lifetime_flops:.3g}"
    if choice.loss_low is None or choice.loss_high is None:
        return f"{choice.loss:.3f}"
    return f"{choice.loss:.3f} ({choice.loss_low:.3f}–{choice.loss_high:.3f})"


def _meets(choice: Choice, limits: Sequence[Limit]) -> bool:
    return all(getattr(choice, limit.name) <= limit.value for limit in limits)


def _cost(plan: Plan, choice: Choice) -> float:
    """Give what the plan minimises."""
    return choice.loss if choice.lifetime_flops is None else choice.lifetime_flops


def _cost_name(plan: Plan) -> str:
    return "predicted loss" if plan.budget.target_loss is None else "life cost (FLOPs)"


def _row(plan: Plan, choice: Choice) -> Row:
    row: Row = {
        "name": choice.name,
        "label": f"{choice.shape.d_model}×{choice.shape.n_layers}",
        "cost": _cost(plan, choice),
        "total": choice.total_s,
        "memory": choice.memory_bytes / 1e9,
        "cost_text": format_cost(choice),
        "tokens_text": format_count(choice.tokens),
        "params_text": format_count(choice.params),
        "total_text": format_seconds(choice.total_s),
        "per_token_text": format_seconds(choice.per_token_s),
        "first_token_text": format_seconds(choice.first_token_s),
        "memory_text": format_bytes(choice.memory_bytes),
        "bound": choice.decode_bound,
        "prefill_bound": choice.prefill_bound,
    }
    if choice.lifetime_flops is None and choice.loss_low is not None:
        row |= {"low": choice.loss_low, "high": choice.loss_high}
    return row


def _tooltip(plan: Plan) -> list[Any]:
    import altair as alt

    fields = [("name", "shape"), ("label", "d_model × n_layers"), ("params_text", "params")]
    fields += [("cost_text", _cost_name(plan)), ("tokens_text", "training tokens"), ("total_text", "total latency")]
    fields += [("per_token_text", "per token"), ("first_token_text", "first token"), ("memory_text", "memory")]
    fields += [("bound", "decoding bound by"), ("prefill_bound", "prompt bound by")]
    return [alt.Tooltip(field, type="nominal", title=title) for field, title in fields]


def find_top(plan: Plan, rows: Sequence[Row]) -> float:
    """Find the highest cost to chart: all of a life's, else up to `WORSE` times the lowest loss and the choice's."""
    highest = max(row.get("high", row["cost"]) for row in rows)
    if plan.budget.target_loss is not None:
        return highest
    return min(highest, max([WORSE * min(row["cost"] for row in rows), *(1.05 * c.loss for c in plan.choices[:1])]))


def _axes(plan: Plan, rows: Sequence[Row], top: float, trained: Sequence[Trained]) -> tuple[Any, Any]:
    """Make the encodings of latency and of cost, the same for all layers and wherever the sliders stand."""
    times = [row["total"] for row in rows if row["cost"] <= top] + [one.total for one in trained]
    x = _encode(times, "total latency (s)", log=max(times) > WIDE * min(times))("X", "total")
    ends = [row[key] for row in rows for key in ("low", "cost", "high") if key in row]
    if plan.budget.target_loss is not None:
        cost = _encode(ends, "life cost (FLOPs)", log=True)
        return x, lambda field: cost("Y", field)
    ends = [min(end, top) for end in ends] + [one.cost for one in trained]
    cost = _encode(ends, f"{'' if trained else 'predicted '}loss (nats per token)", log=False)
    return x, lambda field: cost("Y", field)


def _encode(values: Sequence[float], title: str, *, log: bool) -> Callable[[str, str], Any]:
    """Make the encoder of a quantity, with a scale that just holds its values."""
    import altair as alt

    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.04 if high > low else 1.1
        scale = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    else:
        room = 0.04 * (high - low) if high > low else 0.05 * high
        scale = alt.Scale(type="linear", domain=[low - room, high + room], nice=False, zero=False)
    axis = alt.Axis(format="~g" if high < 1e6 else "~e", tickCount=8)

    def encode(channel: str, field: str) -> Any:
        return getattr(alt, channel)(field, type="quantitative", title=title, scale=scale, axis=axis)

    return encode


def _find(plan: Plan, name: str) -> float | None:
    return next((limit.value for limit in plan.limits if limit.name == name), None)


def _param(name: str, values: Sequence[float], budget: float | None, title: str) -> Any:
    """Make a slider over round numbers, on which the budget itself lies if it can; it starts there."""
    import altair as alt

    top = max(values)
    start = budget if budget is not None and budget <= NEARBY * top else None
    step = 10.0 ** math.floor(math.log10(top / STEPS))
    high = math.ceil(round(max(top, start or 0) / step, 6)) * step
    start = high if start is None else start
    for _ in range(4):
        if math.isclose(start / step, round(start / step), rel_tol=1e-9):
            break
        step /= 10
    low = math.floor(min(*values, start) / step) * step
    low, high, step, start = (float(f"{value:.10g}") for value in (low, high, step, start))
    return alt.param(name=name, value=start, bind=alt.binding_range(min=low, max=high, step=step, name=title))
