"""Keep a decoder's matrices as int8 or int4, and multiply with them as they are read: torchao's weight-only kinds.

- int8: one scale a row. Half of bf16's memory.
- int4: a scale and a zero a group of GROUP inputs. A third of bf16's memory: five bits a weight with its scales.

The embedding, a head tied to it, learned positions, norms and biases keep their dtype, as do activations and KV cache.
What is faster for it and what is not: docs/latency.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lathe.errors import DeviceError, MissingExtraError, ShapeError, nearest
from lathe.model.decoder import Decoder
from lathe.model.linear import PLAIN
from lathe.model.remarks import mute_torchao

GROUP = 32
"""Inputs that share a scale in int4, torchao's fewest: the least error, and it divides the most widths."""
CPU_ROWS = 16
"""Outputs that torch's int4 product on a CPU computes at a time."""
WIDE = "bf16"
"""What weights to be quantised are loaded in, and what activations stay in, as `Workload.activation_dtype` has it."""


def quantise(model: Decoder, dtype: str, *, device: str | torch.device | None = None) -> Decoder:
    """Quantise the matrices of all linear layers in place, and give the same model, which then only serves.

    `device`, if given, is where the model goes, one matrix after another: it never holds the wide weights whole.

    Raises:
        MissingExtraError: torchao is not installed.
        DeviceError: a dtype that the device lacks, a model that is quantised already, or int4 from other than bf16.
        ShapeError: a matrix that int4's groups do not divide; the model is as it was.
    """
    place = torch.device(device if device is not None else model.embedding.weight.device)
    make_config = _find_config(dtype, place)
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    _check_matrices(linears, dtype, place)
    with mute_torchao():
        try:
            from torchao.quantization import quantize_

            config = make_config()
        except ImportError:
            raise MissingExtraError(f"{dtype} weights", extra="quant") from None
    quantize_(model.requires_grad_(False), config, device=None if device is None else place)
    return model.eval()


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)  # else it changes the compiler's settings for everyone


def _int4_on_cpu() -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)


def _int4_on_cuda() -> Any:
    """Choose torch's own kernel: torchao's other layouts need packages that it does not bring."""
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(
        group_size=GROUP,
        int4_packing_format="tile_packed_to_4d",  # pyright: ignore[reportArgumentType] - an enum of strings
        set_inductor_config=False,
    )


QUANTISED: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "int8": {"cpu": _int8, "cuda": _int8},
    "int4": {"cpu": _int4_on_cpu, "cuda": _int4_on_cuda},
}
"""What torchao is asked for, by dtype and kind of device."""


def _find_config(dtype: str, place: torch.device) -> Callable[[], Any]:
    if dtype not in QUANTISED:
        raise DeviceError(f"weights cannot be quantised to {dtype!r}{nearest(str(dtype), QUANTISED)}")
    if place.type not in QUANTISED[dtype]:
        raise DeviceError(f"{dtype} weights do not run on {place}; they do on {' and '.join(QUANTISED[dtype])}")
    if dtype == "int4" and place.type == "cuda" and torch.cuda.get_device_capability(place) < (8, 0):
        raise DeviceError(
            f"{torch.cuda.get_device_name(place)} lacks the bf16 tensor cores that int4 weights need; use int8"
        )
    return QUANTISED[dtype][place.type]


def _check_matrices(linears: Mapping[str, nn.Linear], dtype: str, place: torch.device) -> None:
    for name, linear in linears.items():
        weight = linear.weight
        if type(weight) not in PLAIN:
            raise DeviceError(f"{name} is a {type(weight).__name__} already; quantise a model of plain weights")
        if dtype != "int4":
            continue
        if weight.dtype is not torch.bfloat16:
            raise DeviceError(f"int4 weights are made from bf16, and {name} is {weight.dtype}; load the model in bf16")
        rows_out, rows_in = weight.shape
        if rows_in % GROUP:
            raise ShapeError(
                f"int4 weights share scales in groups of {GROUP} inputs, and {name} has {rows_in}; use int8, or a "
                f"shape whose d_model and d_ff are multiples of {GROUP}"
            )
        if place.type == "cpu" and rows_out % CPU_ROWS:
            raise ShapeError(
                f"int4 weights on a CPU need a multiple of {CPU_ROWS} outputs, and {name} has {rows_out}; use int8"
            )
