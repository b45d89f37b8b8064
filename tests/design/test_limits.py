"""What a budget forbids, what a little more would buy, and what is nearest when nothing fits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lathe.budget import Budget
from lathe.design.candidates import Space, candidates
from lathe.design.limits import Limit, find_nearest, fitting, list_limits, relax
from lathe.device import Device
from lathe.errors import BudgetError
from lathe.presets.devices import load_device
from lathe.shape import Shape

BASE = Shape.of(d_model=256, n_layers=2, n_heads=4, vocab_size=50432)
FOUND = candidates(Space(base=BASE, d_models=(256,), n_layers=(2, 3, 4, 5)), references=False)
COST = np.array([4.0, 3.0, 2.0, 1.0])
SERVING = {"total_s": np.array([1.0, 2.0, 3.0, 4.0]), "memory_bytes": np.array([10.0, 11.0, 30.0, 12.0])}


def limit(name: str, value: float) -> Limit:
    return Limit(name=name, value=value, source="budget")


@pytest.fixture(scope="module")
def a100() -> Device:
    return load_device("a100-40gb")


def test_the_device_limits_memory_where_the_budget_does_not(a100: Device) -> None:
    (found,) = list_limits(Budget(tokens=1e9), a100)
    assert (found.name, found.value, found.source) == ("memory_bytes", a100.memory_bytes, a100.name)
    assert not found.timed
    given: dict[str, Any] = {"total_s": 2.0, "params": 1e9, "memory_bytes": 8e9, "per_token_s": 0.01}
    found = list_limits(Budget(tokens=1e9, **given), a100)
    assert {x.name: x.value for x in found} == given
    assert {x.source for x in found} == {"budget"}
    assert {x.name for x in found if x.timed} == {"total_s", "per_token_s"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"memory_bytes": 80e9}, r"memory_bytes = 8e\+10 is above the 4.295e\+10 of NVIDIA A100"),
        ({"first_token_s": 3.0, "total_s": 2.0}, "first token cannot come after the last"),
    ],
)
def test_contradictions_are_refused(a100: Device, given: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        list_limits(Budget(tokens=1e9, **given), a100)


def test_fitting_needs_every_limit_and_a_finite_cost() -> None:
    both = [limit("total_s", 3.0), limit("memory_bytes", 11.0)]
    assert fitting(both, SERVING, COST).tolist() == [True, True, False, False]
    assert fitting(both, SERVING, np.array([np.inf, 3.0, 2.0, 1.0])).tolist() == [False, True, False, False]
    assert fitting([], SERVING, COST).all()


def test_relaxing_says_what_a_tenth_more_buys() -> None:
    tight, wide = limit("total_s", 1.9), limit("memory_bytes", 20.0)
    found = relax(tight, [tight, wide], SERVING, FOUND, COST)
    assert (found.gain, found.best, found.binds) == (1.0, "256×3", True)
    assert replace(found, gain=0.0, best="") == tight
    assert not relax(wide, [tight, wide], SERVING, FOUND, COST).binds
    blocked = limit("memory_bytes", 10.0)  # more time alone buys nothing: memory stands in the way
    assert not relax(tight, [tight, blocked], SERVING, FOUND, COST).binds
    never = limit("total_s", 0.5)  # nothing fits, so there is nothing to gain on
    assert relax(never, [never], SERVING, FOUND, COST) == never


def test_the_nearest_breaks_its_worst_limit_least() -> None:
    limits = [limit("total_s", 0.8), limit("memory_bytes", 9.0)]
    found = find_nearest(limits, SERVING, COST, FOUND)
    assert found is not None
    assert (found.name, found.limit, found.wanted, found.needed) == ("256×2", "total_s", 0.8, 1.0)
    assert found.shape == FOUND.shape(0)
    found = find_nearest([limit("total_s", 10.0), limit("memory_bytes", 5.0)], SERVING, COST, FOUND)
    assert found is not None
    assert (found.name, found.limit, found.needed) == ("256×2", "memory_bytes", 10.0)


def test_equally_near_shapes_are_told_apart_by_cost() -> None:
    serving = {"total_s": np.array([2.0, 2.0, 2.0, 5.0])}
    found = find_nearest([limit("total_s", 1.0)], serving, COST, FOUND)
    assert found is not None
    assert found.name == "256×4"


def test_what_cannot_be_trained_is_not_near() -> None:
    limits = [limit("total_s", 0.8)]
    found = find_nearest(limits, SERVING, np.array([np.inf, 3.0, 2.0, 1.0]), FOUND)
    assert found is not None
    assert found.name == "256×3"
    assert find_nearest(limits, SERVING, np.full(4, np.inf), FOUND) is None
