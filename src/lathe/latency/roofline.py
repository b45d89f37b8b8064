"""Predict latency with a roofline an operator, a launch cost an operation and an overhead a step.

A step (reading the prompt, or decoding one token for every sequence) takes

    max( Σ over operators max(FLOPs / flops_per_s, bytes / bytes_per_s),  launches · launch_s ) + step_s

since the host runs ahead of the device: their times overlap and do not add. A CPU is its own host: there they add.
Graph capture ("graph") drops the launches.
Kernels and framework code are not in the model: equal shapes get equal predictions whatever runs them, and what an
engine adds is `launch_s`, `step_s` and the two fractions, which `calibrate` fits.

Every visit of a block is operators of its own: kernels wait for one another, and none fetches its successor's weights.
A visit whose block is still in the last-level cache reads it at the cache's rate, the others at main memory's. That is
the cautious choice: MobileLLM's 30 repeats on an iPhone 13 (Liu et al. 2024, arXiv:2402.14905) take .4 ms, and 1.2 ms
at the 171 GB/s its GPU can take in, so some of a repeat may hide behind the fetch of the next block (a hierarchical
roofline, Yang et al. 2020, arXiv:2009.02449, would hide all of it: 2.5 % too fast, where this one is 5 % too slow).

Numbers may be arrays: a `Shape` and columns of a million shapes go the same way. Method: Williams et al. 2009
(roofline); the launch term after Bian et al. 2025, arXiv:2501.18107, whose eager latency is linear in depth and flat in
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lathe.device import Device
from lathe.errors import WorkloadError, nearest
from lathe.shape import (
    MLP_MATRICES,
    Shaped,
    count_block_matmul_params,
    count_kv_bytes,
    count_stored_layers,
    count_weight_bytes,
    dtype_bytes,
)
from lathe.workload import ENGINES, Latency, Workload

BOUNDS = np.array(["launch", "bandwidth", "compute"], dtype=object)
FIXED_LAUNCHES = 6
"""Operations a step outside the blocks: embedding, final norm, head, sampling."""
BLOCK_LAUNCHES = 24
"""Operations of an eager block beside its MLP: two norms, q, k, v, output, rotary, cache, attention, residual adds."""
ELEMENTWISE_PASSES = 12
"""Times a block reads or writes its stream outside matmuls: norms, residual adds, rotary."""
CHUNK_ROWS = 16384
"""Rows taken at a time of long columns, so that what is computed of them stays in the processor's cache."""


class Operator(NamedTuple):
    """Hold what one kind of operator takes: how often it runs, and each run's arithmetic and reading."""

    times: Any
    compute_s: Any
    read_s: Any

    @property
    def device_s(self) -> Any:
        """Give the busier resource's time over all runs."""
        return self.times * np.maximum(self.compute_s, self.read_s)

    @property
    def bound_s(self) -> Any:
        """Give the time of the runs that arithmetic binds."""
        return self.times * np.where(self.compute_s > self.read_s, self.compute_s, 0.0)


@dataclass(frozen=True, slots=True)
class Step:
    """Hold one step's operators; `attention`'s times are a position of context, the others' do not grow with it."""

    fixed: tuple[Operator, ...]
    attention: Operator
    base_s: Any
    slope_s: Any

    @classmethod
    def of(cls, fixed: tuple[Operator, ...], attention: Operator) -> Step:
        """Add up what does not grow, and what grows a position."""
        return cls(fixed, attention, sum(o.device_s for o in fixed), attention.device_s)

    def bound(self, launched: Any, context: float) -> Any:
        """Say what takes most of the step's time at a context, as an index into BOUNDS."""
        compute_s = sum(o.bound_s for o in self.fixed) + context * self.attention.bound_s
        by_compute = 2 * compute_s > self.base_s + context * self.slope_s
        return np.where(launched, 0, 1 + by_compute).astype(np.int8)


def predict_latency(
    shape: Shaped, *, device: Device, workload: Workload, engine: str = "eager", bounds: bool = True
) -> Latency:
    """Predict what a workload takes on a device.

    Args:
        shape: a `Shape`, or an object with its fields whose numbers may be arrays of one length.
        engine: "eager" (every operation launched by the host) or "graph" (captured or compiled).
        bounds: whether to name what bounds each phase; of a million shapes nobody reads it.

    Raises:
        WorkloadError: unknown engine, or a context longer than learned positions allow.
        DeviceError: a dtype the device cannot compute in.
    """
    if engine not in ENGINES:
        raise WorkloadError(f"unknown engine {engine!r}{nearest(str(engine), ENGINES)}")
    check_context(shape, workload)
    columns = Columns(shape)
    starts = range(0, columns.rows or 1, CHUNK_ROWS)
    parts = [columns] if len(starts) <= 1 else [columns.cut(at, at + CHUNK_ROWS) for at in starts]
    found = [_predict(part, device, workload, engine=engine, bounds=bounds) for part in parts]
    joined = {name: _join([part[name] for part in found]) for name in found[0]}
    for name in ("prefill_bound", "decode_bound"):
        joined[name] = BOUNDS.take(joined[name]) if bounds else None
    return Latency(engine=engine, **joined)


def _join(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else np.concatenate(values)


def _predict(shape: Columns, device: Device, workload: Workload, *, engine: str, bounds: bool) -> dict[str, Any]:
    launch_s = count_launches(shape) * device.launch_s if engine == "eager" else 0.0
    prompt, batch, steps = workload.prompt_tokens, workload.batch, workload.new_tokens - 1
    weight_bytes = count_weight_bytes(shape, workload.dtype)
    prefill, decode = _steps(shape, device, workload, weight_bytes)
    positions = prompt * (prompt + 1) / 2  # causal: the i-th of a prompt's tokens attends to i positions
    prefill_device_s = prefill.base_s + positions * prefill.slope_s
    together = np.maximum if device.has_host else np.add
    prefill_s = together(prefill_device_s, launch_s) + device.step_s
    launched, decode_s = _sum_steps(decode, launch_s, first=prompt + 1, steps=steps, ahead=device.has_host)
    decode_s = decode_s + steps * device.step_s
    numbers = {
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "weight_bytes": weight_bytes,
        "kv_bytes": count_kv_bytes(shape, batch, workload.context, workload.activation_dtype),
        "activation_bytes": _activation_bytes(shape, workload),
        "tokens_per_s": batch * workload.new_tokens / (prefill_s + decode_s),
    }
    if bounds:
        numbers["prefill_bound"] = prefill.bound(np.less(prefill_device_s, launch_s), positions)
        numbers["decode_bound"] = decode.bound(launched, prompt + (steps + 1) / 2)
    if shape.rows is None:
        return {name: value if name.endswith("bound") else float(value) for name, value in numbers.items()}
    same = (name for name, value in numbers.items() if np.ndim(value) == 0)  # no column that it depends on
    return numbers | {name: np.full(shape.rows, numbers[name]) for name in same}


def count_launches(shape: Shaped) -> Any:
    """Count the operations that the host launches in one eager step."""
    return shape.n_layers * (BLOCK_LAUNCHES + 2 * MLP_MATRICES[shape.mlp]) + FIXED_LAUNCHES


class Columns:
    """Show a shape's numbers as floats, whose products do not overflow (exact below 2^53), and its words as they are.

    `rows` is None for one shape.
    """

    NUMBERS = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "sharing_count", "tied")

    def __init__(self, shape: Shaped) -> None:
        self.words, self.rows = shape, None
        learned = ("max_seq_len", "position_offset") if shape.position == "learned" else ()
        for name in (*self.NUMBERS, *learned):
            value = getattr(shape, name)
            if isinstance(value, int) or np.ndim(value) == 0:
                setattr(self, name, float(value))
            else:
                setattr(self, name, np.asarray(value, dtype=float))
                self.rows = len(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.words, name)

    def cut(self, first: int, last: int) -> Columns:
        """Take some rows."""
        part = Columns.__new__(Columns)
        part.words = self.words
        for name, value in vars(self).items():
            setattr(part, name, value[first:last] if isinstance(value, np.ndarray) else value)
        part.rows = min(last, self.rows or 0) - first
        return part


def check_context(shape: Shaped, workload: Workload) -> None:
    """Raise WorkloadError where a workload needs more positions than a shape learns."""
    fed = workload.context - 1  # the last new token is not fed back
    if shape.position == "learned" and np.any(np.less(shape.max_seq_len, fed)):
        raise WorkloadError(
            f"{workload.prompt_tokens} prompt and {workload.new_tokens} new tokens need {fed} positions, but the shape "
            f"learns {np.min(shape.max_seq_len):.0f}; ask for fewer tokens, or for a shape with rotary positions"
        )


def _sum_steps(step: Step, launch_s: Any, *, first: int, steps: int, ahead: bool) -> tuple[Any, Any]:
    """Sum max(base + slope · t, launch_s) over the contexts t = first, first + 1, … of all decoding steps.

    Where no host runs ahead, they add instead. Returns whether most steps are bound by launches, and the sum. The
    device's time grows with t, so the launch-bound steps come first.
    """
    last = first + steps - 1
    if steps == 0 or not ahead or (np.ndim(launch_s) == 0 and launch_s == 0):
        mean_s = step.base_s + step.slope_s * ((first + last) / 2)
        return np.less(mean_s, launch_s), steps * (mean_s if ahead else mean_s + launch_s)
    crossing = np.ceil((launch_s - step.base_s) / step.slope_s)
    bound = np.minimum(np.maximum(crossing - first, 0.0), float(steps))
    rest = steps - bound
    middle = (last + first + bound) / 2
    return bound > steps / 2, bound * launch_s + rest * (step.base_s + step.slope_s * middle)


def _steps(shape: Columns, device: Device, workload: Workload, weight_bytes: Any) -> tuple[Step, Step]:
    """Lay out the operators of reading the prompt and of decoding one token."""
    batch, stored, wide = workload.batch, dtype_bytes(workload.dtype), dtype_bytes(workload.activation_dtype)
    flops_per_s = device.peak_flops(workload.dtype) * device.compute_fraction
    bytes_per_s = device.bytes_per_s * device.bandwidth_fraction
    cache_per_s = max(device.cache_bytes_per_s, bytes_per_s)
    attention, mlp = count_block_matmul_params(shape)
    d, layers, kv = shape.d_model, shape.n_layers, shape.n_kv_heads * shape.d_head
    queries, head = shape.n_heads * shape.d_head, shape.vocab_size * d
    blocks = ((attention, 4 * d + 2 * (queries + kv)), (mlp, 2 * d + MLP_MATRICES[shape.mlp] * shape.d_ff))
    in_cache = weight_bytes <= device.cache_bytes  # the whole model, which then stays there from step to step
    again = _count_cached_visits(shape, device, (attention + mlp) * stored, in_cache)
    if again is None:
        visits, head_per_s = [(layers, bytes_per_s)], bytes_per_s
    else:
        visits = [(layers - again, bytes_per_s), (again, cache_per_s)]
        head_per_s = np.where(in_cache, cache_per_s, bytes_per_s)
    # Of a prompt only the last position meets the head.
    last = Operator(1.0, head * (2.0 * batch / flops_per_s), head * (stored / head_per_s))
    score_s, kv_s = queries * (4.0 * batch / flops_per_s), kv * (2.0 * batch * wide / bytes_per_s)

    def step(tokens: int) -> Step:
        rows = batch * tokens
        row_s, multiply_s = rows * wide / bytes_per_s, 2.0 * rows / flops_per_s
        matmuls = [
            Operator(times, weights * multiply_s, weights * (stored / rate) + streamed * row_s)
            for weights, streamed in blocks
            for times, rate in visits
        ]
        rest = Operator(ELEMENTWISE_PASSES * layers + 4, 0.0, d * row_s)
        # A position of context: two products a token and query head; keys and values are read once a sequence, for
        # all of the tokens · (tokens + 1) / 2 pairs.
        attending = Operator(layers, score_s, kv_s * (2.0 / (tokens + 1)))
        return Step.of((*matmuls, last, rest), attending)

    return step(workload.prompt_tokens), step(1)


def _count_cached_visits(shape: Columns, device: Device, block_bytes: Any, in_cache: Any) -> Any:
    """Count a step's block visits whose weights come from the last-level cache; None where there are none at all.

    The cache keeps the most recently used blocks that fit (activations, small beside them, are not counted). A block
    repeated at once is still there; on the way back (`reverse`) so are the last few; going round (`all-over`) evicts
    each block before its turn, unless all fit (LRU stack distance: Mattson et al. 1970).
    """
    if shape.sharing == "none":
        return np.where(in_cache, shape.n_layers, 0.0) if np.any(in_cache) else None
    stored = count_stored_layers(shape)
    kept = np.minimum(np.floor(device.cache_bytes / block_bytes), stored)
    if shape.sharing == "immediate":
        again = np.where(kept >= 1, stored, 0.0)
    elif shape.sharing == "reverse":
        again = kept
    else:
        again = np.where(kept >= stored, stored, 0.0)
    return np.where(in_cache, shape.n_layers, (shape.sharing_count - 1) * again)


def _activation_bytes(shape: Columns, workload: Workload) -> Any:
    """Size the largest activations that stand at once: the stream, a block's widest inner layer, and fp32 logits.

    Attention's scores are never whole in memory (fused attention).
    """
    rows = workload.batch * workload.prompt_tokens * dtype_bytes(workload.activation_dtype)
    qkv = (shape.n_heads + 2.0 * shape.n_kv_heads) * shape.d_head
    inner = np.maximum(MLP_MATRICES[shape.mlp] * shape.d_ff, qkv)
    return (2.0 * shape.d_model + inner) * rows + shape.vocab_size * (4.0 * workload.batch)
