"""The runs to add: what they cost, what they narrow, what is refused, and that they beat random ones on Morph."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lathe.design.greedy import view_forms
from lathe.design.next import NOISE, NextRuns, fit_forms, forecast, next_runs
from lathe.design.posterior import EXPONENT, fit_posterior
from lathe.design.small_runs import propose_candidates
from lathe.errors import BudgetError, LawError, RunsError
from lathe.laws.forms import FORMS
from lathe.laws.importers import read_runs
from lathe.report.next_table import next_table
from lathe.shape import Shape

TARGET = {"params": 1.6e9, "d_model": 3072, "n_layers": 12, "tokens": 29e9}


@pytest.fixture(scope="module")
def morph() -> pd.DataFrame:
    return read_runs("morph-2025")


@pytest.fixture(scope="module")
def six(morph: pd.DataFrame) -> pd.DataFrame:
    return morph[morph["params"] <= 126e6].sample(6, random_state=0)


@pytest.fixture(scope="module")
def rest(morph: pd.DataFrame, six: pd.DataFrame) -> pd.DataFrame:
    return morph[~morph.index.isin(six.index) & (morph["size"] != "1B")]


def plant(count: int, *, seed: int, noise: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    d, n = rng.integers(4, 24, count) * 64, rng.integers(3, 25, count)
    params = 12.0 * n * d**2 + 1e5 * d
    tokens = params * rng.choice([20.0, 40.0, 160.0], count)
    loss = (2 + 40 * d**-0.6 + n**-0.5 + 1.2e6 * tokens**-0.63) * np.exp(noise * rng.standard_normal(count))
    return {"d_model": d, "n_layers": n, "params": params, "tokens": tokens, "loss": loss, "seed": np.arange(count)}


@pytest.mark.parametrize("form", ["chinchilla", "width-depth", "aspect-free-tokens"])
def test_derivatives_match_differences(morph: pd.DataFrame, form: str) -> None:
    found = fit_posterior(FORMS[form], morph, morph["loss"].to_numpy(), noise=NOISE, seed=0)
    _, by_phi_np = found.linearise(morph)
    phi_p = found.phi_p.copy()
    for i in range(len(phi_p)):
        found.phi_p[:] = phi_p
        found.phi_p[i] += 1e-5
        above, _ = found.linearise(morph)
        found.phi_p[i] -= 2e-5
        below, _ = found.linearise(morph)
        np.testing.assert_allclose(by_phi_np[:, i], (above - below) / 2e-5, atol=1e-7)


def test_the_fit_is_stationary_and_the_starts_do_not_matter(six: pd.DataFrame) -> None:
    y_n = six["loss"].to_numpy()
    first, other = (fit_posterior(FORMS["width-depth"], six, y_n, noise=NOISE, seed=s) for s in (0, 5))
    np.testing.assert_allclose(first.phi_p, other.phi_p, atol=1e-3)
    log_n, by_phi_np = first.linearise(six)
    k = first.system.coefficients
    mean_p = np.concatenate(
        [np.full(k, np.log(y_n).mean() - np.log(k)), np.full(len(first.phi_p) - k, np.log(EXPONENT))]
    )
    pull_p = by_phi_np.T @ (log_n - np.log(y_n)) / first.noise**2 + first.precision_p * (first.phi_p - mean_p)
    assert np.abs(pull_p).max() < 0.01


def test_a_planted_law_is_forecast_within_its_interval() -> None:
    inside, truth = [], 2 + 40 * 3072**-0.6 + 12**-0.5 + 1.2e6 * 29e9**-0.63
    for seed in range(10):
        found = forecast(plant(25, seed=seed, noise=0.003), TARGET, form="width-depth")
        assert found.loss[0] == pytest.approx(truth, rel=0.05)
        inside.append(found.low[0] <= truth <= found.high[0])
    assert sum(inside) >= 8


def test_the_first_run_removes_most_variance_a_flop(six: pd.DataFrame, rest: pd.DataFrame) -> None:
    """Count the variance anew, with the information of one more run, for each candidate."""
    found = fit_forms({str(c): six[c].to_numpy() for c in six}, [FORMS["width-depth"]], noise=None, seed=0)
    (view,) = view_forms(found, six, {c: np.array([v]) for c, v in TARGET.items()}, rest)
    information_pq = np.linalg.inv(view.cov_pq)

    def variance(more_pq: np.ndarray) -> float:
        return float((view.by_phi_tp @ np.linalg.inv(information_pq + more_pq) @ view.by_phi_tp.T).item())

    removed_c = [
        variance(np.zeros_like(view.cov_pq)) - variance(np.outer(j, j) / view.noise**2) for j in view.by_phi_cp
    ]
    np.testing.assert_allclose(view.gains(), removed_c, rtol=1e-3, atol=1e-12)
    best = int(np.argmax(removed_c / (rest["params"] * rest["tokens"]).to_numpy()))
    chosen = next_runs(six, TARGET, flops=1e20, candidates=rest, form="width-depth").chosen[0]
    assert chosen.row == best
    assert chosen.after.fit[0] ** 2 == pytest.approx(view.variance_t[0] - removed_c[best], rel=1e-4)


def test_what_a_design_says(six: pd.DataFrame, rest: pd.DataFrame) -> None:
    found = next_runs(six, TARGET, flops=1e20, candidates=rest, form="width-depth")
    costs = [6 * rest["params"].iloc[r.row] * rest["tokens"].iloc[r.row] for r in found.chosen]
    np.testing.assert_allclose([r.flops for r in found.chosen], costs)
    np.testing.assert_allclose([r.spent for r in found.chosen], np.cumsum(costs))
    assert len({r.row for r in found.chosen}) == len(found.chosen)
    widths = [found.before.half_width[0], *(r.after.half_width[0] for r in found.chosen)]
    assert (np.diff(widths) < 0).all()
    assert widths[-1] < 0.2 * widths[0]
    assert list(found.columns["name"]) == [rest["name"].iloc[r.row] for r in found.chosen]
    assert any("6 runs for the 7 parameters" in w for w in found.warnings)
    assert any("beyond every run and candidate" in w for w in found.warnings)
    again = next_runs(six, TARGET, flops=1e20, candidates=rest, form="width-depth")
    assert [r.row for r in again.chosen] == [r.row for r in found.chosen]


def test_fewer_runs_than_a_form_has_parameters_down_to_one(six: pd.DataFrame) -> None:
    found = next_runs(six.iloc[:1], TARGET, flops=1e20)
    assert found.chosen
    assert found.after.half_width[0] < 0.3 * found.before.half_width[0]


def test_a_shape_is_a_target(six: pd.DataFrame) -> None:
    shape = Shape.of(d_model=3072, n_layers=12, n_heads=16, vocab_size=50432)
    columns = {"params": shape.params, "d_model": 3072, "n_layers": 12, "tokens": 29e9}
    assert forecast(six, (shape, 29e9)).loss == pytest.approx(forecast(six, columns).loss)


def test_replicates_set_the_noise() -> None:
    runs = {k: np.repeat(v, 3) for k, v in plant(6, seed=1, noise=0).items()} | {"seed": np.arange(18)}
    runs["loss"] = runs["loss"] * np.exp(0.02 * np.random.default_rng(0).standard_normal(18))
    assert 0.01 < forecast(runs, TARGET, form="width-depth").noise < 0.03
    assert forecast(runs, TARGET, form="width-depth", noise=0.2).noise > 0.05


def test_the_default_grid_stays_small(six: pd.DataFrame) -> None:
    grid = propose_candidates(six, {c: np.array([v]) for c, v in TARGET.items()}, flops=1e20)
    assert 20 < len(grid["params"]) < 1000
    assert (6 * grid["params"] * grid["tokens"] <= 1e20).all()
    assert grid["params"].min() >= 0.9 * six["params"].min()
    assert grid["params"].max() <= 1.1 * TARGET["params"]
    assert (grid["d_model"] % 64 == 0).all()
    real = Shape.of(d_model=1024, n_layers=6, n_heads=16, vocab_size=50432).params
    at = (grid["d_model"] == 1024) & (grid["n_layers"] == 6)
    assert grid["params"][at][0] == pytest.approx(real, rel=0.05)


def test_runs_without_shape_get_a_grid_of_sizes(six: pd.DataFrame) -> None:
    bare = {c: six[c].to_numpy() for c in ("params", "tokens", "loss")}
    found = next_runs(bare, {"params": 1.6e9, "tokens": 29e9}, flops=1e20)
    assert set(found.weights) == {"chinchilla", "chinchilla-tied"}
    assert {"params", "tokens"} <= set(found.columns)
    assert found.spent <= 1e20


@settings(max_examples=15, deadline=None)
@given(flops=st.floats(1e18, 1e21), seed=st.integers(0, 100))
def test_a_budget_is_never_broken(flops: float, seed: int) -> None:
    runs, others = plant(8, seed=seed, noise=0.003), plant(20, seed=seed + 1, noise=0)
    assume(flops >= (6 * others["params"] * others["tokens"]).min())
    found = next_runs(runs, TARGET, flops=flops, candidates=others, form="width-depth")
    assert found.spent <= flops


@pytest.mark.parametrize("flops", [0, -1e19, float("nan"), float("inf")])
def test_a_budget_that_buys_nothing_is_refused(six: pd.DataFrame, flops: float) -> None:
    with pytest.raises(BudgetError, match="above zero"):
        next_runs(six, TARGET, flops=flops)


@pytest.mark.parametrize("given_candidates", [True, False])
def test_the_cheapest_is_named_where_none_is_affordable(
    six: pd.DataFrame, rest: pd.DataFrame, given_candidates: bool
) -> None:
    with pytest.raises(
        BudgetError, match=r"flops=1e\+15 buys none of the \d+ candidates; the cheapest is row \d+ \(.*\) at"
    ):
        next_runs(six, TARGET, flops=1e15, candidates=rest if given_candidates else None)


def test_tables_that_cannot_be_used_are_refused(six: pd.DataFrame) -> None:
    with pytest.raises(RunsError, match="no rows"):
        next_runs(six.iloc[:0], TARGET, flops=1e19)
    with pytest.raises(RunsError, match="the table of candidates has no column 'params'"):
        next_runs(six, TARGET, flops=1e19, candidates={"tokens": [1e9]})
    with pytest.raises(LawError, match="no rows"):
        next_runs(six, {}, flops=1e19)
    with pytest.raises(LawError, match="the target's tokens is -1"):
        next_runs(six, TARGET | {"tokens": -1}, flops=1e19)
    with pytest.raises(LawError, match="differ in length"):
        next_runs(six, TARGET | {"tokens": [1e9, 2e9], "params": [1e9, 2e9, 3e9]}, flops=1e19)
    with pytest.raises(LawError, match="noise=0"):
        next_runs(six, TARGET, flops=1e19, noise=0)
    with pytest.raises(LawError, match="level=2"):
        next_runs(six, TARGET, flops=1e19, level=2)


def test_a_target_column_that_is_missing_is_named(six: pd.DataFrame) -> None:
    blind = {k: v for k, v in TARGET.items() if k != "n_layers"}
    with pytest.raises(LawError, match="form 'width-depth' cannot be used: the target lacks column 'n_layers'"):
        next_runs(six, blind, flops=1e19, form="width-depth")
    with pytest.raises(LawError, match="the target lacks column 'tokens'"):
        next_runs(six, {"params": 1e9}, flops=1e19)


def test_a_form_that_cannot_tell_the_targets_apart_is_refused(six: pd.DataFrame) -> None:
    two = {"params": [1e9, 1e9], "tokens": [2e10, 2e10], "d_model": [2048, 3072], "n_layers": [24, 12]}
    with pytest.raises(LawError, match=r"'chinchilla' reads params, tokens alone .* d_model, n_layers"):
        next_runs(six, two, flops=1e20, form="chinchilla")
    assert not {"chinchilla", "chinchilla-tied"} & set(next_runs(six, two, flops=1e20).weights)
    with pytest.raises(LawError, match="'auto' or a form's name"):
        next_runs(six, TARGET, flops=1e20, form="best")
    with pytest.raises(LawError, match="predicts no positive loss"):
        next_runs(six, TARGET, flops=1e20, form="vocabulary")


def test_what_no_run_varies_is_said(six: pd.DataFrame) -> None:
    found = next_runs(six, TARGET | {"vocab_size": 32000}, flops=1e20)
    assert any("vocab_size is 50432 in every run but not at the target" in w for w in found.warnings)


def test_the_table_names_each_run_and_its_gain(six: pd.DataFrame, rest: pd.DataFrame) -> None:
    text = _print(next_runs(six, TARGET, flops=1e20, candidates=rest))
    assert "Next runs: target loss" in text
    assert "now" in text
    assert "313M_v4" in text
    assert "100%" in text or "99%" in text
    assert "! params at the target is" in text


def _print(found: NextRuns) -> str:
    console = Console(width=200)
    with console.capture() as said:
        console.print(next_table(found))
    return said.get()


def test_chosen_runs_beat_random_ones_on_morph(morph: pd.DataFrame) -> None:
    """From six random runs ≤ 126M, 1e20 FLOPs, 30 trials; the same fit under the prior judges both arms.

    Random choice walks a shuffled table and takes what the rest of the budget buys, so both spend nearly all of it. The
    truth is the four 1B runs, which neither arm may buy, and their mean relative error.
    """
    large_n = (morph["size"] == "1B").to_numpy()
    targets, cost_n = morph[large_n], (6 * morph["params"] * morph["tokens"]).to_numpy()
    start, errors = np.flatnonzero(morph["params"] <= 126e6), []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        first = rng.choice(start, 6, replace=False)
        rest = np.setdiff1d(np.flatnonzero(~large_n), first)
        found = next_runs(morph.iloc[first], targets, flops=1e20, candidates=morph.iloc[rest])
        ours = [int(rest[r.row]) for r in found.chosen]
        theirs, left = [], 1e20
        for i in rng.permutation(rest):
            if cost_n[i] <= left:
                theirs.append(int(i))
                left -= cost_n[i]
        assert cost_n[ours].sum() <= 1e20
        guesses = [forecast(morph.iloc[[*first, *more]], targets).loss for more in (ours, theirs)]
        errors.append([float(np.mean(np.abs(g / targets["loss"].to_numpy() - 1))) for g in guesses])
    chosen, random = np.median(errors, axis=0)
    print(f"median 1B error, 30 trials: chosen {chosen:.3%}, random {random:.3%}, ratio {chosen / random:.2f}")
    assert chosen <= 0.7 * random
