"""Write a chart, or a page of them, to a file: HTML that works offline, PNG, SVG, PDF, or Vega-Lite's JSON."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.documents import write_atomic
from lathe.errors import LatheError, MissingExtraError
from lathe.report.html import Page, Section, render_page
from lathe.report.theme import LIGHT, chart_config

if TYPE_CHECKING:
    import altair as alt

    from lathe.report.html import AnyChart

__all__ = ["PLOT_SUFFIXES", "check_plot_path", "lay_out", "save_chart"]

PLOT_SUFFIXES = (".html", ".png", ".svg", ".pdf", ".json")
PANEL_WIDTH = 440
PNG_SCALE = 2.0


def check_plot_path(path: str | Path) -> Path:
    """Refuse a file that `save_chart` could not write, before the work whose result it shall show.

    Raises:
        LatheError: the suffix is none of `PLOT_SUFFIXES`, or there is no such folder.
        MissingExtraError: the packages that draw are not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in PLOT_SUFFIXES:
        given = f"is a {path.suffix} file" if path.suffix else "has no suffix"
        raise LatheError(f"{path} {given}; a chart can be written as {', '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise LatheError(f"there is no folder {path.parent} to write {path.name} in; make it first")
    wanted = ("altair",) if path.suffix.lower() == ".json" else ("altair", "vl_convert")
    if any(find_spec(name) is None for name in wanted):
        raise MissingExtraError("drawing charts", extra="report")
    return path


def save_chart(chart: AnyChart | Page, path: str | Path) -> None:
    """Write a chart or a page of charts, whole or not at all; the suffix says in which format.

    A page's tables and text are in its HTML only; other formats show its charts, two abreast.

    Raises:
        LatheError: as `check_plot_path`, or the file cannot be written.
        MissingExtraError: the packages that draw are not installed.
    """
    path = check_plot_path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        page = chart if isinstance(chart, Page) else Page(title=_name(path), sections=[Section(chart=chart)])
        write_atomic(path, render_page(page))
        return
    flat: Any = lay_out(chart) if isinstance(chart, Page) else chart
    spec = {**flat.to_dict(), "config": chart_config(LIGHT, background=True)}
    if suffix == ".json":
        write_atomic(path, json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        write_atomic(path, _convert(spec, suffix))


def lay_out(page: Page) -> alt.ConcatChart:
    """Set a page's charts out as one, two abreast, under its title, lead and key figures."""
    import altair as alt

    panels: list[Any] = [
        s.chart.properties(width=PANEL_WIDTH, title=s.heading) for s in page.sections if s.chart is not None
    ]
    if not panels:
        raise LatheError(f"the page {page.title!r} has no chart to draw; write it as .html")
    figures = "   ·   ".join(f"{what}: {value}" for what, value in page.figures)
    title = alt.TitleParams(text=page.title, subtitle=[*page.lead, *filter(None, [figures])], fontSize=20, offset=20)
    grid = alt.concat(*panels, columns=2, spacing=40, title=title)
    return grid.resolve_scale(color="independent", fill="independent", shape="independent")


def _convert(spec: dict[str, Any], suffix: str) -> str | bytes:
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=version)
    if suffix == ".pdf":
        return vl_convert.vegalite_to_pdf(spec, vl_version=version)
    return vl_convert.vegalite_to_png(spec, vl_version=version, scale=PNG_SCALE)


def _name(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
