"""Write tensors to a folder and read them, each rank its shards, with torch.distributed.checkpoint (DCP).

Alone or on many ranks the files are the same. DCP's own entrances warn where there is no process group, so one process
goes through the same steps here by itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_together
from torch.distributed.checkpoint.state_dict_saver import save as save_together

from lathe.errors import CheckpointError, CodecError

T = TypeVar("T")
CLASSES = {
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
}
"""What a state's table of contents may be made of, beside DCP's own metadata."""
CONTENTS = ".metadata"
FAILURES = (OSError, RuntimeError, ValueError, CodecError, pickle.UnpicklingError, CheckpointException)
"""What a read or write that fails raises: the disk's errors, as Python's, torch's and other ranks' (no Exception)."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Hold the processes that write or read one state together; without a group there is one."""

    group: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    def gather(self, value: T) -> list[T]:
        """Give every rank's value to all."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, value, group=self.group)
        return found

    def leave(self) -> None:
        """Give the group back, unless all have been."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)


def new_ranks() -> Ranks:
    """Join all ranks in a group of their own, on the CPU; all of them call it together."""
    if not dist.is_initialized():
        return Ranks(None)
    return Ranks(cast(dist.ProcessGroup, dist.new_group(backend="gloo")))


def all_ranks() -> Ranks:
    """Take all ranks, in the group they have already."""
    return Ranks(dist.group.WORLD if dist.is_initialized() else None)


class Reader(FileSystemReader):
    """Read a state without running anything that its pickled table of contents may name."""

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        with open(Path(self.path) / CONTENTS, "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Build what a table of contents consists of, and refuse all else."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.split(".")[0] in ("torch", "pathlib") else None
        known = isinstance(found, type) and (found.__module__ == Metadata.__module__ or (module, name) in CLASSES)
        if known or isinstance(found, torch.dtype) or (module, name) == ("torch.serialization", "_get_layout"):
            return found
        raise pickle.UnpicklingError(
            f"its table of contents asks for {module}.{name}, which is none of a state's parts"
        )


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Write tensors and their table of contents."""
    planner, writer = DefaultSavePlanner(flatten_state_dict=False), FileSystemWriter(folder)
    if group is not None:
        save_together(tensors, storage_writer=writer, planner=planner, process_group=group)
        return
    planner.set_up_planner(tensors, storage_meta=writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, contents = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(contents, [writer.write_data(plan, planner).value()])


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read a state into tensors. Raises CheckpointError."""
    planner, reader = DefaultLoadPlanner(flatten_state_dict=False), Reader(folder)
    try:
        if dist.is_initialized():
            load_together(dict(tensors), storage_reader=reader, planner=planner)
            return
        contents = reader.read_metadata()
        planner.set_up_planner(dict(tensors), metadata=contents, is_coordinator=True)
        reader.set_up_storage_reader(contents, True)
        plans = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
        plan = planner.finish_plan(reader.prepare_global_plan(plans)[0])
        reader.read_data(plan, planner).wait()
    except FAILURES as error:
        raise CheckpointError(
            f"{folder} does not hold this training's state: {explain(error)}; it was written for another shape, "
            "optimiser or average of weights: choose another folder, or remove its checkpoints"
        ) from None


def find_tensors(folder: Path, prefix: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """List the tensors of a state whose names begin so, with their whole sizes."""
    found = Reader(folder).read_metadata().state_dict_metadata
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in found.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def files_of(folder: Path, rank: int) -> list[str]:
    """List what a rank wrote: its shards, and rank 0 the table of contents."""
    shards = sorted(path.name for path in folder.glob(f"__{rank}_*"))
    return [CONTENTS, *shards] if rank == 0 else shards


def explain(error: BaseException) -> str:
    """Say in a line what went wrong, on whichever rank."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).strip().split("\n")[0] or type(error).__name__
