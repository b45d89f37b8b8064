"""The page of a comparison of ways to start: what it says is what the result holds, and it draws itself anywhere."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re

import pytest
from rich.console import Console

from lathe.evals.compare import Difference
from lathe.inherit.arms import ARMS
from lathe.inherit.ledger import Charge, Ledger
from lathe.inherit.results import InheritResult, ReferenceRow, Row, Serving, Trial
from lathe.report.charts import save_chart
from lathe.report.html import Page, Section, render_page
from lathe.report.inherit_charts import APART, HEIGHT, spread
from lathe.report.inherit_page import inherit_page
from lathe.report.inherit_tables import arms_table, inherit_table, ledger_table, totals_table, trials_table
from lathe.shape import Shape
from lathe.workload import Workload

SHAPE = Shape.of(d_model=64, n_layers=6, n_heads=4, vocab_size=2048)
LOSSES = {"inherited": 3.21, "random": 3.55, "distilled": 3.52, "pruned": 3.2105, "attention-only": 3.2109}
REFERENCE = Charge(what="training the reference", kind="reference", flops=9e12)


def make_difference(base: float, loss: float) -> Difference:
    return Difference(a=base, b=loss, difference=loss - base, se=0.004, interval=None)


def make_row(name: str, *, shape: Shape = SHAPE, equal=("flops", "latency"), loss: float | None = None) -> Row:
    arm, loss = ARMS[name.partition(",")[0]], loss or LOSSES[name]
    charges = [Charge(what="training", kind="training", flops=1e12, seconds=61.0)]
    charges += [Charge(what="held-out loss", kind="evaluation", flops=3e10)]
    return Row(
        name=name, arm=name.partition(",")[0], what=arm.what, equal=equal, shape=shape, tokens=1_000_000,
        start_loss=loss + 3, loss=loss, loss_se=0.01, loss_sd=0.02,
        versus_random=None if name == "random" else make_difference(LOSSES["random"], loss),
        versus_reference=make_difference(3.1, loss), lower=None if name == "random" else int(2 * (loss < 3.55)),
        ledger=Ledger(charges=(*charges, *([REFERENCE] if arm.reference else []))),
        serving=Serving(predicted_s=0.0123, measured_s=0.0117, measured_p95_s=0.0121),
        trials=tuple(
            Trial(seed=seed, recipe_id=f"{seed}" * 16, folder=f"runs/{seed}" * 2, start_loss=loss + 3,
                  loss=loss + 0.01 * seed, seconds=61.0)
            for seed in (0, 1)
        ),
        curve=tuple((1e12 * i / 40, loss + 4 / i) for i in range(1, 41)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def result() -> InheritResult:
    deep = dataclasses.replace(SHAPE, n_layers=12, sharing="immediate", sharing_count=2)
    rows = [*map(make_row, LOSSES), make_row("shared, 12 layers", shape=deep, equal=("latency",), loss=3.3)]
    serving = Serving(predicted_s=0.023, measured_s=0.022)
    return InheritResult(
        name="small <ones>", study={"reference": "reference", "arms": list(LOSSES)}, created="2026-01-02T03:04:05",
        dataset="data", layers=(0, 1, 2, 3, 4, 5), budget_flops=1e12, target_s=0.0123, device="this machine",
        workload=Workload(), rows=tuple(rows), notes=("nothing says what it was trained on",),
        reference=ReferenceRow(
            folder="reference", shape=dataclasses.replace(SHAPE, n_layers=12), loss=3.1, loss_se=0.01,
            ledger=Ledger(charges=(REFERENCE,)), serving=serving,
        ),
        versions={"lathe": "0.1.0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(result) -> Page:
    return inherit_page(result)


def section(page: Page, heading: str) -> Section:
    return next(one for one in page.sections if one.heading == heading)


def test_the_answer_comes_first(page):
    assert page.title == "small <ones>: lowest loss from inherited"
    figures = dict(page.figures)
    assert figures["lowest loss"] == "3.2100"
    assert figures["against random"] == "-0.3400"
    assert figures["lower than random in"] == "2 of 2 seeds"
    assert figures["latency, measured"] == "11.7 ms"
    assert "small &lt;ones&gt;" in render_page(page)
    assert page.notes == ["Nothing says what it was trained on."]


def test_arms_stand_in_the_order_of_their_losses_and_the_reference_last(result):
    table = arms_table(result)
    names = [row[0] for row in table.rows]
    assert names == [
        "inherited", "pruned", "attention-only", "shared, 12 layers", "distilled", "random", "the reference"
    ]  # fmt: skip
    cells = dict(zip(table.head, table.rows[3], strict=True))
    assert cells["shape"] == "64×12 (6 stored)"
    assert cells["equal"] == "latency"
    assert cells["against random ± s.e."] == "-0.2500 ± 0.0040"
    assert dict(zip(table.head, table.rows[5], strict=True))["lower in"] is None


def test_the_ledger_is_summed_with_and_without_the_reference(result):
    totals = {row[0]: row[-2:] for row in totals_table(result).rows}
    assert totals["inherited"] == ("1.03e+12", "1.003e+13")
    assert totals["random"] == ("1.03e+12", "1.03e+12")
    assert len(ledger_table(result).rows) == sum(len(row.ledger.charges) for row in result.rows)
    assert len(trials_table(result).rows) == 2 * len(result.rows)


def test_an_unknown_charge_is_a_dash(result):
    unknown = dataclasses.replace(REFERENCE, flops=None)
    first = result.rows[0]
    row = dataclasses.replace(first, ledger=Ledger(charges=(*first.ledger.charges[:-1], unknown)))
    assert totals_table(dataclasses.replace(result, rows=(row,))).rows[0][-1] is None


def test_the_terminal_shows_what_the_page_does(result):
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(inherit_table(result))
    said = console.export_text()
    assert "Ways to start from layers 0:6 of reference, 2 seeds" in said
    assert "-0.3400 ± 0.0040" in said
    assert "! nothing says what it was trained on" in said


def test_without_a_random_arm_nothing_is_set_against_it(result):
    rows = [dataclasses.replace(row, versus_random=None, lower=None) for row in result.rows if row.arm != "random"]
    alone = inherit_page(dataclasses.replace(result, rows=tuple(rows)))
    assert "Against random first weights" not in [one.heading for one in alone.sections]
    assert "against random" not in dict(alone.figures)
    render_page(alone)


def test_names_in_a_chart_do_not_lie_over_one_another():
    losses = [3.21, 3.2105, 3.211, 3.5, 3.2]
    rows = [{"name": str(i), "loss": loss, "x": 1.0} for i, loss in enumerate(losses)]
    placed = spread([*rows, {"name": "far", "loss": 3.21, "x": 9.0}], "x", near=2.0, at=0.5, values=losses)
    near = sorted(row["label"] for row in placed if row["x"] == 1.0)
    pixels = HEIGHT / (1.12 * (max(losses) - min(losses)))
    assert all((b - a) * pixels >= APART * 0.999 for a, b in itertools.pairwise(near))
    assert next(row for row in placed if row["name"] == "far")["label"] == 3.21
    assert all(row["label_x"] == row["x"] + 0.5 for row in placed)


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    save_chart(page, path)
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_draws_itself_without_a_network(browser, page, file, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    try:
        tab = context.new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        for i in range(len([one for one in page.sections if one.chart is not None])):
            tab.locator(f"#chart-{i} svg.marks").wait_for()
        for name in LOSSES:
            assert tab.locator("#chart-1 svg text", has_text=re.compile(f"^{name}$")).count() == 1
        assert tab.locator("#chart-2 svg text", has_text="the reference").count() >= 1
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert said == []
        assert asked == [file.as_uri()]
    finally:
        context.close()
