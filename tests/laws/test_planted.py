"""Planted laws: a law drawn at random makes the losses, and the fit must find that law again, for every form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.fit import fit
from lathe.laws.forms import FORMS, Form, Power, Term
from lathe.laws.importers import read_runs
from lathe.laws.system import compile_form, predict
from lathe.laws.uncertainty import identify

NOISE = 0.003
LAWS = 200
COVERED = 0.97


@pytest.fixture(scope="module")
def design() -> dict[str, np.ndarray]:
    """Give the columns that forms read, of the 76 runs of the published shape-aware grid.

    The grid has one vocabulary, and so nothing to say of a law of vocabularies: there six sizes take turns.
    """
    runs = read_runs("morph-2025")
    names = dict.fromkeys(c for form in FORMS.values() for c in form.columns)
    columns = {name: runs[name].to_numpy(dtype=float) for name in names}
    vocab_size = 2.0 ** (12 + np.arange(len(runs)) % 6)
    return columns | {"vocab_params": vocab_size * columns["d_model"]}


def plant(form: Form, columns: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw a law whose every term matters: returns (log coefficients, exponents).

    Sizes are those at the columns' geometric means: 1.5–2.5 for the constant, 0.1–1.5 for a term, 1–10 % for a gate.
    Laws that subtract stay away from zero, where a multiplicative noise would vanish.
    """
    exponents = {name: rng.uniform(0.25, 0.7) for name in form.exponents}
    logs = []
    for term in form.all_terms:
        centre = 0.0
        for p in term.powers:
            x_n = columns[p.column] if p.exponential else np.log(p.scale * columns[p.column])
            centre += p.sign * exponents[p.exponent] * x_n.mean()
        if form.name == "error":
            low, high = (0.8, 0.9) if not term.powers else (0.2, 0.5)
        elif not term.powers:
            low, high = (1.5, 2.5) if form.positive else (5, 6)
        elif term is form.gate:
            low, high = 0.01, 0.1
        else:
            low, high = 0.1, 1.5 if form.positive else 0.8
        logs.append(rng.uniform(np.log(low), np.log(high)) - centre)
    return np.array([*logs, *exponents.values()])


def to_natural(form: Form, theta_p: np.ndarray) -> np.ndarray:
    k = len(form.coefficients)
    return np.concatenate([np.exp(theta_p[:k]), theta_p[k:]])


@pytest.mark.parametrize("name", FORMS)
def test_recovers_every_coefficient_without_noise(name: str, design: dict[str, np.ndarray]) -> None:
    form, rng = FORMS[name], np.random.default_rng(7)
    for _ in range(5):
        planted = plant(form, design, rng)
        law = fit(design | {form.target: predict(form, planted, design)[0]}, form, draws=0)
        assert list(law.coefficients) == list(form.names)
        np.testing.assert_allclose(list(law.coefficients.values()), to_natural(form, planted), rtol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_standard_errors_cover_planted_coefficients(name: str, design: dict[str, np.ndarray]) -> None:
    """Over 200 laws with 0.3 % noise, 97 % of coefficients lie within three delta-method standard errors."""
    form, rng = FORMS[name], np.random.default_rng(1)
    system, loss = compile_form(form, design), Loss.of(form.objective)
    k = system.coefficients
    natural, logs = [], []
    for _ in range(LAWS):
        planted = plant(form, design, rng)
        y_n = predict(form, planted, design)[0] * np.exp(NOISE * rng.standard_normal(system.runs))
        theta_bp, cost_b = solve(system, y_n, np.ones((1, system.runs)), loss)
        at_planted = loss.charge(_residuals(form, planted, design, y_n, log=loss.log))[0].sum()
        assert cost_b[0] <= at_planted, "a local minimum: the planted law fits better than the fit"
        theta_se_p = identify(system, theta_bp[0], y_n, loss).theta_se_p
        natural_se_p = theta_se_p * np.concatenate([np.exp(theta_bp[0, :k]), np.ones(system.size - k)])
        natural.append(np.abs(to_natural(form, theta_bp[0]) - to_natural(form, planted)) <= 3 * natural_se_p)
        logs.append(np.abs(theta_bp[0] - planted) <= 3 * theta_se_p)
    assert np.mean(natural) >= COVERED
    assert np.mean(logs) >= COVERED


def _residuals(
    form: Form, theta_p: np.ndarray, columns: dict[str, np.ndarray], y_n: np.ndarray, *, log: bool
) -> np.ndarray:
    value_n = predict(form, theta_p, columns)[0]
    return np.log(value_n / y_n) if log else value_n - y_n


KV_HEADS = Form(
    name="kv-heads",
    terms=(
        Term(coefficient="E"),
        Term(coefficient="A", powers=(Power(column="params", exponent="alpha"),)),
        Term(coefficient="B", powers=(Power(column="tokens", exponent="beta"),)),
        Term(coefficient="K", powers=(Power(column="n_kv_heads", exponent="kappa"),)),
    ),
    formula="L = E + A·N^-alpha + B·D^-beta + K·n_kv_heads^-kappa",
    source="this test",
)
TWO_POWERS = Form(
    name="two-powers",
    terms=(
        Term(coefficient="E"),
        Term(coefficient="A", powers=(Power(column="params", exponent="alpha"),)),
        Term(
            coefficient="B",
            powers=(Power(column="tokens", exponent="beta"), Power(column="batch", exponent="beta", sign=1)),
        ),
        Term(
            coefficient="C",
            powers=(Power(column="d_model", exponent="delta"), Power(column="n_layers", exponent="nu")),
        ),
    ),
    formula="L = E + A·N^-alpha + B·(D/batch)^-beta + C·d^-delta·n^-nu",
    source="this test",
)


@pytest.mark.parametrize("form", [KV_HEADS, TWO_POWERS], ids=lambda form: form.name)
def test_fits_a_form_of_the_users_own(form: Form) -> None:
    rng = np.random.default_rng(3)
    columns = {
        "params": np.exp(rng.uniform(np.log(5e7), np.log(2e9), 120)),
        "tokens": np.exp(rng.uniform(np.log(1e9), np.log(1e11), 120)),
        "d_model": rng.choice([256, 512, 768, 1024, 2048], 120),
        "n_layers": rng.choice([4, 8, 16, 24, 40], 120),
        "n_heads": np.full(120, 16),
        "n_kv_heads": rng.choice([1, 2, 4, 8, 16], 120),
        "batch": rng.choice([64.0, 256.0, 1024.0], 120),
    }
    planted = plant(form, columns, rng)
    law = fit(columns | {"loss": predict(form, planted, columns)[0]}, form, draws=0)
    np.testing.assert_allclose(list(law.coefficients.values()), to_natural(form, planted), rtol=1e-6)


def _noisy(form: Form, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "params": np.exp(rng.uniform(np.log(5e7), np.log(2e9), 40)),
        "tokens": np.exp(rng.uniform(np.log(1e9), np.log(1e11), 40)),
        "aspect": np.exp(rng.uniform(np.log(10), np.log(300), 40)),
    }
    planted = plant(form, columns, rng)
    y_n = predict(form, planted, columns)[0] * np.exp(NOISE * rng.standard_normal(40))
    return columns | {"loss": y_n, "seed": np.arange(40)}


CHINCHILLA, ASPECT = FORMS["chinchilla"], FORMS["aspect-free"]
seeds = st.integers(0, 10_000)


def _close(a: dict[str, float], b: dict[str, float], se: dict[str, float]) -> None:
    """Compare two estimates to a thousandth of their standard errors, far under what either means."""
    for name, error in se.items():
        assert abs(a[name] - b[name]) <= 1e-3 * error, f"{name}: {a[name]} against {b[name]} ± {error}"


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=seeds, form=st.sampled_from([CHINCHILLA, ASPECT]))
def test_the_order_of_runs_does_not_matter(seed: int, form: Form) -> None:
    runs = _noisy(form, seed)
    order = np.random.default_rng(seed).permutation(40)
    law, shuffled = fit(runs, form, draws=0), fit({k: v[order] for k, v in runs.items()}, form, draws=0)
    _close(law.coefficients, shuffled.coefficients, law.standard_errors)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=seeds, form=st.sampled_from([CHINCHILLA, ASPECT]))
def test_running_everything_twice_does_not_matter(seed: int, form: Form) -> None:
    runs = _noisy(form, seed)
    twice = {k: np.concatenate([v, v]) for k, v in runs.items()} | {"seed": np.arange(80)}
    law, doubled = fit(runs, form, draws=0), fit(twice, form, draws=0)
    _close(law.coefficients, doubled.coefficients, law.standard_errors)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=seeds,
    at=st.sampled_from([("params", "A", "alpha", 1), ("tokens", "B", "beta", 1), ("aspect", "epsilon", "gamma", -1)]),
    scale=st.floats(1e-3, 1e3),
)
def test_a_columns_unit_moves_its_own_coefficient_only(seed: int, at: tuple[str, str, str, int], scale: float) -> None:
    column, coefficient, exponent, sign = at
    form = ASPECT if column == "aspect" else CHINCHILLA
    runs = _noisy(form, seed)
    law, scaled = fit(runs, form, draws=0), fit(runs | {column: runs[column] * scale}, form, draws=0)
    expected = dict(law.coefficients)
    expected[coefficient] *= scale ** (sign * expected[exponent])
    # The moved coefficient's error is that at the new unit; the old one's stands for the rest.
    errors = law.standard_errors | {coefficient: scaled.standard_errors[coefficient]}
    _close(scaled.coefficients, expected, errors)
