"""Lay out evaluations for the terminal: losses, tasks, categories, suites, and one evaluation against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lathe.evals.compare import Comparison, Difference, LossDifference
from lathe.evals.results import Aggregate, Evaluation, Interval, LossResult, TaskResult
from lathe.report.tables import make_table, titled

if TYPE_CHECKING:
    from rich.table import Table

NAMED = 6
"""Missing members to name; of more, how many."""
WAYS = {"windows": "windows of", "strided": "windows of", "documents": "documents, of up to"}
UNPAIRED = "losses are not kept per sequence: their ± takes the two as independent, and is too wide"


def evaluation_table(evaluation: Evaluation, *, categories: bool = False) -> Group:
    """Lay out all that an evaluation found; accuracy per category if asked for."""
    parts: list[RenderableType] = []
    if evaluation.losses:
        parts.append(loss_table(evaluation.losses))
    if evaluation.tasks:
        parts.append(task_table(evaluation.tasks))
    if categories:
        parts += [category_table(task) for task in evaluation.tasks if task.categories]
    if evaluation.aggregates:
        parts.append(aggregate_table(evaluation.aggregates))
    return Group(*parts)


def loss_table(losses: Sequence[LossResult]) -> Group:
    """Lay out losses in nats per token with their intervals, and below them how the text was read."""
    heads = ("loss ± s.e.", "95% over sequences", "over tokens", "perplexity", "bits/byte")
    table = make_table("text", *heads)
    for loss in losses:
        cells = [format_score(loss.loss, loss.se, digits=4)]
        cells += [format_interval(interval) for interval in (loss.interval_sequences, loss.interval_tokens)]
        table.add_row(name_text(loss), *cells, f"{loss.perplexity:.4g}", format_value(loss.bits_per_byte))
    read = [f"{name_text(x)}: {x.tokens:,} tokens in {x.sequences:,} sequences, {name_way(x)}" for x in losses]
    cut = [f"! {name_text(x)}: {x.cut:,} tokens were left out" for x in losses if x.cut]
    return titled("Loss in nats per token", table, *read, *cut)


def task_table(tasks: Sequence[TaskResult]) -> Group:
    """Lay out tasks: accuracy beside chance, centred accuracy, and the right answers' log-probability."""
    table = make_table("task", "items", "shots", "accuracy ± s.e.", "chance", "centred ± s.e.", "log-prob. ± s.e.")
    for task in tasks:
        accuracy, centred = format_score(task.accuracy, task.se), format_score(task.centred, task.centred_se)
        log_prob = format_score(task.log_prob, task.log_prob_se)
        table.add_row(task.task, f"{task.items:,}", f"{task.shots}", accuracy, f"{task.chance:.3g}", centred, log_prob)
    return titled("Accuracy", table, *_task_notes(tasks))


def _task_notes(tasks: Sequence[TaskResult]) -> list[str]:
    cut = [f"! {t.task}: {t.cut:,} of {t.items:,} items were longer than the context, and cut" for t in tasks if t.cut]
    parted = [task.task for task in tasks if task.average == "categories"]
    return [*cut, *([f"mean over categories: {', '.join(parted)}"] if parted else [])]


def category_table(task: TaskResult) -> Group:
    """Lay out a task's accuracy per category."""
    table = make_table("category", "items", "accuracy ± s.e.")
    for name, found in task.categories.items():
        table.add_row(name, f"{found.items:,}", format_score(found.accuracy, found.se))
    return titled(f"Accuracy per category of {task.task}", table)


def aggregate_table(aggregates: Sequence[Aggregate]) -> Group:
    """Lay out suites; N/A, with what is missing, where a member is."""
    table = make_table("suite", "score", "value ± s.e.", "tasks", text=2)
    for suite in aggregates:
        table.add_row(suite.name, suite.score, format_suite(suite), count_tasks(suite))
    missing = [f"{suite.name} lacks {name_missing(suite)}" for suite in aggregates if suite.missing]
    return titled("Suites", table, *missing)


def comparison_table(comparison: Comparison) -> Group:
    """Lay out how the second evaluation differs from the first."""
    parts: list[RenderableType] = []
    if comparison.tasks:
        parts.append(titled("Accuracy, paired by item", _task_differences(comparison)))
    if any(task.log_prob for task in comparison.tasks):
        table = _table("task")
        for task in comparison.tasks:
            if task.log_prob is not None:
                table.add_row(task.task, *_cells(task.log_prob, digits=3))
        parts.append(titled("Log-probability of the right answer, paired by item", table))
    if comparison.aggregates:
        table = _table("suite", "score")
        for suite in comparison.aggregates:
            table.add_row(suite.name, suite.score, *_cells(suite.difference))
        parts.append(titled("Suites", table))
    if comparison.losses:
        table = _table("text", "unit")
        for loss in comparison.losses:
            table.add_row(name_text(loss), loss.unit, *_cells(loss.difference))
        parts.append(titled("Loss", table, UNPAIRED))
    head = Text(f"A: {comparison.a}\nB: {comparison.b}\n")
    return Group(head, *parts, *(Text(f"! {note}") for note in comparison.notes))


def _task_differences(comparison: Comparison) -> Table:
    table = _table("task", after=("A right", "B right", "p", "Holm"))
    for task in comparison.tasks:
        counts = (f"{task.lost:,}", f"{task.gained:,}")
        table.add_row(task.task, *_cells(task.accuracy), *counts, format_p(task.p), format_p(task.p_holm))
    return table


def _table(*text: str, after: Sequence[str] = ()) -> Table:
    return make_table(*text, "A", "B", "B − A ± s.e.", "95% interval", *after, text=len(text))


def _cells(found: Difference, *, digits: int = 4) -> tuple[str, ...]:
    difference = format_score(found.difference, found.se, digits=digits, sign="+")
    interval = format_interval(found.interval, digits=digits, sign="+")
    return f"{found.a:.{digits}f}", f"{found.b:.{digits}f}", difference, interval


def format_score(value: float | None, se: float | None, *, digits: int = 3, sign: str = "") -> str:
    """Write a score as 0.560 ± 0.010; a dash for what is unknown."""
    if value is None:
        return "–"
    return f"{value:{sign}.{digits}f} ± " + ("–" if se is None else f"{se:.{digits}f}")


def format_suite(suite: Aggregate) -> str:
    """Write a suite's score, or N/A."""
    return "N/A" if suite.value is None else format_score(suite.value, suite.se)


def format_value(value: float | None) -> str:
    """Write a score with four decimals, or a dash for none."""
    return "–" if value is None else f"{value:.4f}"


def format_interval(interval: Interval | None, *, digits: int = 4, sign: str = "") -> str:
    """Write an interval as 2.9134–2.9312, or with signs as −0.0120 to +0.0034; a dash for none."""
    if interval is None:
        return "–"
    low, high = (f"{end:{sign}.{digits}f}" for end in interval)
    return f"{low} to {high}" if sign else f"{low}–{high}"


def format_p(value: float) -> str:
    """Write a p-value with three decimals, or as below 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def name_text(loss: LossResult | LossDifference) -> str:
    """Name what a loss is of: dataset, split, and the source within them."""
    return f"{loss.dataset} ({loss.split})" + (f": {loss.source}" if loss.source else "")


def name_way(loss: LossResult) -> str:
    """Name how text was cut into sequences: windows of 512 tokens, 256 apart."""
    apart = f", {loss.stride:,} apart" if loss.stride is not None else ""
    return f"{WAYS[loss.way]} {loss.seq_len:,} tokens{apart}"


def count_tasks(suite: Aggregate) -> str:
    """Count the members that there are: 2 of 9."""
    return f"{len(suite.members) - len(suite.missing)} of {len(suite.members)}"


def name_missing(suite: Aggregate) -> str:
    """Name a suite's missing members, or some of them and how many more."""
    more = len(suite.missing) - NAMED
    return ", ".join(suite.missing[:NAMED]) + (f" and {more} more" if more > 0 else "")
