"""Time Lathe's fits against SciPy's and the PyPI package `chinchilla`'s, side by side on one core.

Run it as `python benchmarks/fit.py [--points CSV] [--save]`. It needs the extra `bench`, and the points that
Besiroglu et al. 2024, arXiv:2404.10102, read off Hoffmann et al.'s figure. Where a peer is too slow to run whole, a
stated, evenly spread part of it is run and its time scaled. Seconds are medians of several repeats for Lathe, one pass
over many starts for peers.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import itertools
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from _report import clock, publish, row

import numpy as np  # isort: skip
from scipy.optimize import OptimizeResult, least_squares, minimize

from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.fit import fit
from lathe.laws.forms import FORMS
from lathe.laws.importers import read_runs
from lathe.laws.system import compile_form, predict
from lathe.laws.uncertainty import bootstrap, bootstrap_weights

POINTS = Path(__file__).resolve().parents[2] / "shared/data/laws/chinchilla_points.csv"
DELTA = 1e-3
DRAWS = 1000
# Hoffmann et al. 2022, arXiv:2203.15556, app. D.3: log A, log B, log E, alpha, beta.
GRID = tuple(
    itertools.product(range(0, 26, 5), range(0, 26, 5), *[np.arange(-1, 1.1, 0.5)], *[np.arange(0, 2.1, 0.5)] * 2)
)
STRIDE = 49  # coprime to the grid's axes, so that the part of it that is run meets every value of each
SOME_DRAWS = 50
TOLERANCES: dict[str, Any] = {
    "default tolerances": {},
    "ftol 1e-15, gtol 1e-10": {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 15_000},
}

Rows = list[dict[str, Any]]


def read_points(path: Path) -> dict[str, np.ndarray]:
    """Read the 240 points: of the 245, the five of highest loss are dropped."""
    if not path.is_file():
        raise SystemExit(f"no file {path}: give the points with --points CSV (columns Model Size, Training FLOP, loss)")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda r: float(r["loss"]))[:-5]
    params, flops, loss = (np.array([float(r[c]) for r in rows]) for c in ("Model Size", "Training FLOP", "loss"))
    return {"params": params, "tokens": flops / (6 * params), "loss": loss}


def log_sum_exp(p: np.ndarray, x: tuple[np.ndarray, ...], y: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum Huber's loss of log residuals at p = (log A, log B, log E, alpha, beta), with its gradient."""
    log_n, log_d, log_y = x[0], x[1], y
    z = np.stack([p[0] - p[3] * log_n, p[1] - p[4] * log_d, np.full_like(log_n, p[2])])
    top = z.max(axis=0)
    e = np.exp(z - top)
    total = e.sum(axis=0)
    r = top + np.log(total) - log_y
    psi = np.clip(r, -DELTA, DELTA)
    slope = e / total * (psi * w)
    gradient = np.array([*slope.sum(axis=1), -slope[0] @ log_n, -slope[1] @ log_d])
    return float(w @ (psi * (r - psi / 2))), gradient


def lbfgs(points: dict[str, np.ndarray], start: Any, w: np.ndarray, options: Any) -> OptimizeResult:
    x = (np.log(points["params"]), np.log(points["tokens"]))
    args = (x, np.log(points["loss"]), w)
    return minimize(log_sum_exp, np.asarray(start, float), args=args, jac=True, method="L-BFGS-B", options=options)


def time_chinchilla(points: dict[str, np.ndarray]) -> Rows:
    """Compare fits of the 240 points, and a thousand bootstraps of them."""
    form, loss = FORMS["chinchilla"], Loss.of("huber-log")
    system, ones = compile_form(form, points), np.ones((1, len(points["loss"])))
    seconds, (theta_bp, cost_b) = clock(lambda: solve(system, points["loss"], ones, loss), repeats=15)
    bare, law = clock(lambda: fit(points, "chinchilla", objective="huber-log", draws=0), repeats=7)
    whole, _ = clock(lambda: fit(points, "chinchilla", objective="huber-log", draws=DRAWS), repeats=5)
    assert law.members[0].cost == cost_b[0]
    rows = []
    starts, tried = GRID[::STRIDE], []
    for name, options in TOLERANCES.items():
        begin = time.perf_counter()
        fits = [lbfgs(points, start, ones[0], options) for start in starts]
        scaled = (time.perf_counter() - begin) * len(GRID) / len(starts)
        tried += fits
        peer = f"SciPy L-BFGS-B, analytic gradient, {name}, {len(starts)} of {len(GRID)} starts"
        rows += [
            row("chinchilla, 240 points: fit", seconds, "s", peer=f"{peer}, scaled", peer_value=scaled),
            row(
                "chinchilla, 240 points: objective",
                float(cost_b[0]),
                "",
                peer=peer,
                peer_value=min(float(f.fun) for f in fits),
            ),
        ]
    rows += time_package(points, seconds, float(cost_b[0]))
    rows.append(row("chinchilla, 240 points: lathe.fit, no draws", bare, "s"))
    rows.append(row(f"chinchilla, 240 points: lathe.fit with cross-validation and {DRAWS} draws", whole, "s"))
    rows.append(row("chinchilla, 240 points: first fit of a fresh process, imports apart", first_fit(points), "s"))
    best_p = min(tried, key=lambda f: f.fun).x
    return rows + time_draws(points, system, theta_bp[0], best_p, loss)


def time_draws(points: dict[str, np.ndarray], system: Any, theta_p: np.ndarray, best_p: np.ndarray, loss: Loss) -> Rows:
    """Compare bootstraps on the same weights, each peer's draw from the best fit."""
    y_n = points["loss"]
    seconds, draws_bp = clock(
        lambda: bootstrap(system, theta_p, y_n, loss, draws=DRAWS, seed=0, trunks=None), repeats=5
    )
    weights_bn = bootstrap_weights(len(y_n), DRAWS, seed=0)[:: DRAWS // SOME_DRAWS]
    r_bn = np.log(predict(FORMS["chinchilla"], draws_bp[:: DRAWS // SOME_DRAWS], points) / y_n)
    ours_b = np.sum(weights_bn * loss.charge(r_bn)[0], axis=1)
    rows = []
    for name, options in TOLERANCES.items():
        begin = time.perf_counter()
        theirs_b = np.array([lbfgs(points, best_p, w_n, options).fun for w_n in weights_bn])
        scaled = (time.perf_counter() - begin) * DRAWS / SOME_DRAWS
        peer = f"SciPy L-BFGS-B from the fit, {name}, {SOME_DRAWS} draws"
        rows += [
            row(f"chinchilla, 240 points: {DRAWS} draws", seconds, "s", peer=f"{peer}, scaled", peer_value=scaled),
            row(
                f"chinchilla, 240 points: mean objective of {SOME_DRAWS} draws",
                float(ours_b.mean()), "", peer=peer, peer_value=float(theirs_b.mean()),
            ),
        ]  # fmt: skip
    return rows


def time_package(points: dict[str, np.ndarray], seconds: float, objective: float) -> Rows:
    """Compare with PyPI's `chinchilla`: BFGS, numerical gradients, extended precision.

    Thirty-two starts inside Hoffmann's grid, with its own log_huber at δ = 1e-3: once as it stands, and once times 1e6,
    since the mean over points is so small that BFGS's gradient tolerance, which it does not let one set, stops early.
    Its plot is left out of the time.
    """
    if importlib.util.find_spec("chinchilla") is None:
        print("the package chinchilla is not here: pip install 'lathe[bench]'", file=sys.stderr)
        return []
    grid = {"e": (-0.5, 0.5), "a": (5.0, 20.0), "b": (5.0, 20.0), "alpha": (0.5, 1.5), "beta": (0.5, 1.5)}
    starts, rows = 2 ** len(grid), []
    for factor in (1.0, 1e6):
        elapsed, found = fit_with_package(points, grid, factor=factor)
        x = (np.log(points["params"]), np.log(points["tokens"]))
        reached, _ = log_sum_exp(found, x, np.log(points["loss"]), np.ones(len(points["loss"])))
        peer = f"chinchilla 0.2.0, one process, log_huber·{factor:g}, {starts} starts"
        scaled = f"{peer}, scaled to {len(GRID)}"
        rows += [
            row("chinchilla, 240 points: fit", seconds, "s", peer=scaled, peer_value=elapsed * len(GRID) / starts),
            row("chinchilla, 240 points: objective", objective, "", peer=peer, peer_value=reached),
        ]
    return rows


def fit_with_package(points: dict[str, np.ndarray], grid: dict[str, Any], *, factor: float) -> tuple[float, np.ndarray]:
    """Fit with the package: returns its seconds and its (log A, log B, log E, alpha, beta)."""
    import pandas as pd

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        from chinchilla import Chinchilla  # pyright: ignore[reportMissingImports]
        from chinchilla._metrics import log_huber  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(io.StringIO()):
            peer = Chinchilla(
                project_dir=folder, param_grid=grid, log_level=50, loss_fn=lambda y, f: factor * log_huber(y, f, DELTA)
            )
            n, d = points["params"], points["tokens"]
            peer.database.df = pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": points["loss"]})
            peer.visualizer.optim = lambda *_, **__: None
            begin = time.perf_counter()
            peer.fit(parallel=False)
            elapsed = time.perf_counter() - begin
    return elapsed, np.array([*np.log([peer.A, peer.B, peer.E]), peer.alpha, peer.beta], dtype=float)


def first_fit(points: dict[str, np.ndarray]) -> float:
    """Time the first call of `solve` in a process of its own, median of five."""
    program = """
import sys, time, numpy as np
from lathe.laws.engine import solve
from lathe.laws.evaluate import Loss
from lathe.laws.forms import FORMS
from lathe.laws.system import compile_form
points = dict(np.load(sys.argv[1]))
begin = time.perf_counter()
system = compile_form(FORMS["chinchilla"], points)
solve(system, points["loss"], np.ones((1, len(points["loss"]))), Loss.of("huber-log"))
print(time.perf_counter() - begin)
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.npz"
        np.savez(path, allow_pickle=False, **points)
        command = [sys.executable, "-c", program, str(path)]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(5)]
    return float(np.median([float(r) for r in runs]))


def time_width_depth(starts: int = 50) -> Rows:
    """Compare `width-depth` on the Morph grid with least_squares (analytic Jacobian) from many starts."""
    runs = read_runs("morph-2025")
    names = ("d_model", "n_layers", "tokens")
    x_n3 = np.log(np.stack([runs[c].to_numpy(float) for c in names], axis=1))
    centre_3, y_n = x_n3.mean(axis=0), runs["loss"].to_numpy(float)
    x_n3 = x_n3 - centre_3

    def terms(p: np.ndarray) -> np.ndarray:
        return np.exp(np.concatenate([np.full((len(y_n), 1), p[0]), p[1:4] - p[4:] * x_n3], axis=1))

    def residuals(p: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.sqrt(w) * np.log(terms(p).sum(axis=1) / y_n)

    def jacobian(p: np.ndarray, w: np.ndarray) -> np.ndarray:
        t = terms(p)
        share = np.sqrt(w)[:, None] * t / t.sum(axis=1, keepdims=True)
        return np.concatenate([share, -share[:, 1:] * x_n3], axis=1)

    def peer_fit(p: np.ndarray, w: np.ndarray) -> OptimizeResult:
        low, high = np.array([-30.0] * 4 + [1e-4] * 3), np.array([8.0] * 4 + [8.0] * 3)
        return least_squares(
            residuals, p, jacobian, bounds=(low, high), x_scale="jac", args=(w,), xtol=1e-12, ftol=1e-12, gtol=1e-12
        )

    rng = np.random.default_rng(0)
    begins = np.concatenate([rng.uniform(-4, 1, (starts, 4)), rng.uniform(0.1, 1.2, (starts, 3))], axis=1)
    ones = np.ones(len(y_n))
    begin = time.perf_counter()
    best = min((peer_fit(p, ones) for p in begins), key=lambda f: f.cost)
    fit_s = time.perf_counter() - begin
    begin = time.perf_counter()
    for w in bootstrap_weights(len(y_n), SOME_DRAWS, seed=0):
        peer_fit(best.x, w)
    draws_s = (time.perf_counter() - begin) * DRAWS / SOME_DRAWS

    system, loss = compile_form(FORMS["width-depth"], runs), Loss.of("squares-log")
    seconds, (theta_bp, cost_b) = clock(lambda: solve(system, y_n, ones[None], loss), repeats=15)
    boot_s, _ = clock(lambda: bootstrap(system, theta_bp[0], y_n, loss, draws=DRAWS, seed=0, trunks=None), repeats=5)
    peer = f"SciPy least_squares, analytic Jacobian, {starts} starts"
    warm = f"SciPy least_squares from the fit, {SOME_DRAWS} draws, scaled"
    return [
        row("width-depth, Morph's 76 runs: fit", seconds, "s", peer=peer, peer_value=fit_s),
        row("width-depth, Morph's 76 runs: objective", float(cost_b[0]), "", peer=peer, peer_value=float(best.cost)),
        row(f"width-depth, Morph's 76 runs: {DRAWS} draws", boot_s, "s", peer=warm, peer_value=draws_s),
    ]


def time_auto() -> Rows:
    """Time what `lathe fit` does by default; no peer does it."""
    runs = read_runs("morph-2025")
    seconds, _ = clock(lambda: fit(runs, draws=DRAWS), repeats=3)
    return [row(f"auto, Morph's 76 runs: every form cross-validated, {DRAWS} draws", seconds, "s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--points", type=Path, default=POINTS, help="the 245 points (default: shared/data beside the checkout)"
    )
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    given = parser.parse_args()
    points = read_points(given.points)
    publish("fit", [*time_chinchilla(points), *time_width_depth(), *time_auto()], save=given.save)


if __name__ == "__main__":
    main()
