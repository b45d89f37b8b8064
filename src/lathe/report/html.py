"""Turn sections of text, tables and charts into one HTML file that needs no network: scripts and styles inside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from lathe.errors import MissingExtraError
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
    choose stand above it.
    """

    heading: str = ""
    text: str = ""
    points: Sequence[str] = ()
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
    return _PAGE.substitute(
        title=escape(page.title),
        style=_STYLE.substitute(font=FONT, light=_variables(LIGHT), dark=_variables(DARK)),
        lead="".join(f'<p class="lead">{escape(line)}</p>' for line in page.lead),
        figures=_figures(page.figures),
        notes="".join(f'<p class="note">{_text(note)}</p>' for note in page.notes),
        sections=sections,
        scripts=_scripts(specs) if specs else "",
    )


def _spec(chart: Any) -> dict[str, Any]:
    """Take a chart's Vega-Lite, as wide as its column unless it is made of several side by side."""
    spec = chart.to_dict()
    if not spec.keys() & {"concat", "hconcat", "vconcat", "facet", "repeat"}:
        spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _section(section: Section, chart: int | None) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"] if section.heading else []
    if section.text:
        parts.append(f"<p>{_text(section.text)}</p>")
    if section.points:
        parts.append(f"<ul>{''.join(f'<li>{_text(point)}</li>' for point in section.points)}</ul>")
    if chart is not None and section.readout is not None:
        parts.append(_readout(section.readout, chart))
    if chart is not None:
        parts.append(f'<div class="chart" id="chart-{chart}" role="img" aria-label="{escape(section.heading)}"></div>')
    if section.table is not None:
        parts.append(_table(section.table))
    return f"<section>{''.join(parts)}</section>"


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
            f"<{tag}{' class=number' if n else ''}>{escape(_show(c))}</{tag}>"
            for c, n in zip(row, numeric, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells('th', table.head)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    """Escape prose, and keep a number's per cent sign on its line."""
    return escape(text).replace(" %", "&nbsp;%")


def _show(cell: Cell) -> str:
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
        f"<script>const configs = {_json(configs)};{_DRAW}</script>"
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


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><h1>$title</h1>$lead$figures$notes</header>
$sections
<footer>Made by Lathe.</footer>
</main>
$scripts
</body>
</html>
""")

_STYLE = Template("""
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 $font; }
main { max-width: 920px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 68ch; }
section { margin-top: 36px; padding-top: 24px; border-top: 1px solid var(--line); }
.lead { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; margin: 0 0 4px;
  overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--accent); padding-left: 12px; margin-top: 12px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 16px; margin: 24px 0 0; }
dt { color: var(--muted); font-size: 12.5px; line-height: 1.35; }
dd { margin: 2px 0 0; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
ul { margin: 8px 0 12px; padding-left: 18px; color: var(--muted); max-width: 68ch; }
li { margin: 4px 0; }
.controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 4px 32px; }
.controls label { display: grid; grid-template-columns: 1fr auto; font-size: 12.5px; color: var(--muted); }
.controls input { grid-row: 2; grid-column: 1 / 3; width: 100%; margin: 4px 0; accent-color: var(--accent); }
.controls label span:last-child { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.readout { display: flex; flex-wrap: wrap; gap: 6px 22px; min-height: 66px; margin: 10px 0 24px; padding: 10px 14px;
  border: 1px solid var(--line); border-radius: 8px; }
.readout dd { font-size: 15px; white-space: nowrap; }
.chart { width: 100%; min-height: 120px; }
.chart.vega-embed, .chart.vega-embed.has-actions { padding-right: 0; display: block; }
.chart.vega-embed summary { background: none; border: 0; box-shadow: none; color: var(--muted); opacity: .5;
  top: -28px; }
.chart svg { max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin-top: 8px; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
.number { text-align: right; }
footer { margin-top: 40px; font-size: 12.5px; color: var(--muted); }
@media (max-width: 480px) { main { padding: 20px 14px 32px; } h1 { font-size: 21px; } dd { font-size: 18px; } }
@media print { section { break-inside: avoid; } }
""")

_DRAW = """
const specs = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
let charts = [];
async function draw() {
  const moved = charts.map(chart => chart.view.getState().signals);
  charts.forEach(chart => chart.finalize());
  const actions = {export: true, source: false, compiled: false, editor: false};
  const tooltip = {theme: dark.matches ? "dark" : "light"};
  const config = configs[dark.matches ? "dark" : "light"];
  charts = await Promise.all(specs.map(async (spec, i) => {
    const [controls, readout] = ["controls-", "readout-"].map(id => document.getElementById(id + i));
    controls?.replaceChildren();
    const bind = controls ?? undefined;
    const options = {mode: "vega-lite", renderer: "svg", actions, tooltip, config, bind};
    const chart = await vegaEmbed("#chart-" + i, spec, options);
    for (const {name, bind} of spec.params ?? [])
      if (bind?.input && moved[i]) chart.view.signal(name, moved[i][name]);
    if (readout) listen(chart, readout);
    await chart.view.runAsync();
    return chart;
  }));
}
function listen(chart, node) {
  const {layer, fields, empty} = JSON.parse(node.dataset.readout);
  const source = chart.vgSpec.marks.find(mark => mark.name === layer + "_marks").from.data;
  const write = (_, rows) => node.replaceChildren(...(rows.length ? fields.map(([what, field]) => {
    const card = document.createElement("div");
    for (const [tag, text] of [["dt", what], ["dd", rows[0][field]]])
      card.appendChild(document.createElement(tag)).textContent = text;
    return card;
  }) : [empty]));
  write("", chart.view.data(source));
  chart.view.addDataListener(source, write);
}
dark.addEventListener("change", draw);
draw();
"""
