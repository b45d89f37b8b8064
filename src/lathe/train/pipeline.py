"""Cut a decoder into stages of whole blocks, and carry micro-batches through them one behind the other.

A stage is a decoder without the blocks of the others: what it lacks passes its input on, so weights keep their global
names. Every stage is given the batch's targets and documents; only hidden states travel.

Axes in names: b batch, t time, d d_model.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from lathe.errors import RecipeError
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from lathe.train.mesh import Mesh

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


def stage_blocks(shape: Shape, stages: int) -> list[range]:
    """Deal the stored blocks out to stages, in order; the first stages get what is left over.

    Raises RecipeError for a shape that cannot be cut so.
    """
    mend = "take fsdp in place of pp"
    if shape.tied:
        raise RecipeError(
            f"mesh pp={stages} cannot train tied embeddings: the first stage would read and the last stage write with "
            f"the same matrix; {mend}, or tied=false"
        )
    if shape.sharing not in ("none", "immediate"):
        raise RecipeError(
            f"mesh pp={stages} cannot train sharing={shape.sharing!r}: a block's visits lie far apart, so two stages "
            f"would need the same weights; {mend}, or sharing='immediate'"
        )
    if shape.stored_layers < stages:
        raise RecipeError(
            f"mesh pp={stages} has more stages than the shape's {shape.stored_layers} stored blocks; {mend}"
        )
    each, more = divmod(shape.stored_layers, stages)
    starts = [each * stage + min(stage, more) for stage in range(stages + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def keep_stage(decoder: Decoder, mesh: Mesh) -> None:
    """Take out of a decoder what other stages hold. Raises RecipeError as `stage_blocks`."""
    stage = mesh.place["pp"]
    own = stage_blocks(decoder.shape, mesh.sizes["pp"])[stage]
    decoder.visits = tuple(block for block in decoder.visits if block in own)
    for block in range(decoder.shape.stored_layers):
        if block not in own:
            decoder.blocks[block] = nn.Identity()
    if stage > 0:
        decoder.embedding = cast(nn.Embedding, nn.Identity())  # passes the hidden states on
        decoder.positions = None
    if not mesh.last_stage:
        decoder.norm = decoder.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]


class Pipeline:
    """Carry micro-batches through the stages, in the order that a schedule says.

    `wrapped` is this stage's objective, by itself or in DDP or FSDP; `dtype` is that of the hidden states.
    """

    def __init__(
        self, objective: nn.Module, wrapped: nn.Module, mesh: Mesh, *, schedule: str, micro_batches: int, d_model: int,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.objective, self.wrapped, self.mesh = objective, wrapped, mesh
        self.order, self.micro_batches, self.d_model, self.dtype = SCHEDULES[schedule], micro_batches, d_model, dtype
        self.scale = 1.0
        self._made: dict[tuple, PipelineScheduleSingle] = {}

    def accumulate(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, scale: float) -> Tensor:
        """Add the gradients of scale · total loss; gives the last stage's sums, as `Objective`'s."""
        self.scale = scale
        sums_n4 = self._run(tokens_bt, targets_bt, documents_bt, each=False)
        return tokens_bt.new_zeros(4, dtype=torch.float32) if sums_n4 is None else sums_n4.detach().sum(dim=0)

    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        """Give every position's cross-entropy from the last stage, zeros from the others."""
        losses_bt = self._run(tokens_bt, targets_bt, documents_bt, each=True)
        if isinstance(self.objective, FSDPModule):
            self.objective.reshard()
        return torch.zeros_like(targets_bt, dtype=torch.float32) if losses_bt is None else losses_bt

    def _run(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, *, each: bool) -> Tensor | None:
        rows, time = tokens_bt.shape
        schedule = self._schedule(rows, time, each)
        given = (tokens_bt,) if self.mesh.place["pp"] == 0 else ()
        # a micro-batch's share of targets and documents is cut along with its tokens
        beside: dict[str, Any] = {"targets_bt": targets_bt}
        if documents_bt is not None:
            beside["documents_bt"] = documents_bt
        if each:
            return schedule.eval(*given, each=True, **beside)
        return schedule.step(*given, target=targets_bt if self.mesh.last_stage else None, **beside)

    def _schedule(self, rows: int, time: int, each: bool) -> PipelineScheduleSingle:
        """Make the schedule for batches of one size, once."""
        key = rows, time, each
        if key not in self._made:
            count = self.micro_batches
            if each:
                count = max(n for n in range(1, min(rows, self.mesh.sizes["pp"]) + 1) if rows % n == 0)
            stage = self._stage(rows // count, time, each)
            weigh = None if each else lambda sums_14, _: sums_14[:, 0].sum() * self.scale
            order = ScheduleGPipe if each else self.order
            self._made[key] = order(stage, count, loss_fn=weigh, scale_grads=False)
        return self._made[key]

    def _stage(self, rows: int, time: int, each: bool) -> PipelineStage:
        """Make this process's stage, with the sizes of what it receives and sends."""
        place, mesh = self.mesh.place["pp"], self.mesh
        assert mesh.devices is not None
        between = torch.empty(rows, time, self.d_model, dtype=self.dtype, device="meta", requires_grad=not each)
        tokens = torch.empty(rows, time, dtype=torch.int64, device="meta")
        end = torch.empty((rows, time) if each else (1, 4), device="meta", requires_grad=not each)
        return PipelineStage(
            self.objective if each else self.wrapped,
            place,
            mesh.sizes["pp"],
            mesh.device,
            input_args=tokens if place == 0 else between,
            output_args=end if mesh.last_stage else between,
            group=mesh.devices.get_group("pp"),
        )
