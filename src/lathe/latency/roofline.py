"""Predict latency with a roofline an operator, a launch cost an operation and an overhead a step.

A step (reading the prompt, or decoding one token for every sequence) takes

    max( Σ over operators max(FLOPs / flops_per_s, bytes / bytes_per_s),  launches · launch_s ) + step_s

since the host runs ahead of the device: their times overlap and do not add. Graph capture ("graph") drops the launches.
Kernels and framework code are not in the model: equal shapes get equal predictions whatever runs them, and what an
engine adds is `launch_s`, `step_s` and the two fractions, which `calibrate` fits.

Numbers may be arrays: a `Shape` and columns of a million shapes go the same way. Method: Williams et al. 2009 (roofline);
the launch term after Bian et al. 2025, arXiv:2501.18107, whose eager latency is linear in depth and flat in width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

BOUNDS = np.array(["launch", "bandwidth", "compute"])
FIXED_LAUNCHES = 6
"""Operations a step outside the blocks: embedding, final norm, head, sampling."""
BLOCK_LAUNCHES = 24
"""Operations of an eager block beside its MLP: two norms, q, k, v, output, rotary, cache, attention, residual adds."""
ELEMENTWISE_PASSES = 12
"""Times a block reads or writes its stream outside matmuls: norms, residual adds, rotary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step's device time, split by what bounds each operator, as base + slope · context.

    Attention's part grows with the context; everything else stands in the base.
    """

    compute_base_s: Any
    compute_slope_s: Any
    bandwidth_base_s: Any
    bandwidth_slope_s: Any

    @property
    def base_s(self) -> Any:
        """Add what does not grow."""
        return self.compute_base_s + self.bandwidth_base_s

    @property
    def slope_s(self) -> Any:
        """Add what grows a position."""
        return self.compute_slope_s + self.bandwidth_slope_s


def predict_latency(shape: Shaped, *, device: Device, workload: Workload, engine: str = "eager") -> Latency:
    """Predict what a workload takes on a device.

    Args:
        shape: a `Shape`, or an object with its fields whose numbers are arrays of one length.
        engine: "eager" (every operation launched by the host) or "graph" (captured or compiled).

    Raises:
        WorkloadError: unknown engine, or a context longer than learned positions allow.
        DeviceError: a dtype the device cannot compute in.
    """
    if engine not in ENGINES:
        raise WorkloadError(f"unknown engine {engine!r}{nearest(str(engine), ENGINES)}")
    _check_context(shape, workload)
    launch_s = count_launches(shape) * device.launch_s if engine == "eager" else 0.0
    prompt, batch = workload.prompt_tokens, workload.batch
    prefill = _step(shape, device, workload, tokens=prompt)
    decode = _step(shape, device, workload, tokens=1)
    context = (prompt + 1) / 2  # causal: what a prompt's token attends to on average
    prefill_device_s = prefill.base_s + prompt * context * prefill.slope_s
    prefill_s = np.maximum(prefill_device_s, launch_s) + device.step_s
    steps = workload.new_tokens - 1
    launched, decode_s = _sum_steps(decode, launch_s, first=prompt + 1, steps=steps)
    decode_s = decode_s + steps * device.step_s
    mid = prompt + (steps + 1) / 2
    scalar = np.ndim(prefill_s) == 0

    def settle(value: Any) -> Any:
        return float(value) if scalar else value

    total_s = prefill_s + decode_s
    return Latency(
        prefill_s=settle(prefill_s),
        decode_s=settle(decode_s),
        weight_bytes=count_weight_bytes(shape, workload.dtype),
        kv_bytes=count_kv_bytes(shape, batch, workload.context, workload.activation_dtype),
        activation_bytes=_activation_bytes(shape, workload),
        tokens_per_s=settle(batch * workload.new_tokens / total_s),
        engine=engine,
        prefill_bound=_bound(prefill, launch_s > prefill_device_s, prompt * context),
        decode_bound=_bound(decode, launched, mid),
    )


def count_launches(shape: Shaped) -> Any:
    """Count the operations that the host launches in one eager step."""
    return shape.n_layers * (BLOCK_LAUNCHES + 2 * MLP_MATRICES[shape.mlp]) + FIXED_LAUNCHES


def _check_context(shape: Shaped, workload: Workload) -> None:
    if getattr(shape, "position", "rotary") == "learned" and np.any(workload.context > shape.max_seq_len):
        raise WorkloadError(
            f"{workload.prompt_tokens} prompt and {workload.new_tokens} new tokens make a context of {workload.context},"
            f" but the shape learns {np.min(shape.max_seq_len)} positions; ask for fewer tokens"
        )


def _sum_steps(step: Step, launch_s: Any, *, first: int, steps: int) -> tuple[Any, Any]:
    """Sum max(base + slope · t, launch_s) over the contexts t = first, first + 1, … of all decoding steps.

    Returns whether most steps are bound by launches, and the sum. The device's time grows with t, so the launch-bound
    steps come first.
    """
    if steps == 0:
        return launch_s > step.base_s + step.slope_s * first, 0.0 * step.base_s
    slack = (launch_s - step.base_s) / step.slope_s - first
    bound = np.clip(np.ceil(slack), 0, steps)
    rest = steps - bound
    middle = first + bound + (rest - 1) / 2
    return bound > steps / 2, bound * launch_s + rest * (step.base_s + step.slope_s * middle)


def _step(shape: Shaped, device: Device, workload: Workload, *, tokens: int) -> Step:
    """Time every operator of a step that feeds `tokens` positions of each sequence."""
    batch, rows = workload.batch, workload.batch * tokens
    stored, wide = dtype_bytes(workload.dtype), dtype_bytes(workload.activation_dtype)
    flops_per_s = device.peak_flops(workload.dtype) * device.compute_fraction
    bytes_per_s = device.bytes_per_s * device.bandwidth_fraction
    cache_per_s = max(device.cache_bytes_per_s, bytes_per_s)
    d, heads, kv, head = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head
    attention, mlp = count_block_matmul_params(shape)
    from_memory, from_cache, head_per_s = _sources(shape, device, workload, bytes_per_s, cache_per_s)
    compute = bandwidth = 0.0

    def add(times: Any, flops: Any, seconds_to_read: Any) -> None:
        nonlocal compute, bandwidth
        flops_s = flops / flops_per_s
        by_compute = flops_s > seconds_to_read
        compute = compute + times * np.where(by_compute, flops_s, 0.0)
        bandwidth = bandwidth + times * np.where(by_compute, 0.0, seconds_to_read)

    streams = ((attention, 4 * d + 2 * (heads + kv) * head), (mlp, 2 * d + MLP_MATRICES[shape.mlp] * shape.d_ff))
    for weights, streamed in streams:
        stream_s = rows * streamed * wide / bytes_per_s
        add(from_memory, 2.0 * rows * weights, weights * stored / bytes_per_s + stream_s)
        if from_cache is not None:
            add(from_cache, 2.0 * rows * weights, weights * stored / cache_per_s + stream_s)
    # Of a prompt only the last position meets the head.
    add(1, 2.0 * batch * shape.vocab_size * d, shape.vocab_size * d * stored / head_per_s)
    add(1, 0.0, (shape.n_layers * ELEMENTWISE_PASSES + 4) * rows * d * wide / bytes_per_s)
    # Attention, a position of context: two products for each token and head, keys and values read once a sequence.
    score_s = shape.n_layers * 4.0 * batch * heads * head / flops_per_s
    reads = batch * 2.0 / (tokens + 1)
    cache_s = shape.n_layers * 2.0 * reads * kv * head * wide / bytes_per_s
    by_compute = score_s > cache_s
    return Step(
        compute_base_s=compute,
        compute_slope_s=np.where(by_compute, score_s, 0.0),
        bandwidth_base_s=bandwidth,
        bandwidth_slope_s=np.where(by_compute, 0.0, cache_s),
    )


def _sources(
    shape: Shaped, device: Device, workload: Workload, bytes_per_s: float, cache_per_s: float
) -> tuple[Any, Any, Any]:
    """Split a step's block visits into those whose weights come from memory and those served by the last-level cache.

    A block repeated at once is still in the cache if it fits there; so is the whole model, step after step, if that
    fits. Returns the two counts (None for no visit from cache at all) and the rate at which the head is read.
    """
    fits = count_weight_bytes(shape, workload.dtype) <= device.cache_bytes
    repeats: Any = 0
    if shape.sharing == "immediate":
        attention, mlp = count_block_matmul_params(shape)
        block_fits = (attention + mlp) * dtype_bytes(workload.dtype) <= device.cache_bytes
        repeats = np.where(block_fits, shape.n_layers - count_stored_layers(shape), 0)
    if shape.sharing != "immediate" and not np.any(fits):
        return shape.n_layers, None, bytes_per_s
    again = np.where(fits, shape.n_layers, repeats)
    return shape.n_layers - again, again, np.where(fits, cache_per_s, bytes_per_s)


def _activation_bytes(shape: Shaped, workload: Workload) -> Any:
    """Count the largest activations that stand at once: the stream, a block's widest inner layer, and fp32 logits."""
    wide = dtype_bytes(workload.activation_dtype)
    rows = workload.batch * workload.prompt_tokens
    inner = np.maximum(MLP_MATRICES[shape.mlp] * shape.d_ff, (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head)
    return rows * (2.0 * shape.d_model + inner) * wide + 4.0 * workload.batch * shape.vocab_size


def _bound(step: Step, launched: Any, context: float) -> Any:
    """Name what takes most of a phase's time."""
    compute = step.compute_base_s + step.compute_slope_s * context
    bandwidth = step.bandwidth_base_s + step.bandwidth_slope_s * context
    names = BOUNDS[np.where(launched, 0, np.where(compute > bandwidth, 2, 1))]
    return str(names) if np.ndim(names) == 0 else names
