"""Lay out laws for the terminal: coefficients, cross-validation, held-out runs, predictions, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from lathe.laws.compare import Comparison
from lathe.laws.law import Law, Member
from lathe.laws.optimum import LifetimeOptimum, Optimum
from lathe.laws.system import Array
from lathe.laws.uncertainty import Interval
from lathe.report.tables import format_count, format_percent, make_table, titled

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Held-out runs listed; of more, those with the largest errors."""

UNKNOWN = 100.0
"""A standard error of so many times its coefficient says no more than that it is unknown."""


def law_summary(law: Law) -> Group:
    """Lay out what a fit found: the law, its coefficients with errors, the ranking, and its warnings."""
    kind = f", {law.loss_kind}" if law.loss_kind else ""
    parts: list[RenderableType] = [
        Text.assemble((law.name, "bold"), f", fitted to {law.runs} runs ({law.target}{kind}; {law.objective})\n")
    ]
    parts += [coefficient_table(member) for member in law.averaged]
    if any(s.leave_one_out is not None for s in law.ranking):
        parts.append(ranking_table(law))
    return Group(*parts, *_notes(law.warnings))


def coefficient_table(member: Member) -> Group:
    """Lay out one form's coefficients with standard errors."""
    weight = f"   (weight {member.weight:.2f})" if member.weight < 1 else ""
    table = make_table("coefficient", "value", "± s.e.", "relative")
    errors = member.standard_errors
    for name, value in member.coefficients.items():
        share = errors[name] / value if value else np.inf
        relative = f"{share:.0%}" if share < UNKNOWN else "unknown"
        table.add_row(name, f"{value:.6g}", f"{errors[name]:.3g}", relative)
    return titled(member.form.formula + weight, table)


def ranking_table(law: Law) -> Group:
    """Lay out the forms by leave-one-size-out error."""
    rule, _, names = law.folds.partition(": ")
    table = make_table("form", "leave one out", "larger sizes", "weight", "in intervals")
    for s in law.ranking:
        if not s.excluded:
            cells = (format_percent(s.leave_one_out), format_percent(s.forward))
            table.add_row(s.form, *cells, f"{s.weight:.2f}", f"{s.interval_weight:.2f}")
    unused = [f"{s.form} not used: {s.excluded}" for s in law.ranking if s.excluded]
    return titled("Cross-validation: RMS error on sizes left out", table, f"sizes by {rule}: {names}", *unused)


def held_out_table(law: Law, runs: pd.DataFrame, *, level: float) -> Group:
    """Lay out predictions of runs the fit never saw beside the truth."""
    guess_n, true_n = law.predict(runs), runs[law.target].to_numpy(dtype=float)
    band = law.interval(runs, level=level) if law.has_draws else None
    heads = ["run", "params", "tokens", "true", "predicted", "error", *([f"{level:.0%} interval"] if band else [])]
    table = make_table(*heads)
    error_n = guess_n / true_n - 1
    for i in np.sort(np.argsort(-np.abs(error_n))[:SHOWN]):
        row = runs.iloc[int(i)]
        counts = [format_count(row[c]) if c in runs.columns else "–" for c in ("params", "tokens")]
        cells = [*counts, f"{true_n[i]:.4f}", f"{guess_n[i]:.4f}", f"{error_n[i]:+.2%}"]
        if band:
            cells.append(f"{band.low[i]:.4f} – {band.high[i]:.4f}")
        table.add_row(str(row.get("name", i)), *cells)
    size_n = np.abs(error_n)
    text = f"mean error {size_n.mean():.2%}, largest {size_n.max():.2%}, MSE {np.mean((guess_n - true_n) ** 2):.3g}"
    if band:
        inside = int(np.sum((true_n >= band.low) & (true_n <= band.high)))
        text += f"; {inside} of {len(runs)} inside their {level:.0%} interval"
    if len(runs) > SHOWN:
        text += f"; the {SHOWN} with the largest error are shown"
    return titled(f"Held out: {len(runs)} runs", table, text)


def prediction_table(
    names: Sequence[str], columns: Mapping[str, Any], law: Law, guess_n: Array, interval: Interval | None
) -> Group:
    """Lay out a law's prediction for each shape, with its interval and the interval's three parts."""
    heads = ["shape", "params", "tokens", law.target]
    if interval is not None:
        heads += [f"{interval.level:.0%} interval", "± fit", "± form", "± new run"]
    table = make_table(*heads)
    for i, name in enumerate(names):
        cells = [format_count(columns["params"][i]), format_count(columns["tokens"][i]), f"{guess_n[i]:.4f}"]
        if interval is not None:
            parts = (interval.bootstrap[i], interval.forms[i], interval.noise[i])
            cells += [f"{interval.low[i]:.4f} – {interval.high[i]:.4f}", *(format_percent(float(p)) for p in parts)]
        table.add_row(name, *cells)
    notes = law.extrapolation(columns)
    if interval is None:
        notes.append("this law keeps no bootstrap draws, so it gives no interval")
    return Group(table, *_notes(notes))


def comparison_table(found: Iterable[Comparison], *, focus: str) -> Group:
    """Lay out forms side by side on one split, in the columns the papers use."""
    rows = list(found)
    few = len(rows[0].errors) <= 6
    heads = ["fitted to", "form", "MSE, all", "R²", "mean error", *(["errors, %"] if few else []), "Spearman"]
    table = make_table(*heads, text=2)
    for r in rows:
        each = ["/".join(f"{100 * e:.2f}" for e in r.errors)] if few else []
        rank = "–" if r.spearman is None else f"{r.spearman:.3g}"
        fitted = f"{r.fit_set} ({r.fit_runs} runs)"
        table.add_row(fitted, r.form, f"{r.mse:.5g}", f"{r.r2:.6g}", f"{r.mean_error:.3%}", *each, rank)
    return titled(f"Errors and ranks over {focus}; MSE and R² over all {rows[0].test_runs} runs", table)


def optimum_table(found: Optimum | LifetimeOptimum) -> Group:
    """Lay out the best split of a budget, or the cheapest way to a loss."""
    table = make_table("", "")
    rows = _lifetime_rows(found) if isinstance(found, LifetimeOptimum) else _optimum_rows(found)
    for row in rows:
        table.add_row(*row)
    return Group(table, *_notes(found.extrapolation))


def _optimum_rows(found: Optimum) -> list[tuple[str, str]]:
    def banded(value: float, low: float, high: float) -> str:
        return f"{format_count(value)}  ({found.level:.0%}: {format_count(low)} – {format_count(high)})"

    rows = [
        ("params", banded(found.params, found.params_low, found.params_high)),
        ("tokens", banded(found.tokens, found.tokens_low, found.tokens_high)),
        ("loss", f"{found.loss:.4f}"),
        ("training FLOPs", f"{found.flops:.3g}"),
    ]
    if found.aspect is not None and found.d_model is not None and found.n_layers is not None:
        rows.append(("width × depth", f"{found.d_model:.0f} × {found.n_layers:.1f}, before rounding"))
        rows.append(("aspect", f"{found.aspect:.3g}"))
    return rows


def _lifetime_rows(found: LifetimeOptimum) -> list[tuple[str, str]]:
    rows = [
        ("params", format_count(found.params)),
        ("tokens", format_count(found.tokens)),
        ("loss", f"{found.target_loss:.4f}"),
        ("training FLOPs", f"{found.training_flops:.3g}"),
        ("serving FLOPs", f"{found.inference_flops:.3g} for {format_count(found.inference_tokens)} tokens"),
        ("params, were nothing served", format_count(found.compute_optimal_params)),
    ]
    return rows + ([("aspect", f"{found.aspect:.3g}")] if found.aspect is not None else [])


def _notes(texts: Iterable[str]) -> list[Text]:
    return [Text(f"! {text}", style="yellow") for text in texts]
