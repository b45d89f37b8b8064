"""Save and load states on two ranks, in every layout: run by test_state.py as `state_worker.py FOLDER RANK`.

What each tensor must hold follows from its name, so that any process can tell what any other should have written.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lathe.train import snapshots
from lathe.train.state import Saver, gather_tensors, load_latest, load_step

WIDTH, ODD = 6, 5  # five rows do not divide among two ranks


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, ODD), nn.Linear(ODD, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x_bd: Tensor) -> Tensor:
        return self.norm(self.second(torch.relu(self.first(x_bd))))


def make_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name the state of a model, with Muon for matrices, AdamW for the rest, and a moving average."""
    named = dict(model.named_parameters())
    matrices = [p for p in named.values() if p.ndim == 2]
    rest = [p for p in named.values() if p.ndim != 2]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices)] if matrices else []
    if rest:
        optimisers.append(torch.optim.AdamW(rest))
    return gather_tensors(model, optimisers, {name: p.detach().clone() for name, p in named.items()})


def expect(name: str, size: torch.Size, *, salt: int = 0) -> Tensor:
    if not size:  # a count of steps
        return torch.tensor(7.0 + salt)
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + salt))


@torch.no_grad()
def fill(tensors: dict[str, Tensor], *, salt: int = 0) -> None:
    for name, tensor in tensors.items():
        whole = expect(name, tensor.shape, salt=salt)
        if isinstance(tensor, DTensor):
            whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
        tensor.copy_(whole)


def differing(tensors: dict[str, Tensor], *, salt: int = 0) -> list[str]:
    """Name the tensors that are not, to the bit, what they should be."""
    wholes = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}
    return [name for name, x in wholes.items() if not torch.equal(x, expect(name, x.shape, salt=salt))]


def replicated(_: DeviceMesh) -> nn.Module:
    return Model()


def sharded(mesh: DeviceMesh) -> nn.Module:
    model = Model()
    fully_shard(model.first, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sliced(mesh: DeviceMesh) -> nn.Module:
    """Cut matrices by columns, vectors by rows, as tensor parallelism may."""
    model = Model()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(distribute_tensor(p.data, mesh, [Shard(p.ndim - 1)])))
    return model


def staged(mesh: DeviceMesh) -> nn.Module:
    """Keep on each rank a part of the modules only, as a pipeline does."""
    model = Model()
    for name in ["second", "norm"] if mesh.get_rank() == 0 else ["first"]:
        delattr(model, name)
    return model


LAYOUTS: dict[str, Callable[[DeviceMesh], nn.Module]] = {
    "replicated": replicated,
    "sharded": sharded,
    "sliced": sliced,
    "staged": staged,
}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    for name, layout in LAYOUTS.items():
        tensors = make_tensors(layout(mesh))
        found[f"{name}: from one process"] = load_latest(folder / "one", tensors)
        found[f"{name}: differing"] = differing(tensors)
        save_beside_traffic(folder / name, tensors)
    for name, layout in LAYOUTS.items():  # each reads what another wrote
        tensors = make_tensors(layout(mesh))
        before = [*LAYOUTS][[*LAYOUTS].index(name) - 1]
        found[f"{name}: after {before}"] = [load_step(folder / before, 4, tensors), differing(tensors, salt=4)]
    found |= fail(folder / "failing", rank, make_tensors(sharded(mesh)))
    found |= damage(folder / "damaged", rank, make_tensors(sharded(mesh)))
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def save_beside_traffic(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Save while the training changes its tensors and talks over its own group."""
    saver = Saver(folder)
    for step in (3, 4):
        fill(tensors, salt=step)
        saver.save(step, tensors, {"step": step})
        fill(tensors, salt=99)
        for _ in range(20):
            dist.all_reduce(torch.ones(8))
    saver.close()


def fail(folder: Path, rank: int, tensors: dict[str, Tensor]) -> dict[str, object]:
    """Let a save fail on rank 1 alone, then go on."""
    said: list[str] = []
    saver = Saver(folder, report=said.append)
    fill(tensors)
    saver.save(1, tensors, {})
    saver.wait()
    for target in ("sum_files", "mkdir"):
        kept = snapshots.sum_files, Path.mkdir
        if rank == 1 and target == "sum_files":
            snapshots.sum_files = refuse
        elif rank == 1:
            Path.mkdir = refuse
        saver.save(2, tensors, {})
        said.append(f"good: {saver.wait()}")
        snapshots.sum_files, Path.mkdir = kept
    left = sorted(path.name for path in (folder / snapshots.CHECKPOINTS).iterdir())
    saver.save(3, tensors, {})
    said.append(f"good: {saver.wait()}")
    saver.close()
    return {"failing: said": said, "failing: left": left, "failing: then": snapshots.list_steps(folder)}


def refuse(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def damage(folder: Path, rank: int, tensors: dict[str, Tensor]) -> dict[str, object]:
    """Damage what rank 1 wrote, and load."""
    saver = Saver(folder)
    for step in (1, 2):
        fill(tensors, salt=step)
        saver.save(step, tensors, {"step": step})
    saver.close()
    shard = snapshots.step_folder(folder, 2) / "__1_0.distcp"
    if rank == 0:
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    dist.barrier()
    said: list[str] = []
    loaded = load_latest(folder, tensors, report=said.append)
    return {"damaged: said": said, "damaged: loaded": loaded, "damaged: differing": differing(tensors, salt=1)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
