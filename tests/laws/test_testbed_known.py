"""The scaling testbed's published laws and errors (Gadre et al. 2024, arXiv:2403.08540), to the printed digit.

Default fit: the four sizes up to 411M at 20 tokens a parameter and the 11M at 320; the error law adds the 1.4B at 20.
Loss is C4-eval; errors are averages over 17 tasks. A held-out error is predicted from the predicted loss.
"""

from pathlib import Path

import pandas as pd
import pytest

from lathe.laws.downstream import chain
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs

FIVE = "(size != '1.4B' and size != '6.9B' and nominal_tokens_per_param == 20)"
FIVE += " or (size == '11M' and nominal_tokens_per_param == 320)"
SIX = f"{FIVE} or (size == '1.4B' and nominal_tokens_per_param == 20)"

# a, b, alpha, E to the digits printed
LOSS_LAWS = {"c4_original": (113.69, 189.52, 0.2425, 1.5083), "rpj": (166.21, 366.69, 0.2729, 1.8366)}
# k, gamma, epsilon
ERROR_LAWS = {"c4_original": (2.0789, 0.7561, 0.8497), "rpj": (2.2065, 0.7146, 0.8570)}
# run → relative error of loss and of error, in per cent as printed
HELD_OUT = {
    "rpj-open_lm_1b-32.0": ("0.7103", "3.6365"),  # 1.4B on 900 billion tokens
    "rpj-open_lm_7b-1.0": ("0.7320", "0.0464"),
    "c4_original-open_lm_7b-1.0": ("4.30", "0.14"),
}


@pytest.fixture(scope="module")
def testbed(shared_data: Path) -> pd.DataFrame:
    return read_runs(shared_data / "laws" / "scaling_testbed", validation="c4_val", tasks="17")


def of(testbed: pd.DataFrame, dataset: str, where: str) -> pd.DataFrame:
    return testbed[testbed["dataset"] == dataset].query(where)


def same_digits(value: float, printed: str) -> bool:
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def test_tables_are_the_published_ones(testbed: pd.DataFrame) -> None:
    assert len(testbed) == 69
    for dataset in LOSS_LAWS:
        assert len(of(testbed, dataset, FIVE)) == 5
        assert len(of(testbed, dataset, SIX)) == 6


@pytest.mark.parametrize("dataset", LOSS_LAWS)
def test_loss_law(testbed: pd.DataFrame, dataset: str) -> None:
    found = fit(of(testbed, dataset, FIVE), "overtraining", objective="squares", draws=0).coefficients
    a, b, alpha, e = LOSS_LAWS[dataset]
    assert (round(found["a"], 2), round(found["b"], 2)) == (a, b)
    assert (round(found["alpha"], 4), round(found["E"], 4)) == (alpha, e)


@pytest.mark.parametrize("dataset", ERROR_LAWS)
def test_error_law(testbed: pd.DataFrame, dataset: str) -> None:
    law = fit(of(testbed, dataset, SIX), "error", draws=0)
    assert law.objective == "squares"
    found = law.coefficients
    assert tuple(round(found[name], 4) for name in ("k", "gamma", "epsilon")) == ERROR_LAWS[dataset]


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_errors(testbed: pd.DataFrame, name: str) -> None:
    run = testbed[testbed["name"] == name]
    dataset = run["dataset"].iloc[0]
    loss_law = fit(of(testbed, dataset, FIVE), "overtraining", objective="squares", draws=0)
    both = chain(loss_law, fit(of(testbed, dataset, SIX), "error", draws=0))
    off_loss = abs(loss_law.predict(run)[0] / run["loss"].iloc[0] - 1)
    off_error = abs(both.error(run)[0] / run["error"].iloc[0] - 1)
    assert same_digits(100 * off_loss, HELD_OUT[name][0])
    assert same_digits(100 * off_error, HELD_OUT[name][1])
