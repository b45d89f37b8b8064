"""Lay out a comparison of ways to start as one page that stands on its own: the answer first, then what it rests on."""

from __future__ import annotations

from lathe.inherit.results import InheritResult, Row
from lathe.report.html import Page, Section
from lathe.report.inherit_charts import chart_curves, chart_differences, chart_latency, chart_ledger
from lathe.report.inherit_tables import (
    about_table,
    arms_table,
    ledger_table,
    name_layers,
    totals_table,
    trials_table,
)
from lathe.report.latency_tables import format_seconds
from lathe.report.plan_page import write_sentence
from lathe.report.study_tables import format_error, settings_table
from lathe.report.tables import format_count


def inherit_page(result: InheritResult) -> Page:
    """Show what a comparison found, from its result alone."""
    best, workload = result.ranked()[0], result.workload
    reference = result.reference
    return Page(
        title=f"{result.name}: lowest loss from {best.name}",
        lead=(
            f"reference: {reference.shape.d_model}×{reference.shape.n_layers}, {format_count(reference.shape.params)} "
            f"params, loss {reference.loss:.4f}; layers {name_layers(result)} inherited",
            f"workload: {workload.batch} × ({workload.prompt_tokens} prompt + {workload.new_tokens} new tokens), "
            f"{workload.dtype}, on {result.device}",
        ),
        figures=_figures(result, best),
        notes=[write_sentence(note) for note in result.notes],
        sections=[*_answer(result, best), *_costs(result), *_provenance(result)],
    )


def _figures(result: InheritResult, best: Row) -> list[tuple[str, str]]:
    found = [("lowest loss", f"{best.loss:.4f}")]
    if best.versus_random is not None:
        found.append(("against random", f"{best.versus_random.difference:+.4f}"))
        found.append(("lower than random in", f"{best.lower} of {result.seeds} seeds"))
    found.append(("against the reference", f"{best.versus_reference.difference:+.4f}"))
    how = "predicted" if best.serving.measured_s is None else "measured"
    found.append((f"latency, {how}", format_seconds(best.serving.best_s)))
    found.append(("params", format_count(best.shape.params)))
    return [*found, ("FLOPs each arm spends", f"{result.budget_flops:.3g}")]


def _answer(result: InheritResult, best: Row) -> list[Section]:
    seeds = "one seed" if result.seeds == 1 else f"{result.seeds} seeds"
    text = (
        f"{best.name[:1].upper()}{best.name[1:]} ({best.what}) has the lowest held-out loss, "
        f"{format_error(best.loss, best.loss_se)} nats per token over {seeds}. All arms spent the same FLOPs on "
        "training and analyses, to half a step; the reference's own training comes on top for those that build on it."
    )
    sections = [Section(part="Answer", heading="What each start came to", text=text, table=arms_table(result))]
    if any(row.versus_random is not None for row in result.rows):
        text = (
            "Left of the dashed line is better than random first weights. Bars are 95 % intervals of the paired "
            "difference over held-out sequences; they say nothing of how seeds differ, which the trainings below do."
        )
        sections.append(Section(heading="Against random first weights", text=text, chart=chart_differences(result)))
    if any(row.curve for row in result.rows):
        text = f"Lines are training loss from seed {best.trials[0].seed}, dots the held-out loss at the end of all."
        sections.append(Section(heading="Loss against FLOPs", text=text, chart=chart_curves(result)))
    text = f"Bars are 95 % intervals. The inherited shape is predicted to take {format_seconds(result.target_s)}."
    sections.append(Section(heading="Loss against latency", text=text, chart=chart_latency(result)))
    return sections


def _costs(result: InheritResult) -> list[Section]:
    payers = [row for row in result.rows if any(one.kind == "reference" for one in row.ledger.charges)]
    text = "Every training, teacher's pass, analysis and look at held-out text, in FLOPs of one seed."
    if payers:
        text += " Who has the reference already has paid for it; who trains it for this has not."
    points = [
        f"{row.name}: {row.ledger.flops_with_reference / row.ledger.flops:.3g} times its own FLOPs with the reference's"
        for row in payers[:1]
        if row.ledger.flops and row.ledger.flops_with_reference
    ]
    return [
        Section(part="Costs", heading="The ledger", text=text, points=points, chart=chart_ledger(result)),
        Section(heading="FLOPs by kind", table=totals_table(result)),
        Section(heading="Every charge", table=ledger_table(result)),
    ]


def _provenance(result: InheritResult) -> list[Section]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    text = f"Made {result.created}" + (f", with {versions}." if versions else ".")
    return [
        Section(part="Provenance", heading="The arms", text=text, table=about_table(result)),
        Section(heading="Every training", table=trials_table(result)),
        Section(heading="Settings", text="As the study asked.", table=settings_table(result.study)),
    ]
