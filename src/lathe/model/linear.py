"""Multiply by a weight matrix: `torch.nn.Linear`, but for two cases on a CPU where torch leaves speed behind.

- One row reads the whole matrix for a single dot product a row: memory bandwidth bounds it. MKL runs it on one
  thread; as a batch of slices it runs on all. On two Zen 5 cores: 11 to 17 GB/s whole, 19 to 28 in slices, where a
  streaming sum reads 37 (docs/latency.md).
- Many rows in fp32, on a processor that is not Intel's: torch takes MKL, whose kernels there use half of the vector
  units. oneDNN, which torch brings along, does not ask who made the processor. On two Zen 5 cores: 200 GFLOP/s by MKL,
  350 to 450 by oneDNN.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLICED_ELEMENTS = 2**16
"""Smaller matrices gain nothing from slices."""
PLAIN = (Tensor, nn.Parameter)
"""Kinds of weight that can be cut in slices, or given to oneDNN: quantised and distributed ones are others."""
Multiply = Callable[[Tensor, Tensor], Tensor]
CPUINFO = Path("/proc/cpuinfo")


def name_vendor() -> str:
    """Name who made the processor, as it says itself: GenuineIntel, AuthenticAMD …; Intel where it does not say."""
    if CPUINFO.exists():
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "GenuineIntel")
    _, comma, vendor = platform.processor().rpartition(", ")  # as on Windows
    return vendor if comma else "GenuineIntel"


PREFERS_ONEDNN = (
    torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and name_vendor() != "GenuineIntel"
)
"""Whether this machine's fp32 products are oneDNN's: a fixed choice, so that results repeat to the bit."""


class Linear(nn.Linear):
    """Apply a linear map; weights, bias and initial values are torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return project(input, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x · weightᵀ + bias, with the fastest product there is for x's rows."""
    trains, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
    one_row = x.numel() == weight.shape[-1]
    if type(weight) not in PLAIN or x.device.type != "cpu" or (compiling and not trains):  # inference packs its weights
        return F.linear(x, weight, bias)
    if one_row and not trains and _is_sliced(weight):
        product = _project_row(x, weight)
    elif not one_row and _is_for_onednn(x, weight):
        product = _multiply_compiled(x, weight) if compiling else _Product.apply(x, weight)
    else:
        return F.linear(x, weight, bias)
    return product if bias is None else product + bias


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x · weightᵀ without gradients; either may be transposed or otherwise strided."""
    return _find_multiply()(x, weight) if _is_for_onednn(x, weight) else x @ weight.T


def multiply_over_rows(y: Tensor, x: Tensor) -> Tensor:
    """Compute yᵀ · x without gradients: the sum over rows of their outer products, as weights' gradients are."""
    return _multiply_over_rows(y, x, _find_multiply()) if _is_for_onednn(x, y) else y.T @ x


def _find_multiply() -> Multiply:
    return _multiply_compiled if torch.compiler.is_compiling() else _multiply


def _is_sliced(weight: Tensor) -> bool:
    """Say whether one row's product gains from slices."""
    threads = torch.get_num_threads()
    return threads > 1 and weight.shape[0] % threads == 0 and weight.numel() >= SLICED_ELEMENTS


def _project_row(x: Tensor, weight: Tensor) -> Tensor:
    slices, rows_in = torch.get_num_threads(), weight.shape[1]
    parts = torch.bmm(x.reshape(1, 1, -1).expand(slices, 1, -1), weight.view(slices, -1, rows_in).transpose(1, 2))
    return parts.view(*x.shape[:-1], weight.shape[0])


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        PREFERS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _multiply_over_rows(y: Tensor, x: Tensor, by: Multiply) -> Tensor:
    if y.shape[1] > x.shape[1]:  # oneDNN reads its second matrix in any order, but has its first copied: the smaller
        return by(x.T, y.T).T
    return by(y.T, x.T)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor, by: Multiply) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    learns_x, learns_weight = ctx.needs_input_grad
    grad_x = by(grad, weight.T) if learns_x else None
    return grad_x, _multiply_over_rows(grad.flatten(0, -2), x.flatten(0, -2), by) if learns_weight else None


class _Product(torch.autograd.Function):
    """Multiply by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        _save(ctx, (x, weight), x)
        return _multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _differentiate(ctx, grad, _multiply)


@torch.library.custom_op("lathe::multiply", mutates_args=())
def _multiply_compiled(x: Tensor, weight: Tensor) -> Tensor:
    """Do the same as an operator that torch.compile leaves alone; torch's own it takes for one with packed weights."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@_multiply_compiled.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_multiply_compiled.register_autograd(
    lambda ctx, grad: _differentiate(ctx, grad, _multiply_compiled), setup_context=_save
)
