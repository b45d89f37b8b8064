"""Write shared layers out: families that cannot share get a copy of the block for each visit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from lathe.shape import Shape


def unroll(shape: Shape, weights: Mapping[str, Tensor]) -> tuple[Shape, dict[str, Tensor]]:
    """Give the same model without sharing: its logits are the same, its weights sharing_count times as many."""
    if shape.sharing == "none":
        return shape, dict(weights)
    found = {name: w for name, w in weights.items() if not name.startswith("blocks.")}
    for visit, stored in enumerate(shape.visits):
        prefix = f"blocks.{stored}."
        block = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        # copies: a file holds each tensor once, under one name
        found |= {f"blocks.{visit}.{name}": w.clone() for name, w in block.items()}
    return dataclasses.replace(shape, sharing="none", sharing_count=1), found
