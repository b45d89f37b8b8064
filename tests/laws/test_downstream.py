"""Chains, the sigmoid law and capacity density: answers by hand, planted laws, coverage, bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lathe.errors import CodecError, LawError, RunsError
from lathe.laws.downstream import Chain, capacity_density, chain, effective_params
from lathe.laws.fit import fit
from lathe.laws.forms import Form, Power, Term
from lathe.laws.law import Law
from lathe.laws.sigmoid import SigmoidLaw, fit_sigmoid
from lathe.shape import Shape

C, GAMMA, L, D = 0.6, -4.0, 3.0, 0.25
LOSSES = np.linspace(2.0, 4.2, 12)


def sigmoid(loss_n: np.ndarray) -> np.ndarray:
    return C / (1 + np.exp(-GAMMA * (loss_n - L))) + D


def tasks(noise: float = 0.0, seed: int = 0, runs: int = 12) -> dict[str, np.ndarray]:
    loss_n = np.linspace(2.0, 4.2, runs)
    score_n = sigmoid(loss_n) + noise * np.random.default_rng(seed).normal(size=runs)
    return {"loss": loss_n, "accuracy_copa": score_n}


def grid(noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Lay out runs of the planted law L = 2 + 100·N^−½ + 1000·D^−½, and Err = .85 − 2·e^(−.75·L)."""
    rng = np.random.default_rng(seed)
    params_n = np.repeat(np.geomspace(1e5, 1e8, 6), 3)
    tokens_n = params_n * np.tile([20.0, 60.0, 300.0], 6)
    loss_n = (2 + 100 * params_n**-0.5 + 1000 * tokens_n**-0.5) * np.exp(noise * rng.normal(size=18))
    error_n = 0.85 - 2 * np.exp(-0.75 * loss_n) + noise * rng.normal(size=18)
    return {"params": params_n, "tokens": tokens_n, "loss": loss_n, "error": error_n}


@pytest.fixture(scope="module")
def loss_law() -> Law:
    return fit(grid(), "chinchilla-tied", draws=20)


@pytest.fixture(scope="module")
def error_law() -> Law:
    return fit(grid(), "error", draws=20)


# the sigmoid


def test_sigmoid_known_answers() -> None:
    # at the bend the score is half-way: .25 + .6/2 = .55. ln(3)/4 below it e^{4·(−ln(3)/4)} = 1/3, so
    # .25 + .6/(1 + 1/3) = .70; as far above it, .25 + .6/(1 + 3) = .40. Far off: d = .25 and c + d = .85.
    law = fit_sigmoid(tasks(), "accuracy_copa", draws=0)
    assert law.coefficients == pytest.approx({"c": C, "gamma": GAMMA, "l": L, "d": D}, rel=1e-6)
    step = math.log(3) / 4
    found_n = law.predict({"loss": np.array([3, 3 - step, 3 + step, 20, -20])})
    assert found_n == pytest.approx([0.55, 0.70, 0.40, 0.25, 0.85], abs=1e-7)
    assert law.warnings == ()
    assert max(law.standard_errors.values()) < 1e-6


@pytest.mark.parametrize("gamma", [-1.2, -3.0, -9.0])
@pytest.mark.parametrize("bend", [2.3, 3.1, 3.9])
def test_sigmoid_recovers_planted_laws(gamma: float, bend: float) -> None:
    loss_n = np.linspace(2.0, 4.2, 15)
    runs = {"loss": loss_n, "accuracy": 0.5 / (1 + np.exp(-gamma * (loss_n - bend))) + 0.3}
    found = fit_sigmoid(runs, draws=0).coefficients
    assert found == pytest.approx({"c": 0.5, "gamma": gamma, "l": bend, "d": 0.3}, rel=1e-4)


def test_sigmoid_errors_and_intervals_cover() -> None:
    inside = covered = 0
    new = np.array([2.3, 3.0, 3.6])
    for seed in range(12):
        law = fit_sigmoid(tasks(noise=0.01, seed=seed, runs=16), "accuracy_copa", draws=40, seed=seed)
        off = [abs(law.coefficients[n] - v) for n, v in zip(("c", "gamma", "l", "d"), (C, GAMMA, L, D), strict=True)]
        inside += sum(o < 3 * se for o, se in zip(off, law.standard_errors.values(), strict=True))
        truth_n = sigmoid(new) + 0.01 * np.random.default_rng([seed, 7]).normal(size=3)
        found = law.interval({"loss": new})
        covered += int(np.sum((found.low <= truth_n) & (truth_n <= found.high)))
    assert inside >= 0.97 * 48
    assert covered >= 0.8 * 36


def test_sigmoid_takes_accuracy_from_error() -> None:
    runs = tasks()
    flipped = {"loss": runs["loss"], "error_17": 1 - runs["accuracy_copa"]}
    law = fit_sigmoid(flipped, "accuracy_17", draws=0)
    assert law.coefficients == pytest.approx({"c": C, "gamma": GAMMA, "l": L, "d": D}, rel=1e-6)


def test_sigmoid_goes_through_a_file(tmp_path: Path) -> None:
    law = fit_sigmoid(tasks(noise=0.01), "accuracy_copa", draws=10)
    law.save(tmp_path / "law.json")
    assert SigmoidLaw.load(tmp_path / "law.json") == law
    document = json.loads((tmp_path / "law.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(CodecError, match="newer Lathe"):
        SigmoidLaw.load(tmp_path / "new.json")
    (tmp_path / "cut.json").write_text((tmp_path / "law.json").read_text()[:200])
    with pytest.raises(CodecError, match="cut short"):
        SigmoidLaw.load(tmp_path / "cut.json")


def test_sigmoid_says_what_the_runs_do_not_show() -> None:
    high_n = np.linspace(3.2, 5.0, 8)
    law = fit_sigmoid({"loss": high_n, "accuracy": sigmoid(high_n)}, draws=0)
    assert any("the bend, at loss 3, is not among the runs" in w and "c + d is a guess" in w for w in law.warnings)
    assert law.extrapolation({"loss": [3.5]}) == []
    assert "below every run's (lowest 3.2)" in law.extrapolation({"loss": [2.0]})[0]
    assert "above every run's (highest 5)" in law.extrapolation({"loss": [6.0]})[0]


def test_sigmoid_bad_input() -> None:
    runs = tasks()
    with pytest.raises(LawError, match="4 runs cannot fix the 4 coefficients"):
        fit_sigmoid({k: v[:4] for k, v in runs.items()}, "accuracy_copa")
    with pytest.raises(LawError, match="loss takes 1 distinct values"):
        fit_sigmoid(runs | {"loss": np.full(12, 3.0)}, "accuracy_copa")
    with pytest.raises(RunsError, match=r"row 3, column 'loss' has no value \(NaN\)"):
        fit_sigmoid(runs | {"loss": np.where(np.arange(12) == 2, np.nan, LOSSES)}, "accuracy_copa")
    with pytest.raises(RunsError, match="row 1, column 'accuracy_copa' is inf"):
        fit_sigmoid(runs | {"accuracy_copa": np.where(np.arange(12) == 0, np.inf, 0.5)}, "accuracy_copa")
    with pytest.raises(LawError, match=r"row 1: mmlu = 83\.9.* 0–1"):
        fit_sigmoid({"loss": LOSSES, "mmlu": 100 * runs["accuracy_copa"]}, "mmlu")
    with pytest.raises(LawError, match="does not rise as loss falls"):
        fit_sigmoid({"loss": LOSSES, "accuracy": 1 - runs["accuracy_copa"]})
    with pytest.raises(RunsError, match="no column 'accuracy_cola'"):
        fit_sigmoid(runs, "accuracy_cola")
    with pytest.raises(LawError, match="draws=-1"):
        fit_sigmoid(runs, "accuracy_copa", draws=-1)
    law = fit_sigmoid(runs, "accuracy_copa", draws=0)
    with pytest.raises(LawError, match="no bootstrap draws"):
        law.interval({"loss": [3.0]})
    with pytest.raises(LawError, match="no column 'loss'"):
        law.predict({"params": [1e8]})


# chains


def test_chain_known_answer(loss_law: Law, error_law: Law) -> None:
    # N = 10⁸, D = 10¹⁰: L = 2 + 100/10⁴ + 1000/10⁵ = 2.02; Err = .85 − 2·e^(−1.515) = .85 − 2 × .2198080 = .4103840
    both = chain(loss_law, error_law)
    columns = {"params": [1e8], "tokens": [1e10]}
    assert both.error(columns) == pytest.approx([0.410384], abs=1e-6)
    assert both.accuracy(columns) == pytest.approx([0.589616], abs=1e-6)
    # and through the sigmoid of the same loss: .25 + .6/(1 + e^{4·(2.02 − 3)}) = .25 + .6/1.0198411 = .8383270
    sigmoids = chain(loss_law, fit_sigmoid(tasks(), "accuracy_copa", draws=20))
    assert sigmoids.accuracy(columns) == pytest.approx([0.838327], abs=1e-6)


def test_chain_takes_a_shape(loss_law: Law, error_law: Law) -> None:
    shape = Shape.of(d_model=64, n_layers=4, n_heads=4, vocab_size=512)
    both = chain(loss_law, error_law)
    columns = {"params": [shape.params], "tokens": [1e7]}
    assert both.accuracy_of(shape, tokens=1e7) == both.accuracy(columns)[0]
    assert both.extrapolation(columns) == []
    assert any("×10 beyond" in w for w in both.extrapolation({"params": [1e9], "tokens": [2e10]}))


def test_chain_interval_keeps_its_parts_apart() -> None:
    runs = grid(noise=0.01)
    loss, error = fit(runs, "chinchilla-tied", draws=200), fit(runs, "error", draws=200)
    columns = {"params": [1e6, 1e8], "tokens": [1e8, 1e10]}
    both = chain(loss, error)
    found, of_error = both.interval(columns), both.interval(columns, of="error")
    assert np.allclose(found.low, 1 - of_error.high)
    assert np.allclose(found.high, 1 - of_error.low)
    assert (found.low < both.accuracy(columns)).all()
    assert (both.accuracy(columns) < found.high).all()
    # through the chain rule: |dErr/dL| = k·gamma·e^(−gamma·L), times the spread of the loss
    spread = loss.interval(columns)
    k, gamma = error.coefficients["k"], error.coefficients["gamma"]
    loss_n = loss.predict(columns)
    slope_n = k * gamma * np.exp(-gamma * loss_n)
    expected_n = slope_n * loss_n * np.hypot(spread.bootstrap, spread.noise)
    assert found.loss == pytest.approx(expected_n, rel=0.1)
    assert found.error_law == pytest.approx(error.interval({"loss": loss_n}).bootstrap, rel=0.05)
    assert found.noise == pytest.approx([error.cv] * 2)
    # the parts add up to the whole, whose 90 % width is 2 × 1.645 standard deviations
    whole_n = np.sqrt(found.loss**2 + found.error_law**2 + found.noise**2)
    assert found.high - found.low == pytest.approx(3.29 * whole_n, rel=0.15)
    assert (both.interval(columns, level=0.5).high < found.high).all()


def test_chain_intervals_cover() -> None:
    columns = {"params": np.array([3e5, 1e7, 4e8]), "tokens": np.array([2e7, 5e8, 2e10])}
    loss_n = 2 + 100 * columns["params"] ** -0.5 + 1000 * columns["tokens"] ** -0.5
    covered = 0
    for seed in range(16):
        runs = grid(noise=0.01, seed=seed)
        both = chain(fit(runs, "chinchilla-tied", draws=30), fit(runs, "error", draws=30))
        rng = np.random.default_rng([seed, 7])
        truth_n = 0.85 - 2 * np.exp(-0.75 * loss_n * np.exp(0.01 * rng.normal(size=3))) + 0.01 * rng.normal(size=3)
        found = both.interval(columns, of="error")
        covered += int(np.sum((found.low <= truth_n) & (truth_n <= found.high)))
    assert 0.8 * 48 <= covered <= 47


def test_chain_stays_within_0_and_1(loss_law: Law) -> None:
    steep = {"loss": np.linspace(2.5, 4, 8), "error": 0.85 - 6 * np.exp(-0.8 * np.linspace(2.5, 4, 8))}
    both = chain(loss_law, fit(steep, "error", draws=20))
    found = both.interval({"params": [1e12], "tokens": [1e14]})  # .85 − 6·e^(−1.6) = −.36 without a floor
    assert both.accuracy({"params": [1e12], "tokens": [1e14]})[0] == found.high[0] == 1


def test_chain_refuses_laws_that_do_not_meet(loss_law: Law, error_law: Law) -> None:
    with pytest.raises(LawError, match="first law of a chain predicts a loss; this one predicts 'error'"):
        chain(error_law, loss_law)
    with pytest.raises(LawError, match="second law of a chain predicts an error or accuracy, and this one 'loss'"):
        chain(loss_law, loss_law)
    runs = tasks()
    other = fit_sigmoid({"loss_c4_val": runs["loss"], "accuracy": runs["accuracy_copa"]}, loss="loss_c4_val", draws=0)
    with pytest.raises(LawError, match="reads loss_c4_val, but the first predicts 'loss'"):
        chain(loss_law, other)
    held_out = fit(grid() | {"loss_kind": np.full(18, "held-out")}, "chinchilla-tied", draws=0)
    run_mean = fit_sigmoid(runs | {"loss_kind": np.full(12, "train-run-mean")}, "accuracy_copa", draws=0)
    with pytest.raises(LawError, match="a held-out loss, and the error law was fitted to train-run-mean"):
        chain(held_out, run_mean)
    with pytest.raises(LawError, match="no bootstrap draws"):
        chain(held_out, error_law).interval({"params": [1e6], "tokens": [1e8]})
    with pytest.raises(LawError, match="of='loss'"):
        chain(loss_law, error_law).interval({"params": [1e6], "tokens": [1e8]}, of="loss")  # type: ignore[arg-type]
    with pytest.raises(LawError, match="no column 'tokens'"):
        chain(loss_law, error_law).error({"params": [1e6]})


# capacity density


def test_capacity_density_known_answers(loss_law: Law, error_law: Law) -> None:
    # at D0 = 10¹² the reference L = 2 + 100·N^−½ + 1000/10⁶ reaches 2.011 where 100·N^−½ = .01: N̂ = 10⁸. A model of
    # 5·10⁷ params with that loss has density 2. At 10¹⁰ tokens it reaches 2.02 there (test_chain_known_answer).
    assert effective_params(2.011, loss_law) == pytest.approx(1e8, rel=1e-4)
    assert capacity_density(5e7, 2.011, loss_law) == pytest.approx(2, rel=1e-4)
    assert capacity_density(5e7, 2.02, loss_law, tokens=1e10) == pytest.approx(2, rel=1e-4)
    # by accuracy: 1 − (.85 − 2·e^(−.75 × 2.011)) = .15 + 2 × .2212964 = .5925928
    both = chain(loss_law, error_law)
    assert capacity_density(5e7, 0.5925928, both) == pytest.approx(2, rel=1e-3)


def test_capacity_density_of_the_reference_itself_is_one(loss_law: Law) -> None:
    for params in (1e6, 3e7, 1e10):
        loss = loss_law.predict({"params": [params], "tokens": [1e12]})[0]
        assert capacity_density(params, loss, loss_law) == pytest.approx(1, rel=1e-6)


def test_capacity_density_bad_input(loss_law: Law, error_law: Law) -> None:
    with pytest.raises(LawError, match=r"loss 2 is not reached .* goes from 102 to 2\.001"):
        capacity_density(1e8, 2.0, loss_law)
    with pytest.raises(LawError, match=r"accuracy 0\.9 is not reached"):
        capacity_density(1e8, 0.9, chain(loss_law, error_law))
    for params, score, tokens in ((0, 2.1, 1e12), (math.nan, 2.1, 1e12), (1e8, math.nan, 1e12), (1e8, 2.1, -1)):
        with pytest.raises(LawError, match="wanted"):
            capacity_density(params, score, loss_law, tokens=tokens)
    form = Form(
        name="wide",
        terms=(Term(coefficient="E"), Term(coefficient="A", powers=(Power(column="d_model", exponent="a"),))),
        formula="L = E + A·d^-a",
        source="this test",
    )
    runs = {"params": np.geomspace(1e6, 1e9, 8), "d_model": np.arange(1, 9) * 64, "tokens": np.full(8, 1e9)}
    shaped = fit(runs | {"loss": 2 + runs["d_model"] ** -0.5}, form, draws=0)
    with pytest.raises(LawError, match="the reference law reads d_model"):
        capacity_density(1e8, 2.1, shaped)


def test_a_chain_is_checked_however_it_is_made(loss_law: Law) -> None:
    with pytest.raises(LawError, match="second law"):
        Chain(loss_law=loss_law, error_law=loss_law)
