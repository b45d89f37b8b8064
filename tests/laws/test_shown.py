"""What Lathe must show on real tables: errors below the published laws', and intervals that cover.

Each test prints what it measured (`pytest -s`).
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lathe.laws.compare import compare, leave_sizes_out
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs

MERGED = {
    "80M": "80+86", "86M": "80+86", "116M": "116+126", "126M": "116+126", "164M": "164+178", "178M": "164+178",
    "313M": "313+339", "339M": "313+339",
}  # fmt: skip
DRAWS = 60


@pytest.fixture(scope="module")
def morph() -> pd.DataFrame:
    return read_runs("morph-2025")


@pytest.fixture(scope="module")
def six(morph: pd.DataFrame) -> pd.DataFrame:
    """Give the grid with its ten sizes merged to six."""
    return morph.assign(size=morph["size"].replace(MERGED))


@pytest.fixture(scope="module")
def largest_n(morph: pd.DataFrame) -> np.ndarray:
    return (morph["size"] == "1B").to_numpy()


def test_width_depth_on_set_b(morph: pd.DataFrame, largest_n: np.ndarray) -> None:
    fitted_n = morph["set_b"].to_numpy()
    (row,) = compare(morph, ["width-depth"], fitted_n=fitted_n, focus_n=largest_n, objective="squares-log")
    print(f"width-depth, set B: MSE {row.mse:.6f}, 1B mean {row.mean_error:.3%}, largest {max(row.errors):.3%}")
    assert row.mse <= 0.000180
    assert row.mean_error <= 0.0037
    assert row.spearman == pytest.approx(1.0)
    assert f"{row.r2:.5f}" == "0.99943"
    found = fit(morph[fitted_n], "width-depth", objective="squares-log", draws=0).coefficients
    printed = {"E": "2.0255", "A": "39.07", "a": "0.6116", "C": "1.0076", "c": "0.4625", "b": "0.6355"}
    assert {k: f"{found[k]:.{len(p.partition('.')[2])}f}" for k, p in printed.items()} == printed
    assert f"{found['B']:.4e}" == "1.2068e+06"


@pytest.mark.parametrize("folds", ["size", "clusters"])
@pytest.mark.parametrize(("fitted", "mse", "mean_error"), [("set_b", 0.00018, 0.0040), ("all but 1B", 0.00009, 0.0030)])
def test_auto_never_shown_the_largest(
    morph: pd.DataFrame, largest_n: np.ndarray, fitted: str, folds: str, mse: float, mean_error: float
) -> None:
    fitted_n = morph["set_b"].to_numpy() if fitted == "set_b" else ~largest_n
    (row,) = compare(morph, ["auto"], fitted_n=fitted_n, focus_n=largest_n, folds=folds)
    print(f"auto, {fitted}, folds by {folds}: MSE {row.mse:.7f}, 1B mean error {row.mean_error:.3%}")
    assert row.mse <= mse
    assert row.mean_error <= mean_error


@pytest.mark.parametrize("folds", ["size", "clusters"])
def test_leave_one_size_out_over_six_sizes(morph: pd.DataFrame, six: pd.DataFrame, folds: str) -> None:
    """Leave each of the six sizes out; `auto` chooses anew inside each fold."""
    fixed, auto = leave_sizes_out(six if folds == "size" else morph, ["width-depth", "auto"], folds=folds)
    assert fixed.fit_set == "all but one of 6 sizes"
    print(f"six sizes by {folds}: MSE width-depth {fixed.mse:.7f}, auto {auto.mse:.7f}")
    assert fixed.mse <= 0.00012
    assert auto.mse <= 0.00014


@pytest.mark.parametrize("sizes", [6, 10])
def test_intervals_cover_sizes_left_out(morph: pd.DataFrame, six: pd.DataFrame, sizes: int) -> None:
    runs = six if sizes == 6 else morph
    assert runs["size"].nunique() == sizes
    inside, width = _cover(runs, [(runs["size"] == size).to_numpy() for size in runs["size"].unique()])
    print(f"Morph, leave one of {sizes} sizes out: {inside:.1%} inside 90 % intervals, median full width {width:.2%}")
    assert inside >= 0.80
    assert width <= 0.015


def _cover(runs: pd.DataFrame, held: list[np.ndarray]) -> tuple[float, float]:
    """Fit all but each set of runs, and return the share inside 90 % intervals and their median relative width."""
    inside, widths = [], []
    for held_n in held:
        found = fit(runs[~held_n], draws=DRAWS).interval(runs[held_n], level=0.9)
        true_n = runs["loss"].to_numpy()[held_n]
        inside.append((found.low <= true_n) & (true_n <= found.high))
        widths.append((found.high - found.low) / true_n)
    return float(np.concatenate(inside).mean()), float(np.median(np.concatenate(widths)))


def test_intervals_cover_larger_models_of_the_testbed(shared_data: Path) -> None:
    """Fit the runs up to 411M at 20 tokens a parameter and more, and predict the 1.4B and 6.9B."""
    runs = read_runs(shared_data / "laws" / "scaling_testbed", where="nominal_tokens_per_param >= 20")
    inside, widths, count = [], [], 0
    for dataset in ("c4_original", "rpj"):
        of = runs[runs["dataset"] == dataset]
        large_n = (of["params"] > 1e9).to_numpy()
        found = fit(of[~large_n], draws=DRAWS).interval(of[large_n], level=0.9)
        true_n = of["loss"].to_numpy()[large_n]
        inside += ((found.low <= true_n) & (true_n <= found.high)).tolist()
        widths += ((found.high - found.low) / true_n).tolist()
        count += int(large_n.sum())
    share, width = np.mean(inside), np.median(widths)
    print(f"testbed: {share:.1%} of {count} runs inside 90 % intervals, median full width {width:.2%}")
    assert share >= 0.80
    assert width <= 0.08
