"""The step law: one answer by hand, its errors, its range, and wrong numbers."""

import math

import numpy as np
import pytest

from lathe.errors import LawError
from lathe.laws.hyper import CENTRE, step_law
from lathe.shape import Shape

SHAPE = Shape.of(d_model=1024, n_layers=24, n_heads=16, vocab_size=50432)


def test_known_answer() -> None:
    # N = 10⁹, D = 10¹¹:
    #   lr = 1.79·10^(−.713·9)·10^(.307·11) = 1.79·10^(−6.417 + 3.377) = 1.79·10^−3.040
    #      = 1.79 × 9.12011e−4 = 1.632499e−3
    #   batch = .58·10^(.571·11) = .58·10^6.281 = .58 × 1 909 853 = 1 107 715 tokens
    found = step_law(1e9, 1e11)
    assert found.lr == pytest.approx(1.632499e-3, rel=1e-6)
    assert found.batch_tokens == pytest.approx(1_107_715, abs=1)
    assert found.warnings == ()


def test_a_shape_counts_without_its_vocabulary() -> None:
    found = step_law(SHAPE, 2e10)
    assert found.params == SHAPE.non_embedding_params < SHAPE.params
    assert found == step_law(SHAPE.non_embedding_params, 2e10)
    assert found == step_law(np.float64(SHAPE.non_embedding_params), np.float64(2e10))


def test_errors_vanish_at_the_centre_and_grow_with_the_distance() -> None:
    # e times the centre's N and e² times its D: hypot(.030·1, .019·2) = .048415 in log lr, .019·2 = .038 in log batch
    assert step_law(*CENTRE).lr_log_se == step_law(*CENTRE).batch_log_se == 0
    away = step_law(CENTRE[0] * math.e, CENTRE[1] * math.e**2)
    assert away.lr_log_se == pytest.approx(0.048415, abs=1e-6)
    assert away.batch_log_se == pytest.approx(0.038)


def test_outside_the_grid_it_says_so() -> None:
    large = step_law(2 * 1_073_741_824, 5e11).warnings
    assert [w.split()[0] for w in large] == ["non_embedding_params", "tokens"]
    assert "×2 beyond" in large[0]
    assert "×5 beyond" in large[1]
    small = step_law(214_663_680 / 4, 1e9).warnings
    assert "×4 below" in small[0]
    assert "×4 below" in small[1]


@pytest.mark.parametrize("bad", [0, -1e9, math.nan, math.inf, "1e9", None, True])
def test_wrong_numbers(bad: object) -> None:
    with pytest.raises(LawError, match="non_embedding_params="):
        step_law(bad, 1e10)  # type: ignore[arg-type]
    with pytest.raises(LawError, match="tokens="):
        step_law(1e9, bad)  # type: ignore[arg-type]
