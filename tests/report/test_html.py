"""Pages that need no network: what they hold, and what they must not."""

import json
import re

import altair as alt
import pytest

from lathe.report.html import DataTable, Page, Section, render_page
from lathe.report.theme import DARK, LIGHT, chart_config


def chart(label="a"):
    rows = alt.InlineData(values=[{"x": 1, "y": 2, "label": label}, {"x": 2, "y": 3, "label": label}])
    return alt.Chart(rows).mark_point().encode(x="x:Q", y="y:Q", tooltip="label:N")


def embedded(page: str) -> list[dict]:
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))


def rows(spec: dict) -> list[dict]:
    return spec["datasets"][spec["data"]["name"]]


def test_text_is_escaped_and_in_order():
    page = Page(
        title="A <law>",
        lead=["L = E + A·N^-alpha"],
        figures=[("error", "0.3 %")],
        notes=["tokens & params are collinear"],
        sections=[Section(heading="One", text="a < b"), Section(heading="Two")],
    )
    html = render_page(page)
    assert "<title>A &lt;law&gt;</title>" in html
    assert "<dt>error</dt><dd>0.3&nbsp;%</dd>" in html
    assert '<p class="note">tokens &amp; params are collinear</p>' in html
    assert html.index("<h2>One</h2><p>a &lt; b</p>") < html.index("<h2>Two</h2>")
    assert "<script" not in html  # no chart, no script


def test_numbers_stand_right_and_gaps_are_dashes():
    table = DataTable(head=("form", "error"), rows=[("aspect", 0.123456), ("auto", None), ("best", float("nan"))])
    html = render_page(Page(title="t", sections=[Section(table=table)]))
    assert "<tr><td>aspect</td><td class=number>0.1235</td></tr>" in html
    assert html.count("<td class=number>–</td>") == 2
    assert "<h2>" not in html


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells; the head has 2"):
        DataTable(head=("a", "b"), rows=[(1, 2), (3,)])


def test_charts_are_inside_and_nothing_is_fetched():
    html = render_page(Page(title="t", sections=[Section(heading="H", chart=chart()), Section(chart=chart("b"))]))
    assert not re.search(r"<script[^>]*\ssrc", html)
    assert not re.search(r"<link|@import|url\(|<img|<iframe", html[: html.index("<script")])
    specs = embedded(html)
    assert [rows(s)[0]["label"] for s in specs] == ["a", "b"]
    assert all(s["width"] == "container" and "$schema" not in s and "config" not in s for s in specs)
    assert 'id="chart-0"' in html
    assert 'id="chart-1"' in html
    own = html[html.index('<script type="application/json"') :]
    assert "http" not in own


def test_the_bundle_is_embedded_unchanged_and_scripts_cannot_be_ended_by_data():
    label = "</script><script>alert(1)</script><!--"
    html = render_page(Page(title="t", sections=[Section(chart=chart(label))]))
    assert rows(embedded(html)[0])[0]["label"] == label
    assert html.count("</script") == 3
    assert html.count("<script") == 3
    assert "/</g" in html  # Vega's own regular expressions: escaping `</` everywhere would break them


def test_charts_beside_each_other_keep_their_width():
    html = render_page(Page(title="t", sections=[Section(chart=chart() | chart())]))
    assert "width" not in embedded(html)[0]


@pytest.mark.parametrize("background", [True, False])
def test_themes_differ_only_in_colour(background):
    light, dark = (chart_config(theme, background=background) for theme in (LIGHT, DARK))
    assert light.keys() == dark.keys()
    assert light["style"].keys() == dark["style"].keys()
    assert light["style"]["best"]["color"] != dark["style"]["best"]["color"]
    assert (light["background"] == "transparent") != background
