"""The report as Markdown: the page's words and numbers, with nothing read as markup that is none."""

from __future__ import annotations

import re

import pytest
from small_study import make_study

from lathe.report.html import DataTable, Page, Section
from lathe.report.study_figures import name_figure
from lathe.report.study_markdown import study_markdown, write_page
from lathe.report.study_page import study_page


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder), folder


@pytest.fixture(scope="module")
def page(study):
    return study_page(*study)


def test_it_says_what_the_page_says(study, page):
    text = study_markdown(*study)
    assert text.startswith(f"# {page.title}\n")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [s.part for s in page.sections if s.part]
    assert re.findall("^### (.*)$", text, re.MULTILINE) == [s.heading for s in page.sections]
    for what, value in page.figures:
        assert f"| {what} | {value} |" in text
    for candidate in study[0].candidates:
        assert f"{candidate.true_loss:.4f}" in text
        assert candidate.recipe_id in text
    assert "![" not in text


def test_charts_are_linked_where_they_are_drawn(page):
    text = write_page(page, figures="figures")
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert linked == [f"figures/{name_figure(s.heading)}.svg" for s in page.sections if s.chart is not None]


def test_rows_have_as_many_cells_as_their_head(page):
    for block in re.findall(r"(?:^\|.*\n)+", write_page(page), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1


def test_markup_in_words_is_escaped():
    table = DataTable(head=("a|b", "n"), rows=[("<x> *y*", 0.123456), (None, 2.0)])
    page = Page(title="<t>", sections=[Section(heading="h", text="a*b", verbatim="```\ncode\n```", table=table)])
    text = write_page(page)
    assert "# \\<t>" in text
    assert "a\\*b" in text
    assert "| a\\|b | n |\n| --- | ---: |\n| \\<x> \\*y\\* | 0.1235 |\n| – | 2 |" in text
    assert "````text\n```\ncode\n```\n````" in text
