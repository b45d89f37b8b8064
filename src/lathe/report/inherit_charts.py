"""Chart a comparison of ways to start: what each came to against random, over FLOPs, and for its latency.

Colour says where first weights come from. Each function returns an Altair chart without title, width or theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lathe.inherit.arms import ARMS
from lathe.inherit.results import InheritResult, Row
from lathe.report.inherit_tables import KINDS, format_difference, name_shape
from lathe.report.latency_tables import format_seconds
from lathe.report.study_tables import format_error
from lathe.report.truth_charts import ROW, draw, encode, layer, say

if TYPE_CHECKING:
    import altair as alt

Mark = dict[str, Any]

LOSS = "held-out loss (nats per token)"
FROM = ("the reference's weights", "random weights", "random weights, with a teacher", "the reference itself")
"""Where first weights come from, in the order of the theme's colours."""
LABEL = 170
"""Pixels that an arm's name may take up."""
HEIGHT, APART = 380, 15
"""Pixels of a chart, and between the names in it."""
EARLY = 1 / 8
"""The share of a curve that is left out above: losses fall steeply there, and the rest would be flat."""
ROOM = 0.26
"""The share of a chart's width that names at its right take up."""
SURE = 1.96
"""Standard errors of a 95 % interval."""


def chart_differences(result: InheritResult) -> alt.LayerChart:
    """Chart each arm's loss less the random arm's, with the 95 % interval of the paired difference."""
    import altair as alt

    rows = []
    for row in result.ranked():
        if row.versus_random is not None:
            apart, half = row.versus_random.difference, SURE * (row.versus_random.se or 0.0)
            rows.append(_about(row) | {"apart": apart, "low": apart - half, "high": apart + half})
    values = [row[end] for row in rows for end in ("low", "high")]
    x = encode([*values, 0.0], "loss less random's (nats per token)")
    axis = alt.Axis(labelLimit=LABEL, labelOverlap=False, grid=True)
    y = alt.Y("name", type="nominal", sort=[row["name"] for row in rows], title=None, axis=axis)
    marks = draw(rows)
    return layer(
        draw([{"apart": 0.0}]).mark_rule(style="reference").encode(x=x(alt.X, "apart")),
        marks.mark_rule(style="whisker", strokeWidth=3, opacity=0.45).encode(
            x=x(alt.X, "low"), x2="high:Q", y=y, color=_color(rows)
        ),
        marks.mark_point(style="dot", filled=True, size=80).encode(
            x=x(alt.X, "apart"), y=y, color=_color(rows), tooltip=_tell()
        ),
        height=ROW * len(rows),
    )


def chart_curves(result: InheritResult) -> alt.LayerChart:
    """Chart training loss over the FLOPs spent, a line an arm, and dots for the held-out loss in the end."""
    import altair as alt

    rows = [row for row in result.ranked() if row.curve]
    lines = [_about(row) | {"flops": flops, "loss": loss} for row in rows for flops, loss in row.curve]
    ends = [_about(row) | {"flops": row.spent, "loss": row.loss} for row in rows]
    later = [loss for row in rows for _, loss in row.curve[int(len(row.curve) * EARLY) :]]
    values = [*later, *(row.loss for row in rows)]
    last, color = max(row["flops"] for row in (*lines, *ends)), _color(ends)
    named = [row | {"label_x": 1.03 * last} for row in spread(ends, "flops", near=last, at=0.0, values=values)]
    y, title = encode(values, "loss (nats per token)"), "FLOPs spent, the reference's training left out"
    scale = alt.Scale(domain=[0, last * (1 + ROOM)], nice=False)
    axis = alt.Axis(format=".2~e", tickCount=5)

    def x(channel: Any, field: str) -> Any:
        return channel(field, type="quantitative", title=title, scale=scale, axis=axis)

    place = {"x": x(alt.X, "flops"), "y": y(alt.Y, "loss"), "color": color}
    return layer(
        draw(lines).mark_line(style="curve", strokeWidth=1.3, opacity=0.7, clip=True).encode(**place, detail="name:N"),
        *_name(named, x, "flops", y, color),
        draw(ends).mark_point(style="dot", filled=True, size=56).encode(**place, tooltip=_tell()),
        height=HEIGHT,
    )


def chart_latency(result: InheritResult) -> alt.LayerChart:
    """Chart each arm's loss against its latency, measured where it was; the reference's beside."""
    import altair as alt

    rows = [_about(row) | _place(row.serving.best_s, row.loss, row.loss_se) for row in result.ranked()]
    own = result.reference
    rows.append(
        {"name": "the reference", "from": FROM[-1], "loss_text": format_error(own.loss, own.loss_se)}
        | {"seconds_text": format_seconds(own.serving.best_s)}
        | _place(own.serving.best_s, own.loss, own.loss_se)
    )
    measured = own.serving.measured_s is not None
    values, seconds = [row[end] for row in rows for end in ("low", "high")], [row["seconds"] for row in rows]
    room = ROOM * (max(seconds) - min(seconds) or max(seconds))
    x = encode([*seconds, max(seconds) + room], f"latency, {'measured' if measured else 'predicted'}", seconds=True)
    y, color = encode(values, LOSS), _color(rows)
    marks = draw(rows)
    return layer(
        marks.mark_rule(style="whisker", strokeWidth=2.5, opacity=0.4).encode(
            x=x(alt.X, "seconds"), y=y(alt.Y, "low"), y2="high:Q", color=color
        ),
        *_name(spread(rows, "seconds", near=0.9 * room, at=0.1 * room, values=values), x, "seconds", y, color),
        marks.mark_point(style="dot", filled=True, size=80).encode(
            x=x(alt.X, "seconds"), y=y(alt.Y, "loss"), color=color, tooltip=_tell()
        ),
        height=HEIGHT,
    )


def chart_ledger(result: InheritResult) -> alt.LayerChart:
    """Chart what each arm cost by kind, the reference's own training last."""
    import altair as alt

    rows = [
        {"name": row.name, "kind": charge.kind, "order": KINDS.index(charge.kind), "what": charge.what}
        | {"flops": charge.flops, "text": f"{charge.flops:.4g}"}
        for row in result.ranked()
        for charge in row.ledger.charges
        if charge.flops
    ]
    axis = alt.Axis(labelLimit=LABEL, labelOverlap=False)
    y = alt.Y("name", type="nominal", sort=[row.name for row in result.ranked()], title=None, axis=axis)
    x = alt.X("flops", type="quantitative", title="FLOPs", axis=alt.Axis(format=".2~e", tickCount=5))
    color = alt.Color("kind", type="nominal", scale=alt.Scale(domain=list(KINDS)), legend=alt.Legend(title=None))
    bars = draw(rows).mark_bar(height=14)
    fields = [("name", "arm"), ("what", "for"), ("text", "FLOPs")]
    return layer(bars.encode(x=x, y=y, color=color, order="order:Q", tooltip=say(fields)), height=26 * len(result.rows))


def spread(rows: Sequence[Mark], x: str, *, near: float, at: float, values: Sequence[float]) -> list[Mark]:
    """Find room for names: adds `label_x` and `label`, where each row's is to stand.

    Names stand `at` to the right of their row, and over one another where rows are no farther apart than `near`;
    `values` are those of the upright axis.
    """
    apart = 1.12 * (max(values) - min(values)) * APART / HEIGHT  # the axis leaves some room at both ends
    found: list[Mark] = []
    for row in sorted(rows, key=lambda row: row["loss"]):
        below = [one["label"] + apart for one in found if abs(one[x] - row[x]) <= near]
        found.append(row | {"label": max([row["loss"], *below]), "label_x": row[x] + at})
    return found


def _name(rows: Sequence[Mark], x: Any, x_field: str, y: Any, color: Any) -> list[Any]:
    """Write each row's name, with a line to it from the row's place."""
    import altair as alt

    marks = draw(rows)
    lines = marks.mark_rule(strokeWidth=0.7, opacity=0.5).encode(
        x=x(alt.X, x_field), y=y(alt.Y, "loss"), x2="label_x:Q", y2="label:Q", color=color
    )
    texts = marks.mark_text(align="left", dx=3, fontSize=11)
    return [lines, texts.encode(x=x(alt.X, "label_x"), y=y(alt.Y, "label"), color=color, text="name:N")]


def _about(row: Row) -> Mark:
    """Lay out what is said of an arm when it is pointed at."""
    arm = ARMS[row.arm]
    origin = FROM[0] if arm.start is not None else FROM[2] if arm.taught else FROM[1]
    return {
        "name": row.name,
        "from": origin,
        "shape": name_shape(row),
        "loss_text": format_error(row.loss, row.loss_se),
        "apart_text": format_difference(row.versus_random) or "–",
        "seconds_text": format_seconds(row.serving.best_s),
    }


def _place(seconds: float, loss: float, se: float | None) -> dict[str, float]:
    half = SURE * (se or 0.0)
    return {"seconds": seconds, "loss": loss, "low": loss - half, "high": loss + half}


def _tell() -> list[Any]:
    return say(
        [("name", "arm"), ("shape", "shape"), ("loss_text", "loss ± s.e."), ("apart_text", "against random ± s.e."),
         ("seconds_text", "latency")]
    )  # fmt: skip


def _color(rows: Sequence[Mark]) -> Any:
    """Colour by where first weights come from, with only those kinds in the legend that there are."""
    import altair as alt

    kinds = [kind for kind in FROM if any(row["from"] == kind for row in rows)]
    legend = alt.Legend(title="starts from", columns=2, labelLimit=0)
    return alt.Color("from", type="nominal", scale=alt.Scale(domain=kinds), legend=legend)
