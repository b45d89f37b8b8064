"""Latency against a slow count of every visit and step, published rows, and what must hold of any prediction."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.device import Device, Origin
from lathe.errors import DeviceError, WorkloadError
from lathe.latency.roofline import CHUNK_ROWS, count_launches, predict_latency
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.shape import DTYPE_BYTES, MLP_MATRICES, Shape
from lathe.workload import Latency, Workload

A100 = load_device("a100-40gb")
PHONE = load_device("iphone-13")
NUMBERS = ("prefill_s", "decode_s", "total_s", "tokens_per_s", "memory_bytes")


def with_numbers(device: Device, **numbers: float) -> Device:
    return device.with_numbers(dict.fromkeys(numbers, Origin(kind="assumed", source="a test")), **numbers)


@st.composite
def shapes(draw: st.DrawFn, sharing: bool = True) -> Shape:
    kv, group = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    d_head = draw(st.sampled_from((32, 64, 128)))
    pattern = draw(st.sampled_from(("none", "immediate", "all-over", "reverse"))) if sharing else "none"
    count = 1 if pattern == "none" else draw(st.integers(2, 4))
    return Shape(
        d_model=kv * group * d_head,
        n_layers=count * draw(st.integers(1, 24)),
        n_heads=kv * group,
        n_kv_heads=kv,
        d_head=d_head,
        d_ff=64 * draw(st.integers(1, 128)),
        vocab_size=draw(st.sampled_from((1000, 32000, 128256))),
        tied=draw(st.booleans()),
        mlp=draw(st.sampled_from(("swiglu", "gelu"))),
        sharing=pattern,
        sharing_count=count,
    )


workloads = st.builds(
    Workload,
    batch=st.sampled_from((1, 2, 7, 64)),
    prompt_tokens=st.sampled_from((1, 2, 128, 3000)),
    new_tokens=st.sampled_from((1, 2, 3, 256)),
    dtype=st.sampled_from(("bf16", "fp16", "fp32", "int8", "int4")),
)
devices = st.sampled_from([load_device(n) for n in ("a100-40gb", "h100", "iphone-13", "raspberry-pi-5", "m1")])
engines = st.sampled_from(("eager", "graph"))


def count_slowly(shape: Shape, device: Device, work: Workload, engine: str) -> tuple[float, float]:
    """Visit every block of every step, with a cache that forgets the least recently used block."""
    flops = device.peak_flops(work.dtype) * device.compute_fraction
    memory = device.bytes_per_s * device.bandwidth_fraction
    cache = max(device.cache_bytes_per_s, memory)
    weight, wide = DTYPE_BYTES[work.dtype], DTYPE_BYTES[work.activation_dtype]
    heads, kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    attention = shape.d_model * heads + 2 * shape.d_model * kv + heads * shape.d_model
    mlp = MLP_MATRICES[shape.mlp] * shape.d_model * shape.d_ff
    whole = shape.weight_bytes(work.dtype) <= device.cache_bytes
    room = int(device.cache_bytes // ((attention + mlp) * weight))

    def step(tokens: int, pairs: float, reads: float) -> float:
        rows, total, kept = work.batch * tokens, 0.0, OrderedDict()
        for block in shape.visits:
            rate = cache if whole or block in kept else memory
            kept[block] = True
            kept.move_to_end(block)
            while len(kept) > room:
                kept.popitem(last=False)
            # x in, q k v out, attention's output in, x out; then x in, the MLP's inner vectors, x out
            streams = (4 * shape.d_model + 2 * heads + 2 * kv, 2 * shape.d_model + MLP_MATRICES[shape.mlp] * shape.d_ff)
            for params, stream in zip((attention, mlp), streams, strict=True):
                total += max(2 * rows * params / flops, params * weight / rate + rows * stream * wide / memory)
            total += max(4 * work.batch * pairs * heads / flops, 2 * work.batch * reads * kv * wide / memory)
            total += 12 * rows * shape.d_model * wide / memory
        head = shape.vocab_size * shape.d_model
        total += max(2 * work.batch * head / flops, head * weight / (cache if whole else memory))
        total += 4 * rows * shape.d_model * wide / memory
        launched = count_launches(shape) * device.launch_s if engine == "eager" else 0.0
        return (max(total, launched) if device.has_host else total + launched) + device.step_s

    prompt = work.prompt_tokens
    contexts = range(prompt + 1, prompt + work.new_tokens)
    return step(prompt, prompt * (prompt + 1) / 2, prompt), sum(step(1, t, t) for t in contexts)


@given(
    shape=shapes(),
    device=devices,
    work=st.builds(
        Workload,
        batch=st.sampled_from((1, 5, 300)),
        prompt_tokens=st.sampled_from((1, 100, 4000)),
        new_tokens=st.integers(1, 8),
        dtype=st.sampled_from(("bf16", "fp32", "int4")),
    ),
    engine=engines,
    launch_s=st.sampled_from((0.0, 1e-7, 5e-6, 1e-4)),
)
def test_the_closed_form_is_the_sum_over_every_visit_and_step(
    shape: Shape, device: Device, work: Workload, engine: str, launch_s: float
) -> None:
    device = with_numbers(device, launch_s=launch_s)
    found = predict_latency(shape, device=device, workload=work, engine=engine)
    assert (found.prefill_s, found.decode_s) == pytest.approx(count_slowly(shape, device, work, engine), rel=1e-9)


def test_one_step_by_hand() -> None:
    """2 layers of 4·64² + 3·64·256 weights, a head of 1000·64, in bf16: 133,120·2 block bytes, 128,000 head bytes."""
    shape = Shape.of(d_model=64, n_layers=2, n_heads=1, d_ff=256, vocab_size=1000)
    device = with_numbers(
        A100, bytes_per_s=1e9, bandwidth_fraction=0.5, cache_bytes=0.0, launch_s=0.0, step_s=0.25, compute_fraction=1.0
    )
    found = predict_latency(shape, device=device, workload=Workload(prompt_tokens=1, new_tokens=1), engine="graph")
    blocks = 2 * 2 * (4 * 64 * 64 + 3 * 64 * 256)
    streams = 2 * 2 * (8 * 64 + 2 * 64 + 3 * 256 + 12 * 64 + 2 * 64) + 4 * 64 * 2  # with a key and a value read
    assert found.prefill_s == pytest.approx(0.25 + (blocks + 2 * 64000 + streams) / 0.5e9, rel=1e-12)
    assert found.decode_s == 0
    assert found.prefill_bound == "bandwidth"
    assert found.weight_bytes == 2 * (blocks / 2 + 2 * 64000 + 5 * 64)


def test_eager_latency_is_launches_and_steps() -> None:
    """The formula at the table's calibration: .537 ms a layer and 1.21 ms a step give 2.51 s for 2560×16."""
    shape = load_shape("scale_open_lm_1b_v3")
    per_launch = 0.537e-3 * 16 / count_launches(shape)
    device = with_numbers(A100, launch_s=per_launch, step_s=1.21e-3)
    found = predict_latency(shape, device=device, workload=Workload())
    assert found.total_s == pytest.approx(256 * (16 * 0.537e-3 + 1.21e-3), rel=1e-9)
    assert found.total_s == pytest.approx(2.51, abs=0.005)
    assert (found.prefill_bound, found.decode_bound) == ("launch", "launch")
    assert found.first_token_s == found.prefill_s
    assert found.tokens_per_s == pytest.approx(256 / found.total_s)


def test_graphs_do_without_launches() -> None:
    shape, work = load_shape("scale_open_lm_1b_v1"), Workload()
    eager = predict_latency(shape, device=A100, workload=work)
    graph = predict_latency(shape, device=A100, workload=work, engine="graph")
    assert graph.decode_s < eager.decode_s
    assert graph.decode_bound == "bandwidth"
    assert predict_latency(shape, device=A100, workload=Workload(prompt_tokens=2000), engine="graph").prefill_bound == (
        "compute"
    )


def test_memory_is_weights_cache_and_activations() -> None:
    shape = load_shape("llama-2-7b")
    found = predict_latency(
        shape, device=A100, workload=Workload(batch=2, prompt_tokens=100, new_tokens=28, dtype="int8")
    )
    assert found.weight_bytes == 6_738_415_616
    assert found.kv_bytes == 2 * 32 * 4096 * 128 * 2 * 2  # KV caches stay in bf16
    assert found.activation_bytes == 200 * (2 * 4096 + 3 * 11008) * 2 + 4 * 2 * 32000
    assert found.memory_bytes == found.weight_bytes + found.kv_bytes + found.activation_bytes


def test_grouped_queries_read_less_and_multiply_as_much() -> None:
    shape = Shape.of(d_model=2048, n_layers=16, n_heads=32, vocab_size=32000)
    grouped = dataclasses.replace(shape, n_kv_heads=4)
    long = Workload(batch=8, prompt_tokens=8000, new_tokens=64)
    full, less = (predict_latency(s, device=A100, workload=long, engine="graph") for s in (shape, grouped))
    assert less.decode_s < 0.5 * full.decode_s
    assert less.kv_bytes == full.kv_bytes / 8


def test_a_tied_head_saves_memory_and_no_time() -> None:
    shape = load_shape("open_lm_1b")
    tied = dataclasses.replace(shape, tied=True)
    one, other = (predict_latency(s, device=A100, workload=Workload(), engine="graph") for s in (shape, tied))
    assert one.total_s == other.total_s
    assert one.weight_bytes - other.weight_bytes == 2 * 50432 * 2048


def test_fewer_bytes_a_weight_are_faster() -> None:
    shape, no_step = load_shape("open_lm_1b"), with_numbers(A100, step_s=0.0)
    times = [
        predict_latency(shape, device=no_step, workload=Workload(dtype=d), engine="graph").decode_s
        for d in ("fp32", "bf16", "int8", "int4")
    ]
    assert times == sorted(times, reverse=True)
    assert times[1] > 1.8 * times[2]


def test_a_repeated_block_comes_from_the_cache_while_it_fits() -> None:
    work = Workload(prompt_tokens=1, new_tokens=1, dtype="fp16")
    shared = load_shape("mobilellm-125m-ls")

    def seconds(shape: Shape, device: Device = PHONE) -> float:
        return predict_latency(shape, device=device, workload=work, engine="graph").total_s

    immediate = seconds(shared)
    reverse, all_over = (seconds(dataclasses.replace(shared, sharing=s)) for s in ("reverse", "all-over"))
    unshared = seconds(dataclasses.replace(shared, sharing="none", sharing_count=1))
    assert immediate < reverse < all_over == pytest.approx(unshared)
    # A block has 7.08 MB: 33.5 MB of cache keep four of them for the way back, of 30 repeats.
    assert (unshared - reverse) / (unshared - immediate) == pytest.approx(4 / 30)
    assert seconds(shared, with_numbers(PHONE, cache_bytes=7e6)) == pytest.approx(unshared)


def test_a_model_that_fits_is_served_by_the_cache() -> None:
    small = Shape.of(d_model=256, n_layers=4, n_heads=4, vocab_size=4000)
    work = Workload(prompt_tokens=1, new_tokens=64)
    fits = predict_latency(small, device=A100, workload=work, engine="graph")
    bare = predict_latency(small, device=with_numbers(A100, cache_bytes=0.0), workload=work, engine="graph")
    assert fits.decode_s < bare.decode_s


@given(shape=shapes(sharing=False), work=workloads)
def test_equal_shapes_get_equal_predictions(shape: Shape, work: Workload) -> None:
    twin = dataclasses.replace(shape)
    assert predict_latency(shape, device=A100, workload=work) == predict_latency(twin, device=A100, workload=work)
    assert load_shape("opt-1.3b") == load_shape("opt-iml-1.3b")


@given(shape=shapes(), device=devices, work=workloads, engine=engines, data=st.data())
def test_latency_never_falls_when_anything_grows(
    shape: Shape, device: Device, work: Workload, engine: str, data: st.DataObject
) -> None:
    more = data.draw(st.integers(1, 5))
    bigger = {
        "layers": (dataclasses.replace(shape, n_layers=shape.n_layers + more * shape.sharing_count), work),
        "width": (
            dataclasses.replace(
                shape,
                d_model=shape.d_model + 64 * more,
                n_heads=shape.n_heads + more * shape.n_kv_heads,
                d_ff=shape.d_ff + 64 * more,
            ),
            work,
        ),
        "heads": (dataclasses.replace(shape, n_kv_heads=shape.n_heads), work),
        "batch": (shape, dataclasses.replace(work, batch=work.batch + more)),
        "prompt": (shape, dataclasses.replace(work, prompt_tokens=work.prompt_tokens + more)),
        "tokens": (shape, dataclasses.replace(work, new_tokens=work.new_tokens + more)),
    }
    before = predict_latency(shape, device=device, workload=work, engine=engine)
    for what, (larger, longer) in bigger.items():
        after = predict_latency(larger, device=device, workload=longer, engine=engine)
        for name in ("prefill_s", "decode_s", "memory_bytes"):
            assert getattr(after, name) >= getattr(before, name) * (1 - 1e-12), (what, name)


@given(shape=shapes(), device=devices, work=workloads, k=st.sampled_from((0.1, 0.5, 3.0, 1000.0)))
def test_device_time_goes_as_one_over_the_rates(shape: Shape, device: Device, work: Workload, k: float) -> None:
    device = with_numbers(device, step_s=0.0)
    faster = dataclasses.replace(
        device,
        flops_per_s={dtype: k * rate for dtype, rate in device.flops_per_s.items()},
        bytes_per_s=k * device.bytes_per_s,
        cache_bytes_per_s=k * device.cache_bytes_per_s,
    )
    slow, fast = (predict_latency(shape, device=d, workload=work, engine="graph") for d in (device, faster))
    assert k * fast.prefill_s == pytest.approx(slow.prefill_s, rel=1e-12)
    assert k * fast.decode_s == pytest.approx(slow.decode_s, rel=1e-12)
    assert (fast.prefill_bound, fast.decode_bound) == (slow.prefill_bound, slow.decode_bound)


def as_columns(found: list[Shape]) -> SimpleNamespace:
    columns = {f.name: [getattr(s, f.name) for s in found] for f in dataclasses.fields(Shape)}
    return SimpleNamespace(**{n: v[0] if isinstance(v[0], str) else np.array(v) for n, v in columns.items()})


def assert_same(columns: Latency, singles: list[Latency]) -> None:
    for name in (*NUMBERS, "prefill_bound", "decode_bound"):
        assert list(getattr(columns, name)) == [getattr(one, name) for one in singles], name


@given(first=shapes(), others=st.lists(shapes(), max_size=5), device=devices, work=workloads, engine=engines)
def test_columns_equal_single_shapes_to_the_bit(
    first: Shape, others: list[Shape], device: Device, work: Workload, engine: str
) -> None:
    alike = [s for s in others if (s.sharing, s.mlp) == (first.sharing, first.mlp)]
    rows = [first, *alike]
    singles = [predict_latency(s, device=device, workload=work, engine=engine) for s in rows]
    assert_same(predict_latency(as_columns(rows), device=device, workload=work, engine=engine), singles)


def test_long_columns_are_taken_in_parts() -> None:
    shape = load_shape("llama-2-7b")
    layers = np.arange(1, CHUNK_ROWS + 3, dtype=np.int32)
    columns = SimpleNamespace(
        **{f.name: getattr(shape, f.name) for f in dataclasses.fields(Shape)} | {"n_layers": layers}
    )
    found = predict_latency(columns, device=A100, workload=Workload(), engine="eager")
    for row in (0, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1):
        one = dataclasses.replace(shape, n_layers=int(layers[row]))
        single = predict_latency(one, device=A100, workload=Workload())
        assert found.total_s[row] == single.total_s
        assert found.activation_bytes[row] == single.activation_bytes  # the same in every row, and still a column
        assert found.decode_bound[row] == single.decode_bound
    bare = predict_latency(columns, device=A100, workload=Workload(), bounds=False)
    assert bare.prefill_bound is None
    assert np.array_equal(bare.total_s, found.total_s)
    series = SimpleNamespace(**vars(columns) | {"n_layers": pd.Series(layers[:5], index=range(7, 12))})
    assert np.array_equal(predict_latency(series, device=A100, workload=Workload()).total_s, found.total_s[:5])


def test_learned_positions_end() -> None:
    gpt2 = load_shape("gpt2-small")  # learns 1024, and the last new token is not fed back
    predict_latency(gpt2, device=A100, workload=Workload(prompt_tokens=1000, new_tokens=25))
    with pytest.raises(WorkloadError, match="need 1025 positions, but the shape learns 1024"):
        predict_latency(gpt2, device=A100, workload=Workload(prompt_tokens=1000, new_tokens=26))
    with pytest.raises(WorkloadError, match="learns 1024"):
        predict_latency(as_columns([gpt2, gpt2]), device=A100, workload=Workload(prompt_tokens=2000))
    predict_latency(load_shape("open_lm_1b"), device=A100, workload=Workload(prompt_tokens=5000))


def test_wrong_questions() -> None:
    shape = load_shape("open_lm_1b")
    with pytest.raises(WorkloadError, match="did you mean 'graph'"):
        predict_latency(shape, device=A100, workload=Workload(), engine="graphs")
    only_wide = dataclasses.replace(
        PHONE,
        flops_per_s={"fp32": 1e12},
        origins={n: o for n, o in PHONE.origins.items() if n != "flops_per_s.fp16"},
    )
    assert predict_latency(shape, device=only_wide, workload=Workload(dtype="fp16")).total_s > 0
    only_half = dataclasses.replace(
        PHONE,
        flops_per_s={"fp16": 1e12},
        origins={n: o for n, o in PHONE.origins.items() if n != "flops_per_s.fp32"},
    )
    with pytest.raises(DeviceError, match="has no rate for fp32"):
        predict_latency(shape, device=only_half, workload=Workload(dtype="fp32"))
