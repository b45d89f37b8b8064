"""The page and the table of an analysis: they say what it holds, and the page draws itself on a phone, in the dark."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from lathe.evals.analysis import Analysis
from lathe.report.analysis_page import analysis_page
from lathe.report.analysis_table import analysis_table
from lathe.report.charts import save_chart
from lathe.report.html import Page, Section, render_page
from lathe.shape import Shape

SHAPE = Shape.of(d_model=16, n_layers=5, n_heads=2, vocab_size=50)
FOUND = Analysis(
    name="runs/tiny", shape=SHAPE, dataset="data/wiki", seq_len=100, sequences=20,
    rank=((30.0, 20.5), (1.5, 9.0), (1.2, 1.5), (1.0, 1.0), (1.1, 1.51)),
    mass=((60.0, 20.0), (1.0, 7.0), (2.0, 3.0), (1.0, 1.0), (4.0, 4.0)),
    influence=(0.5, 0.2, 0.2, 0.01, 0.2), lens_losses=(9.0, 6.0, 5.0, 5.5, 4.25, 3.5), flops=2.5e9,
)  # fmt: skip
SHARED = dataclasses.replace(
    FOUND, shape=dataclasses.replace(SHAPE, n_layers=4, sharing="immediate", sharing_count=2), rank=FOUND.rank[:4],
    mass=FOUND.mass[:4], influence=FOUND.influence[:4], lens_losses=(),
)  # fmt: skip


def section(page: Page, heading: str) -> Section:
    return next(one for one in page.sections if one.heading == heading)


def values(part: Section) -> list[dict[str, Any]]:
    assert part.chart is not None
    spec = part.chart.to_dict()
    return spec["datasets"][spec["data"]["name"]] if "name" in spec["data"] else spec["data"]["values"]


def show(found: Analysis) -> list[str]:
    console = Console(width=200, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(analysis_table(found))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_page_by_its_sections() -> None:
    page = analysis_page(FOUND)
    assert page.title == "Layers: runs/tiny"
    assert page.lead[0].startswith("20 sequences of 100 tokens of data/wiki; ")
    assert page.figures == [
        ("lazy layers", "2 of 5"), ("effective depth", "4 of 5"), ("median of the largest ranks", "1.51"),
        ("loss, nats per token", "3.500"),
    ]  # fmt: skip
    assert page.notes == [
        "Lazy layers (largest rank at most 1.5): 2–3. A smaller model may inherit the other layers alone."
    ]
    assert [one.heading for one in page.sections] == [
        "Attention rank", "Attention mass", "Influence", "Loss along the way", "Table",
    ]  # fmt: skip


def test_heat_maps_have_every_head() -> None:
    page = analysis_page(FOUND)
    for heading, what, wanted in (("Attention rank", "rank", FOUND.rank), ("Attention mass", "mass", FOUND.mass)):
        found = {(row["layer"], row["head"]): row[what] for row in values(section(page, heading))}
        assert found == {(i, h): value for i, of_heads in enumerate(wanted) for h, value in enumerate(of_heads)}
    chart = section(page, "Attention rank").chart
    assert chart is not None
    assert "[2, 3]" in chart.to_dict()["encoding"]["y"]["axis"]["labelExpr"]


def test_influence_and_losses() -> None:
    page = analysis_page(FOUND)
    assert [row["counted"] for row in values(section(page, "Influence"))] == [True, True, True, False, True]
    rows = values(section(page, "Loss along the way"))
    assert [row["after"] for row in rows] == ["embedding", "0", "1", "2", "3", "4"]
    assert [row["loss"] for row in rows] == list(FOUND.lens_losses)


def test_the_table_in_the_page() -> None:
    table = section(analysis_page(FOUND), "Table").table
    assert table is not None
    assert list(table.head) == ["layer", "largest rank", "largest mass", "influence", "loss after it", ""]
    assert list(table.rows[0]) == ["embedding", None, None, None, 9.0, ""]
    assert list(table.rows[3]) == ["2", 1.5, 3.0, 0.2, 5.5, "lazy"]


def test_without_losses_and_with_shared_layers() -> None:
    page = analysis_page(SHARED)
    assert [one.heading for one in page.sections] == ["Attention rank", "Attention mass", "Influence", "Table"]
    table = section(page, "Table").table
    assert table is not None
    assert [list(row[:2]) for row in table.rows] == [["0", 0], ["1", 0], ["2", 1], ["3", 1]]
    assert page.figures[0] == ("lazy visits", "2 of 4")


def test_no_lazy_layer_is_no_note() -> None:
    busy = dataclasses.replace(FOUND, rank=((9.0, 2.0),) * 5)
    assert analysis_page(busy).notes == []
    assert show(busy)[-3].startswith("no layer is lazy (largest rank at most 1.5); effective depth 4 of 5")


def test_ranks_that_are_all_one_have_colours() -> None:
    flat = analysis_page(dataclasses.replace(FOUND, rank=((1.0, 1.0),) * 5))
    chart = section(flat, "Attention rank").chart
    assert chart is not None
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == [1, 2.0]


def test_the_terminals_table() -> None:
    lines = show(FOUND)
    assert lines[0] == "Layers of runs/tiny"
    assert lines[1].split() == ["layer", "largest", "rank", "largest", "mass", "influence", "loss", "after", "it"]
    assert lines[2].split() == ["embedding", "–", "–", "–", "9"]
    assert lines[5].split() == ["2", "1.5", "3", "0.2", "5.5", "lazy"]
    assert lines[-3].startswith("lazy layers (largest rank at most 1.5): 2–3; effective depth 4 of 5")
    assert lines[-2].startswith("20 sequences of 100 tokens of data/wiki; 2.5B FLOPs.")


def test_names_cannot_write_html() -> None:
    html = render_page(analysis_page(dataclasses.replace(FOUND, name="</title><b>")))
    assert "<title>Layers: &lt;/title&gt;&lt;b&gt;</title>" in html


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_draws_itself_without_a_network(browser, tmp_path, width: int, scheme: str) -> None:
    file = tmp_path / "analysis.html"
    save_chart(analysis_page(FOUND), file)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        for chart, marks in (("#chart-0", 10), ("#chart-1", 10), ("#chart-2", 5)):
            page.locator(f"{chart} svg .mark-rect path").nth(marks - 1).wait_for(state="attached")
        page.locator("#chart-0 svg text", has_text="● 2").wait_for()
        page.locator("#chart-3 svg .mark-symbol path").nth(5).wait_for(state="attached")
        fills = {page.locator("#chart-0 svg .mark-rect path").nth(i).get_attribute("fill") for i in range(10)}
        assert len(fills) >= 5
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert said == []
        assert asked == [file.as_uri()]
    finally:
        context.close()
