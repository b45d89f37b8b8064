"""Carry micro-batches through a decoder that is in one piece: here, replicated, or gathered from shards when needed.

Axes in names: b batch, t time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lathe.train.objective import Objective


class Direct:
    """Carry micro-batches one after the other; `wrapped` is the objective, by itself or in DDP or FSDP."""

    def __init__(self, objective: Objective, wrapped: nn.Module, *, micro_batch: int) -> None:
        self.objective, self.wrapped, self.micro_batch = objective, wrapped, micro_batch

    def accumulate(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, scale: float) -> Tensor:
        """Add the gradients of scale · total loss; gives the sums of total, cross-entropy, z and divergence."""
        starts = range(0, tokens_bt.shape[0], self.micro_batch)
        sums = torch.zeros(4, device=tokens_bt.device)
        for at in starts:
            rows = slice(at, at + self.micro_batch)
            with self._talk(last=at == starts[-1]):
                sums_14 = self.wrapped(
                    tokens_bt[rows], targets_bt[rows], None if documents_bt is None else documents_bt[rows]
                )
                (sums_14[0, 0] * scale).backward()
            sums += sums_14[0].detach()
        return sums

    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        """Give every position's cross-entropy."""
        losses_bt = self.objective(tokens_bt, targets_bt, documents_bt, True)
        if isinstance(self.objective, FSDPModule):
            self.objective.reshard()  # else module.parameters() would be whole ones, and stale after the next step
        return losses_bt

    def _talk(self, *, last: bool) -> AbstractContextManager[None]:
        """Let gradients be exchanged in the last micro-batch's backward pass only."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext() if last else self.wrapped.no_sync()
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
            self.wrapped.set_is_last_backward(last)
        return nullcontext()
