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
from lathe.report.truth_charts import (
    LABEL,
    Row,
    chart_diagonal,
    chart_pairs,
    draw,
    encode,
    gather,
    layer,
    mark_limit,
    say,
)
from lathe.studies import Candidate, Rival, StudyResult

if TYPE_CHECKING:
    import altair as alt

LOSS = "loss (nats per token)"
SHORT = "replace(format(datum.value, '.4~s'), 'G', 'B')"


def chart_losses(result: StudyResult) -> alt.LayerChart:
    """Chart each shape's predicted loss with its interval, and beside it the true one of those that were trained."""
    rows = [_loss_row(one, result) for one in _list_shapes(result)]
    fields = [("name", "shape"), ("true_text", "loss ± s.e."), ("predicted_text", "predicted"), ("off", "off by")]
    x = encode(gather(rows), LOSS)
    return chart_pairs(rows, x, kinds=("predicted", "true"), fields=[*fields, ("verdict", "verdict")])


def chart_latencies(result: StudyResult) -> alt.LayerChart:
    """Chart each shape's predicted and measured latency, and the budget."""
    rows = [_latency_row(one, result) for one in _list_shapes(result)]
    fields = [("name", "shape"), ("true_text", "measured"), ("predicted_text", "predicted"), ("off", "off by")]
    fields += [("verdict", "verdict")]
    limit = [] if result.budget_s is None else [result.budget_s]
    x = encode([*gather(rows), *limit], "total latency", seconds=True)
    layers = [*mark_limit(limit[0], x)] if limit else []
    return chart_pairs(rows, x, kinds=("predicted", "measured"), fields=fields, below=layers)


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
    return chart_diagonal(runs, trained, titles=("true loss", "predicted loss"), fields=fields)


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
    return chart_diagonal(
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
    y = encode([row["loss"] for row in (*lines, *dots)], LOSS)(alt.Y, "loss")
    names = [curve.name for curve in curves]
    color = alt.Color("name", type="nominal", sort=names, legend=alt.Legend(title=None) if len(names) > 1 else None)
    fields = [("name", "shape"), ("tokens_text", "tokens"), ("text", "held-out loss")]
    return layer(
        draw(lines).mark_line(style="curve", strokeWidth=1.4, opacity=0.7).encode(x=x, y=y, color=color),
        draw(dots).mark_point(style="dot", filled=True, size=64).encode(x=x, y=y, color=color, tooltip=say(fields)),
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
    bars = draw(rows).mark_bar(height=14, cornerRadiusEnd=3)
    encoded = bars.encode(x=x, y=y, tooltip=say([("stage", "stage"), ("text", "took")]))
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
        return one.name
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
        if one.measured_p95_s is not None:
            row |= {"true_low": one.measured_s, "true_high": one.measured_p95_s}
    return row


def _encode_tokens(values: Sequence[float]) -> Any:
    """Encode training tokens on a logarithmic axis with a tick a decade."""
    import altair as alt

    low, high = min(values), max(values)
    scale = alt.Scale(type="log", domain=[low, high * 1.08], nice=False)
    decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    axis = alt.Axis(values=decades, labelExpr=SHORT) if len(decades) > 1 else alt.Axis(labelExpr=SHORT)
    return alt.X("tokens", type="quantitative", title="training tokens", scale=scale, axis=axis)
