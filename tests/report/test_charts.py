"""Charts of a law: what they show is what the law says, and files are what their suffix says."""

import json
import re
import sys

import altair as alt
import numpy as np
import pytest

from lathe.errors import LatheError, LawError, MissingExtraError
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.report.charts import check_plot_path, save_chart
from lathe.report.html import DataTable, Page, Section
from lathe.report.law_charts import chart_fit, chart_levels, chart_predicted, chart_residuals
from lathe.report.law_levels import find_levels, nice_steps, reads_shape
from lathe.report.law_page import law_page
from lathe.report.law_points import group, list_primaries, read_points, short, trace


@pytest.fixture(scope="module")
def runs():
    return read_runs("morph-2025")


@pytest.fixture(scope="module")
def split(runs):
    return runs[runs["size"] != "1B"], runs[runs["size"] == "1B"]


@pytest.fixture(scope="module")
def law(split):
    return fit(split[0], "width-depth", draws=20)


@pytest.fixture(scope="module")
def points(law, split):
    return read_points(law, split[0], held_out=split[1])


@pytest.fixture(scope="module")
def page(law, split):
    return law_page(law, split[0], held_out=split[1])


def layers(chart: alt.LayerChart) -> list[list[dict]]:
    """Give each layer's rows."""
    spec = chart.to_dict()
    every = [layer.get("data", spec.get("data")) for layer in spec["layer"]]
    return [spec["datasets"][data["name"]] for data in every]


def values(chart: alt.LayerChart, key: str) -> list[dict]:
    """Give the rows of the first layer whose rows have a key."""
    return next(rows for rows in layers(chart) if key in rows[0])


def test_points_are_the_laws_predictions_and_intervals(law, split, points):
    rows = iter(points.rows())
    for table, name in zip(split, ("fitted", "held out"), strict=True):
        predicted, interval = law.predict(table), law.interval(table)
        for i, run in enumerate(table["name"]):
            row = next(rows)
            assert (row["run"], row["split"]) == (run, name)
            assert row["measured"] == pytest.approx(table["loss"].iloc[i])
            assert row["predicted"] == pytest.approx(predicted[i], rel=1e-6)
            assert row["residual"] == pytest.approx(100 * (row["measured"] / predicted[i] - 1), abs=1e-4)
            assert (row["low"], row["high"]) == pytest.approx((interval.low[i], interval.high[i]), rel=1e-6)
    assert next(rows, None) is None


def test_curves_along_tokens_are_the_law_at_each_sizes_middle_run(law, points):
    chart = chart_fit(points, axis="tokens")
    curves = [row for row in values(chart, "predicted") if row["group"] == "164M"]
    rows = [row for row in points.rows() if row["group"] == "164M"]
    found = None
    for run in rows:
        shape = {c: np.full(len(curves), run[c]) for c in ("d_model", "n_layers")}
        expected = law.predict(shape | {"tokens": np.array([c["tokens"] for c in curves])})
        if np.allclose(expected, [c["predicted"] for c in curves], rtol=1e-6):
            found = run
    assert found is not None
    assert all(c["low"] < c["high"] for c in curves)


def test_curves_along_params_keep_tokens_per_param(points):
    curves = values(chart_fit(points, axis="params"), "predicted")
    assert [*dict.fromkeys(c["group"] for c in curves)] == ["×20", "×40", "×160"]
    at_20, at_160 = ([c["predicted"] for c in curves if c["group"] == g] for g in ("×20", "×160"))
    assert at_20[0] > at_20[-1]
    assert at_160[0] < at_20[0]


def test_a_law_of_params_alone_is_traced_exactly(runs):
    law = fit(runs, "chinchilla", draws=0)
    points = read_points(law, runs)
    assert points.ratios is not None
    for row in trace(points, axis="params", groups=points.ratios):
        assert "low" not in row
        assert law.coefficients["E"] < row["predicted"] < 7


def test_residuals_and_diagonal(points):
    residuals = values(chart_residuals(points), "residual")
    assert residuals == [{"residual": 0}]
    low, high = layers(chart_predicted(points))[0]
    assert low["measured"] == low["predicted"] < min(points.measured_n)
    assert high["measured"] == high["predicted"] > max(points.measured_n)


def test_level_lines_have_the_loss_they_say(law, points):
    levels = find_levels(points, tokens=1e10)
    assert levels is not None
    lines = {c: np.array([row[c] for row in levels.lines]) for c in ("level", "d_model", "n_layers")}
    at = {"d_model": lines["d_model"], "n_layers": lines["n_layers"], "tokens": np.full(len(levels.lines), 1e10)}
    assert law.predict(at) == pytest.approx(lines["level"], rel=2e-4)
    assert len(set(lines["level"])) > 4
    chart_levels(points, levels).to_dict()  # Altair checks it against Vega-Lite's schema


def test_equal_params_and_the_best_shape_are_right(law, points, split):
    levels = find_levels(points)
    assert levels is not None
    assert levels.tokens == np.median(points.columns["tokens"])
    runs = split[0]
    block, embedding = 4 + 3 * (runs["d_ff"] / runs["d_model"]).median(), 2 * runs["vocab_size"].iloc[0]
    row = next(r for r in levels.equal if r["params"] == "200M")
    count = block * row["n_layers"] * row["d_model"] ** 2 + embedding * row["d_model"]
    assert count == pytest.approx(2e8, rel=0.03)
    best = levels.best[len(levels.best) // 2]
    width = best["d_model"] * np.array([0.9, 1, 1.1])
    params = block * best["n_layers"] * best["d_model"] ** 2 + embedding * best["d_model"]
    depth = (params - embedding * width) / (block * width**2)
    loss = law.predict({"d_model": width, "n_layers": depth, "tokens": np.full(3, levels.tokens)})
    assert loss[1] == loss.min()


def test_laws_without_shape_have_no_level_lines(runs):
    law = fit(runs, "chinchilla", draws=0)
    assert not reads_shape(read_points(law, runs))
    headings = [s.heading for s in law_page(law, runs).sections]
    assert headings == [
        "Loss against tokens",
        "Loss against params",
        "Residuals",
        "Predicted against measured",
        "Coefficients",
    ]


def test_one_size_has_no_curve_along_params(runs):
    one = runs[runs["size"] == "164M"]
    page = law_page(fit(one, "width-depth", draws=0), one)
    assert "Loss against params" not in [s.heading for s in page.sections]


def test_an_error_law_is_drawn_against_loss(tmp_path):
    loss = np.linspace(2.2, 4.5, 24)
    table = {"loss": loss, "params": np.geomspace(1e7, 1e9, 24)[::-1], "error": 0.85 - 2.1 * np.exp(-0.7 * loss)}
    table["error"] = table["error"] + 0.002 * np.sin(np.arange(24))
    law = fit(table | {"tokens": 20 * table["params"]}, "error", draws=20)
    page = law_page(law, table)  # without tokens: no groups by tokens per param
    assert page.sections[0].heading == "Error against loss"
    curve = values(page.sections[0].chart, "predicted")
    assert law.predict({"loss": np.array([c["loss"] for c in curve])}) == pytest.approx(
        [c["predicted"] for c in curve], abs=1e-6
    )
    assert "points" in dict(page.figures)["mean error, fitted"]
    save_chart(page, tmp_path / "error.svg")


def test_runs_without_the_target_are_left_out(law, split):
    held_out = split[1].assign(loss=[np.nan, *split[1]["loss"][1:]])
    points = read_points(law, split[0], held_out=held_out)
    assert points.held_out_n.sum() == len(held_out) - 1
    with pytest.raises(LawError, match="no column 'loss'"):
        read_points(law, split[0].drop(columns="loss"))


def test_thousands_of_runs_are_drawn():
    rng = np.random.default_rng(0)
    params = 10 ** rng.uniform(7.5, 10, 5200)
    tokens = params * 10 ** rng.uniform(0.5, 2.5, 5200)
    table = {"params": params, "tokens": tokens, "loss": 1.7 + 400 / params**0.34 + 400 / tokens**0.28}
    law = fit({name: column[:40] for name, column in table.items()}, "chinchilla", draws=0)
    points = read_points(law, table)
    assert len(layers(chart_fit(points, axis="tokens"))[0]) == 5200  # beneath the curves
    assert points.ratios is not None
    assert len(points.ratios.labels) == len(points.sizes.labels) == 6


def test_the_page_says_how_good_the_law_is(page, points):
    figures = dict(page.figures)
    assert figures["runs fitted + held out"] == "72 + 4"
    assert figures["mean error, held out"] == f"{np.abs(points.residual_n[points.held_out_n]).mean():.2g} %"
    assert page.lead == ("width-depth: L = E + A·d^-a + C·n^-c + B·D^-b",)
    coefficients = next(s.table for s in page.sections if s.heading == "Coefficients")
    assert [row[0] for row in coefficients.rows] == ["E", "A", "C", "B", "a", "c", "b"]


def test_html_is_self_contained(page, tmp_path):
    save_chart(page, tmp_path / "law.html")
    html = (tmp_path / "law.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]*\s(src|href)=", html)
    assert "http" not in html[html.index('<script type="application/json"') :]
    assert html.count('class="chart"') == 5
    assert [p.name for p in tmp_path.iterdir()] == ["law.html"]


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<svg"), (".pdf", b"%PDF-"), (".PNG", b"\x89PNG")]
)
def test_files_are_what_their_suffix_says(points, tmp_path, suffix, start):
    path = tmp_path / f"chart{suffix}"
    save_chart(chart_residuals(points), path)
    assert path.read_bytes().startswith(start)


def test_json_is_vega_lite_with_every_chart(page, tmp_path):
    save_chart(page, tmp_path / "law.json")
    spec = json.loads((tmp_path / "law.json").read_text(encoding="utf-8"))
    assert "vega-lite" in spec["$schema"]
    assert [c["title"] for c in spec["concat"]] == [s.heading for s in page.sections if s.chart is not None]
    assert spec["config"]["background"] == "#ffffff"


def test_a_page_without_charts_is_html_only(tmp_path):
    page = Page(title="numbers", sections=[Section(table=DataTable(head=("a",), rows=[(1,)]))])
    save_chart(page, tmp_path / "a.html")
    with pytest.raises(LatheError, match="no chart to draw"):
        save_chart(page, tmp_path / "a.png")


@pytest.mark.parametrize("name", ["law.gif", "law", "law.html.zip"])
def test_an_unknown_suffix_names_the_known(name, tmp_path):
    with pytest.raises(LatheError, match=r"can be written as \.html, \.png, \.svg, \.pdf, \.json"):
        check_plot_path(tmp_path / name)


def test_a_missing_folder_is_found_early(tmp_path):
    with pytest.raises(LatheError, match="there is no folder"):
        check_plot_path(tmp_path / "nowhere" / "law.png")


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_extra_is_found_early(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "lathe\[report\]"'):
        check_plot_path(tmp_path / "law.png")
    if package == "vl_convert":
        check_plot_path(tmp_path / "law.json")  # needs no converter


def test_a_failed_write_leaves_the_old_file(points, tmp_path, monkeypatch):
    path = tmp_path / "law.svg"
    path.write_text("old")
    monkeypatch.setattr("lathe.documents.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(LatheError, match="nothing was changed"):
        save_chart(chart_residuals(points), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["law.svg"]


def test_groups_are_clusters_or_bins():
    clusters = group(np.array([20.0, 21, 40, 41, 160]), prefix="×")
    assert clusters.labels == ("×20", "×40", "×160")
    assert clusters.index_n.tolist() == [0, 0, 1, 1, 2]
    spread = group(np.geomspace(1e7, 1e10, 50))
    assert len(spread.labels) == 6
    assert len(set(spread.labels)) == 6


def test_round_numbers():
    assert nice_steps(2.9, 5.1, count=8) == [3.0, 3.5, 4.0, 4.5, 5.0]
    assert nice_steps(3.0, 3.0, count=8) == [3.0]
    assert [short(v) for v in (950, 4096, 78_914_048, 999_900_000, 1.61e9, 2e12)] == [
        "950",
        "4.1k",
        "78.9M",
        "1B",
        "1.61B",
        "2T",
    ]


def test_primaries_are_what_a_column_follows_from():
    assert list_primaries(["aspect", "params"], {"d_model": 0, "n_layers": 0}) == ["d_model", "n_layers", "params"]
    assert list_primaries(["aspect"], {}) == ["aspect"]
