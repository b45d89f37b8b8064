"""Lay out all there is to see of a law and its runs as one page."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from lathe.laws.law import Law
from lathe.report.html import DataTable, Page, Section
from lathe.report.law_charts import chart_fit, chart_levels, chart_predicted, chart_residuals
from lathe.report.law_levels import find_levels, reads_shape
from lathe.report.law_points import NARROW, Points, list_primaries, per_cent, read_points, short
from lathe.runs import Table


def law_page(
    law: Law,
    runs: Table,
    *,
    held_out: Table | None = None,
    level: float = 0.9,
    tokens: float | None = None,
    assume: Collection[str] = (),
) -> Page:
    """Show a law and its runs: charts, coefficients, and what cross-validation said of each form.

    Args:
        runs: the table the law was fitted to.
        held_out: runs it never saw, marked as such.
        level: probability of the bands and bars.
        tokens: training tokens for the chart over width and depth; the runs' median if not given.
        assume: as for `Law.predict`.

    Raises:
        LawError: a table lacks the target, or the law cannot predict a row.
    """
    points = read_points(law, runs, held_out=held_out, level=level, assume=assume)
    sections = [*_fit_sections(points), _residual_section(points), _predicted_section(points)]
    if reads_shape(points) and (levels := find_levels(points, tokens=tokens)) is not None:
        text = (
            f"Solid lines: equal {law.target}"
            + (f" at {short(levels.tokens)} training tokens" if levels.tokens is not None else "")
            + "; dashed: equal params. Rings are runs; veiled shapes are unlike any run."
            + (" The bold line joins the shapes with the lowest loss at their params." if levels.best else "")
        )
        sections.append(Section(heading="Width and depth", text=text, chart=chart_levels(points, levels)))
    sections += [_coefficients(law), *_ranking(law)]
    return Page(
        title=f"Scaling law: {law.name}"
        if len(law.averaged) < 4
        else f"Scaling law: average of {len(law.averaged)} forms",
        lead=tuple(f"{m.form.name}: {m.form.formula}" for m in law.averaged),
        figures=_figures(points),
        notes=law.warnings,
        sections=sections,
    )


def _fit_sections(points: Points) -> list[Section]:
    law = points.law
    needed = list_primaries(law.columns, points.columns)
    shaped = bool({"params", "non_embedding_params", "d_model", "n_layers"} & set(needed))
    axes = [
        *(["tokens"] if "tokens" in needed else []),
        *(["params"] if shaped and "params" in points.columns else []),
    ] or [needed[0]]
    band = f" Bands hold a new run with probability {per_cent(points.level)}." if points.low_n is not None else ""
    about = {
        "tokens": "A curve a size, for the shape in the middle of its runs.",
        "params": "A curve for each number of tokens per param, through the shapes typical of each size.",
    }
    found = []
    for axis in axes:
        values_n = points.columns[axis].astype(np.float64)
        if values_n.max() < values_n.min() * (NARROW if axis == "params" else 1.001):
            continue
        heading = f"{_say(law.target).capitalize()} against {_say(axis)}"
        found.append(Section(heading=heading, text=about.get(axis, "") + band, chart=chart_fit(points, axis=axis)))
    return found


def _residual_section(points: Points) -> Section:
    text = (
        "What the law leaves unexplained; the grey band holds"
        f" {per_cent(points.level)} of the error that cross-validation shows."
    )
    return Section(heading="Residuals", text=text, chart=chart_residuals(points))


def _predicted_section(points: Points) -> Section:
    text = "On the dashed line the law is right."
    if points.low_n is not None:
        text += f" Bars are {per_cent(points.level)} intervals for a new run."
    return Section(heading="Predicted against measured", text=text, chart=chart_predicted(points))


def _say(name: str) -> str:
    return name.replace("_", " ")


def _figures(points: Points) -> list[tuple[str, str]]:
    """Sum up how well the law does: errors are means of absolute residuals."""
    law, off_n = points.law, np.abs(points.residual_n)
    unit = {"%": " %"}.get(points.residual_unit, f" {points.residual_unit}")
    held_n = points.held_out_n
    found = [("runs fitted", str(int(np.sum(~held_n))))]
    if (~held_n).any():
        found.append(("mean error, fitted", f"{off_n[~held_n].mean():.2g}{unit}"))
    if held_n.any():
        found[0] = ("runs fitted + held out", f"{int(np.sum(~held_n))} + {int(held_n.sum())}")
        found.append(("mean error, held out", f"{off_n[held_n].mean():.2g}{unit}"))
    scale = 1 if points.residual_unit == "nats" else 100
    found.append(("cross-validation error", f"{law.cv * scale:.2g}{unit}"))
    if points.low_n is not None and points.high_n is not None:
        inside_n = (points.measured_n >= points.low_n) & (points.measured_n <= points.high_n)
        which_n, name = (held_n, "held out") if held_n.any() else (~held_n, "fitted")
        found.append((f"{name} in interval", f"{int(inside_n[which_n].sum())} of {int(which_n.sum())}"))
    return found


def _coefficients(law: Law) -> Section:
    errors = law.standard_errors
    rows = [(name, value, errors[name]) for name, value in law.coefficients.items()]
    table = DataTable(head=("coefficient", "value", "standard error"), rows=rows)
    return Section(heading="Coefficients", text=f"Fitted by {law.objective} to {law.runs} runs.", table=table)


def _ranking(law: Law) -> list[Section]:
    if len(law.ranking) < 2:
        return []
    unit = "%" if law.log else _say(law.target)

    def share(error: float | None) -> float | None:
        return None if error is None else error * (100 if law.log else 1)

    rows = [
        (s.form, share(s.leave_one_out), share(s.forward), s.weight, s.interval_weight)
        for s in law.ranking
        if not s.excluded
    ]
    head = ("form", f"one size left out ({unit})", f"all larger left out ({unit})", "weight", "weight in intervals")
    left_out = [f"{s.form}: {s.excluded}" for s in law.ranking if s.excluded]
    text = f"Error on runs a form was not fitted to, by folds of {law.folds}."
    text += f" Not considered: {'; '.join(left_out)}." if left_out else ""
    return [Section(heading="Cross-validation", text=text, table=DataTable(head=head, rows=rows))]
