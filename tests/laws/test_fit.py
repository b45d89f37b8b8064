"""`fit` itself: what it takes, what it refuses and in which words, and that seeds mean what they say."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lathe.errors import LatheError, LawError, RunsError
from lathe.laws.fit import fit
from lathe.laws.forms import FORMS, Form, Power, Term
from lathe.laws.importers import read_runs
from lathe.laws.uncertainty import bootstrap_weights

PLANTED = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def make_runs(noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Lay out 5 sizes at 5 token counts, with the loss of the planted law."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 5), np.geomspace(1e9, 1e11, 5)))
    loss = PLANTED["E"] + PLANTED["A"] * n ** -PLANTED["alpha"] + PLANTED["B"] * d ** -PLANTED["beta"]
    loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return {"params": n, "tokens": d, "loss": loss}


@pytest.fixture(scope="module")
def runs() -> dict[str, np.ndarray]:
    return make_runs(noise=0.002)


@pytest.fixture(scope="module")
def morph() -> pd.DataFrame:
    return read_runs("morph-2025")


def changed(runs: dict[str, np.ndarray], column: str, row: int, value: Any) -> dict[str, Any]:
    values = list(runs[column])
    values[row] = value
    return runs | {column: values}


@pytest.mark.parametrize("kind", [dict, pd.DataFrame, "lists", "objects"])
def test_takes_any_mapping(runs: dict[str, np.ndarray], kind: Any) -> None:
    given = {
        "lists": {k: v.tolist() for k, v in runs.items()},
        "objects": {k: v.astype(object) for k, v in runs.items()},
    }
    table = given[kind] if isinstance(kind, str) else kind(runs)
    assert fit(table, "chinchilla", draws=0).coefficients == fit(runs, "chinchilla", draws=0).coefficients


def test_derives_columns_that_follow_from_others(runs: dict[str, np.ndarray]) -> None:
    table = {"params": runs["params"], "flops": 6 * runs["params"] * runs["tokens"], "loss": runs["loss"]}
    found, wanted = fit(table, "chinchilla", draws=0), fit(runs, "chinchilla", draws=0)
    assert found.coefficients == pytest.approx(wanted.coefficients, rel=1e-6)


def test_form_by_name_and_by_value_agree(runs: dict[str, np.ndarray]) -> None:
    named, valued = fit(runs, "chinchilla", draws=0), fit(runs, FORMS["chinchilla"], draws=0)
    assert named.coefficients == valued.coefficients
    assert (named.name, named.runs, named.target, named.objective) == ("chinchilla", 25, "loss", "squares-log")


def test_a_form_of_the_users_own_is_fitted() -> None:
    mine = Form(
        name="tokens-only",
        terms=(Term(coefficient="E"), Term(coefficient="B", powers=(Power(column="tokens", exponent="beta"),))),
        formula="L = E + B·D^-beta",
        source="this test",
    )
    tokens = np.geomspace(1e9, 1e11, 9)
    table = {"tokens": tokens, "loss": 2 + 900 * tokens**-0.4}
    law = fit(table, mine, draws=0)
    assert law.coefficients == pytest.approx({"E": 2, "B": 900, "beta": 0.4}, rel=1e-6)


def test_auto_averages_and_best_picks_one(morph: pd.DataFrame) -> None:
    auto, best = fit(morph, "auto", draws=0), fit(morph, "best", draws=0)
    assert len(best.averaged) == 1
    assert best.averaged[0].form.name == auto.averaged[0].form.name == best.ranking[0].form
    assert sum(m.weight for m in auto.averaged) == pytest.approx(1)
    assert {s.form for s in auto.ranking} == {name for name, form in FORMS.items() if form.auto}
    assert auto.folds.startswith("size: 80M, 86M, 116M")


def test_auto_leaves_out_forms_whose_columns_are_missing_or_constant(runs: dict[str, np.ndarray]) -> None:
    law = fit(runs | {"d_model": np.full(25, 512), "n_layers": np.full(25, 8)}, draws=0)
    reasons = {s.form: s.excluded for s in law.ranking}
    assert not reasons["chinchilla"]
    assert not reasons["chinchilla-tied"]
    assert "column 'd_model' is 512 in every run" in reasons["width-depth"]
    assert "column 'aspect' is 64 in every run" in reasons["aspect"]
    assert {m.form.name for m in law.members} <= {"chinchilla", "chinchilla-tied"}


def test_same_seed_same_draws_and_the_fit_does_not_depend_on_it(runs: dict[str, np.ndarray]) -> None:
    one, again, other = (fit(runs, "chinchilla", draws=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.members[0].draws_bp, again.members[0].draws_bp)
    assert not np.array_equal(one.members[0].draws_bp, other.members[0].draws_bp)
    np.testing.assert_array_equal(one.members[0].theta_p, other.members[0].theta_p)
    assert (one.cv, one.standard_errors) == (other.cv, other.standard_errors)


def test_draws_are_as_many_as_asked_for(runs: dict[str, np.ndarray]) -> None:
    assert fit(runs, "chinchilla", draws=7).members[0].draws_bp.shape == (7, 5)
    assert not fit(runs, "chinchilla", draws=0).has_draws
    for wrong in (-1, 1):
        with pytest.raises(LawError, match=f"draws={wrong}; give 0 for none, or 2 or more"):
            fit(runs, "chinchilla", draws=wrong)


def test_rows_of_one_trunk_share_their_bootstrap_weight() -> None:
    trunks = np.array([0, 0, 1, 2, 2])
    weights_bn = bootstrap_weights(5, 50, seed=0, trunks=trunks)
    np.testing.assert_array_equal(weights_bn[:, 0], weights_bn[:, 1])
    np.testing.assert_array_equal(weights_bn[:, 3], weights_bn[:, 4])
    assert (weights_bn[:, 0] != weights_bn[:, 2]).all()
    np.testing.assert_allclose(weights_bn.mean(axis=1), 1)
    assert (weights_bn > 0).all()


def test_a_trunk_column_changes_the_bootstrap_and_not_the_fit(runs: dict[str, np.ndarray]) -> None:
    branched = runs | {"trunk": np.array([f"{n:.3g}" for n in runs["params"]], dtype=object)}
    alone = runs | {"trunk": np.array([None, *["a"], *[None] * 23], dtype=object)}
    free, tied, same = (fit(t, "chinchilla", draws=200) for t in (runs, branched, alone))
    np.testing.assert_array_equal(free.members[0].theta_p, tied.members[0].theta_p)
    assert not np.allclose(free.members[0].draws_bp, tied.members[0].draws_bp)
    # every run its own trunk: as many weights as without the column
    assert len(np.unique(same.members[0].draws_bp[:, 0])) == 200


def test_each_objective_minimises_its_own_cost(runs: dict[str, np.ndarray]) -> None:
    laws = {o: fit(runs, "chinchilla", objective=o, draws=0) for o in ("squares-log", "huber-log", "squares")}
    r = {o: np.log(law.predict(runs) / runs["loss"]) for o, law in laws.items()}
    levels = {o: law.predict(runs) - runs["loss"] for o, law in laws.items()}

    def huber(r: np.ndarray) -> float:
        size = np.abs(r)
        return float(np.where(size <= 1e-3, r**2 / 2, 1e-3 * (size - 5e-4)).sum())

    assert laws["squares-log"].members[0].cost == pytest.approx((r["squares-log"] ** 2).sum() / 2)
    assert laws["huber-log"].members[0].cost == pytest.approx(huber(r["huber-log"]))
    assert laws["squares"].members[0].cost == pytest.approx((levels["squares"] ** 2).sum() / 2)
    for o in laws:
        assert (r["squares-log"] ** 2).sum() <= (r[o] ** 2).sum()
        assert huber(r["huber-log"]) <= huber(r[o])
        assert (levels["squares"] ** 2).sum() <= (levels[o] ** 2).sum()


@pytest.mark.parametrize("rule", ["size", "clusters", "quantiles"])
def test_folds_follow_the_rule_asked_for(runs: dict[str, np.ndarray], rule: str) -> None:
    law = fit(runs | {"size": [f"{n:.0e}" for n in runs["params"]]}, "chinchilla", draws=2, folds=rule)
    assert law.folds.startswith(f"{rule}: ")
    assert law.ranking[0].leave_one_out is not None
    assert law.ranking[0].leave_one_out < 0.02


def test_another_target_column(runs: dict[str, np.ndarray]) -> None:
    table = {k: v for k, v in runs.items() if k != "loss"} | {"loss_wiki": runs["loss"]}
    law = fit(table, "chinchilla", target="loss_wiki", draws=0)
    assert law.target == "loss_wiki"
    assert law.coefficients == fit(runs, "chinchilla", draws=0).coefficients


def test_a_table_as_small_as_the_form_is_fitted_with_a_warning() -> None:
    law = fit({k: v[[0, 4, 11, 18, 24]] for k, v in make_runs().items()}, "chinchilla", draws=2)
    assert any("too few runs or sizes to leave any out" in w for w in law.warnings)
    assert any("as many parameters as runs" in w for w in law.warnings)
    assert np.isinf(list(law.standard_errors.values())).all()


EMPTY = {"params": [], "tokens": [], "loss": []}


@pytest.mark.parametrize("form", ["chinchilla", "auto"])
@pytest.mark.parametrize("table", [EMPTY, pd.DataFrame(EMPTY)])
def test_refuses_an_empty_table(form: str, table: Any) -> None:
    with pytest.raises(RunsError, match="has no rows"):
        fit(table, form)


def test_refuses_a_table_without_columns() -> None:
    with pytest.raises(RunsError, match="no columns"):
        fit({}, "chinchilla")


@pytest.mark.parametrize("form", ["chinchilla", "auto", "best"])
def test_refuses_one_row(form: str) -> None:
    with pytest.raises(LawError, match=r"1 run cannot fix the 5 parameters of (the form|form 'chinchilla')"):
        fit({"params": [1e8], "tokens": [2e9], "loss": [3.5]}, form)


def test_refuses_fewer_rows_than_coefficients(runs: dict[str, np.ndarray]) -> None:
    few = {k: v[[0, 6, 12, 18]] for k, v in runs.items()}
    with pytest.raises(LawError, match=r"4 runs cannot fix the 5 parameters .* \(E, A, B, alpha, beta\); add runs"):
        fit(few, "chinchilla")


@pytest.mark.parametrize("column", ["params", "tokens"])
def test_refuses_a_constant_column(runs: dict[str, np.ndarray], column: str) -> None:
    table = runs | {column: np.full(25, 1e9)}
    with pytest.raises(LawError, match=rf"column '{column}' is 1e\+09 in every run.*add runs that vary {column}"):
        fit(table, "chinchilla")
    with pytest.raises(LawError, match="no form fits these runs"):
        fit(table, "auto")


@pytest.mark.parametrize("form", ["chinchilla", "auto"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("loss", np.inf, "is inf; wanted a finite number"),
        ("tokens", -np.inf, "is -inf; wanted a finite number"),
        ("params", np.inf, "is inf; wanted a finite number"),
        ("loss", np.nan, "has no value"),
        ("params", None, "has no value"),
        ("loss", 0.0, "is 0.0; wanted more than 0"),
        ("loss", -2.0, "is -2.0; wanted more than 0"),
        ("tokens", 0, "is 0.0; wanted more than 0"),
        ("loss", "low", "is 'low'; wanted a number"),
    ],
)
def test_refuses_an_impossible_value(
    runs: dict[str, np.ndarray], form: str, column: str, value: Any, message: str
) -> None:
    with pytest.raises(RunsError, match=message) as caught:
        fit(changed(runs, column, 3, value), form, draws=0)
    assert f"row 4, column '{column}'" in str(caught.value)


def test_refuses_an_infinite_column_of_the_users_own(runs: dict[str, np.ndarray]) -> None:
    mine = Form(
        name="steps-only",
        terms=(Term(coefficient="E"), Term(coefficient="S", powers=(Power(column="steps", exponent="s"),))),
        formula="L = E + S·steps^-s",
        source="this test",
    )
    for value in (np.inf, np.nan, -1.0):
        with pytest.raises(LatheError, match=r"row \d+.*steps"):
            fit(changed(runs | {"steps": runs["tokens"] / 1e6}, "steps", 2, value), mine, draws=0)


def test_refuses_a_missing_column(runs: dict[str, np.ndarray]) -> None:
    with pytest.raises(RunsError, match="no column 'd_model'"):
        fit(runs, "width-depth")
    table = {"params": runs["params"], "token": runs["tokens"], "loss": runs["loss"]}
    with pytest.raises(RunsError, match="no column 'tokens'; did you mean 'token'"):
        fit(table, "chinchilla")


@pytest.mark.parametrize(
    ("given", "meant"), [("chinchila", "chinchilla"), ("widthdepth", "width-depth"), ("atuo", "auto")]
)
def test_unknown_form_suggests_the_nearest(runs: dict[str, np.ndarray], given: str, meant: str) -> None:
    with pytest.raises(LawError, match=f"no law form is called '{given}'; did you mean '{meant}'"):
        fit(runs, given)


def test_unknown_objective_suggests_the_nearest(runs: dict[str, np.ndarray]) -> None:
    with pytest.raises(LawError, match="objective='huber' is not known; did you mean 'huber-log'"):
        fit(runs, "chinchilla", objective="huber")  # pyright: ignore[reportArgumentType]


def test_unknown_folds_name_the_rules(runs: dict[str, np.ndarray]) -> None:
    with pytest.raises(LawError, match="folds='cluster' is not a rule; did you mean 'clusters'"):
        fit(runs, "chinchilla", folds="cluster", draws=0)


@pytest.mark.parametrize("objective", ["squares-log", "huber-log"])
def test_a_signed_form_has_no_log(objective: Any) -> None:
    table = {"loss": np.linspace(2, 4, 9), "error": 0.9 - 2 * np.exp(-0.8 * np.linspace(2, 4, 9))}
    with pytest.raises(LawError, match="form 'error' may be negative, so it has no log; use objective='squares'"):
        fit(table, "error", objective=objective)
    assert fit(table, "error", draws=0).coefficients == pytest.approx({"epsilon": 0.9, "k": 2, "gamma": 0.8}, rel=1e-6)


def test_a_target_below_zero_is_refused_by_positive_forms(runs: dict[str, np.ndarray]) -> None:
    table = runs | {"gain": runs["loss"] - 3}
    with pytest.raises(LawError, match=r"row \d+: gain = -.*, but a sum of positive powers is never zero"):
        fit(table, "chinchilla", target="gain")


def test_auto_for_a_target_no_form_predicts(runs: dict[str, np.ndarray]) -> None:
    with pytest.raises(LawError, match="no form whose target is 'error'; name a form"):
        fit(runs | {"error": np.full(25, 0.5)}, "auto", target="error")


def test_kinds_of_loss_do_not_mix(runs: dict[str, np.ndarray]) -> None:
    kinds = np.array(["held-out"] * 20 + ["train-run-mean"] * 5, dtype=object)
    with pytest.raises(RunsError, match=r"row 21, column 'loss_kind' is 'train-run-mean' but row 1 is 'held-out'"):
        fit(runs | {"loss_kind": kinds}, "chinchilla")
    assert fit(runs | {"loss_kind": kinds[:1].repeat(25)}, "chinchilla", draws=0).loss_kind == "held-out"


def test_progress_tells_each_step(runs: dict[str, np.ndarray]) -> None:
    told: list[tuple[str, float]] = []
    fit(runs, "auto", draws=10, progress=lambda what, share: told.append((what, share)))
    assert "chinchilla" in [what for what, _ in told]
    assert any(what.endswith("bootstrap") for what, _ in told)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def two_depths(form: str = "width-depth") -> dict[str, np.ndarray]:
    """Plant a law on thirty runs of two depths: with a constant beside it, a power of depth is then not seen."""
    rng = np.random.default_rng(3)
    d, n = rng.choice([256.0, 384, 512, 768, 1024], 30), rng.choice([4.0, 8.0], 30)
    params, tokens = 12 * n * d**2 + 64000 * d, 10 ** rng.uniform(8.5, 10.5, 30)
    loss = 1.9 + 30 * d**-0.5 + 0.9 * n**-0.4 + 9e5 * tokens**-0.63
    noise = np.exp(0.002 * rng.standard_normal(30))
    return {"params": params, "tokens": tokens, "d_model": d, "n_layers": n, "loss": loss * noise}


def test_a_named_form_says_what_two_depths_cannot_tell() -> None:
    law = fit(two_depths(), "width-depth", draws=20)
    assert np.isinf([law.standard_errors[name] for name in ("E", "C", "c")]).all()
    assert np.isfinite([law.standard_errors[name] for name in ("B", "b")]).all()
    assert any("exponent c cannot be told" in text for text in law.warnings)


def test_auto_leaves_out_forms_that_two_depths_cannot_tell() -> None:
    law = fit(two_depths(), draws=20)
    (score,) = [s for s in law.ranking if s.form == "width-depth"]
    assert score.excluded == "these runs cannot tell E, C, c apart"


def test_refuses_losses_that_are_all_equal(runs: dict[str, np.ndarray]) -> None:
    with pytest.raises(LawError, match="loss is 3 in every run"):
        fit(runs | {"loss": np.full(len(runs["loss"]), 3.0)})


@pytest.mark.parametrize("form", [3, None])
def test_refuses_what_is_no_form(runs: dict[str, np.ndarray], form: Any) -> None:
    with pytest.raises(LawError, match="neither a Form nor the name of one"):
        fit(runs, form)
