"""Measure the loss on held-out text, with its standard error.

Axes in names: b sequences of a batch, t tokens of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.data.loader import IGNORED, Batch, evaluation_batches, evaluation_windows, to_torch
from lathe.data.store import Split
from lathe.errors import DataError

Losses = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Tokens, targets and documents, each [b, t], to losses_bt: nats in fp32, 0 where the target is below zero."""
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Hold a mean loss in nats per token over `tokens` targets of `sequences`.

    `se` is its standard error over sequences, whose tokens err together; None where there is but one.
    """

    loss: float
    se: float | None
    tokens: int
    sequences: int


@torch.no_grad()
def held_out_loss(
    losses: Losses,
    split: Split,
    *,
    seq_len: int,
    batch_sequences: int,
    most_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
    across_documents: bool = True,
    mask_documents: bool = False,
    device: str | torch.device = "cpu",
) -> HeldOut:
    """Average the loss over a split: over all of it, or over a fixed part of `most_tokens`.

    Every rank calls `losses` equally often, always with `batch_sequences` rows: those that there are no sequences for
    hold no targets. So ranks may wait for one another in it, and it may be made for one size.

    Args:
        losses: gives each position's loss; documents are None unless `mask_documents`.
        rank: takes every world-th batch from this one on.
        reduce: sums a vector over the ranks; needed with more than one.
        across_documents: whether a document's first token is a target.

    Raises DataError for a split without a target.
    """
    rows = len(evaluation_windows(split, seq_len=seq_len, most_tokens=most_tokens))
    batches = evaluation_batches(
        split, seq_len=seq_len, batch_sequences=batch_sequences, across_documents=across_documents,
        most_tokens=most_tokens, rank=rank, world=world,
    )  # fmt: skip
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    nothing = Batch(
        tokens_bt=np.zeros((0, seq_len), np.int64),
        targets_bt=np.zeros((0, seq_len), np.int64),
        documents_bt=np.zeros((0, seq_len), np.int32),
    )
    for _ in range(-(-rows // (batch_sequences * world))):
        tokens_bt, targets_bt, documents_bt = to_torch(next(batches, nothing))
        tokens_bt, documents_bt = (_fill(x, batch_sequences, 0).to(device) for x in (tokens_bt, documents_bt))
        targets_bt = _fill(targets_bt, batch_sequences, IGNORED).to(device)
        losses_bt = losses(tokens_bt, targets_bt, documents_bt if mask_documents else None)
        sums += _sum_moments(losses_bt, targets_bt)
    found = _estimate(sums if reduce is None else reduce(sums))
    if not found.tokens:
        raise DataError(f"{split.dataset.folder}: its {split.name} split has no token to predict from another")
    return found


def _fill(x_bt: Tensor, rows: int, value: int) -> Tensor:
    """Add rows of one value up to so many."""
    return F.pad(x_bt, (0, 0, 0, rows - x_bt.shape[0]), value=value)


def _sum_moments(losses_bt: Tensor, targets_bt: Tensor) -> Tensor:
    """Sum, over sequences with targets: one, targets x, losses y, x², x·y and y²."""
    x_b = (targets_bt >= 0).sum(dim=1).double()
    y_b = losses_bt.sum(dim=1, dtype=torch.float64)
    return torch.stack([(x_b > 0).double(), x_b, y_b, x_b * x_b, x_b * y_b, y_b * y_b]).sum(dim=1)


def _estimate(sums: Tensor) -> HeldOut:
    """Divide summed losses by summed targets, with the ratio estimator's standard error.

    Cochran 1977, Sampling Techniques, chapter 6, without the finite-population factor.
    """
    sequences, x, y, xx, xy, yy = sums.tolist()
    loss = y / x if x else math.nan
    squares = yy - 2 * loss * xy + loss * loss * xx
    squares = 0.0 if squares < 0 else squares  # of rounding; NaN stays
    se = math.sqrt(squares * sequences / (sequences - 1)) / x if sequences > 1 else None
    return HeldOut(loss=loss, se=se, tokens=int(x), sequences=int(sequences))
