"""Chinchilla's known answer: the 240 points' objective, coefficients and bootstrap errors, to the printed digits.

Besiroglu et al. 2024, arXiv:2404.10102, read the points off Hoffmann et al.'s figure; the optimum and the errors are
recomputed from them (docs/laws.md).
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from lathe.laws.fit import fit

OBJECTIVE = 0.00101827402
PRINTED = {"A": (477.826, 3), "B": (2143.417, 3), "E": (1.8172181, 7), "alpha": (0.3473105, 7), "beta": (0.3671724, 7)}
BOOTSTRAP_SE = {"A": 119, "B": 1420, "E": 0.0248, "alpha": 0.0149, "beta": 0.0207}


@pytest.fixture(scope="module")
def points(shared_data: Path) -> dict[str, np.ndarray]:
    """Give the 240 points: of the 245, the five of highest loss dropped."""
    with (shared_data / "laws/chinchilla_points.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["loss"]))[:-5]
    params = np.array([float(row["Model Size"]) for row in rows])
    flops = np.array([float(row["Training FLOP"]) for row in rows])
    assert len(rows) == 240
    return {
        "params": params,
        "tokens": flops / (6 * params),
        "loss": np.array([float(row["loss"]) for row in rows]),
    }


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_reaches_the_global_optimum_from_any_seed(points: dict[str, np.ndarray], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(points["loss"]))
    law = fit({k: v[order] for k, v in points.items()}, "chinchilla", objective="huber-log", seed=seed, draws=0)
    assert law.members[0].cost <= OBJECTIVE
    for name, (value, digits) in PRINTED.items():
        assert round(law.coefficients[name], digits) == value, name


def test_the_objective_is_the_published_one(points: dict[str, np.ndarray]) -> None:
    """Sum Huber's loss over the log residuals by hand at the fit."""
    law = fit(points, "chinchilla", objective="huber-log", draws=0)
    r_n = np.abs(np.log(law.predict(points) / points["loss"]))
    huber_n = np.where(r_n <= 1e-3, r_n**2 / 2, 1e-3 * (r_n - 0.5e-3))
    assert law.members[0].cost == pytest.approx(huber_n.sum(), rel=1e-12)


def test_bootstrap_standard_errors_are_near_the_published(points: dict[str, np.ndarray]) -> None:
    """Theirs resample points, ours weigh them exponentially: they agree to 15 %."""
    member = fit(points, "chinchilla", objective="huber-log", seed=0, draws=1000).members[0]
    k = len(member.form.coefficients)
    natural_bp = np.concatenate([np.exp(member.draws_bp[:, :k]), member.draws_bp[:, k:]], axis=1)
    found = dict(zip(member.form.names, natural_bp.std(axis=0), strict=True))
    assert found == pytest.approx(BOOTSTRAP_SE, rel=0.15)


def test_the_same_seed_gives_the_same_draws(points: dict[str, np.ndarray]) -> None:
    one, same, other = (
        fit(points, "chinchilla", objective="huber-log", seed=seed, draws=20).members[0].draws_bp for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
