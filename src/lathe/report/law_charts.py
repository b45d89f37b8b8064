"""Chart a law and its runs: fit, residuals, predicted against measured, and level lines over width and depth.

Each function returns an Altair chart without title, width or theme: the page or file it goes to adds them.
Rows go in as plain values, which have no limit on their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from lathe.report.law_levels import Levels, nice_steps
from lathe.report.law_points import Groups, Points, Row, per_cent, trace

if TYPE_CHECKING:
    import altair as alt

HEIGHT = 320
CROWD = 400
"""Beyond this many runs dots are specks, and curves lie over them."""
TITLES = {"tokens": "training tokens", "loss": "loss (nats per token)", "tokens_per_param": "tokens per param"}
_COUNTS = ("params", "tokens", "non_embedding_params", "non_vocab_params", "vocab_params", "flops")
_SHORT = "replace(format(datum.value, '.4~s'), 'G', 'B')"


def chart_fit(points: Points, *, axis: str = "tokens") -> alt.LayerChart:
    """Chart the target along one axis: runs, the law through each group of them, and its band.

    Along params the groups are of equal tokens per param, along tokens of equal size; along any other axis there
    is one. Raises as `Law.predict` does.
    """
    import altair as alt

    groups, title = _groups(points, axis)
    curves = trace(points, axis=axis, groups=groups)
    ends = [row[key] for row in curves for key in ("low", "high", "predicted") if key in row]
    x = _encode(alt.X, axis, points.columns[axis], curves, log=axis in _COUNTS)
    y = _target(points, ends)
    pick = alt.selection_point(name=f"pick_{axis}", fields=["group"], bind="legend")
    color = _color("group", groups.labels, title)
    base = alt.Chart(_data(curves)).encode(x=x, **color)
    layers: list[Any] = []
    if points.low_n is not None:
        tint = alt.when(pick).then(alt.value(0.16)).otherwise(alt.value(0.02))
        layers.append(base.mark_area(style="band").encode(y=y("low"), y2="high:Q", opacity=tint))
    faded = alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.1))
    layers.append(base.mark_line(style="curve").encode(y=y("predicted"), opacity=faded))
    rows = [{**row, "group": groups.labels[i]} for row, i in zip(points.rows(), groups.index_n, strict=True)]
    dots = _dots(points, alt.Chart(_data(rows))).add_params(pick)
    faint = alt.when(pick).then(alt.value(0.4 if _crowded(points) else 0.95)).otherwise(alt.value(0.1))
    dots = dots.encode(x=x, y=y("measured"), opacity=faint, tooltip=_tooltip(points), **color)
    layers = [dots, *layers] if _crowded(points) else [*layers, dots]
    return _layer(layers, height=HEIGHT)


def chart_residuals(points: Points) -> alt.LayerChart:
    """Chart measured less predicted against params, in per cent, with cross-validation's noise behind.

    Coloured by tokens per param where the runs say, else by size. Where there are no params, against the law's
    first column.
    """
    import altair as alt

    axis = "params" if "params" in points.columns else points.law.columns[0]
    groups, title = (points.sizes, "size") if points.ratios is None else (points.ratios, "tokens per param")
    key = "group" if points.ratios is None else "ratio"
    x = _encode(alt.X, axis, points.columns[axis], [], log=axis in _COUNTS)
    unit = {"%": "%", "points": "percentage points"}.get(points.residual_unit, points.residual_unit)
    title_y = f"measured − predicted ({unit})"
    y = alt.Y("residual", type="quantitative", title=title_y)
    scale = (
        NormalDist().inv_cdf((1 + points.level) / 2) * points.law.cv * (1 if points.residual_unit == "nats" else 100)
    )
    noise = alt.Chart(_data([{"low": -scale, "high": scale}])).mark_rect(style="noise")
    zero = alt.Chart(_data([{"residual": 0}])).mark_rule(style="reference").encode(y=y)
    dots = _dots(points, alt.Chart(_data(points.rows())))
    dots = dots.encode(x=x, y=y, tooltip=_tooltip(points), **_color(key, groups.labels, title))
    band = noise.encode(y=alt.Y("low", type="quantitative", title=title_y), y2="high:Q")
    return _layer([band, zero, dots], height=HEIGHT)


def chart_predicted(points: Points) -> alt.LayerChart:
    """Chart predicted against measured, each with its interval, and the diagonal where they agree."""
    import altair as alt

    ends = [*points.predicted_n, *points.measured_n]
    ends += [] if points.low_n is None or points.high_n is None else [*points.low_n, *points.high_n]
    name = TITLES.get(points.law.target, points.law.target).replace("_", " ")
    low, high = _span(ends, log=points.law.log)
    x = _encode(alt.X, "measured", ends, [], log=points.law.log, title=f"measured {name}")
    y = _encode(alt.Y, "predicted", ends, [], log=points.law.log, title=f"predicted {name}")
    diagonal = alt.Chart(_data([{"measured": v, "predicted": v} for v in (low, high)]))
    layers: list[Any] = [diagonal.mark_line(style="reference").encode(x=x, y=y)]
    base = alt.Chart(_data(points.rows())).encode(x=x, **_color("group", points.sizes.labels, "size"))
    if points.low_n is not None:
        bar_y = _encode(alt.Y, "low", ends, [], log=points.law.log, title=f"predicted {name}")
        layers.append(base.mark_rule(style="whisker").encode(y=bar_y, y2="high:Q"))
    layers.append(_dots(points, base).encode(y=y, tooltip=_tooltip(points)))
    return _layer(layers, height=HEIGHT + 60)


def chart_levels(points: Points, levels: Levels) -> alt.LayerChart:
    """Chart lines of equal loss over width and depth, lines of equal params, and the best shape along those.

    The runs' shapes lie over it; shapes unlike any run's are veiled.
    """
    import altair as alt

    wide = alt.Scale(type="log", domain=list(levels.widths), nice=False)
    deep = alt.Scale(type="log", domain=list(levels.depths), nice=False)
    x = alt.X(
        "d_model", type="quantitative", title="width d_model", scale=wide, axis=_axis(_halvings(*levels.widths), "d")
    )
    y = alt.Y(
        "n_layers", type="quantitative", title="depth n_layers", scale=deep, axis=_axis(_halvings(*levels.depths), "d")
    )

    def lay(rows: Sequence[Row]) -> alt.Chart:
        return alt.Chart(_data(rows)).encode(x=x, y=y)

    def write(rows: Sequence[Row], field: str, style: str, **place: Any) -> alt.Chart:
        return lay(rows).mark_text(style=style, **place).encode(text=f"{field}:N")

    title = TITLES.get(points.law.target, points.law.target).replace("_", " ")
    legend = alt.Legend(title=title, type="gradient", gradientLength=220, gradientThickness=10)
    fill = alt.Fill("level", type="quantitative", scale=alt.Scale(range="ramp", zero=False), legend=legend)
    layers: list[alt.Chart] = [
        lay(levels.bands).mark_area(strokeWidth=0, opacity=1).encode(y2="to:Q", fill=fill),
        lay(levels.unseen).mark_area(style="veil").encode(y2="to:Q", detail="part:N"),
        lay(levels.equal).mark_line(style="equal").encode(detail="params:N"),
        lay(levels.lines).mark_line(style="iso").encode(detail="level:N"),
        write(levels.equal_labels, "params", "equal-text", dx=4, align="left"),
        write(levels.labels, "text", "iso-text", dy=-6, dx=8),
    ]
    if levels.best:
        layers.append(lay(levels.best).mark_line(style="best"))
        middle = {**levels.best[len(levels.best) // 2], "text": "best shape"}
        layers.append(write([middle], "text", "best-text", dy=-12, align="right"))
    rings = lay(points.rows()).mark_point(style="ring", filled=True).encode(tooltip=_tooltip(points))
    return _layer([*layers, rings], height=HEIGHT + 100)


def _groups(points: Points, axis: str) -> tuple[Groups, str]:
    if axis == "params" and points.ratios is not None:
        return points.ratios, "tokens per param"
    if axis in ("params", "tokens"):
        return (points.sizes, "size") if axis == "tokens" else (_all(points), "")
    return _all(points), ""


def _all(points: Points) -> Groups:
    return Groups(labels=("all runs",), index_n=np.zeros(len(points.names), dtype=np.intp))


def _layer(layers: Sequence[Any], *, height: int) -> alt.LayerChart:
    import altair as alt

    chart: Any = alt.layer(*layers)  # Altair says "or facets", which only come of facets
    return chart.properties(height=height)


def _data(rows: Sequence[Row]) -> alt.InlineData:
    import altair as alt

    return alt.InlineData(values=list(rows))


def _target(points: Points, ends: Iterable[float]) -> Any:
    """Make the encoder of one y axis for every layer that shows the target."""
    import altair as alt

    values = [*points.measured_n, *(e for e in ends if e is not None)]
    title = TITLES.get(points.law.target, points.law.target).replace("_", " ")
    return lambda field: _encode(alt.Y, field, values, [], log=points.law.log, title=title)


def _encode(
    channel: Any, field: str, values: Iterable[float], curves: Sequence[Row], *, log: bool, title: str | None = None
) -> Any:
    """Encode a quantity with a scale that just holds its values and round ticks on it."""
    import altair as alt

    low, high = _span([*values, *(row[field] for row in curves if field in row)], log=log)
    kind: dict[str, Any] = {"type": "log"} if log else {"type": "linear", "zero": False}
    scale = alt.Scale(domain=[low, high], nice=False, **kind)
    title = title or TITLES.get(field, field.replace("_", " "))
    if log and field in _COUNTS:
        axis = _axis(_enough(_decades(low, high), low, high), None)
    else:
        axis = _axis(nice_steps(low, high, count=8), "~g")
    return channel(field, type="quantitative", title=title, scale=scale, axis=axis)


def _axis(ticks: Sequence[float], format_: str | None) -> alt.Axis:
    import altair as alt

    if format_ is None:
        return alt.Axis(values=list(ticks), labelExpr=_SHORT)
    return alt.Axis(values=list(ticks), format=format_)


def _span(values: Iterable[float], *, log: bool) -> tuple[float, float]:
    """Bound values with 3 % of room at each end."""
    known = np.array([v for v in values if v is not None], dtype=np.float64)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    low, high = float(known.min()), float(known.max())
    if log:
        room = max((high / low) ** 0.03, 1.005)
        return low / room, high * room
    room = max(0.03 * (high - low), 1e-3 * abs(high), 1e-9)
    return low - room, high + room


def _enough(ticks: list[float], low: float, high: float) -> list[float]:
    """Keep ticks if they are three or more, else take evenly spaced ones."""
    return ticks if len(ticks) > 2 else nice_steps(low, high, count=5)


def _decades(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 10**2.5 else (1,)
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [float(s * 10**p) for p in powers for s in steps if low <= s * 10**p <= high]


def _halvings(low: float, high: float) -> list[float]:
    powers = np.arange(np.floor(np.log2(low)) - 1, np.ceil(np.log2(high)) + 1)
    ticks = [float(s * 2**p) for p in powers for s in (1, 1.5) if low <= s * 2**p <= high and s * 2**p % 1 == 0]
    return _enough(ticks, low, high)


def _color(field: str, labels: Sequence[str], title: str) -> dict[str, Any]:
    """Colour by group, from the smallest along the theme's ramp; nothing for a single group."""
    import altair as alt

    if len(labels) < 2:
        return {}
    scale, legend = alt.Scale(domain=list(labels)), alt.Legend(title=title)
    return {"color": alt.Color(field, type="ordinal", sort=list(labels), scale=scale, legend=legend)}


def _crowded(points: Points) -> bool:
    return len(points.names) > CROWD


def _dots(points: Points, chart: alt.Chart) -> alt.Chart:
    """Draw a mark a run, small where there are many; held-out runs, if any, are large diamonds."""
    import altair as alt

    style, size = ("speck", 12) if _crowded(points) else ("dot", 46)
    dots = chart.mark_point(style=style, filled=True, size=size)
    if not points.held_out_n.any():
        return dots
    scale = alt.Scale(domain=["fitted", "held out"], range=["circle", "diamond"])
    large = alt.when(alt.datum.split == "held out").then(alt.value(120)).otherwise(alt.value(size))
    return dots.encode(shape=alt.Shape("split", type="nominal", scale=scale, legend=alt.Legend(title=None)), size=large)


def _tooltip(points: Points) -> list[Any]:
    import altair as alt

    fields = points.fields
    known: list[tuple[str, str, str | None]] = [
        ("run", "run", None),
        ("split", "", None),
        ("shape", "width × depth", None),
        ("params", "params", ".4~s"),
        ("tokens", "tokens", ".4~s"),
        ("tokens_per_param", "tokens per param", ".3~g"),
        ("measured", "measured", ".4~f"),
        ("predicted", "predicted", ".4~f"),
        ("residual", f"difference ({points.residual_unit})", "+.2f"),
        ("low", f"{per_cent(points.level)} from", ".4~f"),
        ("high", f"{per_cent(points.level)} to", ".4~f"),
    ]
    found = []
    for field, title, format_ in known:
        if field in fields:
            kind = "nominal" if format_ is None else "quantitative"
            extra: dict[str, Any] = {} if format_ is None else {"format": format_}
            found.append(alt.Tooltip(field, type=kind, title=title or "was", **extra))
    return found
