"""Normalise a stream's vectors, as a shape's `norm` says."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.shape import NORM_VECTORS, Shape


class Norm(nn.Module):
    """Apply RMSNorm, or LayerNorm with a gain and a bias, with a gain only, or with neither."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.width, self.eps, self.rms = (width,), shape.norm_eps, shape.norm == "rmsnorm"
        vectors = NORM_VECTORS[shape.norm]
        self.weight = nn.Parameter(torch.ones(width)) if vectors > 0 else None
        self.bias = nn.Parameter(torch.zeros(width)) if vectors > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, self.width, self.weight, self.eps)
        return F.layer_norm(x, self.width, self.weight, self.bias, self.eps)
