"""Choose the next token from logits. Axes in names: b batch, v vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.errors import WorkloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Say how tokens are drawn. The default, temperature 0, takes the most probable one.

    `top_k` keeps the k most probable tokens, `top_p` the fewest whose probabilities reach p: both after the
    temperature, top_k first. Raises WorkloadError.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise WorkloadError(f"temperature={self.temperature}; wanted 0 (the most probable token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise WorkloadError(f"top_k={self.top_k}; wanted 1 or more tokens to choose from")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise WorkloadError(f"top_p={self.top_p}; wanted a probability above 0, 1 at most")


def pick_tokens(logits_bv: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token a sequence, [b]."""
    if sampling.temperature == 0:
        return logits_bv.argmax(dim=-1)
    logits_bv = logits_bv.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_bv.shape[-1]:
        least = logits_bv.topk(sampling.top_k).values[:, -1:]
        logits_bv = logits_bv.masked_fill(logits_bv < least, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_bv, order_bv = logits_bv.sort(descending=True)
        p_bv = sorted_bv.softmax(-1)
        beyond_bv = p_bv.cumsum(-1) - p_bv >= sampling.top_p  # the most probable one always stays
        logits_bv = logits_bv.scatter(1, order_bv, sorted_bv.masked_fill(beyond_bv, float("-inf")))
    return torch.multinomial(logits_bv.softmax(-1), 1, generator=generator)[:, 0]
