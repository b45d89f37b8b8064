"""Lay out how much of each task stands in training data, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lathe.evals.overlap import ItemOverlap, OverlapReport, SplitAccuracy
from lathe.report.tables import format_count, format_percent, make_table, titled

if TYPE_CHECKING:
    from rich.console import Group

    from lathe.evals.results import CategoryResult

SHOWN_ITEMS, SHOWN_CHARS = 5, 100


def overlap_table(report: OverlapReport, *, splits: Mapping[str, SplitAccuracy] | None = None) -> Group:
    """Lay out one task a row, and where the items that overlap most were found.

    Args:
        splits: by task, the accuracy of its clean and its dirty items, where there are results.
    """
    splits = splits or {}
    accuracies = ["accuracy, clean", "dirty items'"] if splits else []
    table = make_table("task", "items", "undecided", "touched", "", "dirty", "", *accuracies)
    for task in report.tasks:
        decided, row = task.items - len(task.undecided), [task.task, f"{task.items:,}", f"{len(task.undecided):,}"]
        for found in (task.touched, task.dirty):
            row += [f"{len(found):,}", format_percent(len(found) / decided if decided else None)]
        if splits:
            split = splits.get(task.task)
            row += ["–", "–"] if split is None else [_accuracy(split.clean), _accuracy(split.dirty)]
        table.add_row(*row)
    return titled(f"Overlap with {_describe_data(report)}", table, *_notes(report))


def _describe_data(report: OverlapReport) -> str:
    size = f", {format_count(report.text_bytes)}B of text" if report.text_bytes else ""
    return f"{report.data}: {report.documents:,} documents{size}"


def _notes(report: OverlapReport) -> list[str]:
    gram = f"a run of {report.n} words"
    notes = [
        f"touched: {gram} is in the data; dirty: such runs cover {report.dirty_share:.0%} of the item or more.",
        f"Shares are of decided items; under {report.least} words, or all of the task's own wording, is undecided.",
    ]
    if report.bad_lines:
        notes.append(f"! {report.bad_lines:,} lines of the data hold no document, and were not searched.")
    found = [(task.task, item) for task in report.tasks for item in task.touched]
    found.sort(key=lambda pair: -pair[1].word_share)  # stable, so equal ones stay in order
    return [*notes, *(_show(task, item) for task, item in found[:SHOWN_ITEMS])]


def _show(task: str, item: ItemOverlap) -> str:
    place = item.places[0]
    sample = place.sample if len(place.sample) <= SHOWN_CHARS else place.sample[: SHOWN_CHARS - 1] + "…"
    where = f"{place.source}, document {place.document:,}"
    return f"{task} {item.number} ({item.word_share:.0%} of {item.words} words) in {where}: {sample}"


def _accuracy(result: CategoryResult | None) -> str:
    if result is None:
        return "–"
    spread = "" if result.se is None else f" ± {result.se:.2%}"
    return f"{result.accuracy:.2%}{spread}"
