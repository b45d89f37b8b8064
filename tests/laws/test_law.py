"""What a `Law` answers, what it refuses to say, what it warns of, and that a saved one is the same law."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lathe import codec
from lathe.errors import CodecError, LawError
from lathe.laws.fit import fit
from lathe.laws.forms import FORMS
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.laws.system import predict
from lathe.presets.shapes import load_shape


@pytest.fixture(scope="module")
def morph() -> pd.DataFrame:
    return read_runs("morph-2025")


@pytest.fixture(scope="module")
def auto(morph: pd.DataFrame) -> Law:
    return fit(morph, draws=30)


@pytest.fixture(scope="module")
def one(morph: pd.DataFrame) -> Law:
    return fit(morph, "width-depth", draws=30)


def make_runs(*, tokens_per_param: np.ndarray, floor: float = 1.8, noise: float = 0.003) -> dict[str, np.ndarray]:
    n, m = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 6), tokens_per_param))
    loss = (floor + 480 * n**-0.35 + 2100 * (n * m) ** -0.37) * np.exp(
        noise * np.random.default_rng(0).standard_normal(len(n))
    )
    return {"params": n, "tokens": n * m, "loss": loss}


WIDE = np.array([5.0, 20.0, 80.0, 320.0])


def test_predict_is_the_forms_own_formula(morph: pd.DataFrame, one: Law) -> None:
    c = one.coefficients
    by_hand = (
        c["E"]
        + c["A"] * morph["d_model"] ** -c["a"]
        + c["C"] * morph["n_layers"] ** -c["c"]
        + c["B"] * morph["tokens"] ** -c["b"]
    )
    np.testing.assert_allclose(one.predict(morph), by_hand.to_numpy(), rtol=1e-12)


def test_an_average_is_over_logs(morph: pd.DataFrame, auto: Law) -> None:
    members = auto.averaged
    logs = [m.weight * np.log(predict(m.form, m.theta_p, morph)[0]) for m in members]
    np.testing.assert_allclose(auto.predict(morph), np.exp(sum(logs)), rtol=1e-12)
    assert auto.name == "average of " + ", ".join(m.form.name for m in members) or len(members) == 1


def test_an_average_of_signed_laws_is_over_their_values() -> None:
    loss = np.linspace(2, 4, 12)
    law = fit({"loss": loss, "error": 0.9 - 2 * np.exp(-0.8 * loss)}, "error", draws=0)
    shifted = replace(law.members[0], theta_p=law.members[0].theta_p + np.array([0.1, 0, 0]), weight=0.5)
    both = replace(law, members=(replace(law.members[0], weight=0.5), shifted))
    epsilon = law.coefficients["epsilon"]
    wanted = law.predict({"loss": loss}) + epsilon * (np.exp(0.1) - 1) / 2
    np.testing.assert_allclose(both.predict({"loss": loss}), wanted, rtol=1e-12)


def test_loss_of_a_shape_is_the_prediction_of_its_row(auto: Law) -> None:
    shape = load_shape("scale_open_lm_1b_v8")
    row = {"params": [shape.params], "d_model": [shape.d_model], "n_layers": [shape.n_layers], "tokens": [29e9]}
    assert auto.loss(shape, tokens=29e9) == pytest.approx(auto.predict(row)[0], rel=1e-12)


def test_columns_that_follow_from_others_may_be_left_out(morph: pd.DataFrame, auto: Law) -> None:
    few = {name: morph[name] for name in ("params", "d_model", "n_layers", "flops")}
    np.testing.assert_allclose(auto.predict(few), auto.predict(morph), rtol=1e-12)


def test_the_interval_is_about_the_prediction(morph: pd.DataFrame, auto: Law) -> None:
    found, guess = auto.interval(morph), auto.predict(morph)
    assert (found.low < guess).all()
    assert (guess < found.high).all()
    assert found.noise == pytest.approx(np.full(76, auto.cv))
    weights = [w for w, _ in auto.draws(morph)]
    assert sum(weights) == pytest.approx(1)
    again = auto.interval(morph)
    np.testing.assert_array_equal(again.low, found.low)


def test_names_of_one_law_and_of_an_average(one: Law, auto: Law) -> None:
    assert list(one.coefficients) == list(FORMS["width-depth"].names) == list(one.standard_errors)
    assert one.columns == ("d_model", "n_layers", "tokens")
    if len(auto.averaged) > 1:
        assert "width-depth.E" in auto.coefficients
    assert auto.condition == max(m.condition for m in auto.averaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 32000}, "vocab_size = 32000, but every run this law was fit on has vocab_size = 50432"),
        ({"tied": True}, "tied = 1, but every run this law was fit on has tied = 0"),
        ({"n_kv_heads": 4}, "kv_ratio = 0.25, but every run this law was fit on has kv_ratio = 1"),
    ],
)
def test_refuses_an_axis_no_run_varied(auto: Law, change: dict[str, Any], message: str) -> None:
    shape = replace(load_shape("scale_open_lm_1b_v8"), **change)
    with pytest.raises(LawError, match=message) as caught:
        auto.loss(shape, tokens=29e9)
    name = message.split()[0]
    assert f"assume='{name}'" in str(caught.value) or f"assume=('{name}',)" in str(caught.value)
    assert 2 < auto.loss(shape, tokens=29e9, assume=(name,)) < 4


def test_refuses_the_unseen_in_intervals_too(morph: pd.DataFrame, auto: Law) -> None:
    with pytest.raises(LawError, match="vocab_size = 32000"):
        auto.interval(morph.assign(vocab_size=32000))
    assert len(auto.interval(morph.assign(vocab_size=32000), assume=("vocab_size",)).low) == 76


def test_assume_names_held_axes_only(morph: pd.DataFrame, auto: Law) -> None:
    with pytest.raises(LawError, match="names no held axis; held axes are vocab_size, tied, ff_ratio, kv_ratio"):
        auto.predict(morph, assume=("d_model",))


def test_an_axis_that_runs_varied_is_answered(morph: pd.DataFrame) -> None:
    law = fit(morph.assign(vocab_size=np.where(np.arange(76) % 2, 32000, 50432)), "width-depth", draws=0)
    shape = replace(load_shape("scale_open_lm_1b_v8"), vocab_size=32000)
    assert 2 < law.loss(shape, tokens=29e9) < 4


def test_a_missing_column_is_named(auto: Law) -> None:
    with pytest.raises(LawError, match="no column 'n_layers'"):
        auto.predict({"params": [1e9], "d_model": [2048], "tokens": [2e10]})


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_tokens_that_have_no_log(auto: Law, tokens: float) -> None:
    with pytest.raises(LawError, match="wants a finite number above zero"):
        auto.loss(load_shape("scale_open_lm_1b_v8"), tokens=tokens)


def test_extrapolation_is_said_axis_by_axis(morph: pd.DataFrame, auto: Law) -> None:
    assert auto.extrapolation(morph) == []
    far = {"params": [1.668885504e10], "tokens": [1e8], "d_model": [2048], "n_layers": [24]}
    found = auto.extrapolation(far)
    assert "params reaches ×10 beyond the largest run (1.669e+09)" in found
    assert any(text.startswith("tokens reaches ×16.1 below the smallest run") for text in found)
    assert any(text.startswith("tokens_per_param reaches") for text in found)
    assert not any("d_model" in text or "n_layers" in text for text in found)


def test_warns_of_collinear_params_and_tokens() -> None:
    law = fit(make_runs(tokens_per_param=np.array([20.0, 20.5, 21.0])), "chinchilla", draws=0)
    assert any("all but proportional to params (correlation of logs 1.000)" in w for w in law.warnings)
    assert any("not identified by these runs" in w for w in law.warnings)
    assert not any("proportional" in w for w in fit(make_runs(tokens_per_param=WIDE), "chinchilla", draws=0).warnings)


def test_warns_of_a_vanished_floor() -> None:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 6), np.geomspace(1e9, 1e11, 4)))
    law = fit({"params": n, "tokens": d, "loss": 40 * n**-0.15 + 60 * d**-0.15}, "chinchilla", draws=0)
    assert any("E → 0: these runs show no floor" in w for w in law.warnings)
    # what is left is the law without a floor
    assert law.predict({"params": n, "tokens": d}) == pytest.approx(40 * n**-0.15 + 60 * d**-0.15, rel=1e-3)


def test_warns_of_too_few_shapes(morph: pd.DataFrame) -> None:
    few = morph[morph["name"].isin(["80M_v1", "116M_v1", "164M_v1", "237M_v1", "313M_v1", "1B_v1"])]
    law = fit(few, "width-depth-shared", draws=0)
    assert any("only 6 distinct shapes: exponents of d_model and n_layers are hardly seen" in w for w in law.warnings)
    assert not any("distinct shapes" in w for w in fit(morph, "width-depth-shared", draws=0).warnings)


def test_a_clean_design_warns_of_nothing() -> None:
    assert fit(make_runs(tokens_per_param=WIDE), "chinchilla", draws=0).warnings == ()


# On disk


def assert_same(found: Law, law: Law, runs: pd.DataFrame) -> None:
    """Compare two laws, bit by bit."""
    np.testing.assert_array_equal(found.predict(runs), law.predict(runs))
    if law.has_draws:
        for name in ("low", "high", "bootstrap", "forms", "noise"):
            np.testing.assert_array_equal(getattr(found.interval(runs), name), getattr(law.interval(runs), name))
    assert found.coefficients == law.coefficients
    assert found.standard_errors == law.standard_errors
    for name in ("ranking", "folds", "target", "objective", "loss_kind", "runs", "axes", "cv", "warnings", "seed"):
        assert getattr(found, name) == getattr(law, name), name
    for mine, theirs in zip(found.members, law.members, strict=True):
        assert mine.form == theirs.form
        np.testing.assert_array_equal(mine.draws_bp, theirs.draws_bp)
        assert (mine.weight, mine.interval_weight, mine.cost) == (theirs.weight, theirs.interval_weight, theirs.cost)
        assert mine.condition == theirs.condition


@pytest.mark.parametrize("which", ["auto", "one"])
def test_a_saved_law_is_the_same_law(which: str, request: Any, morph: pd.DataFrame, tmp_path: Path) -> None:
    law = request.getfixturevalue(which)
    law.save(tmp_path / "law.json")
    assert_same(Law.load(tmp_path / "law.json"), law, morph)
    Law.load(tmp_path / "law.json").save(tmp_path / "again.json")
    assert (tmp_path / "law.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_a_law_without_degrees_of_freedom_survives(morph: pd.DataFrame, tmp_path: Path) -> None:
    runs = {k: v[[0, 7, 14, 17, 23]] for k, v in make_runs(tokens_per_param=WIDE).items()}
    law = fit(runs, "chinchilla", draws=2)
    law.save(tmp_path / "law.json")
    assert_same(Law.load(tmp_path / "law.json"), law, morph)


def test_a_law_of_a_users_own_form_needs_no_table_of_forms(morph: pd.DataFrame, tmp_path: Path) -> None:
    law = fit(morph, replace(FORMS["width-depth"], name="mine"), draws=0)
    law.save(tmp_path / "law.json")
    assert Law.load(tmp_path / "law.json").name == "mine"


Change = Callable[[dict[str, Any]], object]


def rewrite(path: Path, change: Change) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def saved(one: Law, tmp_path: Path) -> Path:
    one.save(tmp_path / "law.json")
    return tmp_path / "law.json"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_refuses_a_truncated_file(saved: Path, share: float) -> None:
    text = saved.read_text().rstrip()
    saved.write_text(text[: int(share * len(text))])
    with pytest.raises(CodecError, match=r"law\.json: line \d+, column \d+: not JSON"):
        Law.load(saved)


def test_refuses_another_kind(tmp_path: Path) -> None:
    codec.save(load_shape("gpt2-small"), tmp_path / "shape.json", kind="shape")
    with pytest.raises(CodecError, match="holds a shape, and a law was wanted"):
        Law.load(tmp_path / "shape.json")


def test_refuses_a_newer_version(saved: Path) -> None:
    rewrite(saved, lambda d: d.update(version=2))
    with pytest.raises(CodecError, match=r"written by a newer Lathe \(law version 2; this one reads up to 1\)"):
        Law.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["members"][0]["theta"].pop(), r"form 'width-depth' has 7 parameters .* vectors of \[6, 7\]"),
        (lambda d: d["members"][0]["theta_se"].pop(), r"vectors of \[6, 7\]; fit it again"),
        (lambda d: d["members"][0]["draws"][3].append(1.0), r"vectors of \[7, 8\]; fit it again"),
        (lambda d: d["members"][0]["form"]["terms"].pop(), r"form 'width-depth' has 5 parameters"),
        (lambda d: d["members"][0].update(weight=0.0), "no member has a weight above zero"),
        (lambda d: d.update(members=[]), "no member has a weight above zero"),
        (lambda d: d.update(sed=1), "unknown key 'sed'; did you mean 'seed'"),
        (lambda d: d.pop("cv"), "the key 'cv' of a LawRecord is missing"),
        (lambda d: d.update(objective="cubes"), 'objective is "cubes"'),
        (lambda d: d["members"][0]["theta"].__setitem__(0, "x"), r"members\[0\]\.theta\[0\] is \"x\"; it should be a"),
        (lambda d: d["members"][0]["theta"].__setitem__(0, float("nan")), "NaN is not JSON"),
    ],
)
def test_refuses_a_file_that_contradicts_itself(saved: Path, change: Change, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Law.load(rewrite(saved, change))


def test_refuses_a_file_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="cannot be read: No such file"):
        Law.load(tmp_path / "none.json")
    (tmp_path / "law.txt").write_text("{}")
    with pytest.raises(CodecError, match=r"the name should end in \.json or \.toml"):
        Law.load(tmp_path / "law.txt")


def test_saves_whole_or_not_at_all(one: Law, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"the name should end in \.json"):
        one.save(tmp_path / "law.txt")
    with pytest.raises(CodecError, match="cannot be written"):
        one.save(tmp_path / "absent" / "law.json")
    assert list(tmp_path.iterdir()) == []


def test_refuses_shared_layers_where_no_run_shared_any() -> None:
    law = fit(read_runs("morph-2025"), "width-depth", draws=0)
    shape = load_shape("scale_open_lm_1b_v8")
    shared = dataclasses.replace(shape, sharing="immediate", sharing_count=2)
    with pytest.raises(LawError, match=r"sharing = 0\.5, but every run this law was fit on has sharing = 1"):
        law.loss(shared, tokens=29e9)
    assert law.loss(shared, tokens=29e9, assume=("sharing",)) == pytest.approx(law.loss(shape, tokens=29e9))
