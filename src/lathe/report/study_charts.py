"""Chart a study: what was predicted of its candidates beside what came out, how they learnt, and what it took.

Blue is predicted and orange is true throughout. Each function returns an Altair chart without title, width or theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lathe.bench.compare import Comparison
from lathe.report.latency_tables import format_seconds
from lathe.report.law_points import Points
from lathe.report.plan_marks import Trained
from lathe.report.study_files import Curve
from lathe.report.study_tables import (
    find_chosen,
    format_duration,
    format_error,
    format_latency,
    format_loss,
    format_predicted,
    format_share,
    judge,
)
from lathe.report.tables import format_count
from lathe.studies import Candidate, Rival, StudyResult

if TYPE_CHECKING:
    import altair as alt

Row = dict[str, Any]

ROW = 34
"""Pixels that a shape takes up."""
LABEL = 130
SQUARE = 340
WIDE = 8.0
"""Values that span more than this factor go on a logarithmic axis."""
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
LOSS = "loss (nats per token)"
SHORT = "replace(format(datum.value, '.4~s'), 'G', 'B')"


def chart_losses(result: StudyResult) -> alt.LayerChart:
    """Chart each shape's predicted loss with its interval, and beside it the true one of those that were trained."""
    rows = [_loss_row(one, result) for one in _list_shapes(result)]
    fields = [("name", "shape"), ("true_text", "loss ± s.e."), ("predicted_text", "predicted"), ("off", "off by")]
    x = _encode(_gather(rows), LOSS)
    return _chart_pairs(rows, x, kinds=("predicted", "true"), fields=[*fields, ("verdict", "verdict")])


def chart_latencies(result: StudyResult) -> alt.LayerChart:
    """Chart each shape's predicted and measured latency, and the budget."""
    rows = [_latency_row(one, result) for one in _list_shapes(result)]
    fields = [("name", "shape"), ("true_text", "measured"), ("predicted_text", "predicted"), ("off", "off by")]
    fields += [("verdict", "verdict")]
    limit = [] if result.budget_s is None else [result.budget_s]
    x = _encode([*_gather(rows), *limit], "total latency", seconds=True)
    layers = [*_mark_budget(limit[0], x)] if limit else []
    return _chart_pairs(rows, x, kinds=("predicted", "measured"), fields=fields, below=layers)


def chart_agreement(result: StudyResult, points: Points) -> alt.LayerChart:
    """Chart predicted against true loss: the runs that the law was fitted to, and the candidates with intervals."""
    runs = [
        {
            "kind": "fitted runs",
            "name": row["run"],
            "true": row["measured"],
            "predicted": row["predicted"],
            "true_text": format_loss(row["measured"]),
            "predicted_text": format_loss(row["predicted"]),
        }
        for row in points.rows()
    ]
    trained = [{**_loss_row(one, result), "kind": "trained candidates"} for one in result.candidates]
    fields = [("name", "run"), ("true_text", "loss"), ("predicted_text", "predicted")]
    return _chart_diagonal(runs, trained, titles=("true loss", "predicted loss"), fields=fields)


def chart_timing(result: StudyResult, latencies: Comparison) -> alt.LayerChart:
    """Chart predicted against measured latency: shapes measured to calibrate the device, and the candidates."""
    others = [
        {
            "kind": "measured to calibrate",
            "name": m.name,
            "true": m.latency.total_s,
            "predicted": float(p.total_s),
            "true_text": format_seconds(m.latency.total_s),
            "predicted_text": format_seconds(float(p.total_s)),
        }
        for m, p in zip(latencies.measured, latencies.predicted, strict=True)
    ]
    timed = [one for one in result.candidates if one.measured_s is not None]
    trained = [{**_latency_row(one, result), "kind": "trained candidates"} for one in timed]
    fields = [("name", "shape"), ("true_text", "measured"), ("predicted_text", "predicted")]
    return _chart_diagonal(
        others, trained, titles=("measured latency", "predicted latency"), fields=fields, seconds=True
    )


def chart_curves(curves: Sequence[Curve]) -> alt.LayerChart:
    """Chart training loss over tokens, a line a candidate, and dots for held-out loss."""
    import altair as alt

    lines, dots = (
        [{"name": c.name, "tokens": tokens, "loss": loss} for c in curves for tokens, loss in getattr(c, field)]
        for field in ("training", "held_out")
    )
    dots = [{**row, "text": format_loss(row["loss"]), "tokens_text": format_count(row["tokens"])} for row in dots]
    x = _encode_tokens([row["tokens"] for row in (*lines, *dots)])
    y = _encode([row["loss"] for row in (*lines, *dots)], LOSS)(alt.Y, "loss")
    names = [curve.name for curve in curves]
    color = alt.Color("name", type="nominal", sort=names, legend=alt.Legend(title=None) if len(names) > 1 else None)
    fields = [("name", "shape"), ("tokens_text", "tokens"), ("text", "held-out loss")]
    return _layer(
        _chart(lines).mark_line(style="curve", strokeWidth=1.4, opacity=0.7).encode(x=x, y=y, color=color),
        _chart(dots)
        .mark_point(style="dot", filled=True, size=64)
        .encode(x=x, y=y, color=color, tooltip=_words(fields)),
        height=300,
    )


def chart_costs(result: StudyResult) -> alt.Chart:
    """Chart how long each stage took."""
    import altair as alt

    rows = [
        {"stage": name, "seconds": cost.seconds, "text": format_duration(cost.seconds)}
        for name, cost in result.costs.items()
    ]
    y = alt.Y("stage", type="nominal", sort=None, title=None, axis=alt.Axis(labelLimit=LABEL))
    x = alt.X("seconds", type="quantitative", title="seconds", axis=alt.Axis(tickCount=5, format="~s"))
    bars = _chart(rows).mark_bar(height=14, cornerRadiusEnd=3)
    encoded = bars.encode(x=x, y=y, tooltip=_words([("stage", "stage"), ("text", "took")]))
    return encoded.properties(height=26 * len(rows))


def list_trained(result: StudyResult) -> list[Trained]:
    """List where the measured candidates came out, for a plan's chart."""
    return [
        Trained(
            total=one.measured_s,
            cost=one.true_loss,
            from_total=one.predicted_s,
            from_cost=one.predicted_loss,
            about={
                "trained": _label(one, result),
                "loss ± s.e.": format_error(one.true_loss, one.true_loss_se),
                "predicted loss": format_predicted(one),
                "latency": format_latency(one) or "",
                "predicted latency": format_seconds(one.predicted_s),
            },
        )
        for one in result.candidates
        if one.measured_s is not None
    ]


def _list_shapes(result: StudyResult) -> list[Candidate | Rival]:
    """List what is compared: the chosen candidate, the others as they were ranked, then rivals."""
    chosen = find_chosen(result)
    ordered = sorted(result.candidates, key=lambda one: (one is not chosen, one.rank))
    return [*ordered, *result.rivals]


def _label(one: Candidate | Rival, result: StudyResult) -> str:
    if isinstance(one, Rival):
        return f"{one.name} (not trained)"
    return f"{one.name} (chosen)" if one is find_chosen(result) else one.name


def _loss_row(one: Candidate | Rival, result: StudyResult) -> Row:
    row: Row = {
        "name": _label(one, result),
        "predicted": one.predicted_loss,
        "low": one.loss_low,
        "high": one.loss_high,
        "predicted_text": format_predicted(one),
        "verdict": one.why if isinstance(one, Rival) else judge(one, result),
    }
    if isinstance(one, Candidate):
        row |= {"true": one.true_loss, "true_text": format_error(one.true_loss, one.true_loss_se)}
        row |= {"off": format_share(one.loss_error)}
    return row


def _latency_row(one: Candidate | Rival, result: StudyResult) -> Row:
    row: Row = {
        "name": _label(one, result),
        "predicted": one.predicted_s,
        "predicted_text": format_seconds(one.predicted_s),
        "verdict": one.why if isinstance(one, Rival) else judge(one, result),
    }
    if isinstance(one, Candidate) and one.measured_s is not None:
        row |= {"true": one.measured_s, "true_text": format_latency(one)}
        row |= {"off": format_share(one.predicted_s / one.measured_s - 1)}
        if one.measured_low_s is not None and one.measured_high_s is not None:
            row |= {"true_low": one.measured_low_s, "true_high": one.measured_high_s}
    return row


def _gather(rows: Sequence[Row]) -> list[float]:
    """Gather all that an axis must hold."""
    ends = ("predicted", "true", "low", "high", "true_low", "true_high")
    return [row[key] for row in rows for key in ends if key in row]


def _mark_budget(limit: float, x: Any) -> list[Any]:
    import altair as alt

    at = _chart([{"limit": limit, "text": f"budget {format_seconds(limit)}"}])
    text = at.mark_text(style="equal-text", align="right", dx=-4, dy=-6)
    return [
        at.mark_rule(style="reference").encode(x=x(alt.X, "limit")),
        text.encode(x=x(alt.X, "limit"), y=alt.value(0), text="text:N"),
    ]


def _chart_pairs(
    rows: Sequence[Row],
    x: Any,
    *,
    kinds: tuple[str, str],
    fields: Sequence[tuple[str, str]],
    below: Sequence[Any] = (),
) -> alt.LayerChart:
    """Chart predicted and true values of one shape a row, with the intervals that are known."""
    import altair as alt

    axis = alt.Axis(labelLimit=LABEL, labelOverlap=False, grid=True)
    y = alt.Y("name", type="nominal", sort=[row["name"] for row in rows], title=None, axis=axis)
    scale = alt.Scale(domain=list(kinds))
    color = alt.Color("kind", type="nominal", scale=scale, legend=alt.Legend(title=None))
    layers, dots = [*below], []
    ends = (("predicted", "low", "high", 6.0), ("true", "true_low", "true_high", 2.5))
    for kind, (field, low, high, width) in zip(kinds, ends, strict=True):
        held = [{**row, "kind": kind} for row in rows if low in row]
        bars = _chart(held).mark_rule(style="whisker", strokeWidth=width, opacity=0.3, strokeCap="round")
        layers += [bars.encode(x=x(alt.X, low), x2=f"{high}:Q", y=y, color=color)] if held else []
        held = [{**row, "kind": kind} for row in rows if field in row]
        marks = _chart(held).mark_point(style="dot", filled=True, size=90)
        dots += [marks.encode(x=x(alt.X, field), y=y, color=color, tooltip=_words(fields))] if held else []
    return _layer(*layers, *dots, height=ROW * len(rows))


def _chart_diagonal(
    others: Sequence[Row],
    trained: Sequence[Row],
    *,
    titles: tuple[str, str],
    fields: Sequence[tuple[str, str]],
    seconds: bool = False,
) -> alt.LayerChart:
    """Chart predicted against true values with the line where they agree; candidates stand out, with intervals."""
    import altair as alt

    rows = [*others, *trained]
    values = _gather(rows)
    across, up = (_encode(values, title, seconds=seconds) for title in titles)
    x = across(alt.X, "true")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    color = alt.Color("kind", type="nominal", scale=alt.Scale(domain=kinds), legend=alt.Legend(title=None))
    line = _chart([{"true": end, "predicted": end} for end in (min(values), max(values))]).mark_line(style="reference")
    specks = _chart(others).mark_point(style="dot", filled=True, size=40, opacity=0.7)
    held = [row for row in trained if "low" in row]
    bars = _chart(held).mark_rule(style="whisker", strokeWidth=2.5, opacity=0.5, strokeCap="round")
    dots = _chart(trained).mark_point(style="dot", filled=True, size=64, opacity=1)
    more = [*fields, ("off", "off by"), ("verdict", "verdict")]
    return _layer(
        line.encode(x=x, y=up(alt.Y, "predicted")),
        specks.encode(x=x, y=up(alt.Y, "predicted"), color=color, tooltip=_words(fields)),
        *([bars.encode(x=x, y=up(alt.Y, "low"), y2="high:Q", color=color)] if held else []),
        dots.encode(x=x, y=up(alt.Y, "predicted"), color=color, tooltip=_words(more)),
        height=SQUARE,
    )


def _encode(values: Sequence[float], title: str, *, seconds: bool = False) -> Any:
    """Make the encoder of a quantity, with a scale that just holds its values; seconds in the unit that fits them."""
    import altair as alt

    low, high = min(values), max(values)
    if high > WIDE * low > 0:
        room = (high / low) ** 0.04
        scale = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    else:
        room = 0.06 * (high - low) if high > low else 0.05 * abs(high) or 1.0
        scale = alt.Scale(type="linear", domain=[low - room, high + room], nice=False, zero=False)
    axis = alt.Axis(format="~g", tickCount=6)
    if seconds:
        size, unit = next((pair for pair in UNITS if high >= pair[0]), UNITS[-1])
        title = f"{title} ({unit})"
        axis = alt.Axis(labelExpr=f"format(datum.value / {size}, '~g')", tickCount=6)
    return lambda channel, field: channel(field, type="quantitative", title=title, scale=scale, axis=axis)


def _encode_tokens(values: Sequence[float]) -> Any:
    """Encode training tokens on a logarithmic axis with a tick a decade."""
    import altair as alt

    low, high = min(values), max(values)
    scale = alt.Scale(type="log", domain=[low, high * 1.08], nice=False)
    decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    axis = alt.Axis(values=decades, labelExpr=SHORT) if len(decades) > 1 else alt.Axis(labelExpr=SHORT)
    return alt.X("tokens", type="quantitative", title="training tokens", scale=scale, axis=axis)


def _chart(rows: Sequence[Row]) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=list(rows)))


def _words(fields: Sequence[tuple[str, str]]) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(field, type="nominal", title=title) for field, title in fields]


def _layer(*layers: Any, height: int) -> alt.LayerChart:
    import altair as alt

    chart: Any = alt.layer(*layers)
    return chart.properties(height=height)
