"""Mixtures by regression: planted optima are found, draws keep their caps, and bad tables are told apart."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.cli.mix import mix
from lathe.data.mixture import load_mixture, write_mixture
from lathe.documents import parse_toml
from lathe.errors import LatheError, LawError, RunsError
from lathe.laws.mixture import BestMixture, MixtureLaw, best_mixture, draw_mixtures, fit_mixture
from lathe.laws.mixture_table import read_mixture_table
from lathe.laws.regressions import rank_correlation

Array = np.ndarray
SIZES = {"web": 8e11, "code": 1e11, "books": 5e10, "wiki": 1e10}
TRUE = np.array([0.3, 0.35, 0.25, 0.1])


def quadratic_truth(weights_ms: Array) -> Array:
    return 2.5 + ((weights_ms - TRUE) ** 2 @ np.array([1.0, 0.8, 1.2, 1.5]))


def log_truth(weights_ms: Array) -> Array:
    """Each source helps in the log of its weight: the best shares are the coefficients' own, TRUE."""
    return 3.0 - np.log(weights_ms + 1e-3) @ (0.3 * TRUE)


def plant(truth: Any, *, runs: int = 120, noise: float = 0.005, seed: int = 0) -> dict[str, Array]:
    table = draw_mixtures(SIZES, runs, seed=seed, strength=(1.0, 10.0))
    weights_ms = np.stack(list(table.values()), axis=1)
    return {**table, "loss": truth(weights_ms) + noise * np.random.default_rng(seed).normal(size=runs)}


def solve(table: Any, model: str, **options: Any) -> tuple[MixtureLaw, BestMixture, Array]:
    law = fit_mixture(table, model=model)
    best = best_mixture(law, simulated=20_000, **options)
    return law, best, np.array(list(best.weights.values()))


class TestRecovery:
    def test_a_planted_quadratic(self) -> None:
        law, best, found_s = solve(plant(quadratic_truth), "quadratic")
        assert law.spearman > 0.98
        assert law.error == pytest.approx(0.005, rel=0.5)
        assert np.abs(found_s - TRUE).max() < 0.04
        assert found_s.sum() == pytest.approx(1)
        assert best.loss == pytest.approx(2.5, abs=0.02)
        assert best.reference > best.loss
        assert law.warnings == ()

    @pytest.mark.parametrize("model", ["quadratic", "boosted"])
    def test_a_planted_log_law(self, model: str) -> None:
        """No model here has its form: the mixture found must still cost nearly as little as the best."""
        if model == "boosted":
            pytest.importorskip("sklearn")
        law = fit_mixture(plant(log_truth, runs=150), model=model, refits=0, folds=3)
        best_s = np.array(list(best_mixture(law, simulated=10_000, averaged=50).weights.values()))
        least, mean = log_truth(TRUE), log_truth(law.weights_ns.mean(axis=0))
        assert law.spearman > 0.8
        assert (log_truth(best_s) - least) / (mean - least) < 0.6

    def test_a_linear_loss_goes_to_the_best_source_as_far_as_the_runs_did(self) -> None:
        law, best, found_s = solve(plant(lambda w: w @ np.array([3.0, 2.0, 3.2, 3.5])), "linear")
        assert law.predict(np.eye(4)) == pytest.approx([3.0, 2.0, 3.2, 3.5], abs=0.02)
        assert law.spearman > 0.97
        assert int(found_s.argmax()) == 1
        assert found_s[1] <= law.weights_ns[:, 1].max() + 1e-9
        low, high = best.intervals["code"]
        assert low <= found_s[1] <= high

    def test_intervals_cover_the_truth(self) -> None:
        covered = []
        for seed in range(6):
            law = fit_mixture(plant(quadratic_truth, runs=60, noise=0.02, seed=seed), model="quadratic", refits=30)
            found = best_mixture(law, simulated=60_000, averaged=60).intervals.values()
            covered += [low <= true <= high for (low, high), true in zip(found, TRUE, strict=True)]
        assert np.mean(covered) > 0.6

    def test_noise_alone_is_said(self) -> None:
        law, _, _ = solve(plant(lambda w: 3.0 + 0 * w[:, 0], noise=0.1), "linear")
        assert law.spearman < 0.5
        assert "do not trust" in law.warnings[0]

    def test_the_same_seed_gives_the_same(self) -> None:
        table = plant(quadratic_truth)
        assert solve(table, "quadratic")[1] == solve(table, "quadratic")[1]

    def test_a_frame_and_rounded_weights(self) -> None:
        pd = pytest.importorskip("pandas")
        table = pd.DataFrame(plant(quadratic_truth)).round(3)
        assert np.abs(solve(table, "quadratic")[2] - TRUE).max() < 0.05

    def test_repeats_cap_a_source(self) -> None:
        law = fit_mixture(plant(lambda w: w @ np.array([3.0, 3.1, 3.2, 2.0])), model="linear")
        best = best_mixture(law, sizes=SIZES, tokens=4e11, max_repeats=4, simulated=5000)
        assert best.weights["wiki"] <= 4 * SIZES["wiki"] / 4e11


class TestDraws:
    @settings(max_examples=30, deadline=None)
    @given(
        sizes=st.lists(st.floats(1e6, 1e12), min_size=2, max_size=8), seed=st.integers(0, 99), repeats=st.floats(1, 20)
    )
    def test_weights_are_shares_within_the_caps(self, sizes: list[float], seed: int, repeats: float) -> None:
        named = {f"s{i}": size for i, size in enumerate(sizes)}
        tokens = sum(sizes) / 4
        drawn = draw_mixtures(named, 20, seed=seed, tokens=tokens, max_repeats=repeats + 4)
        weights_ms = np.stack(list(drawn.values()), axis=1)
        assert weights_ms.shape == (20, len(sizes))
        assert weights_ms.sum(axis=1) == pytest.approx(np.ones(20))
        assert (weights_ms >= 0).all()
        assert (weights_ms <= (repeats + 4) * np.array(sizes) / tokens + 1e-9).all()

    def test_they_lie_around_the_sizes(self) -> None:
        drawn = draw_mixtures(SIZES, 20_000, temperature=1.0)
        sizes = np.array(list(SIZES.values()))
        means = np.array([column.mean() for column in drawn.values()])
        assert means == pytest.approx(sizes / sizes.sum(), abs=0.01)
        flat = draw_mixtures(SIZES, 20_000, temperature=0.5)
        assert flat["weight.wiki"].mean() > 3 * drawn["weight.wiki"].mean()

    def test_seeds(self) -> None:
        first, again, other = (draw_mixtures(SIZES, 5, seed=s)["weight.web"] for s in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()

    @pytest.mark.parametrize(
        ("sizes", "options", "message"),
        [
            ({"web": 1e9}, {}, "two sources or more"),
            ({"web": 1e9, "code": 0.0}, {}, "above 0"),
            ({"web": 1e9, "code": math.nan}, {}, "above 0"),
            (SIZES, {"strength": (0.0, 1.0)}, "a range above 0"),
            (SIZES, {"count": 0}, "count=0"),
            (SIZES, {"tokens": 1e13}, "fewer than tokens=1e.13"),
            ({"a": 1.0, "b": 1.0, "c": 1e-6}, {"tokens": 8.0, "max_repeats": 4.00001}, "stay within the caps"),
        ],
    )
    def test_bad_draws(self, sizes: dict[str, float], options: dict[str, Any], message: str) -> None:
        count = options.pop("count", 3)
        with pytest.raises(LawError, match=message):
            draw_mixtures(sizes, count, **options)


class TestBadTables:
    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            ({"weight.web": None, "weight.code": None, "weight.books": None}, {}, "has 1 columns weight"),
            ({"loss": None, "los": [3.0] * 30}, {}, "no column 'loss'; did you mean 'los'"),
            ({"loss": [3.0, math.nan] + [3.0] * 28}, {}, "row 2: loss = nan"),
            ({"loss": ["high"] * 30}, {}, "no number"),
            ({"weight.web": [math.nan] * 30}, {}, "row 1: weight.web = nan"),
            ({"weight.web": [-0.1] * 30}, {}, "row 1: weight.web = -0.1"),
            ({"weight.web": [0.9] * 30}, {}, "row 1: the weights sum to"),
            ({"weight.new": [0.0] * 30}, {}, "weight.new is 0 in every run"),
            ({}, {"model": "quadratik"}, "no regression 'quadratik'; did you mean 'quadratic'"),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, Any], options: dict[str, Any], message: str) -> None:
        table = {k: v for k, v in {**plant(quadratic_truth, runs=30), **change}.items() if v is not None}
        with pytest.raises(LawError, match=message):
            fit_mixture(table, **options)

    @pytest.mark.parametrize(("model", "runs"), [("linear", 5), ("quadratic", 9), ("boosted", 19)])
    def test_too_few_runs(self, model: str, runs: int) -> None:
        with pytest.raises(LawError, match=f"{runs} runs of 4 sources; a {model} regression needs {runs + 1}"):
            fit_mixture(plant(quadratic_truth, runs=runs), model=model)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sizes": {"web": 1.0}}, "different sources"),
            ({"sizes": {**SIZES, "web": -1.0}}, "above 0 for each source"),
            ({"tokens": 1e9}, "sizes are not"),
            ({"sizes": SIZES, "tokens": 1e13}, "raise max_repeats"),
            ({"averaged": 0}, "averaged=0"),
            ({"level": 1.0}, "level=1"),
        ],
    )
    def test_bad_questions(self, options: dict[str, Any], message: str) -> None:
        law = fit_mixture(plant(quadratic_truth, runs=30), refits=0)
        with pytest.raises(LawError, match=message):
            best_mixture(law, **options)

    def test_boosting_is_optional(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("lightgbm", "sklearn", "sklearn.ensemble"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(LawError, match="pip install scikit-learn"):
            fit_mixture(plant(quadratic_truth, runs=30), model="boosted")

    def test_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("")
        (tmp_path / "a.csv").write_text("")
        for name, message in (("a.txt", "should end in"), ("a.csv", "cannot be read"), ("none.csv", "cannot be read")):
            with pytest.raises(RunsError, match=message):
                read_mixture_table(tmp_path / name)


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1.0, 5.0, 9.0]), np.array([2.0, 3.0, 100.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0


def test_the_command_writes_what_a_mixture_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd = pytest.importorskip("pandas")
    pd.DataFrame(plant(quadratic_truth)).to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "mixture.toml"
    mix(tmp_path / "runs.csv", model="quadratic", datasets=("web=corpora/web",), out=out)
    printed = capsys.readouterr().out
    assert "held out: Spearman 0.9" in printed
    found = load_mixture(out)
    assert found.sources["web"] == str(tmp_path / "corpora/web")
    assert found.sources["code"] == str(tmp_path / "code")
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-9)
    assert list(found.weights.values()) == pytest.approx(TRUE, abs=0.05)
    for wrong in ({"sizes": ("web",)}, {"sizes": ("web=x",)}, {"datasets": ("wbe=x",)}, {"level": 2.0}):
        with pytest.raises(LatheError):
            mix(tmp_path / "runs.csv", **wrong)  # pyright: ignore[reportArgumentType]


def test_names_that_toml_must_quote() -> None:
    written = write_mixture({"a b": 1 / 3, 'c"d': 2 / 3}, {"a b": "x", 'c"d': "y"})
    assert parse_toml(written, source="x")["weights"] == {"a b": 0.3333, 'c"d': 0.6667}
