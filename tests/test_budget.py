"""What a budget allows itself to say, and what it makes of days and dollars."""

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import codec
from lathe.budget import Budget
from lathe.errors import BudgetError, CodecError

NUMBERS = [f.name for f in fields(Budget)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf])
def test_every_number_is_above_zero(name: str, value: float) -> None:
    given: dict[str, Any] = {"tokens": 1e9, name: value}
    with pytest.raises(BudgetError, match=f"budget {name} = "):
        Budget(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs training tokens: give tokens, train_flops, days, or target_loss"),
        ({"tokens": 1e9, "train_flops": 1e20}, "tokens and train_flops each fix the training tokens"),
        ({"tokens": 1e9, "days": 3.0, "train_flops_per_s": 1e15}, "tokens and days or dollars each fix"),
        ({"train_flops": 1e20, "dollars": 50.0}, "train_flops and days or dollars each fix"),
        ({"target_loss": 2.5}, "inference_tokens and target_loss go together"),
        ({"inference_tokens": 1e12}, "inference_tokens and target_loss go together"),
        ({"inference_tokens": 1e12, "tokens": 1e9}, "inference_tokens and target_loss go together"),
        ({"target_loss": 2.5, "inference_tokens": 1e12, "tokens": 1e9}, "leave out tokens"),
        ({"target_loss": 2.5, "inference_tokens": 1e12, "days": 2.0}, "leave out days or dollars"),
        ({"days": 2.0}, "need train_flops_per_s"),
        ({"dollars": 100.0, "train_flops_per_s": 1e15}, "need price_per_hour"),
        ({"tokens": 1e9, "mfu": 1.2}, "a share of peak is at most 1"),
        ({"tokens": 1e9, "params": 1e8, "min_params": 2e8}, "min_params = 2e\\+08 is above params = 1e\\+08"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Budget(**given)


@given(
    days=st.floats(0.1, 1000),
    devices=st.integers(1, 4096),
    rate=st.floats(1e12, 1e16),
    mfu=st.floats(0.05, 1),
    price=st.floats(0.1, 20),
)
def test_days_and_the_dollars_that_pay_for_them_are_one(
    days: float, devices: int, rate: float, mfu: float, price: float
) -> None:
    machine: dict[str, Any] = {"train_devices": devices, "train_flops_per_s": rate, "mfu": mfu}
    timed = Budget(days=days, **machine).flops
    assert timed == pytest.approx(days * 86_400 * devices * rate * mfu)
    paid = Budget(dollars=24 * days * devices * price, price_per_hour=price, **machine).flops
    assert paid == pytest.approx(timed)


def test_of_days_and_dollars_the_scarcer_counts() -> None:
    machine: dict[str, Any] = {"train_devices": 8, "train_flops_per_s": 1e15, "mfu": 0.4, "price_per_hour": 2.0}
    rich, poor = (Budget(days=10.0, dollars=d, **machine).flops for d in (1e6, 8 * 2.0 * 24))
    assert rich == pytest.approx(10 * 86_400 * 8 * 0.4e15)
    assert poor == pytest.approx(1 * 86_400 * 8 * 0.4e15)


def test_flops_are_unknown_where_tokens_or_a_loss_are_given() -> None:
    assert Budget(tokens=1e9).flops is None
    assert Budget(target_loss=2.5, inference_tokens=1e12).flops is None
    assert Budget(train_flops=1e20).flops == 1e20


def test_reads_back_what_it_writes() -> None:
    budget = Budget(total_s=2.0, params=1.7e9, tokens=29e9)
    assert codec.decode(Budget, codec.encode(budget)) == budget
    with pytest.raises(CodecError, match=r"unknown key 'totl_s'.*did you mean 'total_s'"):
        codec.decode(Budget, {"tokens": 1e9, "totl_s": 2.0})
    with pytest.raises(CodecError, match=r"budget tokens = -1"):
        codec.decode(Budget, {"tokens": -1.0})
