"""Lay out what each cleaning step removed, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from lathe.report.tables import format_percent, make_table, titled

if TYPE_CHECKING:
    from lathe.data.clean import CleanReport

SHOWN_CHARS = 100


def clean_table(report: CleanReport) -> Group:
    """Lay out the counts of each step and reason, and the start of a document that each removed."""
    table = make_table("step", "reason", "seen", "removed", "share", text=2)
    for step in report.steps:
        share = format_percent(step.removed / step.seen if step.seen else None)
        table.add_row(step.label, "", f"{step.seen:,}", f"{step.removed:,}", share)
        for reason, count in sorted(step.reasons.items(), key=lambda item: -item[1]):
            table.add_row("", reason, "", f"{count:,}", format_percent(count / step.seen))
    notes = []
    if report.bad_lines:
        notes.append(f"skipped: {report.bad_lines:,} lines that hold no document")
    if report.without_text:
        notes.append(f"skipped: {report.without_text:,} documents without text")
    removed = report.read - report.kept
    title = f"Kept {report.kept:,} of {report.read:,} documents; removed {removed:,}"
    return Group(titled(title, table, *notes), *(Text(line) for line in _samples(report)))


def _samples(report: CleanReport) -> list[str]:
    lines = []
    for step in report.steps:
        for sample in step.samples[:1]:
            why = f" ({sample.reason})" if sample.reason else ""
            text = " ".join(sample.text.split())
            lines.append(f"{step.label} removed {sample.id}{why}: {text[:SHOWN_CHARS]}…")
    return lines
