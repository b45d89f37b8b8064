"""Turn sequences into the loss that training lowers, in the precision that a recipe asks for.

Axes in names: b batch, t time, n positions, d d_model, v vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lathe.model.decoder import Decoder
from lathe.model.loss import chunked_losses, position_losses
from lathe.train.teacher import Teacher


class Objective(nn.Module):
    """Compute a decoder's losses, as one module that layouts can wrap.

    `autocast` is the dtype that products are taken in, if not the weights'. A stage that is not a pipeline's `last`
    gives hidden states in place of losses. A `teacher` counts in training alone.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        z_weight: float,
        autocast: torch.device | None = None,
        last: bool = True,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.decoder, self.z_weight, self.autocast, self.last = decoder, z_weight, autocast, last
        self.teacher = teacher

    def forward(
        self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None, each: bool = False
    ) -> Tensor:
        """Give [1, 4], the sums over the targets of total loss, cross-entropy, z and the divergence from the teacher.

        Or else `each` position's cross-entropy, [b, t]: 0 where there is no target, and not to be differentiated.
        """
        # the teacher reads first, while no activations of the student's stand
        lesson = None if self.teacher is None or each else self.teacher.teach(tokens_bt, documents_bt)
        with self._precision():
            x_btd = self.decoder.hidden(tokens_bt, documents_bt=documents_bt)
            if not self.last:
                return x_btd
            weight_vd = self.decoder.output_weight
            if isinstance(weight_vd, DTensor):
                weight_vd = weight_vd.to_local()
            x_nd, targets_n = x_btd.flatten(0, 1), targets_bt.flatten()
            if each:
                return position_losses(x_nd, weight_vd, targets_n).view_as(targets_bt)
            losses = chunked_losses(x_nd, weight_vd, targets_n, z_weight=self.z_weight, lesson=lesson)
            sums = losses.total, losses.cross_entropy, losses.z, losses.divergence
            return torch.stack([one[None] for one in sums], dim=1)

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.autocast.type, torch.bfloat16)
