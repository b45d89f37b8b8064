"""Say what a training run costs: time, money, and memory per device.

- Time: model FLOPs (`count_train_flops`, nothing recomputed) over what the devices reach at the stated model-FLOPs
  utilisation (MFU, Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Recomputing activations is not among the
  model's FLOPs: it shows as a lower MFU.
- Weights, gradients, optimiser state: mixed precision keeps 2 + 2 bytes a weight besides an fp32 copy and the
  optimiser's own (12 in all with Adam); sharding divides a part of them by the devices. Rajbhandari et al. 2020
  (ZeRO), arXiv:1910.02054, sections 3.1 and 5.
- Activations: what the backward pass reads again, kept in the training dtype. Korthikanti et al. 2022,
  arXiv:2205.05198, section 4.1, item by item, for any heads and MLP; without their dropout masks (2 of their 34 bytes)
  and without attention scores, which fused attention never keeps. Their 34·s·b·h bytes a block of GPT are 32 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lathe.device import Device
from lathe.errors import BudgetError, nearest
from lathe.latency.roofline import Columns
from lathe.shape import MLP_MATRICES, Shaped, count_block_matmul_params, count_params, count_train_flops, dtype_bytes

HOUR_S = 3600.0
TRAINED_IN = ("bf16", "fp16", "fp32")
GATHERED_BLOCKS = 2
"""Blocks whose sharded weights stand whole at once: the one in use and the next, fetched ahead (FSDP's default)."""


class Sharding(NamedTuple):
    """Say what is divided by the number of devices."""

    optimizer: bool
    gradients: bool
    weights: bool


SHARDINGS = {
    "ddp": Sharding(optimizer=False, gradients=False, weights=False),
    "zero1": Sharding(optimizer=True, gradients=False, weights=False),
    "zero2": Sharding(optimizer=True, gradients=True, weights=False),
    "fsdp": Sharding(optimizer=True, gradients=True, weights=True),
}
"""`fsdp` is ZeRO's third stage."""

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.0, "lion": 4.0, "sgd-momentum": 4.0, "sgd": 0.0}
"""Bytes of optimiser state a weight, beside mixed precision's fp32 copy. 8-bit: Dettmers et al. 2022, 2110.02861."""

CHECKPOINTING = ("none", "full")
"""`full` keeps each block's input and recomputes the rest, one block at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """Hold what a run takes; arrays where shapes or tokens were columns.

    Bytes are per device. `gathered_bytes` are the whole blocks that sharded weights are collected into. `money` is in
    the price's currency (a preset's: US dollars), None without a price. `fits` says whether a device's memory suffices.
    """

    seconds: Any
    flops: Any
    device_hours: Any
    money: Any | None
    weight_bytes: Any
    gradient_bytes: Any
    optimizer_bytes: Any
    gathered_bytes: Any
    activation_bytes: Any
    fits: Any

    @property
    def days(self) -> Any:
        """Give the time in days."""
        return self.seconds / (24 * HOUR_S)

    @property
    def memory_bytes(self) -> Any:
        """Add the parts of one device's memory."""
        states = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return states + self.gathered_bytes + self.activation_bytes


def training_cost(
    shape: Shaped,
    tokens: Any,
    *,
    seq_len: int,
    device: Device,
    mfu: float,
    devices: int = 1,
    sharding: str = "fsdp",
    micro_batch: int = 1,
    activation_checkpointing: str = "none",
    optimizer: str = "adamw",
    dtype: str = "bf16",
    price_per_hour: float | None = None,
) -> TrainingCost:
    """Predict a training run's time, money and memory per device.

    Args:
        shape: a `Shape`, or an object with its fields whose numbers may be arrays of one length.
        tokens: training tokens, a number or an array.
        mfu: share of the devices' dense peak that the model's own FLOPs reach, in (0, 1]; .3 to .5 is usual.
        micro_batch: sequences on a device at once.
        price_per_hour: of one device; the device's own if not given.

    Raises:
        BudgetError: a number or name that cannot be.
        DeviceError: a dtype the device cannot compute in.
    """
    _check_choice("sharding", sharding, SHARDINGS)
    _check_choice("optimizer", optimizer, OPTIMIZER_BYTES)
    _check_choice("activation_checkpointing", activation_checkpointing, CHECKPOINTING)
    _check_choice("dtype", dtype, TRAINED_IN)
    for name, value in (("seq_len", seq_len), ("devices", devices), ("micro_batch", micro_batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BudgetError(f"{name}={value!r}; wanted a whole number of 1 or more")
    if not 0 < mfu <= 1:
        raise BudgetError(f"mfu={mfu!r}; wanted a share of the peak above 0 and at most 1")
    if not np.all(np.isfinite(tokens)) or not np.all(np.greater(tokens, 0)):
        raise BudgetError(f"tokens={tokens!r}; wanted a count above zero")
    price = device.price_per_hour if price_per_hour is None else price_per_hour
    if price is not None and not 0 <= price < math.inf:
        raise BudgetError(f"price_per_hour={price!r}; wanted zero or more")
    columns = Columns(shape)
    flops = count_train_flops(columns, np.asarray(tokens, dtype=float) if np.ndim(tokens) else float(tokens), seq_len)
    seconds = flops / (devices * device.peak_flops(dtype) * mfu)
    device_hours = seconds * (devices / HOUR_S)
    memory = _state_bytes(columns, devices=devices, sharding=SHARDINGS[sharding], optimizer=optimizer, dtype=dtype)
    rows = micro_batch * seq_len
    memory["activation_bytes"] = _activation_bytes(columns, rows, dtype=dtype, full=activation_checkpointing == "full")
    return TrainingCost(
        seconds=seconds,
        flops=flops,
        device_hours=device_hours,
        money=None if price is None else device_hours * price,
        **memory,
        fits=sum(memory.values()) <= device.memory_bytes,
    )


def _state_bytes(shape: Columns, *, devices: int, sharding: Sharding, optimizer: str, dtype: str) -> dict[str, Any]:
    params, size = count_params(shape), dtype_bytes(dtype)
    master = 0.0 if dtype == "fp32" else dtype_bytes("fp32")

    def held(bytes_each: float, sharded: bool) -> Any:
        return params * (bytes_each / (devices if sharded else 1))

    attention, mlp = count_block_matmul_params(shape)
    gathered = sharding.weights and devices > 1
    return {
        "weight_bytes": held(size, sharding.weights),
        "gradient_bytes": held(size, sharding.gradients),
        "optimizer_bytes": held(master + OPTIMIZER_BYTES[optimizer], sharding.optimizer),
        "gathered_bytes": (attention + mlp) * (GATHERED_BLOCKS * size) if gathered else 0.0 * params,
    }


def _activation_bytes(shape: Columns, rows: int, *, dtype: str, full: bool) -> Any:
    """Size what the backward pass of `rows` tokens reads again.

    A block keeps two norms' inputs, the inputs of q, k, v and of the MLP (4·d_model); q, k, v and the output
    projection's input; and each inner vector of the MLP before and after its activation or gate. At the end stand the
    final norm's and the head's inputs, and the logits in fp32 (Korthikanti et al. 2022, sections 4.1 and 4.3).
    """
    wide = dtype_bytes(dtype)
    heads = (2 * shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    block = 4 * shape.d_model + heads + 2 * (MLP_MATRICES[shape.mlp] - 1) * shape.d_ff
    blocks = shape.n_layers * shape.d_model + block if full else shape.n_layers * block
    return (blocks + 2 * shape.d_model) * (rows * wide) + shape.vocab_size * (4.0 * rows)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise BudgetError(f"{name}={value!r} is unknown{nearest(str(value), choices)}")
