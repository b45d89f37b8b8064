"""Chart what a decoder's layers do: heat maps by layer and head, bars of influence, the loss after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lathe.evals.analysis import Analysis, Heads

if TYPE_CHECKING:
    import altair as alt

CELL = 18
"""Pixels of a heat map's row where there is room; no map is lower than LEAST or higher than MOST."""
LEAST, MOST = 140, 620
HEIGHT = 220
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def chart_heads(found: Analysis, values: Heads, *, what: str, unit: str, marked: Sequence[int] = ()) -> alt.Chart:
    """Draw a heat map, the first layer on top; colours run along the logarithm, so that 1 and 2 can be told apart.

    Args:
        what: the values' name.
        unit: what visits are called.
        marked: visits whose labels get a dot.
    """
    import altair as alt

    rows = [
        {unit: visit, "head": head, what: value, "shown": f"{value:.2f}"}
        for visit, of_heads in enumerate(values)
        for head, value in enumerate(of_heads)
    ]
    highest = max(2.0, *(value for of_heads in values for value in of_heads))
    scale = alt.Scale(type="log", domain=[1, highest], scheme="viridis")
    ticks = [tick for tick in TICKS if tick <= highest]
    legend = alt.Legend(title=f"{what}, on a logarithmic scale", values=ticks, orient="top", gradientLength=220)
    label = f"indexof({list(marked)}, datum.value) < 0 ? datum.label : '● ' + datum.label"
    axis = {"labelAngle": 0, "labelOverlap": True}
    chart: Any = alt.Chart(alt.InlineData(values=rows)).mark_rect()
    chart = chart.encode(
        x=alt.X("head", type="ordinal", title="head", axis=alt.Axis(**axis)),
        y=alt.Y(unit, type="ordinal", title=unit, axis=alt.Axis(labelExpr=label, **axis)),
        color=alt.Color(what, type="quantitative", legend=legend, scale=scale),
        tooltip=_tooltip((unit, unit), ("head", "head"), ("shown", what)),
    )
    return chart.properties(height=min(MOST, max(LEAST, CELL * len(values))))


def chart_influence(found: Analysis, *, unit: str) -> alt.Chart:
    """Draw a bar for each layer; those that the effective depth counts stand out."""
    import altair as alt

    order = sorted(range(len(found.influence)), key=lambda visit: -found.influence[visit])
    counted = set(order[: found.effective_depth])
    rows = [
        {unit: visit, "influence": value, "shown": f"{value:.4f}", "counted": visit in counted}
        for visit, value in enumerate(found.influence)
    ]
    x_axis = alt.Axis(labelAngle=0, labelOverlap=True)
    y_axis = alt.Axis(tickCount=5, format="~g")
    chart: Any = alt.Chart(alt.InlineData(values=rows)).mark_bar()
    chart = chart.encode(
        x=alt.X(unit, type="ordinal", title=unit, axis=x_axis),
        y=alt.Y("influence", type="quantitative", title="1 − cosine of input and output", axis=y_axis),
        opacity=alt.when(alt.datum.counted).then(alt.value(1.0)).otherwise(alt.value(0.4)),
        tooltip=_tooltip((unit, unit), ("shown", "influence")),
    )
    return chart.properties(height=HEIGHT)


def chart_losses(found: Analysis, *, unit: str) -> alt.LayerChart:
    """Draw the loss after the embedding and after each layer."""
    import altair as alt

    names = ["embedding", *map(str, range(len(found.influence)))]
    rows = [
        {"after": name, "loss": loss, "shown": f"{loss:.4f}"}
        for name, loss in zip(names, found.lens_losses, strict=True)
    ]
    x_axis = alt.Axis(labelAngle=0, labelOverlap=True, labelExpr="datum.label == 'embedding' ? 'emb.' : datum.label")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("after", type="ordinal", sort=names, title=f"after the embedding, after {unit}", axis=x_axis),
        y=alt.Y(
            "loss", type="quantitative", title="nats per token", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)
        ),
    )
    dots = base.mark_point(style="dot", filled=True, size=50)
    chart: Any = alt.layer(
        base.mark_line(style="curve"), dots.encode(tooltip=_tooltip(("after", "after"), ("shown", "loss")))
    )
    return chart.properties(height=HEIGHT)


def _tooltip(*fields: tuple[str, str]) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(field, type="nominal", title=title) for field, title in fields]
