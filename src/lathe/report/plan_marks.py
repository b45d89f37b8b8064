"""Marks over a plan's chart: the budget's edge, published and trained shapes, the nearest, and the best.

Each function takes the chart's encodings, `x` as it is and `y` of a field, and returns layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

Row = dict[str, Any]

EDGE = 0.18
"""The share of the chart's width, at its left, that is no place for a name to end in."""
MOST = 0.64
"""The share beyond which a name cannot begin."""
LABELS = 4
APART = 0.06
"""Names nearer to each other, as a share of the chart's height, would hide one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Hold where a trained shape came out, and from where it was predicted; `about` is what to say of it, by title."""

    total: float
    cost: float
    from_total: float
    from_cost: float
    about: Mapping[str, str]

    def row(self) -> Row:
        """Lay it out for a chart."""
        places = {name: getattr(self, name) for name in ("total", "cost", "from_total", "from_cost")}
        return places | {f"about_{i}": text for i, text in enumerate(self.about.values())}


def mark_edge(x: Any, param: str) -> alt.LayerChart:
    """Draw the latency budget, which a param of the chart holds, and veil what lies beyond it."""
    import altair as alt

    at = alt.Chart(alt.InlineData(values=[{}])).transform_calculate(total=param, text=f"'≤ ' + {param} + ' s'")
    end = x.to_dict()["scale"]["domain"][1]
    edge: Any = alt.layer(
        at.mark_rect(style="veil", clip=True).encode(x=x, x2=alt.X2Datum(end)),
        at.mark_rule(style="reference", clip=True).encode(x=x),
        at.mark_text(style="equal-text", align="right", dx=-4, clip=True).encode(x=x, y=alt.value(6), text="text:N"),
    )
    return edge


def mark_published(rows: Sequence[Row], x: Any, y: Any, fits: Any, tooltip: list[Any]) -> list[Any]:
    """Mark published shapes, and name the best of them where there is room."""
    import altair as alt

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


def mark_trained(trained: Sequence[Trained], x: Any, y: Any) -> list[Any]:
    """Mark where trained shapes came out, with a line from where they were predicted."""
    import altair as alt

    if not trained:
        return []
    base = alt.Chart(alt.InlineData(values=[one.row() for one in trained])).encode(x=x, y=y("cost"))
    ways = base.mark_rule(style="best", strokeWidth=1.2, opacity=0.7).encode(x2="from_total:Q", y2="from_cost:Q")
    marks = base.mark_point(style="best", shape="square", filled=True, size=70, opacity=1)
    tooltip = [alt.Tooltip(f"about_{i}", type="nominal", title=what) for i, what in enumerate(trained[0].about)]
    return [ways, marks.encode(tooltip=tooltip)]


def mark_nearest(rows: Sequence[Row], x: Any, y: Any) -> list[Any]:
    """Name the nearest shape where nothing fits, if it is among those shown."""
    import altair as alt

    named = [{**row, "label": f"nearest: {row['name']}"} for row in rows]
    return _write_best(alt.Chart(alt.InlineData(values=named)), x, y("cost")) if named else []


def mark_best(best: Any, x: Any, y: Any, tooltip: list[Any], *, name: str) -> list[Any]:
    """Ring the best shape, in a layer of the name given, and write what it is called."""
    ring = best.mark_point(style="best", filled=False, size=190, opacity=1).encode(x=x, y=y("shown"), tooltip=tooltip)
    return [ring.properties(name=name), *_write_best(best, x, y("shown"))]


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
