"""Optimal splits against closed forms: Chinchilla's for a training budget, a hand-made one for a whole life."""

import dataclasses
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lathe.errors import LawError
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.laws.optimum import lifetime_optimal

E, A, B, ALPHA, BETA = 1.8, 480.0, 2100.0, 0.35, 0.37
KAPPA, VOCAB = 12.0, 32000
LAYERS, MULTIPLES = np.array([4, 6, 8, 12, 16, 24]), np.array([10.0, 40.0, 160.0])


def make_runs(noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    n, m = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e9, 6), np.array([5.0, 20.0, 80.0, 320.0])))
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    loss = (E + A * n**-ALPHA + B * (n * m) ** -BETA) * scatter
    return {"params": n, "tokens": n * m, "loss": loss}


def closed_form(flops: float) -> tuple[float, float]:
    """Give N and D by Hoffmann et al. 2022, eq. 4."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (flops / 6) ** (BETA / (ALPHA + BETA)), (flops / 6) ** (ALPHA / (ALPHA + BETA)) / g


@pytest.fixture(scope="module")
def exact() -> Law:
    return fit(make_runs(), "chinchilla", draws=0)


@pytest.fixture(scope="module")
def shaped() -> Law:
    """Fit separate width and depth terms to shapes with 12·n·d² + 2·V·d params."""
    d, n, m = (v.ravel() for v in np.meshgrid([384.0, 512, 768, 1024, 1536, 2048], LAYERS, MULTIPLES))
    stored = KAPPA * n * d**2
    params = stored + 2 * VOCAB * d
    tokens = m * params
    return fit(
        {
            "params": params,
            "non_embedding_params": stored,
            "d_model": d.astype(int),
            "n_layers": n.astype(int),
            "vocab_size": np.full(len(d), VOCAB),
            "tied": np.zeros(len(d), dtype=bool),
            "tokens": tokens,
            "loss": 1.9 + 60 * d**-0.7 + 1.1 * n**-0.6 + 9e4 * tokens**-0.55,
        },
        "width-depth",
        draws=40,
    )


@pytest.mark.parametrize("flops", [1e19, 3e20, 1e22, 1e24])
def test_equals_chinchillas_closed_form(exact: Law, flops: float) -> None:
    n, d = closed_form(flops)
    found = exact.optimal(flops=flops)
    assert found.params == pytest.approx(n, rel=1e-4)
    assert found.tokens == pytest.approx(d, rel=1e-4)
    assert 6 * found.params * found.tokens == pytest.approx(flops, rel=1e-12)
    assert found.loss == pytest.approx(E + A * n**-ALPHA + B * d**-BETA, rel=1e-8)
    assert (found.aspect, found.d_model, found.n_layers) == (None, None, None)
    assert (found.params_low, found.params_high) == (found.params, found.params)  # no draws, no interval


def test_the_interval_holds_the_truth() -> None:
    law = fit(make_runs(noise=0.003, seed=4), "chinchilla", draws=200)
    found = law.optimal(flops=1e21, level=0.9)
    n, d = closed_form(1e21)
    assert found.params_low < n < found.params_high
    assert found.params_low < found.params < found.params_high
    assert found.tokens_low < d < found.tokens_high
    assert found.tokens_low == pytest.approx(1e21 / (6 * found.params_high))
    narrow = law.optimal(flops=1e21, level=0.5)
    assert found.params_low < narrow.params_low < narrow.params_high < found.params_high
    assert law.optimal(flops=1e21) == law.optimal(flops=1e21)


def test_says_how_far_it_reaches(exact: Law) -> None:
    assert exact.optimal(flops=3e20).extrapolation == ()
    beyond = exact.optimal(flops=1e26).extrapolation
    assert any(text.startswith("params reaches ×") for text in beyond)


@pytest.mark.parametrize("flops", [0, -1e20, float("nan"), float("inf")])
def test_refuses_a_budget_that_is_none(exact: Law, flops: float) -> None:
    with pytest.raises(LawError, match=r"flops=.* makes no sense; give a positive number"):
        exact.optimal(flops=flops)


def test_refuses_run_means_and_says_why() -> None:
    law = fit(read_runs("morph-2025"), "width-depth", draws=0)
    for ask in (lambda: law.optimal(flops=1e21), lambda: lifetime_optimal(law, target_loss=3, inference_tokens=1e12)):
        with pytest.raises(LawError, match=r"averaged over each run.*too many tokens.*fit held-out losses"):
            ask()


def test_refuses_a_law_of_something_else() -> None:
    loss = np.linspace(2, 4, 12)
    law = fit({"loss": loss, "error": 0.9 - 2 * np.exp(-0.8 * loss)}, "error", draws=0)
    with pytest.raises(LawError, match="this law predicts 'error', not a loss"):
        law.optimal(flops=1e21)


def test_refuses_an_aspect_for_a_law_blind_to_shape(exact: Law) -> None:
    with pytest.raises(LawError, match="aspect=64 means nothing to the law chinchilla: it never sees shape"):
        exact.optimal(flops=1e21, aspect=64)
    with pytest.raises(LawError, match="aspect=64 means nothing"):
        lifetime_optimal(exact, target_loss=2.6, inference_tokens=0, aspect=64)


def test_params_follow_from_shape_without_their_non_embedding_part() -> None:
    runs = read_runs("morph-2025").assign(loss_kind="held-out")
    full = fit(runs, "width-depth", draws=0).optimal(flops=1e21)
    bare = fit(runs[["params", "tokens", "d_model", "n_layers", "loss"]], "width-depth", draws=0).optimal(flops=1e21)
    derived = fit(runs.drop(columns=["non_embedding_params"]), "width-depth", draws=0).optimal(flops=1e21)
    assert derived.d_model == pytest.approx(full.d_model, rel=1e-6)
    assert bare.loss == pytest.approx(full.loss, rel=0.05)  # embeddings then count as blocks


def test_refuses_a_law_that_cannot_turn_params_into_shape() -> None:
    runs = read_runs("morph-2025").assign(loss_kind="held-out")
    law = dataclasses.replace(fit(runs, "width-depth", draws=0), axes={})
    with pytest.raises(LawError, match="nothing ties params to width and depth: fit runs with"):
        law.optimal(flops=1e21)


@pytest.mark.parametrize("aspect", [24.0, 64.0, 128.0])
def test_a_law_with_shape_keeps_the_aspect_and_the_params(shaped: Law, aspect: float) -> None:
    found = shaped.optimal(flops=3e19, aspect=aspect)
    assert found.aspect == aspect
    assert found.d_model is not None
    assert found.n_layers is not None
    assert found.d_model / found.n_layers == pytest.approx(aspect)
    assert KAPPA * found.n_layers * found.d_model**2 + 2 * VOCAB * found.d_model == pytest.approx(found.params)
    # no other split at this aspect is better
    row = {"d_model": [found.d_model], "n_layers": [found.n_layers], "tokens": [found.tokens]}
    assert found.loss == pytest.approx(shaped.predict(row)[0])
    for scale in (0.97, 1.03):
        d, n = found.d_model * scale, found.n_layers * scale
        tokens = 3e19 / (6 * (KAPPA * n * d**2 + 2 * VOCAB * d))
        assert shaped.predict({"d_model": [d], "n_layers": [n], "tokens": [tokens]})[0] > found.loss
    # without noise the draws are the fit, up to the coarser grid that they are searched on
    assert [found.params_low, found.params_high] == pytest.approx([found.params] * 2, rel=1e-4)


def test_without_an_aspect_the_best_within_the_fitted_range(shaped: Law) -> None:
    found = shaped.optimal(flops=3e19)
    assert found.aspect is not None
    axis = shaped.axes["aspect"]
    assert axis.low <= found.aspect <= axis.high
    for aspect in np.geomspace(axis.low, axis.high, 9):
        assert found.loss <= shaped.optimal(flops=3e19, aspect=float(aspect)).loss + 1e-4


# A whole life. With L = E + a/N + b/D and t = L - E, the cheapest 6·N·D + 2·N·I on L(N, D) = E + t has, by its
# first-order condition, with s = √(1 + I·t/(3b)):
#     N = (a/t)·(1 + 1/s),   D = (b/t)·(1 + s);   at I = 0: N = 2a/t, D = 2b/t.
SYMMETRIC = {"E": 2.0, "a": 1e8, "b": 2e9}


@pytest.fixture(scope="module")
def symmetric() -> Law:
    n, m = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 2e9, 6), np.array([5.0, 20.0, 80.0])))
    loss = SYMMETRIC["E"] + SYMMETRIC["a"] / n + SYMMETRIC["b"] / (n * m)
    return fit({"params": n, "tokens": n * m, "loss": loss}, "chinchilla", draws=0)


def test_lifetime_optimum_by_hand(symmetric: Law) -> None:
    # t = 0.5 and I = 9b/t = 3.6e10, so s = 2: N = 1.5a/t = 3e8, D = 3b/t = 1.2e10
    found = lifetime_optimal(symmetric, target_loss=2.5, inference_tokens=3.6e10)
    assert found.params == pytest.approx(3e8, rel=1e-4)
    assert found.tokens == pytest.approx(1.2e10, rel=1e-3)
    assert found.training_flops == pytest.approx(6 * 3e8 * 1.2e10, rel=1e-3)
    assert found.inference_flops == pytest.approx(2 * 3e8 * 3.6e10, rel=1e-4)
    assert found.total_flops == pytest.approx(4.32e19, rel=1e-6)  # flat at its minimum: errors are of second order
    assert found.compute_optimal_params == pytest.approx(4e8, rel=1e-4)
    assert found.aspect is None


@pytest.mark.parametrize("served", [1e9, 1e11, 1e13])
def test_lifetime_optimum_for_any_service(symmetric: Law, served: float) -> None:
    t, s = 0.5, math.sqrt(1 + served * 0.5 / (3 * SYMMETRIC["b"]))
    found = lifetime_optimal(symmetric, target_loss=SYMMETRIC["E"] + t, inference_tokens=served)
    assert found.params == pytest.approx(SYMMETRIC["a"] / t * (1 + 1 / s), rel=1e-5)
    assert found.tokens == pytest.approx(SYMMETRIC["b"] / t * (1 + s), rel=1e-3)


def test_nothing_served_is_compute_optimal(exact: Law) -> None:
    best = exact.optimal(flops=1e21)
    found = lifetime_optimal(exact, target_loss=best.loss, inference_tokens=0)
    assert found.params == pytest.approx(best.params, rel=1e-3)
    assert found.total_flops == pytest.approx(1e21, rel=1e-5)
    assert found.compute_optimal_params == found.params


def test_more_serving_means_a_smaller_model_on_more_tokens(exact: Law) -> None:
    found = [lifetime_optimal(exact, target_loss=2.4, inference_tokens=i) for i in (0, 1e10, 1e11, 1e12, 1e13)]
    for less, more in pairwise(found):
        assert more.params < less.params
        assert more.tokens > less.tokens
        assert more.total_flops > less.total_flops


def test_lifetime_of_a_law_with_shape(shaped: Law) -> None:
    given = lifetime_optimal(shaped, target_loss=2.6, inference_tokens=1e11, aspect=64)
    best = lifetime_optimal(shaped, target_loss=2.6, inference_tokens=1e11)
    assert given.aspect == 64
    assert best.aspect is not None
    assert best.total_flops <= given.total_flops * (1 + 1e-6)


@pytest.mark.parametrize("target_loss", [1.0, 1.8])
def test_refuses_a_loss_that_no_size_reaches(exact: Law, target_loss: float) -> None:
    with pytest.raises(LawError, match=f"target_loss={target_loss:g} is below what the law chinchilla reaches"):
        lifetime_optimal(exact, target_loss=target_loss, inference_tokens=1e12)


@pytest.mark.parametrize(
    ("loss", "served", "message"),
    [
        (-1.0, 1e12, "target_loss=-1.0 makes no sense"),
        (float("nan"), 1e12, "target_loss=nan makes no sense"),
        (2.5, -1.0, "inference_tokens=-1.0 makes no sense; give zero or more"),
        (2.5, float("inf"), "inference_tokens=inf makes no sense"),
    ],
)
def test_refuses_numbers_without_meaning(exact: Law, loss: float, served: float, message: str) -> None:
    with pytest.raises(LawError, match=message):
        lifetime_optimal(exact, target_loss=loss, inference_tokens=served)


def test_refuses_a_loss_so_high_that_nothing_need_be_trained(exact: Law) -> None:
    with pytest.raises(
        LawError, match=r"target_loss=1e\+06 is cheapest to reach at or beyond .* ask for a loss nearer theirs"
    ):
        lifetime_optimal(exact, target_loss=1e6, inference_tokens=1e12)


def test_refuses_terms_that_are_not_told_apart(exact: Law) -> None:
    member = exact.members[0]
    deaf = replace(exact, members=(replace(member, theta_p=member.theta_p + np.array([0, 0, -80, 0, 0])),))
    with pytest.raises(LawError, match=r"has no lowest loss at 1e\+21 FLOPs"):
        deaf.optimal(flops=1e21)
