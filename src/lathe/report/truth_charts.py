"""Chart predicted beside true values: a shape a row, or against each other with the line where they agree.

Rows are plain: `name`, `predicted` and `true`, the ends of intervals as `low` and `high` (of the prediction) and
`true_low` and `true_high`, and whatever is to be said of a row when it is pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lathe.report.latency_tables import format_seconds

if TYPE_CHECKING:
    import altair as alt

Row = dict[str, Any]

ROW = 34
"""Pixels that a shape takes up."""
LABEL = 130
"""Pixels that its name may take up."""
SQUARE = 340
WIDE = 8.0
"""Values that span more than this factor go on a logarithmic axis."""
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def gather(rows: Sequence[Row]) -> list[float]:
    """Gather all that an axis must hold."""
    ends = ("predicted", "true", "low", "high", "true_low", "true_high")
    return [row[key] for row in rows for key in ends if key in row]


def mark_limit(limit: float, x: Any) -> list[Any]:
    """Draw the budget, in seconds, across all rows."""
    import altair as alt

    at = draw([{"limit": limit, "text": f"budget {format_seconds(limit)}"}])
    text = at.mark_text(style="equal-text", align="right", dx=-4, dy=-6)
    return [
        at.mark_rule(style="reference").encode(x=x(alt.X, "limit")),
        text.encode(x=x(alt.X, "limit"), y=alt.value(0), text="text:N"),
    ]


def chart_pairs(
    rows: Sequence[Row],
    x: Any,
    *,
    kinds: tuple[str, str],
    fields: Sequence[tuple[str, str]],
    below: Sequence[Any] = (),
) -> alt.LayerChart:
    """Chart predicted and true values of one shape a row, with the intervals that are known.

    Args:
        x: what `encode` gives.
        kinds: what predicted and true values are called.
        fields: of a row to say when it is pointed at, as (field, title).
        below: layers under the others.
    """
    import altair as alt

    axis = alt.Axis(labelLimit=LABEL, labelOverlap=False, grid=True)
    y = alt.Y("name", type="nominal", sort=[row["name"] for row in rows], title=None, axis=axis)
    scale = alt.Scale(domain=list(kinds))
    color = alt.Color("kind", type="nominal", scale=scale, legend=alt.Legend(title=None))
    layers, dots = [*below], []
    ends = (("predicted", "low", "high", 6.0), ("true", "true_low", "true_high", 2.5))
    for kind, (field, low, high, width) in zip(kinds, ends, strict=True):
        held = [{**row, "kind": kind} for row in rows if low in row]
        bars = draw(held).mark_rule(style="whisker", strokeWidth=width, opacity=0.3, strokeCap="round")
        layers += [bars.encode(x=x(alt.X, low), x2=f"{high}:Q", y=y, color=color)] if held else []
        held = [{**row, "kind": kind} for row in rows if field in row]
        marks = draw(held).mark_point(style="dot", filled=True, size=90)
        dots += [marks.encode(x=x(alt.X, field), y=y, color=color, tooltip=say(fields))] if held else []
    return layer(*layers, *dots, height=ROW * len(rows))


def chart_diagonal(
    others: Sequence[Row],
    trained: Sequence[Row],
    *,
    titles: tuple[str, str],
    fields: Sequence[tuple[str, str]],
    seconds: bool = False,
) -> alt.LayerChart:
    """Chart predicted against true values with the line where they agree.

    Args:
        others: rows of one `kind`, small.
        trained: rows of another, which stand out, with their intervals, `off` and `verdict`.
        titles: of the axes of true and of predicted values.
        fields: as for `chart_pairs`.
        seconds: whether values are times.
    """
    import altair as alt

    rows = [*others, *trained]
    values = gather(rows)
    across, up = (encode(values, title, seconds=seconds) for title in titles)
    x = across(alt.X, "true")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    color = alt.Color("kind", type="nominal", scale=alt.Scale(domain=kinds), legend=alt.Legend(title=None))
    line = draw([{"true": end, "predicted": end} for end in (min(values), max(values))]).mark_line(style="reference")
    specks = draw(others).mark_point(style="dot", filled=True, size=40, opacity=0.7)
    dots = draw(trained).mark_point(style="dot", filled=True, size=64, opacity=1)
    more = [*fields, ("off", "off by"), ("verdict", "verdict")]
    return layer(
        line.encode(x=x, y=up(alt.Y, "predicted")),
        specks.encode(x=x, y=up(alt.Y, "predicted"), color=color, tooltip=say(fields)),
        *_mark_spans(trained, across, up, color),
        dots.encode(x=x, y=up(alt.Y, "predicted"), color=color, tooltip=say(more)),
        height=SQUARE,
    )


def _mark_spans(rows: Sequence[Row], across: Any, up: Any, color: Any) -> list[Any]:
    """Draw what is known of intervals: upright those of predictions, level those of measurements."""
    import altair as alt

    spans = []
    for low, places in (
        ("low", {"x": across(alt.X, "true"), "y": up(alt.Y, "low"), "y2": "high:Q"}),
        ("true_low", {"x": across(alt.X, "true_low"), "x2": "true_high:Q", "y": up(alt.Y, "predicted")}),
    ):
        held = draw([row for row in rows if low in row])
        bars = held.mark_rule(style="whisker", strokeWidth=2.5, opacity=0.5, strokeCap="round")
        spans += [bars.encode(color=color, **places)] if any(low in row for row in rows) else []
    return spans


def encode(values: Sequence[float], title: str, *, seconds: bool = False) -> Any:
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


def draw(rows: Sequence[Row]) -> alt.Chart:
    """Begin a chart of rows, as plain values."""
    import altair as alt

    return alt.Chart(alt.InlineData(values=list(rows)))


def say(fields: Sequence[tuple[str, str]]) -> list[Any]:
    """Say of a row, when it is pointed at, its fields, as (field, title)."""
    import altair as alt

    return [alt.Tooltip(field, type="nominal", title=title) for field, title in fields]


def layer(*layers: Any, height: int) -> alt.LayerChart:
    """Lay charts over one another, the first below."""
    import altair as alt

    chart: Any = alt.layer(*layers)
    return chart.properties(height=height)
