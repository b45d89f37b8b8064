"""Lay out evaluations as one page: accuracy per task, suites, losses, and how one differs from another."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.errors import EvaluationError
from lathe.evals.compare import Comparison, Difference
from lathe.evals.results import Evaluation
from lathe.report.eval_charts import CLEAR, chart_accuracies, chart_differences, letter
from lathe.report.eval_tables import (
    UNPAIRED,
    count_tasks,
    format_interval,
    format_p,
    format_score,
    format_suite,
    name_missing,
    name_text,
    name_way,
)
from lathe.report.html import Cell, DataTable, Page, Section

FIGURES = 6
"""Key figures at the top, at most."""


def evaluation_page(evaluations: Sequence[Evaluation], *, comparison: Comparison | None = None) -> Page:
    """Show evaluations: one, or several beside each other as A, B, C.

    Args:
        comparison: of the first two, whose charts and tables it adds.

    Raises EvaluationError for none, and for more than there are letters.
    """
    if not 1 <= len(evaluations) <= 26:
        raise EvaluationError(f"{len(evaluations)} evaluations were given; a page shows 1 to 26")
    sections = []
    if any(one.tasks for one in evaluations):
        sections.append(_accuracy(evaluations))
    if comparison is not None:
        sections += _comparison(comparison)
    if any(one.aggregates for one in evaluations):
        sections.append(_suites(evaluations))
    if any(one.losses for one in evaluations):
        sections.append(_losses(evaluations))
    if any(task.categories for one in evaluations for task in one.tasks):
        sections.append(_categories(evaluations))
    single = len(evaluations) == 1
    return Page(
        title=f"Evaluation: {evaluations[0].checkpoint}" if single else "Evaluations",
        lead=[_lead(one, "" if single else f"{letter(i)}: ") for i, one in enumerate(evaluations)],
        figures=_figures(evaluations),
        notes=[*_notes(evaluations), *(f"{note}." for note in (comparison.notes if comparison else ()))],
        sections=sections,
    )


def _lead(one: Evaluation, name: str) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in one.versions.items())
    about = f"{one.dtype}, {one.device}, {one.backend}; {one.created}" + (f"; {versions}" if versions else "")
    return f"{name}{one.checkpoint}: {about}" if name else about


def _figures(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """List suites first, then losses, each evaluation's beside the others'."""
    suites = [
        [(suite.name, suite.score, "N/A" if suite.value is None else f"{suite.value:.3f}") for suite in one.aggregates]
        for one in evaluations
    ]
    losses = [[(name_text(loss), "loss", f"{loss.loss:.3f}") for loss in one.losses] for one in evaluations]
    found = [*_interleave(suites), *_interleave(losses)][:FIGURES]
    several = len(evaluations) > 1
    return [(f"{name}, {score}" + (f", {who}" if several else ""), str(value)) for who, name, score, value in found]


def _interleave(rows: Sequence[Sequence[tuple[Cell, ...]]], *, key: int = 1) -> list[tuple[Cell, ...]]:
    """Put rows of several evaluations that agree in their first `key` cells together, with letters in front."""
    lettered = [(letter(i), *row) for i, part in enumerate(rows) for row in part]
    order = {name: i for i, name in enumerate(dict.fromkeys(row[1 : 1 + key] for row in lettered))}
    return sorted(lettered, key=lambda row: order[row[1 : 1 + key]])


def _table(head: Sequence[str], rows: Sequence[Sequence[tuple[Cell, ...]]], *, key: int = 1) -> DataTable:
    """Make a table of each evaluation's rows; with several, its letter stands in front."""
    if len(rows) == 1:
        return DataTable(head=head, rows=rows[0])
    return DataTable(head=["", *head], rows=_interleave(rows, key=key))


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Note suites with gaps and items that were cut, once for all evaluations of which it is so."""
    found: dict[str, list[str]] = {}
    for i, one in enumerate(evaluations):
        notes = [f"{suite.name} is N/A: it lacks {name_missing(suite)}" for suite in one.aggregates if suite.missing]
        notes += [
            f"{task.task}: {task.cut:,} of {task.items:,} items were longer than the context, and cut on the left"
            for task in one.tasks
            if task.cut
        ]
        for note in notes:
            found.setdefault(note, []).append(letter(i))
    every = len(evaluations)
    return [f"{note}." if len(who) == every else f"{note} ({', '.join(who)})." for note, who in found.items()]


def _accuracy(evaluations: Sequence[Evaluation]) -> Section:
    rows = [
        [
            (
                *(task.task, task.items, task.shots, format_score(task.accuracy, task.se), round(task.chance, 4)),
                *(format_score(task.centred, task.centred_se), format_score(task.log_prob, task.log_prob_se)),
            )
            for task in one.tasks
        ]
        for one in evaluations
    ]
    head = ("task", "items", "shots", "accuracy ± s.e.", "chance", "centred ± s.e.", "log-prob. ± s.e.")
    text = (
        "Upright marks stand at the accuracy of guessing, where centred accuracy is 0; at best it is 1. Log-prob. is "
        "the right answer's, in nats."
    )
    parted = dict.fromkeys(t.task for one in evaluations for t in one.tasks if t.average == "categories")
    text += f" Averaged over categories: {', '.join(parted)}." if parted else ""
    chart = chart_accuracies(evaluations)
    return Section(heading="Accuracy", text=text, chart=chart, table=_table(head, rows))


def _suites(evaluations: Sequence[Evaluation]) -> Section:
    rows = [
        [
            (
                suite.name,
                suite.score,
                format_suite(suite),
                count_tasks(suite),
            )
            for suite in one.aggregates
        ]
        for one in evaluations
    ]
    text = "Means over a suite's tasks; N/A while any is missing, never a mean of the rest."
    head = ("suite", "score", "value ± s.e.", "tasks")
    return Section(heading="Suites", text=text, table=_table(head, rows))


def _losses(evaluations: Sequence[Evaluation]) -> Section:
    rows = [
        [
            (
                *(name_text(loss), format_score(loss.loss, loss.se, digits=4)),
                *(format_interval(loss.interval_sequences), format_interval(loss.interval_tokens)),
                *(loss.perplexity, loss.bits_per_byte, f"{loss.tokens:,}", name_way(loss)),
            )
            for loss in one.losses
        ]
        for one in evaluations
    ]
    head = ("text", "loss ± s.e.", "95 % over sequences", "over tokens", "perplexity", "bits/byte", "tokens", "read in")
    text = "Nats per token, with bootstrapped intervals. Bits per byte compare models with different tokenizers."
    return Section(heading="Held-out loss", text=text, table=_table(head, rows))


def _categories(evaluations: Sequence[Evaluation]) -> Section:
    rows = [
        [
            (task.task, name, found.items, format_score(found.accuracy, found.se))
            for task in one.tasks
            for name, found in task.categories.items()
        ]
        for one in evaluations
    ]
    head = ("task", "category", "items", "accuracy ± s.e.")
    return Section(heading="Categories", table=_table(head, rows, key=2))


def _comparison(comparison: Comparison) -> list[Section]:
    sections = []
    if comparison.tasks:
        text = (
            "Each item is paired with itself: right in one, wrong in the other. p is the exact McNemar test's, then "
            f"adjusted for the number of tasks (Holm). Paler points have an adjusted p of {CLEAR} or more."
        )
        head = (
            "task",
            "A",
            "B",
            "B − A ± s.e.",
            "95 % interval",
            "only A",
            "only B",
            "p",
            "adjusted",
            "log-prob., B − A",
        )
        rows = [
            (
                *(task.task, *_cells(task.accuracy), task.lost, task.gained, format_p(task.p), format_p(task.p_holm)),
                None if task.log_prob is None else format_score(task.log_prob.difference, task.log_prob.se, sign="+"),
            )
            for task in comparison.tasks
        ]
        chart, table = chart_differences(comparison), DataTable(head=head, rows=rows)
        sections.append(Section(heading="B against A", text=text, chart=chart, table=table))
    rest: list[tuple[Cell, ...]] = [(s.name, s.score, *_cells(s.difference)) for s in comparison.aggregates]
    rest += [(name_text(loss), loss.unit, *_cells(loss.difference, digits=4)) for loss in comparison.losses]
    if rest:
        head = ("suite or text", "score", "A", "B", "B − A ± s.e.", "95 % interval")
        text = f"{UNPAIRED.capitalize()}." if comparison.losses else ""
        sections.append(Section(heading="Suites and losses", text=text, table=DataTable(head=head, rows=rest)))
    return sections


def _cells(found: Difference, *, digits: int = 3) -> tuple[Cell, ...]:
    difference = format_score(found.difference, found.se, digits=digits, sign="+")
    interval = format_interval(found.interval, digits=digits, sign="+")
    return f"{found.a:.{digits}f}", f"{found.b:.{digits}f}", difference, interval
