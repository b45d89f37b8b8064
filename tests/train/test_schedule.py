"""Learning rates against values worked out by hand, and that a stable phase does not know how long training is."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.recipe import Recipe, Schedule
from lathe.shape import Shape
from lathe.train.branches import BRANCHING
from lathe.train.schedule import DECAYS, SCHEDULES, decay_start, lr_share

SHAPE = Shape.of(d_model=32, n_layers=1, n_heads=1, vocab_size=64)


def make(steps: int = 100, **schedule: Any) -> Recipe:
    return Recipe(shape=SHAPE, tokens=steps * 64, seq_len=16, batch_tokens=64, lr=1e-3, schedule=Schedule(**schedule))


@pytest.mark.parametrize(
    ("schedule", "step", "wanted"),
    [
        ({"name": "cosine", "warmup_steps": 10, "final": 0.1}, 0, 0.1),
        ({"name": "cosine", "warmup_steps": 10, "final": 0.1}, 9, 1.0),
        ({"name": "cosine", "warmup_steps": 10, "final": 0.1}, 10, 1.0),
        ({"name": "cosine", "warmup_steps": 10, "final": 0.1}, 55, 0.55),
        ({"name": "cosine", "warmup_steps": 10, "final": 0.0}, 85, (1 + math.cos(math.pi * 75 / 90)) / 2),
        ({"name": "linear", "warmup_steps": 0, "final": 0.2}, 50, 0.6),
        ({"name": "linear", "warmup_steps": 0, "final": 0.0}, 99, 0.01),
        ({"name": "constant", "warmup_steps": 4}, 99, 1.0),
        ({"name": "wsd", "decay": 0.2, "final": 0.0}, 79, 1.0),
        ({"name": "wsd", "decay": 0.2, "final": 0.0}, 80, 1.0),
        ({"name": "wsd", "decay": 0.2, "final": 0.0}, 90, 0.5),
        ({"name": "wsd", "decay": 0.2, "final": 0.1, "decay_shape": "sqrt"}, 85, 0.1 + 0.9 * 0.5),
        ({"name": "wsd", "decay": 0.2, "final": 0.0, "decay_shape": "cosine"}, 90, 0.5),
        # 4 sequences · 4.6 · tokens^-.51 / 1e-3 is far above 1, so the peak holds; with a = 1e-4 it is below
        ({"name": "power"}, 50, 1.0),
        ({"name": "power", "power_a": 1e-3, "power_b": -0.5}, 8, 4 * 1e-3 / 24 / 1e-3),
    ],
)
def test_known_rates(schedule: dict[str, Any], step: int, wanted: float) -> None:
    assert lr_share(make(**schedule), step) == pytest.approx(wanted, rel=1e-12)


@given(
    name=st.sampled_from(sorted(SCHEDULES)), shape=st.sampled_from(sorted(DECAYS)), steps=st.integers(1, 400),
    warmup=st.integers(0, 50), final=st.floats(0, 1), decay=st.floats(0.01, 1),
)  # fmt: skip
def test_rates_rise_then_fall_between_zero_and_the_peak(
    name: Any, shape: Any, steps: int, warmup: int, final: float, decay: float
) -> None:
    warmup = min(warmup, steps - 1)
    recipe = make(steps, name=name, warmup_steps=warmup, final=final, decay=decay, decay_shape=shape)
    shares = [lr_share(recipe, step) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    assert all(b >= a for a, b in itertools.pairwise(shares[:warmup]))
    after = shares[warmup:]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(after))


@pytest.mark.parametrize("name", BRANCHING)
def test_before_it_decays_a_rate_does_not_hang_on_the_length(name: Any) -> None:
    long = make(200, name=name, warmup_steps=5, power_a=1e-4)
    for steps in (30, 77, 150):
        short = replace(long, tokens=steps * 64)
        for step in range(decay_start(short)):
            assert lr_share(short, step) == lr_share(long, step)
