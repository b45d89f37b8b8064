"""Multiply by a weight matrix: `torch.nn.Linear`, but for one row on a CPU.

There a product reads the whole matrix for a single dot product a row: memory bandwidth bounds it. MKL runs it on one
thread; as a batch of slices it runs on all. On two Zen 5 cores: 11 to 17 GB/s whole, 19 to 28 in slices, where a
streaming sum reads 37 (docs/latency.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLICED_ELEMENTS = 2**16
"""Smaller matrices gain nothing."""


class Linear(nn.Linear):
    """Apply a linear map; weights, bias and initial values are torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return project(input, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x · weightᵀ + bias, with the fastest product there is for x's rows."""
    rows_out, rows_in = weight.shape
    slices = torch.get_num_threads()
    if (
        x.numel() != rows_in
        or x.device.type != "cpu"
        or type(weight) not in PLAIN
        or slices == 1
        or rows_out % slices
        or weight.numel() < SLICED_ELEMENTS
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    parts = torch.bmm(x.reshape(1, 1, -1).expand(slices, 1, -1), weight.view(slices, -1, rows_in).transpose(1, 2))
    product = parts.view(*x.shape[:-1], rows_out)
    return product if bias is None else product + bias


PLAIN = (Tensor, nn.Parameter)
"""Kinds of weight that can be cut in slices: quantised and distributed ones are others."""
