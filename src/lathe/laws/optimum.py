"""What a law says to train: params and tokens for a training budget, or for a whole life's cost.

Axes: b a bootstrap draw, g a point of the grid over params, s an aspect ratio tried.

Training FLOPs are 6·N·D and serving FLOPs 2·N a token throughout, as the laws' papers count them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lathe.errors import LawError
from lathe.laws.axes import BLOCK, HELD
from lathe.laws.law import Law
from lathe.laws.system import Array

POINTS = 512
DRAW_POINTS = 160
FINE_POINTS = 64
REFINEMENTS = 3
ASPECTS = 24
RATIOS = (0.05, 2e5)
"""Tokens a parameter between which an optimum is looked for."""
SHAPE_COLUMNS = {"d_model", "n_layers", "aspect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """A budget's best split, with intervals from the law's bootstrap draws and the spread of its forms.

    `aspect`, `d_model` and `n_layers` are None for laws blind to shape; the last two are not rounded.
    """

    params: float
    tokens: float
    loss: float
    flops: float
    params_low: float
    params_high: float
    tokens_low: float
    tokens_high: float
    level: float
    aspect: float | None
    d_model: float | None
    n_layers: float | None
    extrapolation: tuple[str, ...]


def optimal(law: Law, *, flops: float, aspect: float | None = None, level: float = 0.9) -> Optimum:
    """Minimise the law's loss at 6·N·D = flops.

    A law that reads shape is minimised over shapes of the given `aspect` (d_model / n_layers), or of the best within
    the fitted range; params follow from width and depth as they did in the fitted runs.

    Raises:
        LawError: the budget or aspect is no positive number; the losses are run means of the training loss, which ask
            for too many tokens; the law reads no tokens, or neither params nor shape; or no split is its lowest.
    """
    _check_positive(flops=flops, aspect=aspect)
    refuse_run_mean(law, "split a budget")
    aspects = _aspects(law, aspect)
    centre = math.sqrt(flops / 6)

    def tokens_of(params: Array) -> Array:
        return flops / (6 * params)

    grid_g = centre / np.sqrt(np.geomspace(RATIOS[1], RATIOS[0], POINTS))
    table = _table(law, grid_g, tokens_of(grid_g), aspects)
    loss_sg = law.predict(table).reshape(-1, len(grid_g))
    best = int(loss_sg.min(axis=1).argmin())
    params, at_edge = _lowest(np.log(grid_g), loss_sg[best][None])
    if at_edge[0]:
        raise LawError(
            f"the law {law.name} has no lowest loss at {flops:.3g} FLOPs between {RATIOS[0]:g} and {RATIOS[1]:g} tokens"
            " a parameter: its terms in params and tokens are not told apart by these runs"
        )
    chosen = None if aspects is None else aspects[best : best + 1]
    coarse_g = centre / np.sqrt(np.geomspace(RATIOS[1], RATIOS[0], DRAW_POINTS))
    drawn = law.draws(_table(law, coarse_g, tokens_of(coarse_g), chosen))
    low, high = _spread(drawn, np.log(coarse_g), level, fallback=params[0])
    n = float(params[0])
    final = _table(law, np.array([n]), np.array([flops / (6 * n)]), chosen)
    return Optimum(
        params=n,
        tokens=flops / (6 * n),
        loss=float(law.predict(final)[0]),
        flops=flops,
        params_low=low,
        params_high=high,
        tokens_low=flops / (6 * high),
        tokens_high=flops / (6 * low),
        level=level,
        aspect=None if chosen is None else float(chosen[0]),
        d_model=None if chosen is None else float(final["d_model"][0]),
        n_layers=None if chosen is None else float(final["n_layers"][0]),
        extrapolation=tuple(law.extrapolation(final)),
    )


def _check_positive(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise LawError(f"{name}={value} makes no sense; give a positive number")


def refuse_run_mean(law: Law, purpose: str) -> None:
    """Refuse a law that predicts no loss, or whose losses are run means, for what its token exponent decides."""
    if law.target != "loss":
        raise LawError(f"this law predicts {law.target!r}, not a loss, so it cannot {purpose}")
    if law.loss_kind == "train-run-mean":
        raise LawError(
            f"this law was fit on training losses averaged over each run, so it cannot {purpose}: a run mean turns"
            " B·D^-β into about B·D^-β/(1 - β) and asks for too many tokens. It still ranks shapes; for this, fit"
            " held-out losses"
        )


def _aspects(law: Law, aspect: float | None) -> Array | None:
    """List the aspect ratios to try; None for a law blind to shape."""
    reads = set(law.columns)
    if "tokens" not in reads or not reads & (SHAPE_COLUMNS | {"params"}):
        raise LawError(f"the law {law.name} reads {', '.join(law.columns)}: a split needs tokens, and params or shape")
    if not reads & SHAPE_COLUMNS:
        if aspect is not None:
            raise LawError(f"aspect={aspect:g} means nothing to the law {law.name}: it never sees shape; leave it out")
        return None
    if not {"aspect", BLOCK} <= set(law.axes):
        raise LawError("nothing ties params to width and depth: fit runs with params, d_model and n_layers")
    axis = law.axes["aspect"]
    return np.array([aspect]) if aspect else np.geomspace(axis.low, axis.high, ASPECTS)


def _table(law: Law, params_g: Array, tokens_g: Array, aspects: Array | None) -> dict[str, Array]:
    """Lay out params and tokens, and for each aspect the width and depth that have those params, aspects outermost."""
    if aspects is None:
        return {"params": params_g, "tokens": tokens_g}
    count = len(aspects)
    params, tokens = np.tile(params_g, count), np.tile(tokens_g, count)
    aspect = np.repeat(aspects, len(params_g))
    d_model = _width(law, params, aspect)
    return {
        "params": params,
        "tokens": tokens,
        "aspect": aspect,
        "d_model": d_model,
        "n_layers": d_model / aspect,
    }


def _width(law: Law, params: Array, aspect: Array) -> Array:
    """Solve κ·d³/R + e·d = N for the width d, with κ and the embedding's rows e as in the fitted runs."""
    block = law.axes[BLOCK]
    kappa = math.sqrt(block.low * block.high)
    vocab, tied = law.axes.get("vocab_size"), law.axes.get("tied")
    rows = 0.0 if vocab is None else math.sqrt(vocab.low * vocab.high) * (2 - (0.0 if tied is None else tied.low))
    low, high = np.zeros_like(params), np.cbrt(params * aspect / kappa)
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = kappa * middle**3 / aspect + rows * middle > params
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


def _lowest(log_g: Array, value_bg: Array) -> tuple[Array, np.ndarray]:
    """Find each row's minimum by a parabola through its lowest points; returns exp(log) and whether at an edge."""
    best_b = value_bg.argmin(axis=1)
    edge_b = (best_b == 0) | (best_b == value_bg.shape[1] - 1)
    inner_b = np.clip(best_b, 1, value_bg.shape[1] - 2)
    rows = np.arange(len(value_bg))
    left, mid, right = (value_bg[rows, inner_b + k] for k in (-1, 0, 1))
    bend = left - 2 * mid + right
    shift = np.clip(np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend > 0), -1, 1)
    log_b = np.where(edge_b, log_g[best_b], log_g[inner_b] + shift * (log_g[1] - log_g[0]))
    return np.exp(log_b), edge_b


def _spread(drawn: list[tuple[float, Array]], log_g: Array, level: float, *, fallback: float) -> tuple[float, float]:
    """Take the interval of the minimiser over draws mixed by weight."""
    if not drawn:
        return fallback, fallback
    places = [_lowest(log_g, values_bg)[0] for _, values_bg in drawn]
    weights = np.concatenate([np.full(len(p), w / len(p)) for (w, _), p in zip(drawn, places, strict=True)])
    place_b = np.concatenate(places)
    order = np.argsort(place_b)
    reached = np.cumsum(weights[order]) / weights.sum()
    at = [min(int(np.searchsorted(reached, q)), len(order) - 1) for q in ((1 - level) / 2, (1 + level) / 2)]
    return float(place_b[order[at[0]]]), float(place_b[order[at[1]]])


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeOptimum:
    """The cheapest way to a loss over training and serving."""

    params: float
    tokens: float
    target_loss: float
    inference_tokens: float
    training_flops: float
    inference_flops: float
    compute_optimal_params: float
    """What would be trained if nothing were served."""
    aspect: float | None
    extrapolation: tuple[str, ...]

    @property
    def total_flops(self) -> float:
        """Add training and serving."""
        return self.training_flops + self.inference_flops


def lifetime_optimal(
    law: Law, *, target_loss: float, inference_tokens: float, aspect: float | None = None
) -> LifetimeOptimum:
    """Minimise 6·N·D + 2·N·D_inference over the (N, D) with L(N, D) = target_loss.

    Sardana et al. 2024, arXiv:2401.00448, eq. 3. For a law that reads shape, over shapes of the given or best aspect.

    Raises:
        LawError: no size reaches the loss, or the cheapest that does is far outside the fitted sizes; or as `optimal`
            raises.
    """
    _check_positive(target_loss=target_loss, aspect=aspect)
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise LawError(f"inference_tokens={inference_tokens} makes no sense; give zero or more")
    refuse_run_mean(law, "weigh training against serving")
    aspects = _aspects(law, aspect)
    smallest, largest = law_range(law)
    coarse_g = np.geomspace(smallest / 1e3, largest * 1e4, 2 * POINTS)
    coarse_sg = _tokens_to(law, coarse_g, aspects, target_loss)
    if not np.isfinite(coarse_sg).any():
        raise LawError(
            f"target_loss={target_loss:g} is below what the law {law.name} reaches at any size and number of tokens"
            " searched; ask for a higher loss"
        )

    def solved(inference: float) -> tuple[float, float, Array | None]:
        s, g = (int(i) for i in np.unravel_index(_cost(coarse_g, coarse_sg, inference).argmin(), coarse_sg.shape))
        if g in (0, len(coarse_g) - 1):
            raise LawError(
                f"target_loss={target_loss:g} is cheapest to reach at or beyond {coarse_g[g]:.3g} params, where the law"
                f" {law.name} says nothing: its runs had {smallest:.3g} to {largest:.3g}; ask for a loss nearer theirs"
            )
        chosen = None if aspects is None else aspects[s : s + 1]
        params_g, tokens_g = coarse_g, coarse_sg[s]
        for _ in range(REFINEMENTS):
            params_g = np.geomspace(params_g[g - 1], params_g[g + 1], FINE_POINTS)
            tokens_g = _tokens_to(law, params_g, chosen, target_loss)[0]
            g = int(np.clip(_cost(params_g, tokens_g, inference).argmin(), 1, FINE_POINTS - 2))
        return float(params_g[g]), float(tokens_g[g]), chosen

    params, tokens, chosen = solved(inference_tokens)
    return LifetimeOptimum(
        params=params,
        tokens=tokens,
        target_loss=target_loss,
        inference_tokens=inference_tokens,
        training_flops=6 * params * tokens,
        inference_flops=2 * params * inference_tokens,
        compute_optimal_params=solved(0.0)[0],
        aspect=None if chosen is None else float(chosen[0]),
        extrapolation=tuple(law.extrapolation(_table(law, np.array([params]), np.array([tokens]), chosen))),
    )


def law_range(law: Law) -> tuple[float, float]:
    """Give the smallest and largest params among the fitted runs; 1e6 to 1e9 where the runs had none."""
    axis = law.axes.get("params")
    return (1e6, 1e9) if axis is None else (axis.low, axis.high)


def _cost(params_g: Array, tokens_sg: Array, inference: float) -> Array:
    return 6 * params_g * tokens_sg + 2 * params_g * inference


def _tokens_to(law: Law, params_g: Array, aspects: Array | None, target: float) -> Array:
    """Find the tokens at which each size reaches the target; returns axes (s, g), one row for a law blind to shape."""
    table = _table(law, params_g, np.ones_like(params_g), aspects)  # width and depth do not depend on the tokens
    tokens = tokens_to(law, table, target)
    return tokens.reshape(1 if aspects is None else len(aspects), len(params_g))


def tokens_to(law: Law, table: Mapping[str, Array], target: float) -> Array:
    """Bisect for the tokens at which each row reaches the target loss; infinite where none from 1e3 to 1e18 do."""
    count = len(next(iter(table.values())))
    low_n, high_n = np.full(count, math.log(1e3)), np.full(count, math.log(1e18))

    def reaches(log_tokens_n: Array) -> np.ndarray:
        return law.predict({**table, "tokens": np.exp(log_tokens_n)}, assume=HELD) <= target

    possible_n = reaches(high_n)
    for _ in range(60):
        middle_n = 0.5 * (low_n + high_n)
        enough_n = reaches(middle_n)
        low_n, high_n = np.where(enough_n, low_n, middle_n), np.where(enough_n, middle_n, high_n)
    return np.where(possible_n, np.exp(high_n), np.inf)
