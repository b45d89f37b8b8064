"""The page of evaluations: it says what they hold, draws it, and works on a phone and in the dark."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from small_evaluations import A, B, answers_of

from lathe.errors import EvaluationError
from lathe.evals.compare import compare
from lathe.report.charts import save_chart
from lathe.report.eval_page import evaluation_page
from lathe.report.html import Page, Section, render_page


@pytest.fixture(scope="module")
def first():
    return answers_of(A, checkpoint="runs/a")


@pytest.fixture(scope="module")
def second():
    return answers_of(B, checkpoint="runs/b", loss=2.9)


@pytest.fixture(scope="module")
def both(first, second) -> Page:
    return evaluation_page([first.evaluation, second.evaluation], comparison=compare(first, second))


def section(page: Page, heading: str) -> Section:
    return next(s for s in page.sections if s.heading == heading)


def table(page: Page, heading: str) -> list[list[Any]]:
    found = section(page, heading).table
    assert found is not None
    return [list(row) for row in found.rows]


def layers(part: Section) -> list[list[dict[str, Any]]]:
    """Give the rows that each of a chart's layers draws."""
    assert part.chart is not None
    spec = part.chart.to_dict()
    return [spec["datasets"][layer["data"]["name"]] if "name" in layer["data"] else layer["data"]["values"]
            for layer in ({"data": spec.get("data"), **layer} for layer in spec["layer"])]  # fmt: skip


def test_one_evaluation_by_its_sections(first) -> None:
    page = evaluation_page([first.evaluation])
    assert page.title == "Evaluation: runs/a"
    assert page.lead == ["fp32, cpu, lathe; 2026-01-02T03:04:05; lathe 0.1.0"]
    assert [s.heading for s in page.sections] == ["Accuracy", "Suites", "Held-out loss", "Categories"]
    assert page.figures[:3] == [
        ("all-three, accuracy", "0.500"),
        ("core, centred", "N/A"),
        ("wiki (test), loss", "3.000"),
    ]
    assert "core is N/A: it lacks squad, coqa." in page.notes
    assert "quiz: 1 of 10 items were longer than the context, and cut on the left." in page.notes
    assert table(page, "Accuracy")[0] == ["quiz", 10, 0, "0.500 ± 0.167", 0.25, "0.333 ± 0.222", "-2.000 ± 0.000"]
    assert "Averaged over categories: parted." in section(page, "Accuracy").text
    assert table(page, "Suites")[1] == ["core", "centred", "N/A", "1 of 3"]
    losses = table(page, "Held-out loss")
    assert losses[0][:5] == ["wiki (test)", "3.0000 ± 0.0300", "2.9400–3.0600", "–", pytest.approx(20.0855, rel=1e-4)]
    assert losses[1][-1] == "windows of 128 tokens, 64 apart"
    assert table(page, "Categories")[0] == ["quiz", "x", 5, "0.400 ± 0.245"]


def test_the_chart_has_bars_and_chance(first) -> None:
    chances, whiskers, dots = layers(section(evaluation_page([first.evaluation]), "Accuracy"))
    assert {row["task"]: row["chance"] for row in chances} == {"quiz": 0.25, "parted": 0.25}  # none at 0
    quiz = next(row for row in dots if row["task"] == "quiz")
    reach = 1.96 * first.evaluation.tasks[0].se
    assert (quiz["accuracy"], quiz["low"], quiz["high"]) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach), abs=1e-4)
    assert whiskers == dots


def test_bars_stay_within_all_and_none(first) -> None:
    sure = dataclasses.replace(first.evaluation.tasks[2], accuracy=0.99, centred=0.99)
    one = dataclasses.replace(first.evaluation, tasks=(sure,), aggregates=())
    _, _, dots = layers(section(evaluation_page([one]), "Accuracy"))
    assert dots[0]["high"] == 1.0


def test_an_unknown_error_has_no_bar(first) -> None:
    vague = dataclasses.replace(first.evaluation.tasks[0], se=None, centred_se=None)
    page = evaluation_page([dataclasses.replace(first.evaluation, tasks=(vague,))])
    _, _, dots = layers(section(page, "Accuracy"))
    assert dots[0]["low"] == dots[0]["accuracy"] == dots[0]["high"]
    assert table(page, "Accuracy")[0][3] == "0.500 ± –"


def test_several_evaluations_stand_beside_each_other(both) -> None:
    assert both.title == "Evaluations"
    assert [line[:9] for line in both.lead] == ["A: runs/a", "B: runs/b"]
    assert [row[:2] for row in table(both, "Accuracy")][:4] == [
        ["A", "quiz"],
        ["B", "quiz"],
        ["A", "parted"],
        ["B", "parted"],
    ]
    assert [row[:3] for row in table(both, "Categories")][:3] == [
        ["A", "quiz", "x"],
        ["B", "quiz", "x"],
        ["A", "quiz", "y"],
    ]
    assert both.figures[:2] == [("all-three, accuracy, A", "0.500"), ("all-three, accuracy, B", "0.600")]
    assert len([note for note in both.notes if "core is N/A" in note]) == 1
    _, _, dots = layers(section(both, "Accuracy"))
    assert {(row["who"], row["task"]) for row in dots} == {(w, t) for w in "AB" for t in ("quiz", "parted", "cloze")}


def test_a_note_on_one_of_several_names_it(first, second) -> None:
    whole = dataclasses.replace(second.evaluation, aggregates=second.evaluation.aggregates[:1])
    page = evaluation_page([first.evaluation, whole])
    assert "core is N/A: it lacks squad, coqa (A)." in page.notes


def test_a_comparison_has_its_chart_and_tables(both) -> None:
    rows = {row[0]: row for row in table(both, "B against A")}
    assert rows["quiz"][1:9] == ["0.500", "0.800", "+0.300 ± 0.213", "-0.118 to +0.718", 1, 4, "0.375", "1.000"]
    zero, _, dots = layers(section(both, "B against A"))
    assert zero == [{"none": 0}]
    assert [row["task"] for row in dots] == ["quiz", "parted", "cloze"]
    rest = {(row[0], row[1]): row[2:5] for row in table(both, "Suites and losses")}
    assert rest["all-three", "accuracy"][:2] == ["0.500", "0.600"]
    assert rest["wiki (test)", "nats per token"] == ["3.0000", "2.9000", "-0.1000 ± 0.0424"]
    assert "core: N/A in both, as it lacks tasks." in both.notes


def test_losses_alone_make_a_page(first) -> None:
    page = evaluation_page([dataclasses.replace(first.evaluation, tasks=(), aggregates=())])
    assert [s.heading for s in page.sections] == ["Held-out loss"]
    assert "<script" not in render_page(page)


def test_no_evaluation_is_no_page() -> None:
    with pytest.raises(EvaluationError, match="0 evaluations were given"):
        evaluation_page([])


def test_names_cannot_write_html(first) -> None:
    html = render_page(evaluation_page([dataclasses.replace(first.evaluation, checkpoint="</title><b>")]))
    assert "<title>Evaluation: &lt;/title&gt;&lt;b&gt;</title>" in html


@pytest.mark.parametrize("suffix", [".png", ".svg", ".json"])
def test_the_charts_can_be_saved_without_their_page(both, tmp_path, suffix) -> None:
    save_chart(both, tmp_path / f"evals{suffix}")
    assert (tmp_path / f"evals{suffix}").stat().st_size > 5_000


@pytest.fixture(scope="module")
def file(both, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "evals.html"
    save_chart(both, path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 400])
def test_the_page_draws_itself_without_a_network(browser, file, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        for chart in ("#chart-0", "#chart-1"):
            page.locator(f"{chart} svg text", has_text=re.compile("^quiz$")).wait_for()
        lines = page.locator("#chart-1 .mark-rule line")
        strokes = {lines.nth(i).get_attribute("stroke") for i in range(lines.count())}
        assert strokes
        assert not strokes & {"black", "#000", "#000000"}  # unseen in the dark
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert said == []
        assert asked == [file.as_uri()]
    finally:
        context.close()
