"""Write a study's report as Markdown: the page's words and tables, with its charts as images if they are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from lathe.report.html import Cell, DataTable, Page, Section, show_cell
from lathe.report.study_figures import name_figure
from lathe.report.study_page import study_page
from lathe.studies import StudyResult


def study_markdown(result: StudyResult, folder: Path, *, figures: str | None = None) -> str:
    """Write a study's report as Markdown.

    Args:
        figures: the folder of `save_figures`' .svg files, as seen from where the text will lie; without it, charts are
            left out.

    Raises a LatheError as `study_page` does.
    """
    return write_page(study_page(result, folder), figures=figures)


def write_page(page: Page, *, figures: str | None = None) -> str:
    """Write a page as Markdown; a section that begins a part stands under a heading of its own."""
    blocks = [f"# {_escape(page.title)}", "\n".join(f"- {_escape(line)}" for line in page.lead)]
    if page.figures:
        blocks.append(_table(DataTable(head=("", ""), rows=page.figures)))
    blocks += [f"> {_escape(note)}" for note in page.notes]
    for section in page.sections:
        blocks += [f"## {_escape(section.part)}"] if section.part else []
        blocks += _section(section, figures)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section, figures: str | None) -> list[str]:
    blocks = [f"### {_escape(section.heading)}" if section.heading else "", _escape(section.text)]
    blocks.append("\n".join(f"- {_escape(point)}" for point in section.points))
    if section.verbatim:
        longest = max((len(list(run)) for tick, run in groupby(section.verbatim) if tick == "`"), default=0)
        fence = "`" * max(3, longest + 1)
        blocks.append(f"{fence}text\n{section.verbatim}\n{fence}")
    if section.chart is not None and figures is not None:
        blocks.append(f"![{_escape(section.heading)}]({figures}/{name_figure(section.heading)}.svg)")
    if section.table is not None:
        blocks.append(_table(section.table))
    return blocks


def _table(table: DataTable) -> str:
    def line(cells: Sequence[Cell]) -> str:
        return "| " + " | ".join(_escape(show_cell(cell)).replace("|", "\\|") for cell in cells) + " |"

    numeric = [any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.head))]
    rule = "|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|"
    return "\n".join([line(table.head), rule, *map(line, table.rows)])


def _escape(text: str) -> str:
    """Keep prose from being read as markup; code in backticks stays code."""
    return re.sub(r"([*<\\])", r"\\\1", text).replace("\n", " ")
