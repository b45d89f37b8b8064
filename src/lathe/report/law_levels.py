"""A law over width and depth: lines of equal loss, lines of equal params, and the best shape along them.

Loss falls with depth at any one width in every form of Lathe, so a line of equal loss is depth as a function of
width, and no contour tracing is needed.

Axes: w a width, v a depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lathe.laws.system import Array
from lathe.report.law_points import Points, Row, list_primaries, plain, short

WIDTHS = 72
DEPTHS = 120
LEVELS = 9
BEST = 25
FINE = 600


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """Rows to draw, all in d_model and n_layers; see `find_levels`."""

    tokens: float | None
    widths: tuple[float, float]
    depths: tuple[float, float]
    bands: list[Row]
    lines: list[Row]
    labels: list[Row]
    equal: list[Row]
    equal_labels: list[Row]
    best: list[Row]
    unseen: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Weights:
    """Params of a shape, estimated from the runs: per_block · n_layers · d_model² + per_row · d_model."""

    per_block: float
    per_row: float

    def depth(self, params: float, width_w: Array) -> Array:
        return (params - self.per_row * width_w) / (self.per_block * width_w**2)

    def count(self, width: Array, depth: Array) -> Array:
        return self.per_block * depth * width**2 + self.per_row * width


def reads_shape(points: Points) -> bool:
    """Say whether there are level lines to draw: the law reads width and depth, and the runs vary both."""
    needed = list_primaries(points.law.columns, points.columns)
    varied = [
        name in points.columns and np.ptp(points.columns[name].astype(np.float64)) > 0
        for name in ("d_model", "n_layers")
    ]
    return {"d_model", "n_layers"} <= set(needed) and all(varied) and points.law.log


def find_levels(points: Points, *, tokens: float | None = None) -> Levels | None:
    """Solve for lines of equal target at one number of tokens, by default the runs' median.

    `bands` fill the space between two lines; `equal` are lines of equal params and `best` the shapes with the lowest
    loss along them; `unseen` covers the shapes whose aspect or params no run came near.

    Returns None where the law does not fall with depth.
    """
    width_n, depth_n = (points.columns[c].astype(np.float64) for c in ("d_model", "n_layers"))
    if tokens is None and "tokens" in points.columns:
        tokens = float(np.median(points.columns["tokens"].astype(np.float64)))
    width_w = np.geomspace(width_n.min() / 1.12, width_n.max() * 1.12, WIDTHS)
    depth_v = np.geomspace(depth_n.min() / 1.2, depth_n.max() * 1.2, DEPTHS)
    weights = _weigh(points)
    loss_wv = _predict(points, weights, width_w[:, None], depth_v[None, :], tokens)
    if np.mean(loss_wv[:, 0] > loss_wv[:, -1]) < 0.5:
        return None
    edge = (float(depth_v[0]), float(depth_v[-1]))
    seen_w2 = _seen(points, weights, width_w, edge)
    inside_wv = (depth_v >= seen_w2[:, :1]) & (depth_v <= seen_w2[:, 1:])
    levels = nice_steps(float(loss_wv[inside_wv].min()), float(loss_wv[inside_wv].max()), count=LEVELS)
    depth_lw = [_solve(loss_wv, depth_v, level) for level in levels]
    lines, labels = _lines(levels, depth_lw, width_w, edge)
    sizes = _round_sizes(*_params_range(points)) if weights else []
    equal = _equal_params(weights, sizes, width_w, edge) if weights else []
    return Levels(
        tokens=tokens,
        widths=(float(width_w[0]), float(width_w[-1])),
        depths=edge,
        bands=_bands(levels, depth_lw, width_w, edge, loss_wv),
        lines=lines,
        labels=labels,
        equal=[row for line in equal for row in line],
        equal_labels=[line[len(line) // 12] for line in equal if len(line) > 4],
        best=_best(points, weights, width_w, edge, tokens) if weights else [],
        unseen=_unseen(width_w, seen_w2, edge),
    )


def nice_steps(low: float, high: float, *, count: int) -> list[float]:
    """List round numbers between two, a step of 1, 2, 2.5 or 5 times a power of ten apart: about `count`."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    scale = 10 ** np.floor(np.log10(raw))
    step = scale * next(s for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _weigh(points: Points) -> _Weights | None:
    """Fit params to n·d² and d, weighting runs alike; None without params."""
    from scipy.optimize import nnls

    if "params" not in points.columns:
        return None
    width_n, depth_n, params_n = (points.columns[c].astype(np.float64) for c in ("d_model", "n_layers", "params"))
    basis_n2 = np.stack([depth_n * width_n**2, width_n], axis=1) / params_n[:, None]
    (per_block, per_row), _ = nnls(basis_n2 * [1.0, 1e4], np.ones(len(params_n)))
    return _Weights(per_block=per_block, per_row=per_row * 1e4) if per_block > 0 else None


def _predict(points: Points, weights: _Weights | None, width: Array, depth: Array, tokens: float | None) -> Array:
    """Predict at widths and depths that broadcast; what the law reads besides is estimated, or the runs' median."""
    width, depth = np.broadcast_arrays(width, depth)
    flat = {"d_model": width.ravel(), "n_layers": depth.ravel()}
    for name in list_primaries(points.law.columns, points.columns):
        if name in flat:
            continue
        if name == "tokens" and tokens is not None:
            flat[name] = np.full(width.size, tokens)
        elif name == "params" and weights is not None:
            flat[name] = weights.count(flat["d_model"], flat["n_layers"])
        elif name == "non_embedding_params" and weights is not None:
            flat[name] = weights.per_block * flat["n_layers"] * flat["d_model"] ** 2
        else:
            flat[name] = np.full(width.size, np.median(points.columns[name].astype(np.float64)))
    return points.law.predict(flat, assume=points.assume).reshape(width.shape)


def _solve(loss_wv: Array, depth_v: Array, level: float) -> Array:
    """Find at each width the least depth that reaches a loss; the grid's edge where none does or all do."""
    falling_wv = np.minimum.accumulate(loss_wv, axis=1)
    return np.array([np.exp(np.interp(level, row[::-1], np.log(depth_v)[::-1])) for row in falling_wv])


def _lines(
    levels: list[float], depth_lw: list[Array], width_w: Array, edge: tuple[float, float]
) -> tuple[list[Row], list[Row]]:
    lines: list[Row] = []
    labels: list[Row] = []
    for level, depth_w in zip(levels, depth_lw, strict=True):
        inside = np.flatnonzero((depth_w > edge[0] * 1.0001) & (depth_w < edge[1] * 0.9999))
        lines += [{"level": level, "d_model": plain(width_w[i]), "n_layers": plain(depth_w[i])} for i in inside]
        if len(inside) > 6:
            i = inside[len(inside) * 4 // 5]
            labels.append({"text": f"{level:g}", "d_model": plain(width_w[i]), "n_layers": plain(depth_w[i])})
    return lines, labels


def _bands(
    levels: list[float], depth_lw: list[Array], width_w: Array, edge: tuple[float, float], loss_wv: Array
) -> list[Row]:
    top_w, bottom_w = np.full(len(width_w), edge[1]), np.full(len(width_w), edge[0])
    bounds = [float(loss_wv.min()), *levels, float(loss_wv.max())]
    depths = [top_w, *depth_lw, bottom_w]
    rows: list[Row] = []
    for i in range(len(bounds) - 1):
        middle = (bounds[i] + bounds[i + 1]) / 2
        for w, width in enumerate(width_w):
            deep, shallow = plain(depths[i][w]), plain(depths[i + 1][w])
            rows.append({"level": middle, "d_model": plain(width), "n_layers": shallow, "to": deep})
    return rows


def _seen(points: Points, weights: _Weights | None, width_w: Array, edge: tuple[float, float]) -> Array:
    """Bound at each width the depths whose aspect and params lie within 5 % of some run's."""
    width_n, depth_n = (points.columns[c].astype(np.float64) for c in ("d_model", "n_layers"))
    aspect_n = width_n / depth_n
    low_w, high_w = width_w / (aspect_n.max() * 1.05), width_w / (aspect_n.min() / 1.05)
    if weights is not None:
        params_n = points.columns["params"].astype(np.float64)
        low_w = np.maximum(low_w, weights.depth(params_n.min() / 1.05, width_w))
        high_w = np.minimum(high_w, weights.depth(params_n.max() * 1.05, width_w))
    low_w = np.clip(low_w, *edge)
    return np.stack([low_w, np.maximum(np.clip(high_w, *edge), low_w)], axis=1)


def _unseen(width_w: Array, seen_w2: Array, edge: tuple[float, float]) -> list[Row]:
    rows: list[Row] = []
    for part, low_w, high_w in (
        ("shallow", np.full(len(width_w), edge[0]), seen_w2[:, 0]),
        ("deep", seen_w2[:, 1], np.full(len(width_w), edge[1])),
    ):
        for width, low, high in zip(width_w, low_w, high_w, strict=True):
            rows.append({"part": part, "d_model": plain(width), "n_layers": plain(low), "to": plain(high)})
    return rows


def _equal_params(weights: _Weights, sizes: list[float], width_w: Array, edge: tuple[float, float]) -> list[list[Row]]:
    """Draw a line of equal params for each size, where it crosses the chart."""
    found: list[list[Row]] = []
    for params in sizes:
        depth_w = weights.depth(params, width_w)
        inside = np.flatnonzero((depth_w > edge[0]) & (depth_w < edge[1]))
        found.append(
            [{"params": short(params), "d_model": plain(width_w[i]), "n_layers": plain(depth_w[i])} for i in inside]
        )
    return found


def _best(
    points: Points, weights: _Weights, width_w: Array, edge: tuple[float, float], tokens: float | None
) -> list[Row]:
    """Find the shape of lowest loss at each of many sizes; none where it lies at the end of what runs covered."""
    width_w = np.geomspace(width_w[0], width_w[-1], FINE)
    seen_w2 = _seen(points, weights, width_w, edge)
    found: list[Row] = []
    for params in np.geomspace(*_params_range(points), BEST):
        depth_w = weights.depth(params, width_w)
        seen = np.flatnonzero((depth_w >= seen_w2[:, 0]) & (depth_w <= seen_w2[:, 1]) & (depth_w > edge[0]))
        if len(seen) < 3:
            continue
        at = int(np.argmin(_predict(points, weights, width_w[seen], depth_w[seen], tokens)))
        if 0 < at < len(seen) - 1:
            width, depth = width_w[seen[at]], depth_w[seen[at]]
            found.append({"d_model": plain(width), "n_layers": plain(depth), "params": short(params)})
    return found


def _params_range(points: Points) -> tuple[float, float]:
    params_n = points.columns["params"].astype(np.float64)
    return float(params_n.min()), float(params_n.max())


def _round_sizes(low: float, high: float) -> list[float]:
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [float(s * 10**d) for d in decades for s in (1, 2, 5) if low <= s * 10**d <= high]
