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
EDGE = 0.18
"""The share of the chart's width, at its left, that is no place for a name to end in."""
MOST = 0.64
"""The share beyond which a name cannot begin."""
LABELS = 4
APART = 0.06
"""Names nearer to each other, as a share of the chart's height, would hide one another."""
_FITS = f"datum.total <= {LATENCY} && datum.memory <= {MEMORY}"


def chart_plan(plan: Plan) -> alt.LayerChart:
    """Chart cost against total latency: alternatives, front, published shapes, and the best within two movable budgets.

    Cost is predicted loss, or a whole life's FLOPs where the budget names a target loss.
    """
    import altair as alt

    rows = list_rows(plan)
    latency = _param(LATENCY, [row["total"] for row in rows], _find(plan, "total_s"), "total latency, at most (s)")
    room = (_find(plan, "memory_bytes") or math.inf) / 1e9
    memory = _param(MEMORY, [row["memory"] for row in rows], room, "memory, at most (GB)")
    top = find_top(plan, rows)
    x, y = _axes(plan, rows, top)
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
    layers.append(_edge(x))
    specks = base.mark_point(style="speck", filled=True, size=16, clip=True)
    layers.append(specks.encode(x=x, y=y("cost"), opacity=alt.condition(_FITS, alt.value(0.5), alt.value(0.2))))
    dots = front.mark_point(style="dot", filled=True, size=30, clip=True)
    layers.append(dots.encode(x=x, y=y("cost"), opacity=fits))
    layers += _published(plan, x, y, fits, tooltip)
    # Larger than what is seen, so that a finger finds it.
    layers.append(base.mark_point(filled=True, size=90, opacity=0, clip=True).encode(x=x, y=y("cost"), tooltip=tooltip))
    layers += [*_nearest(plan, rows, x, y), *_highlight(best, x, y, tooltip)]
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


def _axes(plan: Plan, rows: Sequence[Row], top: float) -> tuple[Any, Any]:
    """Make the encodings of latency and of cost, the same for all layers and wherever the sliders stand."""
    times = [row["total"] for row in rows if row["cost"] <= top]
    x = _encode(times, "total latency (s)", log=max(times) > WIDE * min(times))("X", "total")
    ends = [row[key] for row in rows for key in ("low", "cost", "high") if key in row]
    if plan.budget.target_loss is not None:
        cost = _encode(ends, "life cost (FLOPs)", log=True)
        return x, lambda field: cost("Y", field)
    cost = _encode([min(end, top) for end in ends], "predicted loss (nats per token)", log=False)
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


def _edge(x: Any) -> alt.LayerChart:
    """Draw the latency budget, and veil what lies beyond it."""
    import altair as alt

    at = alt.Chart(alt.InlineData(values=[{}])).transform_calculate(total=LATENCY, text=f"'≤ ' + {LATENCY} + ' s'")
    end = x.to_dict()["scale"]["domain"][1]
    edge: Any = alt.layer(
        at.mark_rect(style="veil", clip=True).encode(x=x, x2=alt.X2Datum(end)),
        at.mark_rule(style="reference", clip=True).encode(x=x),
        at.mark_text(style="equal-text", align="right", dx=-4, clip=True).encode(x=x, y=alt.value(6), text="text:N"),
    )
    return edge


def _published(plan: Plan, x: Any, y: Any, fits: Any, tooltip: list[Any]) -> list[Any]:
    """Mark published shapes, and name the best of them where there is room."""
    import altair as alt

    rows = [_row(plan, choice) for choice in plan.references]
    if not rows:
        return []
    low, high = y("cost").to_dict()["scale"]["domain"]
    named: list[Row] = []
    for row in rows:
        near = any(abs(row["cost"] - other["cost"]) < APART * (high - low) for other in named)
        if not near and row["cost"] < high and len(named) < LABELS:
            named.append({**row, "label": row["name"].split(" (")[0]})
    marks = alt.Chart(alt.InlineData(values=rows)).mark_point(
        style="ring", filled=True, shape="diamond", size=40, clip=True
    )
    left, right = (alt.Chart(alt.InlineData(values=named)).transform_filter(where) for where in _halve(x, MOST))
    texts = (
        left.mark_text(style="equal-text", align="left", dx=8, dy=-8),
        right.mark_text(style="equal-text", align="right", dx=-8, dy=-20),
    )
    return [
        marks.encode(x=x, y=y("cost"), opacity=fits, tooltip=tooltip),
        *(text.encode(x=x, y=y("cost"), text="label:N") for text in texts),
    ]


def _nearest(plan: Plan, rows: Sequence[Row], x: Any, y: Any) -> list[Any]:
    """Name the nearest shape where nothing fits, if it is among those shown."""
    import altair as alt

    found = [row for row in rows if plan.nearest is not None and row["name"] == plan.nearest.name]
    named = [{**row, "label": f"nearest: {row['name']}"} for row in found[:1]]
    return _write_best(alt.Chart(alt.InlineData(values=named)), x, y("cost")) if named else []


def _highlight(best: Any, x: Any, y: Any, tooltip: list[Any]) -> list[Any]:
    """Ring the best shape and name it."""
    ring = best.mark_point(style="best", filled=False, size=190, opacity=1).encode(x=x, y=y("shown"), tooltip=tooltip)
    return [ring.properties(name=ANSWER), *_write_best(best, x, y("shown"))]


def _write_best(base: Any, x: Any, y: Any) -> list[Any]:
    """Write a label below its point and to the left, where a front has nothing; at the left edge, above and right."""
    left, right = (base.transform_filter(where) for where in _halve(x, EDGE))
    texts = (
        left.mark_text(style="best-text", align="left", dx=10, dy=-12),
        right.mark_text(style="best-text", align="right", dx=-10, dy=14),
    )
    return [text.encode(x=x, y=y, text="label:N") for text in texts]


def _halve(x: Any, share: float) -> tuple[str, str]:
    """Tell what lies in the left share of an axis from what does not."""
    scale = x.to_dict()["scale"]
    low, high = scale["domain"]
    at = low ** (1 - share) * high**share if scale["type"] == "log" else low + share * (high - low)
    return f"datum.total < {at}", f"datum.total >= {at}"


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
