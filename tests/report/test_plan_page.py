"""The page of a plan: what it says is what the plan holds, and its sliders choose what Python would."""

import json
import re

import pytest

from lathe.budget import Budget
from lathe.design.plan import plan
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.presets.devices import load_device
from lathe.report.charts import save_chart
from lathe.report.html import Page, Readout, Section, render_page
from lathe.report.plan_charts import LATENCY, MEMORY, chart_plan, list_rows
from lathe.report.plan_page import plan_page
from lathe.workload import Workload

WIDE, NARROW = {"width": 1100, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def runs():
    return read_runs("morph-2025")


@pytest.fixture(scope="module")
def law(runs):
    return fit(runs, "width-depth", draws=20)


def make(law, engine="eager", **limits):
    budget = Budget(**{"total_s": 2.0, "params": 1.7e9, "tokens": 29e9} | limits)
    return plan(law, load_device("a100-40gb"), Workload(), budget, engine=engine)


@pytest.fixture(scope="module")
def made(law):
    return make(law)


def best_within(made, *, total_s, memory_bytes=float("inf")):
    """Give the alternative of lowest loss within two budgets, or None."""
    fits = [c for c in made.alternatives if c.total_s <= total_s and c.memory_bytes <= memory_bytes]
    return min(fits, key=lambda c: (c.loss, c.total_s, c.memory_bytes), default=None)


def sliders(chart) -> dict[str, dict]:
    return {param["name"]: param["bind"] | {"value": param["value"]} for param in chart.to_dict()["params"]}


def section(page: Page, heading: str) -> Section:
    return next(s for s in page.sections if s.heading == heading)


def test_the_answer_comes_first(made):
    page, best = plan_page(made), made.choices[0]
    assert page.title == f"Plan: {best.name}"
    figures = dict(page.figures)
    assert figures["predicted loss"] == f"{best.loss:.3f}"
    assert figures["its 90 % interval"] == f"{best.loss_low:.3f}–{best.loss_high:.3f}"
    assert figures["chance of being best"] == f"{best.chance:.0%}".replace("%", " %")
    assert (figures["total latency"], figures["memory"]) == ("1.959 s", "3.4 GB")
    assert figures["decoding bound by"] == best.decode_bound == "launch"
    assert "total latency ≤ 2 s, params ≤ 1.7B, memory ≤ 42.9 GB, 29B training tokens" in page.lead[1]
    assert page.sections[0].heading == "Loss against latency"
    assert any("launch overhead" in point for point in section(page, "Why this shape").points)


def test_tables_hold_the_plans_choices_limits_and_published_shapes(made):
    page = plan_page(made)
    choices = section(page, "Choices").table
    assert [row[:2] for row in choices.rows] == [[c.rank, c.name] for c in made.choices]
    limits = {row[0]: row for row in section(page, "Limits").table.rows}
    gains = {limit.name: limit for limit in made.limits}
    assert limits["total latency"][3:5] == (f"{gains['total_s'].gain:.4f}", gains["total_s"].best)
    assert limits["memory"][3:5] == (None, None)
    assert section(page, "Limits").text == "What binds: total latency, params."
    published = section(page, "Published shapes")
    assert [row[1] for row in published.table.rows] == [c.name for c in made.references[:12]]
    assert f"The best 12 of {len(made.references)}." in published.text


def test_the_chart_holds_every_alternative_best_first(made):
    rows = list_rows(made)
    assert {c.name for c in made.alternatives} | {c.name for c in made.choices} == {row["name"] for row in rows}
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    assert [row["order"] for row in rows] == list(range(len(rows)))
    of = {row["name"]: row for row in rows}
    for choice in made.alternatives:
        row = of[choice.name]
        assert (row["cost"], row["low"], row["high"]) == (choice.loss, choice.loss_low, choice.loss_high)
        assert (row["total"], row["memory"]) == (choice.total_s, choice.memory_bytes / 1e9)


def test_sliders_start_at_the_budget_or_where_nothing_more_is_to_be_had(made, law):
    found = sliders(chart_plan(made))
    assert found[LATENCY]["value"] == 2.0
    assert found[LATENCY]["min"] <= min(c.total_s for c in made.alternatives)
    assert found[LATENCY]["max"] >= max(c.total_s for c in made.alternatives)
    most = max(c.memory_bytes for c in made.alternatives) / 1e9
    assert most <= found[MEMORY]["value"] == found[MEMORY]["max"] < 1.01 * most
    odd = sliders(chart_plan(make(law, total_s=1.2345, memory_bytes=2.5e9)))
    assert (odd[LATENCY]["value"], odd[MEMORY]["value"]) == (1.2345, 2.5)
    for slider in odd.values():
        steps = (slider["value"] - slider["min"]) / slider["step"]
        assert steps == pytest.approx(round(steps), abs=1e-6)


def test_other_limits_on_time_hold_wherever_the_sliders_stand(law):
    made = make(law, per_token_s=0.005)
    assert made.choices
    assert all(float(row["per_token_text"].removesuffix(" ms")) <= 5 for row in list_rows(made))
    assert list_rows(made)[0]["cost"] <= made.choices[0].loss
    assert "The per token and params limits stay." in section(plan_page(made), "Loss against latency").text


def test_where_nothing_fits_the_page_names_the_nearest_shape(law):
    made = make(law, total_s=1e-4)
    page = plan_page(made)
    figures = dict(page.figures)
    assert page.title == "Plan: nothing fits the budget"
    assert figures["nearest shape"] == made.nearest.name
    assert figures["total latency, at most"] == "100 µs"
    assert "relax that first" in section(page, "Limits").text
    assert not [s for s in page.sections if s.heading in ("Choices", "Published shapes", "Why this shape")]
    assert sliders(chart_plan(made))[LATENCY]["value"] == 1e-4
    assert f"nearest: {made.nearest.name}" in render_page(page)


def test_a_law_without_draws_has_no_intervals_and_no_chances(runs):
    page = plan_page(make(fit(runs, "width-depth", draws=0)))
    assert not {"its 90 % interval", "chance of being best"} & dict(page.figures).keys()
    assert "band" not in section(page, "Loss against latency").text
    assert section(page, "Choices").table.rows[0][3] is None
    render_page(page)


def test_towards_a_target_loss_the_chart_is_of_a_lifes_cost(runs):
    law = fit(runs.assign(loss_kind="held-out"), "width-depth", draws=20)
    made = make(law, tokens=None, params=None, target_loss=2.9, inference_tokens=1e12)
    page, best = plan_page(made), made.choices[0]
    figures = dict(page.figures)
    assert figures["life cost (FLOPs)"] == f"{best.lifetime_flops:.3g}"
    assert figures["training tokens"]
    chart = section(page, "Life cost against latency").chart.to_dict()
    assert "life cost (FLOPs)" in json.dumps(chart)
    assert list_rows(made)[0]["cost"] <= best.lifetime_flops


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".json"])
def test_the_chart_can_be_saved_without_its_page(made, tmp_path, suffix):
    save_chart(plan_page(made), tmp_path / f"plan{suffix}")
    assert (tmp_path / f"plan{suffix}").stat().st_size > 10_000


def test_a_readouts_words_are_escaped(made):
    chart = chart_plan(made)
    readout = Readout(layer="answer", fields=[('"best" <b>', "name")], empty="none & nothing")
    html = render_page(Page(title="t", sections=[Section(points=["a < b"], chart=chart, readout=readout)]))
    assert "<ul><li>a &lt; b</li></ul>" in html
    written = re.search(r'data-readout="([^"]*)"', html).group(1)
    assert "&quot;" in written
    assert not set("<>") & set(written)


class Tab:
    """A page open in the browser, without a network."""

    def __init__(self, browser, path, *, viewport):
        self.context = browser.new_context(viewport=viewport, color_scheme="light", offline=True)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.locator(".readout:not(:empty)").wait_for()

    def move(self, slider: str, value: float) -> None:
        script = "(it, to) => { it.value = to; it.dispatchEvent(new Event('input', {bubbles: true})); }"
        self.page.locator(f"input[name={slider}]").evaluate(script, str(value))

    def check(self, choice) -> None:
        """Check that the page comes to say what Python chose, and that the ring is round it."""
        from playwright.sync_api import expect

        readout = self.page.locator(".readout")
        if choice is None:
            expect(readout).to_have_text("No shape fits: allow more time or more memory.")
            return
        expect(readout.locator("dd").first).to_have_text(choice.name)
        interval = f"{choice.loss:.3f} ({choice.loss_low:.3f}–{choice.loss_high:.3f})"
        expect(readout.locator("dd").nth(1)).to_have_text(interval)
        label = f"{choice.shape.d_model}×{choice.shape.n_layers}"
        expect(self.page.locator("svg text", has_text=re.compile(f"^{label}$"))).to_have_count(1)


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "plan.html"
    save_chart(plan_page(made), path)
    return path


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["desktop", "phone"])
def test_moving_a_slider_changes_the_selection(browser, made, file, viewport):
    tab = Tab(browser, file, viewport=viewport)
    try:
        tab.check(made.choices[0])
        chosen = set()
        for total_s in (3.5, 1.0, 0.58, 1.41, 2.51):
            tab.move(LATENCY, total_s)
            best = best_within(made, total_s=total_s)
            tab.check(best)
            chosen.add(best and best.name)
        assert len(chosen) == 5
        assert None in chosen
        tab.move(MEMORY, 1.5)
        tab.check(best_within(made, total_s=2.51, memory_bytes=1.5e9))
        assert tab.page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        assert tab.said == []
        assert tab.asked == [file.as_uri()]
    finally:
        tab.context.close()


def test_a_change_of_colours_keeps_the_readers_budgets(browser, made, file):
    tab = Tab(browser, file, viewport=WIDE)
    try:
        tab.move(LATENCY, 1.41)
        tab.check(best_within(made, total_s=1.41))
        tab.page.locator("svg").first.evaluate("it => { it.dataset.old = 1; }")
        tab.page.emulate_media(color_scheme="dark")
        tab.page.locator("svg:not([data-old])").first.wait_for()
        tab.check(best_within(made, total_s=1.41))
        assert tab.page.locator(f"input[name={LATENCY}]").input_value() == "1.41"
        assert tab.said == []
    finally:
        tab.context.close()
