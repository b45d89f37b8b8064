"""The report of a study: its numbers are those of the JSON they came from, and it works on a phone and in the dark."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from small_study import PLANNED, make_study

from lathe.errors import CodecError, LatheError
from lathe.report.charts import save_chart
from lathe.report.html import Page, Section, render_page
from lathe.report.plan_charts import chart_plan
from lathe.report.study_figures import save_figures
from lathe.report.study_files import CURVE, read_evidence
from lathe.report.study_page import study_page
from lathe.report.theme import DARK, LIGHT, chart_config
from lathe.studies import StudyResult

PARTS = ["Answer", "Prediction and truth", "Plan", "Law", "Training", "Evaluation", "Costs", "Provenance"]
SCALES = {
    "": 1, "%": 0.01, "s": 1, "ms": 1e-3, "µs": 1e-6, "min": 60, "h": 3600, "kB": 1e3, "MB": 1e6, "GB": 1e9, "k": 1e3,
    "M": 1e6, "B": 1e9,
}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s?(%|min|ms|µs|kB|MB|GB|[shkMB])?(?![\w.]*\w)")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[StudyResult, Path]:
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder), folder


@pytest.fixture(scope="module")
def result(study) -> StudyResult:
    return study[0]


@pytest.fixture(scope="module")
def page(study) -> Page:
    return study_page(*study)


@pytest.fixture(scope="module")
def html(page) -> str:
    return render_page(page)


def section(page: Page, heading: str) -> Section:
    return next(s for s in page.sections if s.heading == heading)


def table(page: Page, heading: str) -> list[list[Any]]:
    found = section(page, heading).table
    assert found is not None
    return [list(row) for row in found.rows]


def rows_of(page: Page, heading: str, key: str) -> list[dict[str, Any]]:
    """Give the rows of all of a chart's layers that have a field."""
    chart = section(page, heading).chart
    assert chart is not None
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows if key in row]


def test_the_answer_comes_first(page, result):
    chosen = next(one for one in result.candidates if one.name == result.chosen)
    figures = dict(page.figures)
    assert page.title == f"quickstart: {result.chosen}"
    assert [s.part for s in page.sections if s.part] == PARTS
    assert page.sections[0].text == "Lowest held-out loss of those within the budget as measured."
    assert figures["true loss"] == f"{chosen.true_loss:.3f}"
    assert figures["its 90 % interval"] == f"{chosen.loss_low:.3f}–{chosen.loss_high:.3f}"
    assert figures["prediction off by"] == f"{100 * (chosen.predicted_loss / chosen.true_loss - 1):+.2f} %"
    assert figures["of the 70 ms budget"] == f"{100 * chosen.measured_s / 0.07:.2f} %"
    rival = result.rivals[0]
    assert figures["predicted gain on 128×2"] == f"{rival.predicted_loss - chosen.predicted_loss:.3f}"
    assert "Depth cannot be told from these runs: its standard error is as large as itself." in page.notes
    assert any("70 ms" in line for line in page.lead)


def test_what_was_chosen_stands_before_what_it_beat(page, result):
    rows = table(page, "What was chosen, and what it beat")
    other = next(one for one in result.candidates if one.name != result.chosen)
    chosen = next(one for one in result.candidates if one.name == result.chosen)
    assert [row[0] for row in rows] == [result.chosen, other.name, result.rivals[0].name]
    assert [row[-1] for row in rows] == [
        "chosen",
        f"loss higher by {other.true_loss - chosen.true_loss:.4f}",
        "not trained",
    ]
    assert rows[1][3] == f"{other.predicted_loss:.4f} ({other.loss_low:.4f}–{other.loss_high:.4f})"
    assert f"{result.rivals[0].name}: {result.rivals[0].why}." in page.sections[0].points


class Cells(HTMLParser):
    """Gather a page's table cells and key figures, by the part they stand in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.part, self.found, self._in = "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.part = dict(attrs).get("id", self.part)
        if tag in ("td", "dd"):
            self._in = []

    def handle_data(self, data):
        if self._in is not None:
            self._in.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "dd"):
            self.found.append((self.part, "".join(self._in or []).replace("\xa0", " ")))
            self._in = None


def leaves(value: Any) -> list[Any]:
    """List the numbers and the words of a document."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def derive(result: StudyResult) -> list[float]:
    """List what the report works out of the result's numbers."""
    found: list[float] = [one.shape.params for one in (*result.candidates, *result.rivals)]
    for one in result.candidates:
        found += [one.predicted_loss / one.true_loss - 1, one.predicted_s / one.measured_s - 1]
        found += [one.memory_bytes / one.measured_memory_bytes - 1, one.measured_s / result.budget_s]
        found += [one.true_loss - other.true_loss for other in result.candidates]
        found += [rival.predicted_loss - one.predicted_loss for rival in result.rivals]
    costs = result.costs.values()
    return [*found, sum(c.seconds for c in costs), sum(c.flops for c in costs), sum(c.runs for c in costs)]


def half_digit(text: str) -> float:
    """Give the half of a number's last digit."""
    mantissa, _, power = text.partition("e")
    return 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize("part", ["", "answer", "prediction-and-truth", "evaluation", "costs", "provenance"])
def test_every_number_is_the_jsons(study, html, part):
    result, folder = study
    files = [folder / "result.json", *(folder.glob("evaluations/*.json") if part == "evaluation" else ())]
    document = [leaf for file in files for leaf in leaves(json.loads(file.read_text()))]
    words = {leaf for leaf in document if isinstance(leaf, str)}
    numbers = [float(leaf) for leaf in document if isinstance(leaf, int | float)] + derive(result)
    seen = 0
    for where, cell in Cells(html).found:
        if where != part or cell in words:
            continue
        for text, unit in NUMBER.findall(cell):
            shown, room = float(text) * SCALES[unit], half_digit(text) * SCALES[unit]
            assert any(abs(shown - number) <= room * (1 + 1e-6) for number in numbers), f"{text} {unit} in {cell!r}"
            seen += 1
    assert seen >= 5


def test_charts_hold_the_results_numbers_to_the_bit(page, result):
    for heading, true, predicted in (("Loss", "true_loss", "predicted_loss"), ("Latency", "measured_s", "predicted_s")):
        rows = rows_of(page, heading, "true")
        expected = {(getattr(one, true), getattr(one, predicted)) for one in result.candidates}
        assert {(row["true"], row["predicted"]) for row in rows} == expected
    lows = {(row["low"], row["high"]) for row in rows_of(page, "Loss", "low")}
    assert lows == {(one.loss_low, one.loss_high) for one in (*result.candidates, *result.rivals)}
    assert rows_of(page, "Latency", "limit")[0]["limit"] == result.budget_s
    costs = {row["stage"]: row["seconds"] for row in rows_of(page, "What each stage took", "stage")}
    assert costs == {name: cost.seconds for name, cost in result.costs.items()}


def test_predicted_stands_against_true_for_runs_and_candidates(study, page, result):
    seen = read_evidence(*study)
    heading = "Loss, predicted against true"
    spec = section(page, heading).chart.to_dict()
    every = [row for rows in spec["datasets"].values() for row in rows if "kind" in row]
    runs = {(row["true"], row["predicted"]) for row in every if row["kind"] == "fitted runs"}
    assert runs == {(row["measured"], row["predicted"]) for row in seen.points.rows()}
    assert len(runs) == 36
    trained = {(row["true"], row["predicted"]) for row in every if row["kind"] == "trained candidates"}
    assert trained == {(one.true_loss, one.predicted_loss) for one in result.candidates}
    error = 100 * next(s.leave_one_out for s in seen.law.ranking if s.form == seen.law.averaged[0].form.name)
    assert f"off by {error:.2g} % on it" in section(page, heading).text
    assert "2 of 2 true losses" in section(page, "Every trained candidate").text


def test_measured_latencies_are_those_of_the_file(study, page):
    rows = [json.loads(line) for line in (study[1] / "measurements.jsonl").read_text().splitlines()]
    spec = section(page, "Latency, predicted against measured").chart.to_dict()
    shown = [row for found in spec["datasets"].values() for row in found if row.get("kind") == "measured to calibrate"]
    assert sorted(row["true"] for row in shown) == sorted(row["prefill_s"] + row["decode_s"] for row in rows)


def test_the_front_marks_where_candidates_came_out(study, page, result):
    spec = section(page, "Loss against latency").chart.to_dict()
    marks = next(rows for rows in spec["datasets"].values() if rows and "from_total" in rows[0])
    assert {(row["total"], row["cost"]) for row in marks} == {(c.measured_s, c.true_loss) for c in result.candidates}
    plain = chart_plan(read_evidence(*study).plan).to_dict()
    assert "from_total" not in json.dumps(plain)


def test_curves_are_means_over_steps_and_end_where_training_did(study, result):
    curve = read_evidence(*study).curves[0]
    lines = (study[1] / result.candidates[0].folder / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    assert len(curve.training) <= CURVE
    assert curve.training[0] == (steps[0]["tokens"], steps[0]["loss"])
    tokens, loss = curve.training[-1]
    tail = [row for row in steps if row["tokens"] > 2 * tokens - PLANNED - 1000]
    assert loss == pytest.approx(sum(row["loss"] for row in tail) / len(tail), abs=0.01)
    assert curve.held_out[-1] == (PLANNED, result.candidates[0].true_loss)


def test_evaluations_are_named_after_their_candidates(page, result):
    names = [one.name for one in result.candidates]
    assert section(page, "Accuracy").text.startswith(f"A is {names[0]}, B is {names[1]}.")
    assert [row[0] for row in table(page, "Scores")] == names
    assert table(page, "Scores")[0][3] == "0.550 ± 0.046"


def test_provenance_names_recipes_files_and_commands(page, result):
    assert [row[2] for row in table(page, "Recipes")] == [one.recipe_id for one in result.candidates]
    assert {"runs.jsonl", "law.json", "plan.json", "result.json"} <= {row[0] for row in table(page, "Files")}
    assert section(page, "To make it again").verbatim == "\n".join(result.commands)
    assert "torch 2.13.0" in section(page, "To make it again").text
    assert ["plan.tokens", str(PLANNED)] in table(page, "Settings")


def test_what_none_met_is_said_with_the_nearest(tmp_path):
    result = make_study(tmp_path, slower=(1.2, 1.3))
    page = study_page(result, tmp_path)
    near = result.candidates[0]
    figures = dict(page.figures)
    assert page.title == "quickstart: nothing met the budget"
    assert figures["nearest shape"] == near.name
    assert figures["of the 70 ms budget"] == f"{100 * near.measured_s / 0.07:.2f} %"
    assert any(point.startswith(f"Nearest is {near.name}") for point in page.sections[0].points)
    verdicts = [row[-1] for row in table(page, "Nothing met the budget")]
    assert verdicts[0] == f"over the budget by {100 * (near.measured_s / 0.07 - 1):.2f} %"
    assert not [s for s in page.sections if s.heading == "In its own words"]
    render_page(page)


def test_a_budget_that_no_shape_meets_shows_the_plans_nearest(tmp_path):
    result = make_study(tmp_path, total_s=0.001)
    page = study_page(result, tmp_path)
    assert result.candidates == ()
    assert dict(page.figures)["nearest shape"] == read_evidence(result, tmp_path).plan.nearest.name
    assert "relax that first" in " ".join(page.sections[0].points)
    assert "Prediction and truth" not in {s.part for s in page.sections}
    render_page(page)


def test_files_that_are_gone_are_named_and_left_out(study, result, tmp_path):
    shutil.copytree(study[1], tmp_path / "left")
    for name in ("law.json", "plan.json", "measurements.jsonl", f"{result.candidates[0].folder}/metrics.jsonl"):
        (tmp_path / "left" / name).unlink()
    page = study_page(result, tmp_path / "left")
    assert {"Plan", "Law"}.isdisjoint(s.part for s in page.sections)
    assert "Gone from the study's folder, so that what they held is left out: plan.json, law.json, " in page.notes[-1]
    assert len(read_evidence(result, tmp_path / "left").curves) == 1
    assert page.lead == ("Budget: total latency ≤ 70 ms",)
    render_page(page)


def test_files_that_cannot_be_read_are_an_error(study, result, tmp_path):
    shutil.copytree(study[1], tmp_path / "left")
    (tmp_path / "left" / "law.json").write_text('{"lathe": "law", "ver')
    with pytest.raises(CodecError, match=r"law\.json"):
        study_page(result, tmp_path / "left")


def test_a_device_elsewhere_leaves_latencies_unmeasured(study, result):
    away = [
        dataclasses.replace(
            one, measured_s=None, measured_p95_s=None, measured_memory_bytes=None,
            true_loss_se=None, accuracies={}, bits_per_byte=None,
        )
        for one in result.candidates
    ]  # fmt: skip
    bare = dataclasses.replace(result, candidates=tuple(away), measurements_file=None, rivals=(), costs={}, study={})
    page = study_page(bare, study[1])
    assert "latency, predicted" in dict(page.figures)
    assert table(page, "Every trained candidate")[0][5:] == [None] * 4
    assert not {"Scores", "Latency, predicted against measured"} & {s.heading for s in page.sections}
    render_page(page)


def test_a_law_from_a_file_has_no_runs_to_show(study, result):
    page = study_page(dataclasses.replace(result, runs_table="", candidates=(), chosen=None), study[1])
    law = section(page, "Scaling law: width-depth")
    assert law.verbatim == f"width-depth: {read_evidence(*study).law.members[0].form.formula}"
    assert "Loss, predicted against true" not in {s.heading for s in page.sections}
    assert not any("Gone" in note for note in page.notes)


def test_runs_are_those_that_the_study_chose(study, result):
    chosen = dataclasses.replace(result, study={"law": {"where": "tokens >= 200000"}})
    assert len(read_evidence(chosen, study[1]).points.names) == 24


def test_what_a_model_wrote_cannot_write_html(page, html, result):
    assert "&lt;stream&gt;, or all &amp; sundry" in html
    assert "def read(self, size=-1):\n    &quot;" in html
    assert section(page, "In its own words").verbatim == result.prompt + result.sample
    assert '<a href="#prediction-and-truth">' in html
    assert 'id="prediction-and-truth"' in html


def test_a_page_without_parts_has_no_contents():
    assert "<nav" not in render_page(Page(title="t", sections=[Section(heading="h", text="x")]))


def test_whiskers_show_on_both_papers():
    for theme in (LIGHT, DARK):
        assert chart_config(theme, background=False)["style"]["whisker"]["color"] == theme.accent


def test_figures_are_saved_one_a_chart(study, page, tmp_path):
    saved = save_figures(*study, tmp_path / "figures")
    assert [heading for heading, _ in saved] == [s.heading for s in page.sections if s.chart is not None]
    assert len({path for _, path in saved}) == len(saved)
    svg = (tmp_path / "figures" / "loss-predicted-against-true.svg").read_text()
    assert svg.startswith("<svg")
    with pytest.raises(LatheError, match=r"\.gif"):
        save_figures(*study, tmp_path / "figures", formats=("gif",))


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    save_chart(page, path)
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_the_report_draws_itself_without_a_network(browser, page, file, result, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    try:
        tab = context.new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        charts = len([s for s in page.sections if s.chart is not None])
        for i in range(charts):
            tab.locator(f"#chart-{i} svg.marks").wait_for()
        tab.locator(".readout:not(:empty)").wait_for()
        rules = tab.locator(".chart .mark-rule line")
        strokes = set(rules.evaluate_all("lines => lines.map(line => line.getAttribute('stroke'))"))
        assert strokes
        assert not strokes & {"black", "#000", "#000000"}  # unseen in the dark
        assert tab.locator("#chart-0 svg text", has_text=f"{result.chosen} (chosen)").count() == 1
        wide = (
            "charts => charts.filter(it => it.querySelector('svg').getBoundingClientRect().width > innerWidth).length"
        )
        assert tab.locator(".chart").evaluate_all(wide) == 0
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert said == []
        assert asked == [file.as_uri()]
    finally:
        context.close()
