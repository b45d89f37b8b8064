"""Chart evaluations: accuracy per task beside chance, and where one evaluation differs from another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lathe.evals.compare import Comparison, TaskDifference
from lathe.evals.estimate import Z_95
from lathe.evals.results import Evaluation, TaskResult
from lathe.report.eval_tables import format_interval, format_p, format_score

if TYPE_CHECKING:
    import altair as alt

Row = dict[str, Any]

ROW = 26
"""Pixels that a task takes up."""
MORE = 14
"""Pixels that each further evaluation adds to a task."""
LABEL = 150
"""Pixels that a task's name may take up: a phone's chart has 370."""
WHISKER = ["whisker", "iso"]
"""Styles of an interval's line; a rule without a style that says its colour is black on either paper."""
CLEAR = 0.05
"""Differences whose adjusted p is below this stand out."""


def letter(index: int) -> str:
    """Name the evaluations of a page: A, B, C."""
    return chr(ord("A") + index)


def chart_accuracies(evaluations: Sequence[Evaluation]) -> alt.LayerChart:
    """Chart accuracy with its 95 % interval beside chance; on top the task that the first evaluation is best at."""
    import altair as alt

    rows = [_row(task, letter(i)) for i, one in enumerate(evaluations) for task in one.tasks]
    y = _tasks(sorted(rows, key=lambda row: (row["who"], -row["centred"])))
    place, fields = _tell_apart(len(evaluations))
    fields += [("accuracy_text", "accuracy ± s.e."), ("chance", "chance"), ("centred_text", "centred ± s.e.")]
    fields += [("items", "items"), ("shots", "shots")]
    high = max(max(row["high"], row["chance"]) for row in rows)
    x = _encode_x("accuracy, with its 95 % interval", 0, min(1.0, math.ceil(high * 10) / 10))
    height = ROW + MORE * (len(evaluations) - 1)
    base = alt.Chart(alt.InlineData(values=rows))
    chances = alt.Chart(alt.InlineData(values=[row for row in rows if row["chance"] > 0]))
    return _layer(
        chances.mark_tick(style="reference", thickness=2, size=0.65 * height).encode(x=x("chance"), y=y),
        base.mark_rule(style=WHISKER, strokeWidth=1.5).encode(x=x("low"), x2="high:Q", y=y, **place),
        base.mark_point(style="dot", filled=True, size=64).encode(
            x=x("accuracy"), y=y, tooltip=_tooltip(fields), **place
        ),
        height=height * len({row["task"] for row in rows}),
    )


def chart_differences(comparison: Comparison) -> alt.LayerChart:
    """Chart the second evaluation's accuracy less the first's per task, with 95 % intervals; largest gains on top."""
    import altair as alt

    rows = [_difference(task) for task in sorted(comparison.tasks, key=lambda task: -task.accuracy.difference)]
    y = _tasks(rows)
    fields = [("difference_text", "B − A ± s.e."), ("interval_text", "95 % interval"), ("gained", "only B right")]
    fields += [("lost", "only A right"), ("p_text", "p"), ("p_holm_text", "p, adjusted (Holm)")]
    far = 1.05 * max(0.01, *(abs(end) for row in rows for end in (row["low"], row["high"])))
    x = _encode_x("accuracy, B − A, with its 95 % interval", -far, far, format_="+.2~f")
    base = alt.Chart(alt.InlineData(values=rows))
    opacity = alt.when(alt.datum.p_holm < CLEAR).then(alt.value(1.0)).otherwise(alt.value(0.4))
    return _layer(
        alt.Chart(alt.InlineData(values=[{"none": 0}])).mark_rule(style="reference").encode(x=x("none")),
        base.mark_rule(style=WHISKER, strokeWidth=1.5).encode(x=x("low"), x2="high:Q", y=y),
        base.mark_point(style="dot", filled=True, size=64).encode(
            x=x("difference"), y=y, opacity=opacity, tooltip=_tooltip([("task", "task"), *fields])
        ),
        height=ROW * len(rows),
    )


def _row(task: TaskResult, who: str) -> Row:
    reach = Z_95 * (task.se or 0.0)
    return {
        "task": task.task,
        "who": who,
        "accuracy": task.accuracy,
        "low": max(0.0, task.accuracy - reach),
        "high": min(1.0, task.accuracy + reach),
        "chance": task.chance,
        "centred": task.centred,
        "accuracy_text": format_score(task.accuracy, task.se),
        "centred_text": format_score(task.centred, task.centred_se),
        "items": f"{task.items:,}",
        "shots": task.shots,
    }


def _difference(task: TaskDifference) -> Row:
    found = task.accuracy
    low, high = found.interval or (found.difference, found.difference)
    return {
        "task": task.task,
        "difference": found.difference,
        "low": low,
        "high": high,
        "difference_text": format_score(found.difference, found.se, digits=4, sign="+"),
        "interval_text": format_interval(found.interval, sign="+"),
        "gained": task.gained,
        "lost": task.lost,
        "p_holm": task.p_holm,
        "p_text": format_p(task.p),
        "p_holm_text": format_p(task.p_holm),
    }


def _tell_apart(evaluations: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Give what sets evaluations apart where there are several, and the fields that name a row."""
    import altair as alt

    if evaluations == 1:
        return {}, [("task", "task")]
    letters = [letter(i) for i in range(evaluations)]
    offset = alt.YOffset("who", type="nominal", sort=letters, scale=alt.Scale(paddingOuter=0.6))
    color = alt.Color("who", type="nominal", sort=letters, legend=alt.Legend(title=None))
    return {"yOffset": offset, "color": color}, [("task", "task"), ("who", "checkpoint")]


def _tasks(rows: Sequence[Row]) -> Any:
    """Encode a row's task, in the order of the rows."""
    import altair as alt

    order = list(dict.fromkeys(row["task"] for row in rows))
    axis = alt.Axis(labelLimit=LABEL, labelOverlap=False, grid=True)
    return alt.Y("task", type="nominal", sort=order, title=None, axis=axis)


def _encode_x(title: str, low: float, high: float, *, format_: str = "~g") -> Any:
    import altair as alt

    scale = alt.Scale(domain=[low, high], nice=False)
    axis = alt.Axis(format=format_, tickCount=5, grid=False, labelBound=6)
    return lambda field: alt.X(field, type="quantitative", title=title, scale=scale, axis=axis)


def _tooltip(fields: Sequence[tuple[str, str]]) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(field, type="nominal", title=title) for field, title in fields]


def _layer(*layers: Any, height: int) -> alt.LayerChart:
    import altair as alt

    chart: Any = alt.layer(*layers)
    return chart.properties(height=height)
