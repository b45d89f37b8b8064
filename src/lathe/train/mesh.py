"""Lay processes out in a mesh: which of them hold replicas, shards, slices of matrices, stages of blocks.

The axes stand in the order pp, dp, fsdp, tp, so that neighbours in rank are those that talk most. Processes are
torchrun's: RANK, WORLD_SIZE and LOCAL_RANK say which this one is. A lone process needs none of that and no process
group.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lathe.errors import RecipeError
from lathe.model.checkpoint import check_device
from lathe.train.execution import Execution

ORDER = ("pp", "dp", "fsdp", "tp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Hold where this process stands: `sizes` and `place` along each axis.

    `devices` is None where there is one process alone; `owns_group` says that closing ends the process group.
    """

    device: torch.device
    sizes: Mapping[str, int]
    place: Mapping[str, int]
    devices: DeviceMesh | None = None
    owns_group: bool = False

    @property
    def world(self) -> int:
        """Count all processes."""
        return prod(self.sizes.values())

    @property
    def is_main(self) -> bool:
        """Say whether this is the process that writes what is written once."""
        return not any(self.place.values())

    @property
    def data_world(self) -> int:
        """Count the parts that a step's batch is cut into."""
        return self.sizes["dp"] * self.sizes["fsdp"]

    @property
    def data_rank(self) -> int:
        """Say which part of a step's batch this process reads; the ranks of tp and pp read the same."""
        return self.place["dp"] * self.sizes["fsdp"] + self.place["fsdp"]

    @property
    def last_stage(self) -> bool:
        """Say whether this process has the end of the pipeline, and so the losses."""
        return self.place["pp"] == self.sizes["pp"] - 1

    @property
    def counts(self) -> bool:
        """Say whether this process's sums count: one process of each part of the batch does."""
        return self.last_stage and self.place["tp"] == 0

    def close(self) -> None:
        """End the process group that `open_mesh` made."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def choose_device(execution: Execution) -> str:
    """Name the device that is asked for, or else the best there is."""
    return execution.device or ("cuda" if torch.cuda.is_available() else "cpu")


def is_sharded(execution: Execution, sizes: Mapping[str, int]) -> bool:
    """Say whether FSDP holds the weights: also where tensor-parallel replicas are kept alike, which DDP cannot."""
    return execution.offload or sizes["fsdp"] > 1 or (sizes["dp"] > 1 and sizes["tp"] > 1)


def open_mesh(execution: Execution) -> Mesh:
    """Find this process's place, and meet the others.

    Raises RecipeError for a mesh of more or fewer processes than there are, DeviceError for a device there is not.
    """
    ready = dist.is_initialized()
    world = dist.get_world_size() if ready else int(os.environ.get("WORLD_SIZE", "1"))
    sizes = count_axes(execution, world)
    kind = choose_device(execution)
    device = check_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1 and not execution.offload:
        return Mesh(device=device, sizes=sizes, place=dict.fromkeys(ORDER, 0))
    if not ready:
        _open_group(device, world)
    devices = init_device_mesh(device.type, tuple(sizes[axis] for axis in ORDER), mesh_dim_names=ORDER)
    place = {axis: devices.get_local_rank(axis) for axis in ORDER}
    return Mesh(device=device, sizes=sizes, place=place, devices=devices, owns_group=not ready)


def count_axes(execution: Execution, world: int) -> dict[str, int]:
    """Give the processes along each axis; without a mesh all are replicas, or shards where weights are offloaded.

    Raises RecipeError for a mesh of more or fewer processes than there are, and for one that cuts up a decoder which is
    to be analysed.
    """
    default = {"fsdp" if execution.offload else "dp": world}
    sizes = dict.fromkeys(ORDER, 1) | (execution.mesh or default)
    if (asked := prod(sizes.values())) != world:
        given = ", ".join(f"{axis}={ranks}" for axis, ranks in (execution.mesh or {}).items())
        raise RecipeError(
            f"mesh {given} is for {asked} process{'es' * (asked > 1)}, and there {'are' if world > 1 else 'is'} {world}"
            f"; start {asked} (lathe train --nproc {asked}, or torchrun), or give a mesh whose product is {world}"
        )
    cut = [f"{axis}={sizes[axis]}" for axis in ("fsdp", "tp", "pp") if sizes[axis] > 1]
    cut += ["offload"] if execution.offload else []
    if execution.analyse_every is not None and cut:
        raise RecipeError(
            f"analyse_every={execution.analyse_every} needs the whole decoder on each process, and {', '.join(cut)} "
            "cuts it up; train with replicas alone (mesh dp), or run lathe analyse on the checkpoint"
        )
    return sizes


def _open_group(device: torch.device, world: int) -> None:
    """Meet the other processes; tensors of the CPU go by gloo even where there are GPUs."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    bound = device if device.type == "cuda" else None
    if world == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=bound)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RecipeError(
            f"WORLD_SIZE={world}, but {', '.join(missing)} is not set, so the processes cannot meet; "
            "start them with lathe train --nproc or torchrun"
        )
    try:
        dist.init_process_group(backend, device_id=bound)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RecipeError(f"{socket.gethostname()} cannot meet the other processes at {where}: {error}") from None


def count_share(batch_sequences: int, mesh: Mesh, micro_batch: int | None) -> tuple[int, int]:
    """Give the sequences of a step that are this process's, and how many it computes with at once.

    A pipeline has at least as many micro-batches as stages. Raises RecipeError for a batch that does not split so; the
    message says what would fit.
    """
    ranks, stages = mesh.data_world, mesh.sizes["pp"]
    if batch_sequences % (ranks * (micro_batch or 1)):
        raise RecipeError(
            f"a batch of {batch_sequences} sequences does not split into {_describe(ranks, micro_batch)}; "
            f"{_what_fits(batch_sequences, ranks, micro_batch)}"
        )
    share = batch_sequences // ranks
    if micro_batch is None:
        micro_batch = max((m for m in range(1, share + 1) if share % m == 0 and share // m >= stages), default=1)
    if share // micro_batch < stages:
        raise RecipeError(
            f"a pipeline of {stages} stages needs {stages} micro-batches a step or more, and {share} sequences a rank "
            f"make {share // micro_batch} of {micro_batch}; take micro_batch={max(1, share // stages)} or less, or a "
            f"batch of {ranks * stages * micro_batch} sequences"
        )
    return share, micro_batch


def _describe(ranks: int, micro_batch: int | None) -> str:
    parts = f"{ranks} data rank{'s' * (ranks > 1)}"
    return parts if micro_batch is None else f"{parts} × micro-batches of {micro_batch}"


def _what_fits(batch_sequences: int, ranks: int, micro_batch: int | None) -> str:
    """Name micro-batches and batches near the given ones that would split."""
    unit = ranks * (micro_batch or 1)
    batches = " or ".join(
        str(n * unit) for n in dict.fromkeys((batch_sequences // unit, -(-batch_sequences // unit))) if n
    )
    share, rest = divmod(batch_sequences, ranks)
    fits = [m for m in range(1, (micro_batch or 0) + 1) if rest == 0 and share % m == 0]
    return f"take a batch of {batches} sequences" + (f", or micro_batch={fits[-1]}" if fits else "")
