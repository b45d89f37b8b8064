"""Compute gradients and losses on whatever layout of processes: one, replicas, shards, sliced matrices, stages.

Whatever the layout, gradients are those of the whole batch's summed loss over its number of targets, and norms and
losses are those of one process but for rounding. The communication is torch's: DDP, FSDP2, DTensor, pipelining.

Axes in names: b batch, t time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lathe.errors import RecipeError
from lathe.model.checkpoint import check_dtype, empty_model
from lathe.model.decoder import Decoder
from lathe.recipe import Recipe
from lathe.train.direct import Direct
from lathe.train.execution import Execution
from lathe.train.mesh import Mesh, count_share, is_sharded, open_mesh
from lathe.train.objective import Objective
from lathe.train.pipeline import Pipeline, keep_stage
from lathe.train.teacher import check_axes, open_teacher
from lathe.train.tensor import slice_matrices, sum_partial

WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-mixed": torch.float32}
"""What weights, gradients and optimiser states are kept in."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Hold this process's sums over its targets; `Engine.reduce` adds up those of all."""

    cross_entropy: Tensor
    z: Tensor
    divergence: Tensor


class Layout(Protocol):
    """Carry micro-batches through the weights."""

    def accumulate(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, scale: float) -> Tensor:
        """Add the gradients of scale · total loss; gives the sums of total, cross-entropy, z and divergence."""
        ...

    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        """Give every position's cross-entropy."""
        ...


class Engine:
    """Hold a decoder laid out over processes.

    `module` has this process's parameters under their global names, for optimisers and checkpoints. All processes call
    the same methods in the same order.
    """

    def __init__(self, module: Decoder, layout: Layout, *, mesh: Mesh, share: int, mask_documents: bool) -> None:
        self.module, self.layout, self.mesh = module, layout, mesh
        self._share, self._mask_documents = share, mask_documents

    def accumulate(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor, *, count: float) -> Sums:
        """Make the gradients of the whole batch's total loss over `count`, the targets of all processes.

        Each process gives its part of the step's batch, the data_rank-th of data_world. Gradients must be None before.
        Only the last micro-batch's pass talks to the other replicas. Raises RecipeError for a part of another size.
        """
        if tokens_bt.shape[0] != self._share:
            raise RecipeError(f"a step has {self._share} sequences a data rank, and {tokens_bt.shape[0]} were given")
        # DDP and FSDP average over data ranks; the loss is summed over them
        sums = self.layout.accumulate(*self._place(tokens_bt, targets_bt, documents_bt), self.mesh.data_world / count)
        if self.mesh.sizes["tp"] > 1:
            sum_partial(self.module)
        return Sums(cross_entropy=sums[1], z=sums[2], divergence=sums[3])

    @torch.no_grad()
    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None) -> Tensor:
        """Give each position's cross-entropy, [b, t] in fp32: nats, 0 where the target is below zero.

        All processes call it equally often, with equally many sequences. In a pipeline only the last stage gives
        losses, the others zeros.
        """
        self.module.eval()
        try:
            placed = [None if x is None else x.to(self.mesh.device) for x in (tokens_bt, targets_bt, documents_bt)]
            return self.layout.losses(*placed)  # pyright: ignore[reportArgumentType]
        finally:
            self.module.train()

    def reduce(self, values: Tensor) -> Tensor:
        """Sum values over the data ranks; those of the other ranks of tp and pp do not count. All get the sum."""
        if self.mesh.devices is None:
            return values
        summed = values.clone() if self.mesh.counts else torch.zeros_like(values)
        dist.all_reduce(summed)
        return summed

    def any_rank(self, flag: bool) -> bool:
        """Say whether any process raises a flag."""
        if self.mesh.devices is None:
            return flag
        raised = torch.tensor(float(flag), device=self.mesh.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.mesh.devices is not None:
            dist.barrier()

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> Tensor:
        """Scale the gradients down to a norm of at most `max_norm`; gives the norm before, that of one process."""
        kept: dict[tuple, list[Tensor]] = {}
        for p in self.module.parameters():
            if p.grad is not None:
                groups, local = _local(p.grad)
                kept.setdefault(groups, []).append(local)
        norm = self._norm(kept)
        if max_norm is not None and not norm <= max_norm:  # a pass over all gradients saved
            share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            for grads in kept.values():
                torch._foreach_mul_(grads, share.to(grads[0].device))  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def _norm(self, kept: dict[tuple, list[Tensor]]) -> Tensor:
        """Take one norm for all gradients that are cut alike, and combine it with those of the other parts."""
        norms = []
        for groups, grads in kept.items():
            each = torch._foreach_norm(grads, 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]
            norm = torch.stack(each).norm()
            norms.append(_combine(norm, groups) if groups else norm)
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        if self.mesh.devices is None or self.mesh.sizes["pp"] == 1:
            return norm
        return _combine(norm, (self.mesh.devices.get_group("pp"),))

    @torch.no_grad()
    def full_weights(self) -> dict[str, Tensor]:
        """Give the whole weights on the CPU to the main process, nothing to the others."""
        own = {}
        for name, p in self.module.named_parameters():
            whole = p.full_tensor() if isinstance(p, DTensor) else p
            if not any(place for axis, place in self.mesh.place.items() if axis != "pp"):
                own[name] = whole.detach().to("cpu", copy=True)
        if self.mesh.sizes["pp"] == 1:
            return own
        stages: list | None = [None] * self.mesh.world if self.mesh.is_main else None
        dist.gather_object(own, stages)
        return {name: weight for stage in stages or () for name, weight in stage.items()}

    def _place(
        self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        device = self.mesh.device
        documents = documents_bt.to(device, non_blocking=True) if self._mask_documents else None
        return tokens_bt.to(device, non_blocking=True), targets_bt.to(device, non_blocking=True), documents

    def close(self) -> None:
        """End the process group, if the engine opened it."""
        self.mesh.close()


def open_engine(
    recipe: Recipe, execution: Execution, *, weights: Iterable[tuple[str, Tensor]], mesh: Mesh | None = None
) -> Engine:
    """Lay a recipe's decoder out over the processes that there are, and fill it with weights.

    `weights` are whole, by name, and the same on every process. Raises RecipeError for a batch, mesh or shape that
    cannot be laid out so, DeviceError for a device or dtype there is not or a teacher that does not fit.
    """
    mesh = mesh or open_mesh(execution)
    try:
        return _open_engine(recipe, execution, weights, mesh)
    except BaseException:
        mesh.close()
        raise


def _open_engine(recipe: Recipe, execution: Execution, weights: Iterable[tuple[str, Tensor]], mesh: Mesh) -> Engine:
    share, micro_batch = count_share(recipe.batch_sequences, mesh, execution.micro_batch)
    check_dtype("bf16" if "bf16" in recipe.dtype else "fp32", mesh.device)
    sharded = is_sharded(execution, mesh.sizes)
    mixed = recipe.dtype == "bf16-mixed"
    check_axes(recipe, mesh.sizes)
    teacher = open_teacher(recipe, mesh.device)
    decoder = _cut(recipe, execution, mesh)
    autocast = mesh.device if mixed and not sharded else None
    objective = Objective(decoder, z_weight=recipe.z_loss, autocast=autocast, last=mesh.last_stage, teacher=teacher)
    if sharded:
        _shard(objective, mesh, mixed=mixed, offload=execution.offload)
    _fill(decoder, weights, torch.device("cpu") if execution.offload else mesh.device)
    wrapped = objective if sharded else _replicate(objective, mesh)
    if mesh.sizes["pp"] == 1:
        layout = Direct(objective, wrapped, micro_batch=micro_batch)
    else:
        layout = Pipeline(
            objective, wrapped, mesh, schedule=execution.pipeline, micro_batches=share // micro_batch,
            d_model=recipe.shape.d_model, dtype=torch.bfloat16 if mixed and sharded else WEIGHT_DTYPES[recipe.dtype],
        )  # fmt: skip
    masked = recipe.data is not None and recipe.data.mask_documents
    return Engine(decoder, layout, mesh=mesh, share=share, mask_documents=masked)


def _cut(recipe: Recipe, execution: Execution, mesh: Mesh) -> Decoder:
    """Make this process's stage and slices of the decoder, without memory."""
    decoder = empty_model(recipe.shape).to(WEIGHT_DTYPES[recipe.dtype])
    decoder.recompute_every = execution.recompute_every
    if mesh.sizes["pp"] > 1:
        keep_stage(decoder, mesh)
    if mesh.sizes["tp"] > 1:
        slice_matrices(decoder, mesh)
    if execution.compile:
        for block in set(decoder.visits):
            decoder.blocks[block].compile()
    return decoder


def _replicate(objective: Objective, mesh: Mesh) -> nn.Module:
    if mesh.data_world == 1:
        return objective
    assert mesh.devices is not None
    return DistributedDataParallel(objective, process_group=mesh.devices.get_group("dp"), gradient_as_bucket_view=True)


def _shard(objective: Objective, mesh: Mesh, *, mixed: bool, offload: bool) -> None:
    """Shard each block, and then the rest, over fsdp; replicate the shards over dp."""
    assert mesh.devices is not None
    devices = mesh.devices["dp", "fsdp"] if mesh.sizes["dp"] > 1 else mesh.devices["fsdp"]
    policy = MixedPrecisionPolicy()
    if mixed:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    place = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if offload else OffloadPolicy()
    for block in set(objective.decoder.visits):
        fully_shard(objective.decoder.blocks[block], mesh=devices, mp_policy=policy, offload_policy=place)
    fully_shard(objective, mesh=devices, mp_policy=policy, offload_policy=place)


@torch.no_grad()
def _fill(decoder: Decoder, weights: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Give the weights memory and values, one whole weight after the other."""
    decoder.to_empty(device=device)
    own = dict(decoder.named_parameters())
    for name, whole in weights:
        p = own.get(name)
        if isinstance(p, DTensor):
            cut = distribute_tensor(whole.to(device, p.dtype), p.device_mesh, p.placements, src_data_rank=None)
            p.to_local().copy_(cut.to_local())
        elif p is not None:
            p.copy_(whole)


def _local(grad: Tensor) -> tuple[tuple[dist.ProcessGroup, ...], Tensor]:
    """Give this process's part of a gradient, and the groups over which it is cut."""
    if not isinstance(grad, DTensor):
        return (), grad
    cut = [axis for axis, placement in enumerate(grad.placements) if not placement.is_replicate()]
    return tuple(grad.device_mesh.get_group(axis) for axis in cut), grad.to_local()


def _combine(norm: Tensor, groups: tuple[dist.ProcessGroup, ...]) -> Tensor:
    """Combine norms of parts into the norm of the whole."""
    square = norm.double().square()
    for group in groups:
        dist.all_reduce(square, group=group)
    return square.sqrt().float()
