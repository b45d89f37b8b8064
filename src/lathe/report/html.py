"""Turn sections of text, tables and charts into one HTML file that needs no network: scripts and styles inside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from lathe.errors import MissingExtraError
from lathe.report.html_parts import DRAW, PAGE, STYLE
from lathe.report.theme import DARK, FONT, LIGHT, Theme, chart_config

if TYPE_CHECKING:
    import altair as alt

    AnyChart = alt.Chart | alt.LayerChart | alt.ConcatChart | alt.HConcatChart | alt.VConcatChart

Cell = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTable:
    """A head and rows of cells. Numbers stand right, floats to four digits; None is a dash."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        if wrong := [i for i, row in enumerate(self.rows) if len(row) != len(self.head)]:
            raise ValueError(f"row {wrong[0]} has {len(self.rows[wrong[0]])} cells; the head has {len(self.head)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """What a page writes out of a chart as its reader works it: fields, as (what, field), of one layer's first row."""

    layer: str
    fields: Sequence[tuple[str, str]]
    empty: str
    """What to say while the layer has no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a page: a heading, a sentence or two, points, and what they are about.

    A chart comes without title, width or theme: the page gives it those. With a readout, its sliders and what they
    choose stand above it. `verbatim` keeps its line breaks. A section with a `part` begins that part of the page, which
    the page's head then links to.
    """

    part: str = ""
    heading: str = ""
    text: str = ""
    points: Sequence[str] = ()
    verbatim: str = ""
    chart: AnyChart | None = None
    readout: Readout | None = None
    table: DataTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A title, lines under it, key figures as (what, value), notes to heed, and sections in reading order."""

    title: str
    lead: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()


def render_page(page: Page) -> str:
    """Write a page as one self-contained HTML document, light or dark as its reader's system is.

    Charts fill the column's width, down to a phone's.

    Raises:
        MissingExtraError: the page has charts, and the packages that draw them are not installed.
    """
    charts = [s.chart for s in page.sections if s.chart is not None]
    specs = [_spec(chart) for chart in charts]
    numbers = iter(range(len(charts)))
    sections = "\n".join(_section(s, None if s.chart is None else next(numbers)) for s in page.sections)
    return PAGE.substitute(
        title=escape(page.title),
        style=STYLE.substitute(font=FONT, light=_variables(LIGHT), dark=_variables(DARK)),
        lead="".join(f'<p class="lead">{escape(line)}</p>' for line in page.lead),
        figures=_figures(page.figures),
        notes="".join(f'<p class="note">{_text(note)}</p>' for note in page.notes),
        contents=_contents(page.sections),
        sections=sections,
        scripts=_scripts(specs) if specs else "",
    )


def _spec(chart: Any) -> dict[str, Any]:
    """Take a chart's Vega-Lite, as wide as its column unless it is made of several side by side."""
    spec = chart.to_dict()
    if not spec.keys() & {"concat", "hconcat", "vconcat", "facet", "repeat"}:
        spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _contents(sections: Sequence[Section]) -> str:
    """Link to a page's parts, where it has any."""
    links = "".join(f'<a href="#{_anchor(s.part)}">{escape(s.part)}</a>' for s in sections if s.part)
    return f'<nav aria-label="Parts of this page">{links}</nav>\n' if links else ""


def _anchor(part: str) -> str:
    return re.sub(r"\W+", "-", part.lower())


def _section(section: Section, chart: int | None) -> str:
    parts = [f'<p class="part">{escape(section.part)}</p>'] if section.part else []
    parts += [f"<h2>{escape(section.heading)}</h2>"] if section.heading else []
    if section.text:
        parts.append(f"<p>{_text(section.text)}</p>")
    if section.points:
        parts.append(f"<ul>{''.join(f'<li>{_text(point)}</li>' for point in section.points)}</ul>")
    if section.verbatim:
        parts.append(f"<pre>{escape(section.verbatim)}</pre>")
    if chart is not None and section.readout is not None:
        parts.append(_readout(section.readout, chart))
    if chart is not None:
        parts.append(f'<div class="chart" id="chart-{chart}" role="img" aria-label="{escape(section.heading)}"></div>')
    if section.table is not None:
        parts.append(_table(section.table))
    begins = f' class="begins" id="{_anchor(section.part)}"' if section.part else ""
    return f"<section{begins}>{''.join(parts)}</section>"


def _readout(readout: Readout, chart: int) -> str:
    """Leave room for a chart's sliders and for what they choose, which the page's script fills in."""
    what = _json({"layer": readout.layer, "fields": list(readout.fields), "empty": readout.empty})
    return (
        f'<div class="controls" id="controls-{chart}"></div>'
        f'<dl class="readout" id="readout-{chart}" aria-live="polite" data-readout="{escape(what)}"></dl>'
    )


def _table(table: DataTable) -> str:
    numeric = [any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.head))]

    def cells(tag: str, row: Sequence[Cell]) -> str:
        return "".join(
            f"<{tag}{' class=number' if n else ''}>{escape(show_cell(c))}</{tag}>"
            for c, n in zip(row, numeric, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells('th', table.head)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    """Escape prose, and keep a number's per cent sign on its line."""
    return escape(text).replace(" %", "&nbsp;%")


def show_cell(cell: Cell) -> str:
    """Write a cell: floats to four digits, a dash for what there is not."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else "–"
    return str(cell)


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    cards = "".join(f"<div><dt>{_text(what)}</dt><dd>{_text(value)}</dd></div>" for what, value in figures)
    return f"<dl>{cards}</dl>" if cards else ""


def _scripts(specs: Sequence[dict[str, Any]]) -> str:
    configs = {
        "light": chart_config(LIGHT, background=False),
        "dark": chart_config(DARK, background=False),
    }
    return (
        f"<script>{_safe(_bundle())}</script>\n"
        f'<script type="application/json" id="charts">{_json(specs)}</script>\n'
        f"<script>const configs = {_json(configs)};{DRAW}</script>"
    )


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _safe(script: str) -> str:
    """Keep strings inside a script element from ending it; nothing else changes, so that code stays code."""
    return re.sub(r"<(?=/script|!--)", r"\\x3C", script, flags=re.IGNORECASE)


@cache
def _bundle() -> str:
    """Bundle Vega, Vega-Lite and Vega-Embed at the version that Altair writes."""
    try:
        import altair as alt
        import vl_convert
    except ImportError:
        raise MissingExtraError("drawing charts", extra="report") from None
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def _variables(theme: Theme) -> str:
    names = ("paper", "ink", "muted", "line", "accent")
    return " ".join(f"--{name}: {getattr(theme, name)};" for name in names)
