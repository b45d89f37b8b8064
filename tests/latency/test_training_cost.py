"""Training cost against the papers' printed figures and counts by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lathe.errors import BudgetError, DeviceError
from lathe.latency.cost import HOUR_S, training_cost
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.shape import Shape

A100 = load_device("a100-80gb")
GPT = Shape.of(d_model=1024, n_layers=4, n_heads=16, vocab_size=1000, mlp="gelu", norm="layernorm", bias="all")


def test_time_and_money_by_hand() -> None:
    """Llama-2-7B on 2T tokens, 4096 a sequence, 256 A100 at MFU .5 of 312 TFLOPs and $2 an hour."""
    found = training_cost(
        load_shape("llama-2-7b"), 2e12, seq_len=4096, device=A100, devices=256, mfu=0.5, price_per_hour=2.0
    )
    matmul = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    flops = 3 * 2e12 * (2 * matmul + 32 * 4 * 4096 * (4097 / 2))
    assert found.flops == pytest.approx(flops, rel=1e-12)
    assert found.seconds == pytest.approx(flops / (256 * 312e12 * 0.5), rel=1e-12)
    assert found.days == pytest.approx(found.seconds / 86400)
    assert found.device_hours == pytest.approx(256 * found.seconds / HOUR_S)
    assert found.money == pytest.approx(2.0 * found.device_hours)


@pytest.mark.parametrize(("sharding", "gigabytes"), [("ddp", 120.0), ("zero1", 31.4), ("zero2", 16.6), ("fsdp", 1.9)])
def test_states_as_zero_prints_them(sharding: str, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, arXiv:1910.02054, figure 1: 7.5B weights, 64 devices, Adam in mixed precision."""
    shape = Shape.of(d_model=4096, n_layers=37, n_heads=32, vocab_size=4000, mlp="gelu")
    found = training_cost(shape, 1e9, seq_len=1024, device=A100, devices=64, mfu=0.4, sharding=sharding)
    states = found.weight_bytes + found.gradient_bytes + found.optimizer_bytes
    assert states * 7.5e9 / shape.params == pytest.approx(gigabytes * 1e9, rel=0.015)
    whole = sharding == "fsdp"
    assert found.gathered_bytes == (2 * 2 * 12 * 4096**2 if whole else 0)


def test_activations_as_korthikanti_counts_them() -> None:
    """arXiv:2205.05198, equation 2 less dropout masks and scores: 32·s·b·h bytes a block, then 4·s·b·h and 4·s·b·v."""
    rows = 3 * 512
    found = training_cost(GPT, 1e9, seq_len=512, device=A100, mfu=0.4, micro_batch=3)
    assert found.activation_bytes == rows * (4 * 32 * 1024 + 4 * 1024 + 4 * 1000)
    full = training_cost(GPT, 1e9, seq_len=512, device=A100, mfu=0.4, micro_batch=3, activation_checkpointing="full")
    assert full.activation_bytes == rows * (4 * 2 * 1024 + 32 * 1024 + 4 * 1024 + 4 * 1000)
    assert full.flops == found.flops


def test_optimisers_and_dtypes() -> None:
    def states(optimizer: str, dtype: str) -> float:
        found = training_cost(GPT, 1e9, seq_len=512, device=A100, mfu=0.4, optimizer=optimizer, dtype=dtype)
        return (found.weight_bytes + found.gradient_bytes + found.optimizer_bytes) / GPT.params

    assert states("adamw", "bf16") == 16
    assert states("adamw", "fp32") == 16
    assert states("adamw-8bit", "bf16") == 10
    assert states("lion", "bf16") == 12
    assert states("sgd", "fp32") == 8


def test_whether_it_fits() -> None:
    shape = load_shape("llama-2-7b")
    alone = training_cost(shape, 1e9, seq_len=2048, device=A100, mfu=0.4)
    assert not alone.fits  # 16 bytes of 6.7B weights
    assert alone.gathered_bytes == 0
    assert training_cost(shape, 1e9, seq_len=2048, device=A100, devices=8, mfu=0.4).fits
    assert not training_cost(shape, 1e9, seq_len=2048, device=A100, devices=8, mfu=0.4, sharding="ddp").fits


def test_prices() -> None:
    free = dataclasses.replace(
        A100, price_per_hour=None, origins={n: o for n, o in A100.origins.items() if n != "price_per_hour"}
    )
    assert training_cost(GPT, 1e9, seq_len=512, device=free, mfu=0.4).money is None
    assert training_cost(GPT, 1e9, seq_len=512, device=free, mfu=0.4, price_per_hour=0.0).money == 0
    own = training_cost(GPT, 1e9, seq_len=512, device=A100, mfu=0.4)
    assert own.money == pytest.approx(own.device_hours * A100.price_per_hour)


def test_columns_equal_single_shapes() -> None:
    names = [f"scale_open_lm_1b_v{i}" for i in range(1, 9)]
    rows = [load_shape(name) for name in names]
    fields = {f.name: [getattr(s, f.name) for s in rows] for f in dataclasses.fields(Shape)}
    columns = SimpleNamespace(**{n: v[0] if isinstance(v[0], str) else np.array(v) for n, v in fields.items()})
    tokens = 20 * np.array([s.params for s in rows])
    asked = {"seq_len": 2048, "device": A100, "devices": 8, "mfu": 0.4}
    found = training_cost(columns, tokens, **asked)
    singles = [training_cost(s, int(t), **asked) for s, t in zip(rows, tokens, strict=True)]
    for name in ("seconds", "days", "flops", "money", "device_hours", "memory_bytes", "activation_bytes", "fits"):
        assert list(getattr(found, name)) == [getattr(one, name) for one in singles], name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": float("nan")}, "tokens=nan"),
        ({"mfu": 1.2}, "mfu=1.2"),
        ({"mfu": 0.0}, "mfu=0.0"),
        ({"devices": 0}, "devices=0"),
        ({"seq_len": 2.5}, "seq_len=2.5"),
        ({"micro_batch": -1}, "micro_batch=-1"),
        ({"sharding": "fsdp2"}, "did you mean 'fsdp'"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"activation_checkpointing": "some"}, "known: full, none"),
        ({"price_per_hour": -1.0}, "price_per_hour=-1.0"),
    ],
)
def test_wrong_questions(wrong: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"tokens": 1e9, "seq_len": 512, "mfu": 0.4} | wrong
    with pytest.raises(BudgetError, match=message):
        training_cost(GPT, asked.pop("tokens"), device=A100, **asked)


def test_a_device_that_lacks_the_dtype() -> None:
    half = dataclasses.replace(
        A100,
        flops_per_s={"bf16": 312e12},
        origins={
            n: o
            for n, o in A100.origins.items()
            if n not in ("flops_per_s.fp32", "flops_per_s.fp16", "flops_per_s.int8")
        },
    )
    with pytest.raises(DeviceError, match="has no rate for fp32"):
        training_cost(GPT, 1e9, seq_len=512, device=half, mfu=0.4, dtype="fp32")
