"""Cross-validation: how runs are grouped into sizes, what the folds leave out, and the weights that follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.errors import LawError
from lathe.laws.choose import INTERVAL_LEAST, NEIGHBOURS, WITHIN, Score, cross_validate, sizes, weigh
from lathe.laws.evaluate import Loss
from lathe.laws.fit import fit
from lathe.laws.forms import FORMS
from lathe.laws.system import compile_form

CLUSTERED = [80e6, 86e6, 116e6, 126e6, 237e6, 1.5e9]

scales = st.lists(st.floats(1e6, 1e12), min_size=1, max_size=40)
errors = st.floats(1e-4, 1.0)


def test_the_size_column_comes_first_in_the_order_of_params() -> None:
    table = {"size": ["1B", "80M", "1B", "237M"], "params": [1.4e9, 8e7, 1.6e9, 2.4e8]}
    folds = sizes(table)
    assert (folds.rule, folds.labels) == ("size", ("80M", "237M", "1B"))
    assert folds.index_n.tolist() == [2, 0, 2, 1]


def test_a_size_column_with_gaps_does_not_count() -> None:
    table = {"size": ["a", None, "b", "c"], "params": [1e8, 2e8, 4e8, 8e8]}
    assert sizes(table).rule == "clusters"
    with pytest.raises(LawError, match="needs a `size` column without gaps"):
        sizes(table, rule="size")


def test_one_size_for_all_gives_way_to_params() -> None:
    folds = sizes({"size": ["x"] * 4, "params": [1e8, 2e8, 4e8, 8e8]})
    assert (folds.rule, len(folds.labels)) == ("clusters", 4)


def test_neighbours_within_15_per_cent_are_one_size() -> None:
    folds = sizes({"params": CLUSTERED[::-1]})
    assert folds.rule == "clusters"
    assert folds.index_n.tolist() == [3, 2, 1, 1, 0, 0]
    assert folds.labels == ("params 8.29e+07", "params 1.21e+08", "params 2.37e+08", "params 1.5e+09")


def test_six_quantile_bins_where_neighbours_run_together() -> None:
    params = np.geomspace(1e8, 4e8, 60)  # each within 3 % of the next: one cluster
    folds = sizes({"params": params})
    assert (folds.rule, len(folds.labels)) == ("quantiles", 6)
    assert np.bincount(folds.index_n).tolist() == [10] * 6


def test_without_params_the_fallback_is_binned() -> None:
    folds = sizes({"loss": np.array([2.0, 2.5, 3.5, 5.0])}, fallback="loss")
    assert folds.labels[0] == "loss 2"
    with pytest.raises(LawError, match="neither a `size` nor a `params` column"):
        sizes({"loss": np.array([2.0, 2.5])})


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(LawError, match="folds='sizes' is not a rule; did you mean 'size'"):
        sizes({"params": [1.0, 2.0]}, rule="sizes")


@given(scales)
def test_clusters_break_exactly_where_a_gap_exceeds_15_per_cent(params: list[float]) -> None:
    folds = sizes({"params": params}, rule="clusters")
    order = np.argsort(params, kind="stable")
    index = folds.index_n[order]
    steps, ratios = np.diff(index), np.array(params)[order][1:] / np.array(params)[order][:-1]
    assert set(steps.tolist()) <= {0, 1}
    clear = np.abs(ratios / NEIGHBOURS - 1) > 1e-9
    np.testing.assert_array_equal((steps == 1)[clear], (ratios > NEIGHBOURS)[clear])


@given(scales, st.sampled_from(["auto", "clusters", "quantiles"]))
def test_sizes_are_in_order_of_params_and_none_is_empty(params: list[float], rule: str) -> None:
    folds = sizes({"params": params}, rule=rule)
    assert set(folds.index_n.tolist()) == set(range(len(folds.labels)))
    assert folds.rule != "quantiles" or len(folds.labels) <= 6
    by_params = folds.index_n[np.argsort(params, kind="stable")]
    assert (np.diff(by_params) >= 0).all()


@given(scales)
def test_folds_leave_out_each_size_once_and_forward_folds_all_larger(params: list[float]) -> None:
    folds = sizes({"params": params}, rule="clusters")
    out = folds.leave_one_out
    assert out.shape == (len(folds.labels), len(params))
    assert ((~out).sum(axis=0) == 1).all()
    forward = folds.forward
    assert len(forward) == max(len(folds.labels) - 2, 0)
    for mask in forward:
        assert len(set(folds.index_n[mask].tolist())) >= 2
        assert max(np.array(params)[mask]) < min(np.array(params)[~mask])


def test_cross_validation_is_what_a_loop_over_sizes_gives() -> None:
    rng = np.random.default_rng(0)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 5), np.geomspace(1e9, 1e11, 4)))
    n *= rng.uniform(0.96, 1.04, 20)  # two sizes of one N each would leave alpha to chance in the first forward fold
    y = (1.8 + 480 * n**-0.35 + 2100 * d**-0.37) * np.exp(0.003 * rng.standard_normal(20))
    table = {"params": n, "tokens": d, "loss": y}
    form, folds = FORMS["chinchilla"], sizes(table)
    found = cross_validate(form, compile_form(form, table), table, y, Loss.of("squares-log"), folds)

    def residuals(kept: np.ndarray) -> np.ndarray:
        law = fit({k: v[kept] for k, v in table.items()}, "chinchilla", draws=0)
        left = {k: v[~kept] for k, v in table.items()}
        return np.log(law.predict(left) / left["loss"])

    out, forward = ([residuals(m) for m in masks] for masks in (folds.leave_one_out, folds.forward))
    pooled = [float(np.sqrt(np.mean(np.concatenate(r) ** 2))) for r in (out, forward)]
    every = [float(np.sqrt(np.mean(r**2))) for r in (*out, *forward)]
    assert found[0] == pytest.approx(pooled[0], rel=1e-4)
    assert found[1] == pytest.approx(pooled[1], rel=0.02)  # two sizes hardly fix E: a flat valley
    assert found[2] == pytest.approx(float(np.exp(np.mean(np.log(every)))), rel=0.02)


def test_forms_within_half_again_the_best_share_the_average() -> None:
    found = weigh([Score(form=f, leave_one_out=e, cv=e) for f, e in (("c", 0.0151), ("a", 0.010), ("b", 0.015))])
    assert [(s.form, s.weight) for s in found] == [("a", 0.5), ("b", 0.5), ("c", 0.0)]


def test_interval_weights_fall_with_the_fourth_power_of_cv() -> None:
    a, b, c = weigh([Score(form=f, leave_one_out=e, cv=e) for f, e in (("a", 0.010), ("b", 0.015), ("c", 0.03))])
    raw = [1.0, 1.5**-4, 3.0**-4]
    assert raw[2] / sum(raw) < INTERVAL_LEAST  # so the last is dropped, and the others share its part
    assert c.interval_weight == 0
    assert a.interval_weight == pytest.approx(1 / (1 + raw[1]))
    assert b.interval_weight == pytest.approx(raw[1] / (1 + raw[1]))


def test_excluded_forms_come_last_with_their_reason() -> None:
    found = weigh([Score(form="a", excluded="no d_model"), Score(form="b", leave_one_out=0.01, cv=0.01)])
    assert [(s.form, s.weight, s.excluded) for s in found] == [("b", 1.0, ""), ("a", 0.0, "no d_model")]
    assert weigh([Score(form="a", excluded="why")]) == [Score(form="a", excluded="why")]


@settings(max_examples=60)
@given(st.lists(st.tuples(errors, errors), min_size=1, max_size=9))
def test_weights_are_shares_ordered_by_error(pairs: list[tuple[float, float]]) -> None:
    found = weigh([Score(form=str(i), leave_one_out=out, cv=cv) for i, (out, cv) in enumerate(pairs)])
    assert sum(s.weight for s in found) == pytest.approx(1)
    assert sum(s.interval_weight for s in found) == pytest.approx(1)
    outs = [s.leave_one_out or 0 for s in found]
    assert outs == sorted(outs)
    assert found[0].weight > 0
    for s in found:
        assert (s.weight > 0) == ((s.leave_one_out or 0) <= WITHIN * outs[0])
        assert s.interval_weight == 0 or s.interval_weight >= INTERVAL_LEAST
    least = min(found, key=lambda s: s.cv or 0)
    assert least.interval_weight == max(s.interval_weight for s in found)
