"""The fixed parts of a page: its frame, its style sheet, and the script that draws charts and follows sliders."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!DOCTYPE html>
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
$contents$sections
<footer>Made by Lathe.</footer>
</main>
$scripts
</body>
</html>
""")

STYLE = Template("""
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 $font; }
main { max-width: 920px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 68ch; }
section { margin-top: 36px; padding-top: 24px; border-top: 1px solid var(--line); }
nav ~ section:not(.begins) { margin-top: 30px; padding-top: 0; border-top: 0; }
nav ~ section.begins { margin-top: 48px; scroll-margin-top: -16px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-top: 28px; font-size: 13.5px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.part { margin: 0 0 6px; color: var(--accent); font-size: 12px; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; }
pre { margin: 8px 0 12px; padding: 12px 14px; border: 1px solid var(--line); border-radius: 8px; font-size: 13px;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.lead { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; margin: 0 0 4px;
  max-width: none; overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--accent); padding-left: 12px; margin-top: 12px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 16px; margin: 24px 0 0; }
dl div { display: flex; flex-direction: column; justify-content: space-between; }
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

DRAW = """
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
