"""Find the mixture of data with the lowest loss from small runs on many mixtures (RegMix).

Liu et al. 2024, arXiv:2407.01492: draw mixtures around the sources' sizes, train a small model on each, regress the
loss on the weights, predict the loss of very many simulated mixtures, and average the best of them. It rests on their
finding that mixtures rank alike at small and large scale: read the mixture here, not its loss.

Where this differs: the draw's cap is said in repeats of a source; a quadratic regression (Scheffé 1958's polynomial for
mixtures) besides their linear and boosted ones; intervals by refitting to reweighted runs; and no weight beyond those
that the runs tried.

Axes: b a refit, m a mixture asked about, n a run, s a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lathe.errors import LawError, nearest
from lathe.laws.mixture_table import PREFIX, read_mixtures
from lathe.laws.regressions import REGRESSIONS, Predict, rank_correlation
from lathe.laws.system import Array
from lathe.laws.uncertainty import bootstrap_weights
from lathe.runs import Table

SMALLEST = 2e-4
"""A drawn weight below this becomes 0: about a hundred sequences of 2,048 tokens in a billion (RegMix's floor)."""
ATTEMPTS = 1000
"""Draws to make for each mixture that a cap lets through, before giving up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixtureLaw:
    """Predict a loss from the weights of the sources. Made by `fit_mixture`.

    `spearman` is the rank correlation of losses with their predictions by fits that did not see them.
    """

    model: str
    target: str
    sources: tuple[str, ...]
    weights_ns: Array
    losses_n: Array
    spearman: float
    """1 where held-out mixtures are ranked perfectly; 0 where the regression says nothing about them."""
    error: float
    """RMS error on held-out mixtures, in units of the loss."""
    folds: int
    predict: Predict
    refits: tuple[Predict, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestMixture:
    """Hold the mixture with the lowest predicted loss; every pair is (low, high) at `level`.

    The intervals say how the mixture would move with other runs of the same kind: on planted quadratics of 60 runs
    those at 90 % held the truth 8 times in 10. They cannot say how far the ranking changes with scale. `reference` is
    the predicted loss of the mixture that the simulated ones were drawn around.
    """

    weights: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    loss: float
    loss_interval: tuple[float, float]
    reference: float
    level: float
    simulated: int
    averaged: int


def draw_mixtures(
    sizes: Mapping[str, float],
    count: int,
    *,
    seed: int = 0,
    temperature: float = 0.5,
    strength: tuple[float, float] = (0.1, 5.0),
    tokens: float | None = None,
    max_repeats: float = 4.0,
) -> dict[str, Array]:
    """Draw mixtures around the sources' sizes, for one small run each.

    Args:
        sizes: tokens of each source.
        count: mixtures to draw.
        temperature: power that the sizes are raised to; below 1 it brings small sources forward.
        strength: range, log-uniform, of the Dirichlet's concentration; low ones give mixtures of a few sources.
        tokens: what the large run will train on: no source is then drawn beyond max_repeats of its size.
        max_repeats: how often a source may be read; four times cost little (Muennighoff et al. 2023, arXiv:2305.16264).

    Returns the column `weight.<source>` of each source, as `fit_mixture` reads them. Raises LawError.
    """
    names = list(sizes)
    sizes_s = np.array([float(sizes[name]) for name in names])
    low, high = strength
    if len(names) < 2 or not (np.isfinite(sizes_s).all() and (sizes_s > 0).all()):
        raise LawError(f"sizes={dict(sizes)}; wanted two sources or more, each with a number of tokens above 0")
    if count < 1 or not 0 < low <= high:
        raise LawError(f"count={count}, strength={strength}; wanted 1 or more, and a range above 0")
    prior_s = sizes_s**temperature / (sizes_s**temperature).sum()
    caps_s = np.ones(len(names)) if tokens is None else np.minimum(max_repeats * sizes_s / tokens, 1.0)
    if caps_s.sum() < 1:
        raise LawError(
            f"the sources hold {sizes_s.sum():.4g} tokens, {max_repeats:g} times of which are fewer than"
            f" tokens={tokens:.4g}; raise max_repeats or lower tokens"
        )
    weights_ms = _draw(prior_s, count, caps_s=caps_s, strength=strength, rng=np.random.default_rng(seed))
    return {PREFIX + name: weights_ms[:, i] for i, name in enumerate(names)}


def fit_mixture(
    table: Table,
    *,
    target: str = "loss",
    model: str = "linear",
    seed: int = 0,
    refits: int | None = None,
    folds: int = 10,
) -> MixtureLaw:
    """Regress a loss on the mixtures of small runs.

    Args:
        table: columns `weight.<source>`, which sum to 1 in each row, and the target; lower is better.
        model: a name of `REGRESSIONS`: linear, quadratic or boosted.
        refits: fits to reweighted runs, for intervals; the model's own number if not given.
        folds: parts of the runs, each of which is held out once; as many as runs at most.

    Raises LawError for mixtures or losses that no regression can be made of.
    """
    if model not in REGRESSIONS:
        raise LawError(f"there is no regression {model!r}{nearest(model, REGRESSIONS)}")
    sources, weights_ns, losses_n = read_mixtures(table, target=target)
    kind, runs = REGRESSIONS[model], len(losses_n)
    if runs < (needed := kind.runs_needed(len(sources))):
        raise LawError(
            f"{runs} runs of {len(sources)} sources; a {model} regression needs {needed}: train more mixtures"
        )
    count = kind.refits if refits is None else refits
    draws_bn = bootstrap_weights(runs, count, seed=seed) if count else np.zeros((0, runs))

    def fit(weights: Array, losses: Array, importance: Array) -> Predict:
        return kind.fit(weights, losses, importance, seed)

    ones_n = np.ones(runs)
    folds = min(folds, runs)
    part_n = np.random.default_rng(seed).permutation(runs) % folds
    held_out_n = np.empty(runs)
    for part in range(folds):
        keep = part_n != part
        held_out_n[~keep] = fit(weights_ns[keep], losses_n[keep], ones_n[keep])(weights_ns[~keep])
    spearman = rank_correlation(held_out_n, losses_n)
    return MixtureLaw(
        model=model, target=target, sources=sources, weights_ns=weights_ns, losses_n=losses_n, spearman=spearman,
        error=float(np.sqrt(np.mean((held_out_n - losses_n) ** 2))), folds=folds,
        predict=fit(weights_ns, losses_n, ones_n),
        refits=tuple(fit(weights_ns, losses_n, draw_n) for draw_n in draws_bn),
        warnings=_judge(spearman, weights_ns, sources),
    )  # fmt: skip


def best_mixture(
    law: MixtureLaw,
    *,
    sizes: Mapping[str, float] | None = None,
    tokens: float | None = None,
    max_repeats: float = 4.0,
    simulated: int = 100_000,
    averaged: int = 100,
    level: float = 0.9,
    seed: int = 0,
) -> BestMixture:
    """Simulate mixtures and average those of the lowest predicted loss.

    Args:
        sizes: tokens of each source, to simulate around; the runs' mean mixture if not given.
        tokens: what the large run will train on: no source beyond max_repeats of its size then.
        simulated: mixtures to simulate.
        averaged: how many of the best to average.

    Raises LawError.
    """
    if not 0 < averaged <= simulated:
        raise LawError(f"averaged={averaged} of simulated={simulated}; wanted fewer, and 1 or more")
    if not 0 < level < 1:
        raise LawError(f"level={level}; wanted a probability between 0 and 1, such as 0.9")
    around_s, caps_s = _center(law, sizes, tokens, max_repeats)
    weights_ms = _draw(around_s, simulated, caps_s=caps_s, strength=(1.0, 100.0), rng=np.random.default_rng(seed))

    def average_best(predict: Predict) -> Array:
        best_m = np.argpartition(predict(weights_ms), averaged - 1)[:averaged]
        return weights_ms[best_m].mean(axis=0)

    best_s = average_best(law.predict)
    moved_bs = np.array([average_best(predict) for predict in law.refits]).reshape(-1, len(best_s))
    losses_b = np.array([predict(best_s[None])[0] for predict in law.refits])
    tails = ((1 - level) / 2, (1 + level) / 2)

    def bracket(drawn_b: Array, value: float) -> tuple[float, float]:
        if not len(drawn_b):
            return value, value
        low, high = np.quantile(drawn_b, tails)
        return float(min(low, value)), float(max(high, value))

    loss = float(law.predict(best_s[None])[0])
    return BestMixture(
        weights=dict(zip(law.sources, best_s.tolist(), strict=True)),
        intervals={name: bracket(moved_bs[:, i], float(best_s[i])) for i, name in enumerate(law.sources)},
        loss=loss, loss_interval=bracket(losses_b, loss), reference=float(law.predict(around_s[None])[0]),
        level=level, simulated=simulated, averaged=averaged,
    )  # fmt: skip


def _draw(
    prior_s: Array, count: int, *, caps_s: Array, strength: tuple[float, float], rng: np.random.Generator
) -> Array:
    """Draw Dirichlet mixtures of varied concentration, until enough are within the caps."""
    found: list[Array] = []
    kept = tried = 0
    while kept < count:
        if tried >= max(ATTEMPTS * count, 10**5) and kept < count * tried / (ATTEMPTS * count):
            raise LawError(
                f"only {kept} of {tried:,} mixtures drawn stay within the caps; raise max_repeats or lower tokens, or"
                " give sizes nearer to the mixtures that were run"
            )
        size = min(max(2 * (count - kept), 1000), 200_000)
        concentration_m = np.exp(rng.uniform(*np.log(strength), size=size))
        gamma_ms = rng.standard_gamma(prior_s * concentration_m[:, None])
        sums_m = gamma_ms.sum(axis=1)
        drawn_ms = gamma_ms[sums_m > 0] / sums_m[sums_m > 0, None]
        drawn_ms[drawn_ms < SMALLEST] = 0.0
        drawn_ms /= drawn_ms.sum(axis=1, keepdims=True)
        fits_m = (drawn_ms <= caps_s + 1e-12).all(axis=1)
        found.append(drawn_ms[fits_m])
        kept, tried = kept + int(fits_m.sum()), tried + size
    return np.concatenate(found)[:count]


def _center(
    law: MixtureLaw, sizes: Mapping[str, float] | None, tokens: float | None, max_repeats: float
) -> tuple[Array, Array]:
    """Say which mixture to simulate around, and the most of each source: what the runs tried, and what there is."""
    caps_s = law.weights_ns.max(axis=0)
    if sizes is None:
        if tokens is not None:
            raise LawError("tokens are given and sizes are not; the cap on repeats needs the tokens of each source")
        return law.weights_ns.mean(axis=0), caps_s
    if set(sizes) != set(law.sources):
        odd = sorted(set(sizes) ^ set(law.sources))[0]
        raise LawError(f"sizes and runs name different sources: {odd!r} is in one of them only")
    sizes_s = np.array([float(sizes[name]) for name in law.sources])
    if not (np.isfinite(sizes_s).all() and (sizes_s > 0).all()):
        raise LawError(f"sizes={dict(sizes)}; wanted a number of tokens above 0 for each source")
    if tokens is not None:
        caps_s = np.minimum(caps_s, max_repeats * sizes_s / tokens)
        if caps_s.sum() < 1:
            raise LawError(
                f"{max_repeats:g} times of each source, and no more than the runs tried, fill {caps_s.sum():.0%} of"
                f" tokens={tokens:.4g}; raise max_repeats or lower tokens"
            )
    return sizes_s / sizes_s.sum(), caps_s


def _judge(spearman: float, weights_ns: Array, sources: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    if spearman < 0.5:
        found.append(
            f"held-out mixtures are ranked with a correlation of {spearman:.2f}: do not trust the best; add runs"
        )
    if np.linalg.matrix_rank(weights_ns, tol=1e-6) < len(sources):
        found.append("some sources always move together in the runs: how they share their weight is a guess")
    return tuple(found)
