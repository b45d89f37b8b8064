"""Lay out a study as one page that stands on its own: the answer first, then how right it was, and what it rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lathe.report.eval_charts import letter
from lathe.report.eval_page import evaluation_page
from lathe.report.html import Page, Section
from lathe.report.latency_tables import format_seconds
from lathe.report.law_page import law_page
from lathe.report.plan_page import plan_page, write_sentence
from lathe.report.study_charts import (
    chart_agreement,
    chart_costs,
    chart_curves,
    chart_latencies,
    chart_losses,
    chart_timing,
    list_trained,
)
from lathe.report.study_files import Evidence, read_evidence
from lathe.report.study_tables import (
    candidates_table,
    costs_table,
    files_table,
    find_chosen,
    find_nearest,
    format_duration,
    format_level,
    format_share,
    recipes_table,
    scores_table,
    settings_table,
    versus_table,
)
from lathe.report.tables import format_count
from lathe.studies import Candidate, StudyResult

NAMED = 4
"""Files that are gone, to name; of more, how many."""
LAW_CHART = "Predicted against measured"
"""The section of a law's page that this one says better: its chart has the candidates too."""


def study_page(result: StudyResult, folder: Path) -> Page:
    """Show what a study found, from its result and the files in its folder.

    Files that are gone are left out, and named. Raises a LatheError for one that is there and cannot be read.
    """
    seen = read_evidence(result, folder)
    plan = None if seen.plan is None else plan_page(seen.plan, trained=list_trained(result))
    parts = {
        "Answer": _answer(result, plan),
        "Prediction and truth": _truth(seen),
        "Plan": _plan(plan),
        "Law": _law(seen),
        "Training": _training(seen),
        "Evaluation": _evaluation(seen),
        "Costs": _costs(result),
        "Provenance": _provenance(result),
    }
    sections = [
        replace(section, part=part if i == 0 else "")
        for part, found in parts.items()
        for i, section in enumerate(found)
    ]
    return Page(
        title=f"{result.name}: {result.chosen or 'nothing met the budget'}",
        lead=_lead(result, plan),
        figures=_figures(result, plan),
        notes=[*map(write_sentence, result.notes), *_gone(seen)],
        sections=sections,
    )


def _gone(seen: Evidence) -> list[str]:
    """Name the files that are gone in one note, or some of them."""
    if not seen.gone:
        return []
    more = len(seen.gone) - NAMED
    names = ", ".join(seen.gone[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return [f"Gone from the study's folder, so that what they held is left out: {names}."]


def _lead(result: StudyResult, plan: Page | None) -> tuple[str, ...]:
    """Say what was asked, as the plan does, or what is left to say without one."""
    if plan is not None:
        return tuple(plan.lead)
    return () if result.budget_s is None else (f"Budget: total latency ≤ {format_seconds(result.budget_s)}",)


def _figures(result: StudyResult, plan: Page | None) -> list[tuple[str, str]]:
    """Give the chosen shape's figures, or the nearest one's: of those trained, else of the plan's."""
    chosen, near = find_chosen(result), find_nearest(result)
    if chosen is not None:
        return _chosen_figures(result, chosen)
    if near is not None and near.measured_s is not None:
        found = [("nearest shape", near.name), ("latency, measured", format_seconds(near.measured_s))]
        found += _budget(result, near.measured_s)
        return [*found, ("true loss", f"{near.true_loss:.3f}"), ("params", format_count(near.shape.params))]
    return [] if plan is None else list(plan.figures)


def _chosen_figures(result: StudyResult, chosen: Candidate) -> list[tuple[str, str]]:
    found = [
        ("true loss", f"{chosen.true_loss:.3f}"),
        ("predicted loss", f"{chosen.predicted_loss:.3f}"),
        (f"its {format_level(result)}", f"{chosen.loss_low:.3f}–{chosen.loss_high:.3f}"),
        ("prediction off by", format_share(chosen.loss_error)),
    ]
    if result.rivals:
        rival = result.rivals[0]
        gain = rival.predicted_loss - chosen.predicted_loss
        found.append((f"predicted {'gain' if gain >= 0 else 'loss'} on {rival.name.split(',')[0]}", f"{abs(gain):.3f}"))
    if chosen.measured_s is None:
        found.append(("latency, predicted", format_seconds(chosen.predicted_s)))
    else:
        found.append(("latency, measured", format_seconds(chosen.measured_s)))
        found += _budget(result, chosen.measured_s)
    found += [("params", format_count(chosen.shape.params)), ("training tokens", format_count(chosen.tokens))]
    return [*found, ("trained in", format_duration(chosen.train_seconds))]


def _budget(result: StudyResult, seconds: float) -> list[tuple[str, str]]:
    """Say how much of the budget a latency is."""
    if result.budget_s is None:
        return []
    return [(f"of the {format_seconds(result.budget_s)} budget", format_share(seconds / result.budget_s, sign=""))]


def _answer(result: StudyResult, plan: Page | None) -> list[Section]:
    points: list[str] = []
    near = None if result.chosen is not None else find_nearest(result)
    if near is not None and near.measured_s is not None and result.budget_s is not None:
        points.append(
            f"Nearest is {near.name}: it took {format_seconds(near.measured_s)} where the budget is"
            f" {format_seconds(result.budget_s)}. Allow that much, or ask the plan for less."
        )
    if not result.candidates and plan is not None:
        points += [section.text for section in plan.sections if section.heading == "Limits"]
    points += [f"{rival.name}: {rival.why}." for rival in result.rivals]
    heading = "What was chosen, and what it beat" if result.chosen else "Nothing met the budget"
    table = versus_table(result) if result.candidates or result.rivals else None
    sections = [Section(heading=heading, text=write_sentence(result.reason), points=points, table=table)]
    if not result.candidates:
        return sections
    text = f"Bars are predicted {format_level(result)}s of a new run."
    text += " What was not trained has no true loss." if result.rivals else ""
    sections.append(Section(heading="Loss", text=text, chart=chart_losses(result)))
    text = "What the workload takes." + (" Left of the dashed line is within the budget." if result.budget_s else "")
    sections.append(Section(heading="Latency", text=text, chart=chart_latencies(result)))
    if result.sample:
        text = f"{result.chosen} goes on from the prompt." if result.prompt else f"Written by {result.chosen}."
        sections.append(
            Section(
                heading="In its own words",
                text=text,
                verbatim=result.sample if result.sample.startswith(result.prompt) else result.prompt + result.sample,
            )
        )
    return sections


def _truth(seen: Evidence) -> list[Section]:
    result, sections = seen.result, []
    if not result.candidates:
        return []
    inside = sum(one.inside for one in result.candidates)
    text = f"{inside} of {len(result.candidates)} true losses lie in their {format_level(result)}."
    sections.append(Section(heading="Every trained candidate", text=text, table=candidates_table(result)))
    if seen.points is not None:
        text = f"On the dashed line the law is right. Upright lines are {format_level(result)}s.{_cross(seen)}"
        chart = chart_agreement(result, seen.points)
        sections.append(Section(heading="Loss, predicted against true", text=text, chart=chart))
    if seen.latencies is not None:
        off = 100 * seen.latencies.mean_error()
        text = (
            "On the dashed line the device's model is right. For the shapes that it was calibrated with it is off by"
            f" {off:.2g} % on average."
        )
        chart = chart_timing(result, seen.latencies)
        sections.append(Section(heading="Latency, predicted against measured", text=text, chart=chart))
    return sections


def _cross(seen: Evidence) -> str:
    """Say how far off the law is on sizes that it was not fitted to."""
    if seen.law is None:
        return ""
    best = seen.law.averaged[0].form.name
    error = next((score.leave_one_out for score in seen.law.ranking if score.form == best), None)
    if error is None:
        return ""
    off = f"{100 * error:.2g} %" if seen.law.log else f"{error:.2g}"
    return f" Fitted without one size at a time, the law is off by {off} on it (root mean square)."


def _plan(plan: Page | None) -> list[Section]:
    """Take the plan's page, with its cautions after the chart."""
    if plan is None:
        return []
    cautions = [Section(heading="To heed", points=list(plan.notes))] if plan.notes else []
    return [*plan.sections[:1], *cautions, *plan.sections[1:]]


def _law(seen: Evidence) -> list[Section]:
    if seen.law is None:
        return []
    if seen.runs is None:
        notes = [write_sentence(note) for note in seen.law.warnings]
        forms = "\n".join(f"{member.form.name}: {member.form.formula}" for member in seen.law.averaged)
        return [Section(heading=f"Scaling law: {seen.law.name}", points=notes, verbatim=forms)]
    page = law_page(seen.law, seen.runs, level=seen.result.level)
    text = "; ".join(f"{what}: {value}" for what, value in page.figures)
    about = Section(
        heading=page.title,
        text=f"{text[:1].upper()}{text[1:]}.",
        points=[write_sentence(note) for note in page.notes],
        verbatim="\n".join(page.lead),
    )
    return [about, *(section for section in page.sections if section.heading != LAW_CHART)]


def _training(seen: Evidence) -> list[Section]:
    if not seen.curves:
        return []
    text = (
        "Lines are training loss, the mean over steps that lie together; dots are held-out loss, on the first"
        " validation set."
    )
    return [Section(heading="Training curves", text=text, chart=chart_curves(seen.curves))]


def _evaluation(seen: Evidence) -> list[Section]:
    scores = scores_table(seen.result)
    found = [] if scores is None else [Section(heading="Scores", table=scores)]
    if not seen.evaluations:
        return found
    first, *rest = evaluation_page(list(seen.evaluations.values())).sections
    if len(seen.evaluations) > 1:
        who = ", ".join(f"{letter(i)} is {name}" for i, name in enumerate(seen.evaluations))
        first = replace(first, text=f"{who}. {first.text}")
    return [*found, first, *rest]


def _costs(result: StudyResult) -> list[Section]:
    if not result.costs:
        return []
    text = "Trainings that an earlier call had finished count with what they took themselves, one after another."
    return [Section(heading="What each stage took", text=text, chart=chart_costs(result), table=costs_table(result))]


def _provenance(result: StudyResult) -> list[Section]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    text = f"Made {result.created}, study {result.key}" + (f", with {versions}." if versions else ".")
    sections = [Section(heading="To make it again", text=text, verbatim="\n".join(result.commands))]
    if result.candidates:
        sections.append(Section(heading="Recipes", table=recipes_table(result)))
    sections.append(Section(heading="Files", text="In the study's folder.", table=files_table(result)))
    if result.study:
        sections.append(Section(heading="Settings", text="As the study asked.", table=settings_table(result.study)))
    return sections
