"""Intervals: the mixture's quantiles and parts, standard errors against SciPy's, and coverage of new runs."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import curve_fit

from lathe.errors import LawError
from lathe.laws.fit import fit
from lathe.laws.forms import Objective
from lathe.laws.uncertainty import bootstrap_weights, mix

NOISE = 0.004


def make_runs(seed: int, *, runs: int = 30, noise: float = NOISE) -> dict[str, np.ndarray]:
    """Draw runs of six sizes at 5 to 200 tokens a parameter from a planted law, with multiplicative noise."""
    rng = np.random.default_rng(seed)
    n = rng.choice(np.geomspace(5e7, 2e9, 6), runs)
    d = n * np.exp(rng.uniform(np.log(5), np.log(200), runs))
    loss = (1.8 + 480 * n**-0.35 + 2100 * d**-0.37) * np.exp(noise * rng.standard_normal(runs))
    return {"params": n, "tokens": d, "loss": loss}


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_quantiles_are_those_of_the_mixture(log: bool, level: float) -> None:
    rng = np.random.default_rng(0)
    draws = [rng.normal(3.0, 0.05, (3000, 2)), rng.normal(3.3, 0.1, (1000, 2))]
    weights, cv = [0.7, 0.3], 0.02
    found = mix(draws, weights, cv=cv, level=level, log=log, seed=1)
    # brute force: pick a form by its weight, one of its draws, and noise, a million times over
    count = 1_000_000
    which = rng.random(count) < weights[0]
    levels = [np.log(d[:, 0]) if log else d[:, 0] for d in draws]
    sample = np.where(which, rng.choice(levels[0], count), rng.choice(levels[1], count))
    sample = sample + cv * rng.standard_normal(count)
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    if log:
        low, high = np.exp(low), np.exp(high)
    tolerance = 0.05 * (high - low)
    assert found.low[0] == pytest.approx(low, abs=tolerance)
    assert found.high[0] == pytest.approx(high, abs=tolerance)


def test_weights_count_and_numbers_of_draws_do_not() -> None:
    rng = np.random.default_rng(0)
    few, many = np.exp(rng.normal(1.0, 0.01, (500, 1))), np.exp(rng.normal(1.5, 0.01, (5000, 1)))
    found = mix([few, many], [0.98, 0.02], cv=1e-6, level=0.9, log=True, seed=0)
    assert np.log(found.high[0]) < 1.1
    with_many = mix([few, many], [0.5, 0.5], cv=1e-6, level=0.9, log=True, seed=0)
    assert np.log(with_many.high[0]) > 1.4


def test_the_three_parts_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    draws = [np.exp(rng.normal(m, 0.03, (20_000, 1))) for m in (1.0, 1.2)]
    found = mix(draws, [0.5, 0.5], cv=0.05, level=0.9, log=True, seed=0)
    assert found.bootstrap[0] == pytest.approx(0.03, rel=0.03)
    assert found.forms[0] == pytest.approx(0.1, rel=0.03)
    assert found.noise[0] == 0.05
    assert found.level == 0.9


def test_one_form_without_bootstrap_spread_leaves_the_normal_noise() -> None:
    found = mix([np.full((1000, 1), 3.0)], [1.0], cv=0.01, level=0.9, log=True, seed=0)
    assert np.log(found.low[0] / 3) == pytest.approx(-0.01 * 1.6449, rel=0.01)
    assert np.log(found.high[0] / 3) == pytest.approx(0.01 * 1.6449, rel=0.01)
    assert max(found.bootstrap[0], found.forms[0]) < 1e-12


def test_wider_levels_hold_narrower_ones() -> None:
    law = fit(make_runs(0), "chinchilla", draws=200)
    runs = make_runs(1, runs=8)
    found = [law.interval(runs, level=level) for level in (0.3, 0.6, 0.9, 0.99)]
    for narrow, wide in pairwise(found):
        assert (wide.low < narrow.low).all()
        assert (narrow.high < wide.high).all()
    assert (found[0].low < law.predict(runs) * 1.001).all()


@pytest.mark.parametrize("level", [0, 1, -0.1, 90, float("nan")])
def test_refuses_a_level_that_is_no_probability(level: float) -> None:
    with pytest.raises(LawError, match=r"is no probability; give a number between 0 and 1"):
        mix([np.ones((10, 1))], [1.0], cv=0.1, level=level, log=True, seed=0)


def test_refuses_an_interval_without_draws() -> None:
    law = fit(make_runs(0), "chinchilla", draws=0)
    with pytest.raises(LawError, match="keeps no bootstrap draws; fit it with draws=1000"):
        law.interval(make_runs(1))


def test_weights_are_exponential_with_mean_one() -> None:
    weights_bn = bootstrap_weights(40, 4000, seed=3)
    np.testing.assert_allclose(weights_bn.mean(axis=1), 1)
    assert weights_bn.std() == pytest.approx(1, rel=0.05)
    np.testing.assert_array_equal(weights_bn, bootstrap_weights(40, 4000, seed=3))


def _law(x: tuple[np.ndarray, np.ndarray], e: float, a: float, b: float, alpha: float, beta: float) -> np.ndarray:
    return e + a * x[0] ** -alpha + b * x[1] ** -beta


@pytest.mark.parametrize("objective", ["squares", "squares-log"])
def test_standard_errors_are_scipys(objective: Objective) -> None:
    """On a well-posed problem the delta method's errors equal the covariance of `curve_fit`."""
    runs = make_runs(5, runs=60)
    law = fit(runs, "chinchilla", objective=objective, draws=0)
    x, y = (runs["params"], runs["tokens"]), runs["loss"]
    log = objective == "squares-log"
    found, cov = curve_fit(
        (lambda x, *p: np.log(_law(x, *p))) if log else _law,
        x,
        np.log(y) if log else y,
        p0=list(law.coefficients.values()),
        x_scale=list(law.coefficients.values()),
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
        method="trf",
    )
    assert list(law.coefficients.values()) == pytest.approx(found.tolist(), rel=1e-4)
    assert list(law.standard_errors.values()) == pytest.approx(np.sqrt(np.diag(cov)).tolist(), rel=1e-3)


def test_bootstrap_scatter_agrees_with_standard_errors() -> None:
    law = fit(make_runs(5, runs=60), "chinchilla", draws=400)
    scatter = law.members[0].draws_bp.std(axis=0)
    assert np.all(scatter / law.members[0].theta_se_p > 0.6)
    assert np.all(scatter / law.members[0].theta_se_p < 1.6)


def test_huber_standard_errors_scatter_as_refits_do() -> None:
    thetas, ses = [], []
    for seed in range(40):
        member = fit(make_runs(seed, runs=60), "chinchilla", objective="huber-log", draws=0).members[0]
        thetas.append(member.theta_p)
        ses.append(member.theta_se_p)
    ratio = np.std(thetas, axis=0) / np.median(ses, axis=0)
    assert (ratio > 0.6).all()
    assert (ratio < 1.6).all()


@pytest.mark.parametrize("form", ["chinchilla", "auto"])
def test_intervals_cover_new_runs(form: str) -> None:
    """Of new runs from the same law and noise, a 90 % interval should hold about 90 %."""
    inside = []
    for seed in range(12):
        law = fit(make_runs(seed), form, draws=150)
        new = make_runs(1000 + seed, runs=60)
        found = law.interval(new, level=0.9)
        inside.append((found.low <= new["loss"]) & (new["loss"] <= found.high))
    share = float(np.mean(inside))
    print(f"{form}: {share:.1%} of {np.size(inside)} new runs inside their 90 % interval")
    assert 0.80 <= share <= 0.98
