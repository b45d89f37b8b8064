"""Save a study's charts as figures, a file each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lathe.report.charts import save_chart
from lathe.report.study_page import study_page
from lathe.studies import StudyResult

if TYPE_CHECKING:
    from lathe.report.html import AnyChart

FIGURE_WIDTH = 640


def save_figures(
    result: StudyResult, folder: Path, out: Path, formats: Sequence[str] = ("svg",)
) -> tuple[tuple[str, Path], ...]:
    """Write each of the report's charts to a file of its own in a folder, made if need be; gives (heading, file).

    Args:
        formats: of png, svg, pdf, json and html.

    Raises:
        LatheError: a format that there is not, or a file that cannot be written.
        MissingExtraError: the packages that draw are not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for section in study_page(result, folder).sections:
        if section.chart is None:
            continue
        chart = cast("AnyChart", section.chart.properties(width=FIGURE_WIDTH, title=section.heading))
        for one in formats:
            path = out / f"{name_figure(section.heading)}.{one}"
            save_chart(chart, path)
            found.append((section.heading, path))
    return tuple(found)


def name_figure(heading: str) -> str:
    """Name a chart's file after its heading."""
    return re.sub(r"\W+", "-", heading.lower()).strip("-")
