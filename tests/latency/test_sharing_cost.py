"""What shared layers cost to serve: weights of those stored, everything else of those visited.

A CPU adds up, so times can be taken apart: a visit reads its block at memory's rate or at the cache's, and nothing else
tells 2·k visits of k blocks from 2·k blocks.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.device import Device
from lathe.latency.roofline import count_launches, predict_latency
from lathe.presets.devices import load_device
from lathe.shape import Shape
from lathe.workload import Latency, Workload

PATTERNS = ("immediate", "all-over", "reverse")
K = 4
STORED = Shape.of(d_model=512, n_layers=K, n_heads=8, vocab_size=4096)
DEEP = replace(STORED, n_layers=2 * K)
ASKED = Workload(prompt_tokens=32, new_tokens=33, dtype="fp32")
BLOCK_BYTES = 4.0 * (4 * 512**2 + 3 * 512 * STORED.d_ff)


def share(pattern: Any, *, count: int = 2, stored: int = K) -> Shape:
    return replace(STORED, n_layers=count * stored, sharing=pattern, sharing_count=count)


def cpu(*, cached_blocks: float) -> Device:
    """Give a CPU whose cache holds so many blocks, ten times as fast as memory."""
    found = load_device("epyc-9554")
    changed = {
        "bytes_per_s": 2e10, "bandwidth_fraction": 1.0, "cache_bytes": cached_blocks * BLOCK_BYTES,
        "cache_bytes_per_s": 2e11,
    }  # fmt: skip
    return found.with_numbers({name: found.origins[name] for name in changed}, **changed)


def predict(shape: Shape, device: Device) -> Latency:
    return predict_latency(shape, device=device, workload=ASKED)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("count", [2, 3])
def test_weights_are_of_the_stored_and_keys_and_values_of_the_visited(pattern: str, count: int) -> None:
    shared, deep = share(pattern, count=count), replace(STORED, n_layers=count * K)
    found, few, many = (predict(s, cpu(cached_blocks=1.5)) for s in (shared, STORED, deep))
    assert found.weight_bytes == few.weight_bytes < many.weight_bytes
    assert found.kv_bytes == many.kv_bytes == count * few.kv_bytes
    assert found.activation_bytes == many.activation_bytes
    assert shared.prefill_flops(100) == deep.prefill_flops(100)
    assert shared.train_flops(1e6, 100) == deep.train_flops(1e6, 100)
    assert count_launches(shared) == count_launches(deep)


@pytest.mark.parametrize(
    ("pattern", "cached_blocks", "again"),
    [
        ("immediate", 0.9, 0), ("immediate", 1.5, K), ("reverse", 0.9, 0), ("reverse", 1.5, 1), ("reverse", 3.5, 3),
        ("all-over", 1.5, 0), ("all-over", 3.5, 0),
    ],
)  # fmt: skip
def test_what_a_token_reads_from_the_cache(pattern: str, cached_blocks: float, again: int) -> None:
    device = cpu(cached_blocks=cached_blocks)
    saved_s = predict(DEEP, device).decode_s - predict(share(pattern), device).decode_s
    each_s = BLOCK_BYTES * (1 / 2e10 - 1 / 2e11)
    assert saved_s == pytest.approx(32 * again * each_s, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("cached_blocks", [1.5, 3.5])
def test_decoding_lies_between_the_stored_and_the_visited_depth(cached_blocks: float) -> None:
    device = cpu(cached_blocks=cached_blocks)
    few, many = (predict(shape, device).decode_s for shape in (STORED, DEEP))
    times = [predict(share(pattern), device).decode_s for pattern in ("immediate", "reverse", "all-over")]
    assert few < times[0] <= times[1] <= times[2] == many


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    count=st.integers(2, 4),
    stored=st.integers(1, 6),
    cached_blocks=st.floats(0.1, 12.0),
)
def test_sharing_never_costs_time(pattern: str, count: int, stored: int, cached_blocks: float) -> None:
    device, shared = cpu(cached_blocks=cached_blocks), share(pattern, count=count, stored=stored)
    few, deep = (replace(STORED, n_layers=n) for n in (stored, count * stored))
    assert predict(few, device).decode_s < predict(shared, device).decode_s <= predict(deep, device).decode_s * 1.000001
    roomier = cpu(cached_blocks=cached_blocks + 1)
    assert predict(shared, roomier).decode_s <= predict(shared, device).decode_s * 1.000001
