"""Regressions of a loss on a mixture's weights: a row of `REGRESSIONS` each.

Axes: f a feature, n a run, m a mixture asked about, s a source.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from lathe.errors import LawError
from lathe.laws.system import Array

Predict = Callable[[Array], Array]
"""From weights (m, s) to losses (m)."""
RIDGES = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """Say how to fit: from weights (n, s), losses (n), each run's importance (n) and a seed to a prediction.

    `runs_needed` gives the fewest runs for a number of sources, `refits` how many bootstrap fits its cost allows.
    """

    fit: Callable[[Array, Array, Array, int], Predict]
    runs_needed: Callable[[int], int]
    refits: int
    source: str


def rank_correlation(a_n: Array, b_n: Array) -> float:
    """Give Spearman's rank correlation; 0 where either is constant."""
    ranks = np.stack([rankdata(a_n), rankdata(b_n)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else 0.0


def _fit_linear(weights_ns: Array, losses_n: Array, importance_n: Array, _: int) -> Predict:
    # no intercept: the weights sum to 1, so that a source's coefficient is the loss of training on it alone
    root_n = np.sqrt(importance_n)
    theta_s = np.linalg.lstsq(weights_ns * root_n[:, None], losses_n * root_n, rcond=None)[0]
    return lambda weights_ms: weights_ms @ theta_s


def _expand(weights_ms: Array) -> Array:
    """Add the products of each pair of weights; squares follow from them, since the weights sum to 1."""
    i, j = np.triu_indices(weights_ms.shape[1], k=1)
    return np.concatenate([weights_ms, weights_ms[:, i] * weights_ms[:, j]], axis=1)


def _fit_quadratic(weights_ns: Array, losses_n: Array, importance_n: Array, _: int) -> Predict:
    """Fit with the products shrunk by the ridge under which each run is best predicted by the others."""
    root_n = np.sqrt(importance_n)
    features_nf, sources = _expand(weights_ns) * root_n[:, None], weights_ns.shape[1]
    target_n = losses_n * root_n
    shrunk_f = np.arange(features_nf.shape[1]) >= sources
    gram_ff = features_nf.T @ features_nf
    best: tuple[float, Array] | None = None
    for ridge in RIDGES:
        inverse_fn = np.linalg.pinv(gram_ff + ridge * np.diag(shrunk_f), hermitian=True) @ features_nf.T
        theta_f = inverse_fn @ target_n
        leverage_n = np.einsum("nf,fn->n", features_nf, inverse_fn)
        left_out_n = (target_n - features_nf @ theta_f) / np.maximum(1 - leverage_n, 1e-6)
        cost = float(left_out_n @ left_out_n)
        if best is None or cost < best[0]:
            best = cost, theta_f
    assert best is not None, "there are ridges to try"
    theta_best_f = best[1]
    return lambda weights_ms: _expand(weights_ms) @ theta_best_f


def _fit_boosted(weights_ns: Array, losses_n: Array, importance_n: Array, seed: int) -> Predict:
    model = _make_booster(seed)
    with _one_thread():
        model.fit(weights_ns, losses_n, sample_weight=importance_n)

    def predict(weights_ms: Array) -> Array:
        with _one_thread():
            return np.asarray(model.predict(weights_ms), dtype=np.float64)

    return predict


def _one_thread() -> AbstractContextManager[Any]:
    """Hold OpenMP to one thread: on tables of a few hundred runs others only wait for one another."""
    try:
        from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingImports]
    except ImportError:  # LightGBM without scikit-learn; it is told by n_jobs
        return nullcontext()
    return threadpool_limits(1, user_api="openmp")


def _make_booster(seed: int) -> Any:
    """Make LightGBM's regressor, which RegMix uses, or scikit-learn's of the same kind."""
    try:
        from lightgbm import LGBMRegressor  # pyright: ignore[reportMissingImports]

        return LGBMRegressor(
            n_estimators=200, learning_rate=0.1, num_leaves=15, min_child_samples=5, random_state=seed, n_jobs=1,
            verbose=-1,
        )  # fmt: skip
    except ImportError:
        pass
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LawError(
            "a boosted regression needs scikit-learn or LightGBM; run: pip install scikit-learn, or use model quadratic"
        ) from None
    return HistGradientBoostingRegressor(
        max_iter=200, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=5, random_state=seed,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


REGRESSIONS: dict[str, Regression] = {
    "linear": Regression(
        fit=_fit_linear, runs_needed=lambda sources: sources + 2, refits=200, source="Liu et al. 2024, arXiv:2407.01492"
    ),
    "quadratic": Regression(
        fit=_fit_quadratic, runs_needed=lambda sources: 2 * sources + 2, refits=100,
        source="Scheffé 1958, Experiments with mixtures; the ridge is ours",
    ),
    "boosted": Regression(
        fit=_fit_boosted, runs_needed=lambda sources: max(20, 2 * sources), refits=10,
        source="Liu et al. 2024, arXiv:2407.01492, with LightGBM",
    ),
}  # fmt: skip
"""How a loss may follow from a mixture, by the name that `fit_mixture` takes."""
