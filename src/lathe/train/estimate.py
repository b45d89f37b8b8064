"""Say what a training will take before it begins: steps, FLOPs, memory by part, time, and what it writes.

Time is model FLOPs, and those of recomputed blocks, over what the devices reach at a stated share of their peak;
evaluations, saves and waiting for data are left out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from lathe.device import Device
from lathe.recipe import Recipe
from lathe.shape import count_forward_flops
from lathe.train.branches import branch_recipes
from lathe.train.execution import Execution
from lathe.train.folder import BRANCHES
from lathe.train.footprint import Layout, footprint
from lathe.train.mesh import ORDER, Mesh, choose_device, count_axes, count_share, is_sharded
from lathe.train.meter import METRICS, Peak, find_peak
from lathe.train.pipeline import stage_blocks
from lathe.train.schedule import decay_start
from lathe.train.teacher import active_teacher, check_axes, check_teacher, teacher_flops
from lathe.train.tensor import check_slices

MFU = {"cpu": 0.6, "gpu": 0.4}
"""The share of the peak that training is taken to reach: of a CPU's measured one, or a GPU's datasheet's."""
LINE_BYTES = 330
"""Of a step in metrics.jsonl, about."""
ON_HOST = ("weights", "optimiser", "moving average")
"""Parts that --offload keeps in the host's memory; gradients follow, unless they are being added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Hold what a training will take.

    `memory` and `host` are bytes of a process, the one that needs the most, on its device and beside it; they are those
    of the worst moment. `flops` have a teacher's in them, and leave out what is recomputed. `state_bytes` are a
    trainer state's on disk, of which `states_kept` stay; `files` are the rest, by name. `branch_steps` are those of all
    WSD branches together.
    """

    recipe: Recipe
    layout: Layout
    branch_steps: int
    step_flops: float
    flops: float
    memory: dict[str, float]
    host: dict[str, float]
    device: str
    device_bytes: float | None
    peak: Peak
    devices: int
    mfu: float
    seconds: float
    state_bytes: float
    states_kept: int
    files: dict[str, float]

    @property
    def memory_bytes(self) -> float:
        """Add up the parts on the device."""
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> float:
        """Add up all that is on the disk at the end, and the state that is being written while the others stay."""
        return sum(self.files.values()) + (self.states_kept + 1) * self.state_bytes

    def text(self) -> str:
        """Tell it to people."""
        recipe, layout = self.recipe, self.layout
        branches = f" and {self.branch_steps:,} of branches" if self.branch_steps else ""
        axes = " × ".join(f"{axis} {layout.sizes[axis]}" for axis in ORDER if layout.sizes[axis] > 1)
        lines = [
            f"{recipe.shape.params:,} parameters, {recipe.steps * recipe.batch_tokens:,} tokens",
            f"{recipe.steps:,} steps{branches} of {recipe.batch_sequences} sequences of {recipe.seq_len} tokens",
            f"{layout.world} process{'es' * (layout.world > 1)}{f' ({axes})' * bool(axes)}, each computing "
            f"{layout.micro_batches} × {layout.micro_batch} sequences a step",
            f"{self.flops:.3g} FLOPs, {self.step_flops:.3g} a step",
            f"time: {format_time(self.seconds)} on {self.devices} × {self.device}, at {self.mfu:.0%} of "
            f"{self.peak.flops_per_s:.3g} FLOPs/s (assumed share; peak {self.peak.origin})",
            f"memory a process: {format_bytes(self.memory_bytes)}{self._fits()}",
            *_list_parts(self.memory),
        ]
        if self.host:
            lines += [f"and in the host's memory: {format_bytes(sum(self.host.values()))}", *_list_parts(self.host)]
        lines += [f"on disk: {format_bytes(self.disk_bytes)}", *_list_parts(self.files)]
        states = f"{self.states_kept} trainer state{'s' * (self.states_kept > 1)}"
        lines.append(f"  {states} of {format_bytes(self.state_bytes)}, and room for one that is being saved")
        return "\n".join(lines)

    def _fits(self) -> str:
        if self.device_bytes is None:
            return ""
        verdict = "" if self.memory_bytes <= self.device_bytes else ": TOO MUCH"
        return f" of {format_bytes(self.device_bytes)}{verdict}"


def estimate(
    recipe: Recipe, execution: Execution, *, world: int = 1, device: Device | None = None, mfu: float | None = None
) -> Estimate:
    """Estimate a training on so many devices, this machine's where none is given.

    A mesh says by itself how many processes there are. Raises RecipeError for what could not be trained so, and
    DeviceError for a dtype that the device does not compute in.
    """
    gpu = device.has_host if device is not None else torch.device(choose_device(execution)).type == "cuda"
    layout = lay_out(recipe, execution, world=world, gpu=gpu)
    branches = branch_recipes(recipe, execution.branch_at)
    branch_steps = sum(branch.steps - decay_start(branch) for branch in branches)
    steps = recipe.steps + branch_steps
    step_flops = recipe.shape.train_flops(recipe.batch_tokens, recipe.seq_len)
    step_flops += recipe.batch_tokens * teacher_flops(recipe)
    name, peak, device_bytes = _device(recipe, execution, device)
    devices = layout.world if gpu or device is not None else 1  # processes on this CPU share it
    mfu = mfu or MFU["gpu" if gpu else "cpu"]
    seconds = steps * (step_flops + _recomputed(recipe, execution)) / (devices * peak.flops_per_s * mfu)
    memory, host, state_bytes = _memory(recipe, execution, layout)
    return Estimate(
        recipe=recipe, layout=layout, branch_steps=branch_steps, step_flops=step_flops, flops=steps * step_flops,
        memory=memory, host=host, device=name, device_bytes=device_bytes, peak=peak, devices=devices, mfu=mfu,
        seconds=seconds, state_bytes=state_bytes, states_kept=_count_states(recipe, execution, branches),
        files=_list_files(recipe, execution, branches),
    )  # fmt: skip


def lay_out(recipe: Recipe, execution: Execution, *, world: int, gpu: bool) -> Layout:
    """Lay a step out as training will. Raises RecipeError for a mesh, a batch or a shape that does not split so."""
    sizes = count_axes(execution, prod((execution.mesh or {}).values()) if world == 1 else world)
    check_axes(recipe, sizes)
    if sizes["pp"] > 1:
        stage_blocks(recipe.shape, sizes["pp"])
    if sizes["tp"] > 1:
        check_slices(recipe.shape, sizes["tp"])
    mesh = Mesh(device=torch.device("meta"), sizes=sizes, place=dict.fromkeys(ORDER, 0))
    share, micro_batch = count_share(recipe.batch_sequences, mesh, execution.micro_batch)
    return Layout(
        sizes=sizes, micro_batch=micro_batch, micro_batches=share // micro_batch,
        sharded=is_sharded(execution, sizes), gpu=gpu,
    )  # fmt: skip


def _device(recipe: Recipe, execution: Execution, device: Device | None) -> tuple[str, Peak, float | None]:
    """Name the device, its peak and its memory."""
    if device is not None:
        dtype = "fp32" if recipe.dtype == "fp32" else "bf16"
        peak = Peak(flops_per_s=device.peak_flops(dtype), origin=f"dense {dtype}, as `lathe devices` has it")
        return device.name, peak, device.memory_bytes
    here = torch.device(choose_device(execution))
    peak = find_peak(here, recipe.dtype)
    if here.type == "cuda":
        return torch.cuda.get_device_name(here), peak, float(torch.cuda.get_device_properties(here).total_memory)
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return "this CPU", peak, float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else None


def _recomputed(recipe: Recipe, execution: Execution) -> float:
    """Count a step's FLOPs that are done again."""
    every, shape = execution.recompute_every, recipe.shape
    if every is None:
        return 0.0
    share = -(-shape.n_layers // every) / shape.n_layers
    return share * recipe.batch_tokens * count_forward_flops(shape, (recipe.seq_len + 1) / 2, logits=False)


def _memory(recipe: Recipe, execution: Execution, layout: Layout) -> tuple[dict[str, float], dict[str, float], float]:
    """Size a process's parts on the device and beside it, and a trainer state on disk."""
    teacher = None if active_teacher(recipe) is None else check_teacher(recipe)
    parts = footprint(recipe, execution, layout, teacher=teacher)
    alone = Layout(sizes=dict.fromkeys(ORDER, 1), micro_batch=1, micro_batches=1, sharded=False, gpu=layout.gpu)
    whole = footprint(recipe, execution, alone)
    state_bytes = sum(whole[name] for name in ON_HOST)
    copied = sum(parts[name] for name in ON_HOST)
    host: dict[str, float] = {}
    if layout.gpu and execution.offload:
        moved = ON_HOST if layout.micro_batches > 1 else (*ON_HOST, "gradients")
        host = {name: parts.pop(name) for name in moved}
    (host if layout.gpu else parts)["copy being saved"] = copied
    return _present(parts), _present(host), state_bytes


def _present(parts: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in parts.items() if size > 0}


def _count_states(recipe: Recipe, execution: Execution, branches: list[Recipe]) -> int:
    """Count the trainer states that stay, those of branches too."""
    every = execution.save_every or recipe.steps
    saved = {*range(every, recipe.steps + 1, every), recipe.steps}
    kept = set(sorted(saved)[-execution.keep_last :])
    if execution.keep_every is not None:
        kept |= {step for step in saved if step % execution.keep_every == 0}
    return len(kept | {decay_start(branch) for branch in branches}) + len(branches)


def _list_files(recipe: Recipe, execution: Execution, branches: list[Recipe]) -> dict[str, float]:
    """Name what is written beside trainer states, with bytes."""
    out = Path(execution.out)
    weights = recipe.shape.weight_bytes("bf16" if recipe.dtype == "bf16" else "fp32")
    files = {str(out / "model.safetensors"): weights, str(out / METRICS): float(LINE_BYTES * recipe.steps)}
    for branch in branches:
        files[str(out / BRANCHES / str(branch.tokens) / "model.safetensors")] = weights
    return files


def _list_parts(parts: dict[str, float]) -> list[str]:
    return [f"  {format_bytes(size):>9}  {name}" for name, size in parts.items()]


def format_bytes(size: float) -> str:
    """Write a size in three digits with its unit."""
    for unit, letter in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= 1000 * unit / 2**10:  # four digits are for the next unit
            return f"{size / unit:.3g} {letter}"
    return f"{size:.0f} B"


def format_time(seconds: float) -> str:
    """Write a time in three digits with the largest unit that fits."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} seconds"
