"""Open a teacher to distil from: a checkpoint's decoder that reads what the student reads, and learns nothing.

Its weights are kept once, in bf16, on every process's device; they are no part of the student's parameters, states or
checkpoints. It computes in bf16 where the device has instructions for it. Where a CPU has none, products in bf16 are
many times slower than in fp32: there one block at a time is widened to fp32 and narrowed again, which loses nothing.

Axes in names: b batch, t time, d d_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lathe.errors import DeviceError, RecipeError
from lathe.model.checkpoint import free_bytes, load_model, load_shape_of
from lathe.model.decoder import Decoder
from lathe.model.distil import Lesson
from lathe.recipe import Distil, Recipe
from lathe.shape import Shape
from lathe.train.tokens import check_same_tokenizer, check_same_tokens

WHOLE = ("tp", "pp")
"""Axes of a mesh along which no process has the student's whole logits, to compare with a teacher's."""


class Teacher:
    """Hold a decoder that teaches. It is no module: wrappers and states of the student must not find its weights."""

    def __init__(self, decoder: Decoder, distil: Distil, *, dtype: torch.dtype) -> None:
        self.decoder, self.distil, self.dtype = decoder, distil, dtype
        if dtype != torch.bfloat16:
            _widen(decoder, dtype)

    @torch.no_grad()
    def teach(self, tokens_bt: Tensor, documents_bt: Tensor | None = None) -> Lesson:
        """Read tokens as the student does, and keep what the student's distribution is to be compared with."""
        with torch.autocast(tokens_bt.device.type, enabled=False):
            x_btd = self.decoder.hidden(tokens_bt, documents_bt=documents_bt)
        weight_vd = self.decoder.output_weight.to(self.dtype)
        return Lesson(x_btd.flatten(0, 1), weight_vd, self.distil.temperature, self.distil.weight)


def active_teacher(recipe: Recipe) -> Distil | None:
    """Give a recipe's teacher if it counts: one of weight 0 is neither loaded nor asked."""
    return recipe.distil if recipe.distil is not None and recipe.distil.weight > 0 else None


def open_teacher(recipe: Recipe, device: torch.device) -> Teacher | None:
    """Load a recipe's teacher, if it has one that counts.

    Raises RecipeError as `check_teacher`, CheckpointError for a folder that is no checkpoint, DeviceError for too
    little memory.
    """
    distil = active_teacher(recipe)
    if distil is None:
        return None
    check_teacher(recipe)
    check_memory(recipe, device)
    return Teacher(load_model(distil.teacher, dtype="bf16", device=device), distil, dtype=choose_dtype(device))


def choose_dtype(device: torch.device) -> torch.dtype:
    """Name what a teacher computes in: bf16 wherever it has instructions; fixed for a machine, as bits are."""
    if device.type != "cpu":
        return torch.bfloat16
    instructions = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if any(instructions) else torch.float32


def check_teacher(recipe: Recipe) -> Shape:
    """Refuse a teacher whose distribution is not over the student's tokens and positions; gives its shape.

    Raises RecipeError, and CheckpointError for a folder that is no checkpoint.
    """
    assert recipe.distil is not None
    return check_same_tokens(recipe.distil.teacher, recipe, who="the teacher")


def check_tokenizer(recipe: Recipe) -> str | None:
    """Refuse a teacher whose tokenizer is not the data's; gives a doubt where nothing says so. Raises RecipeError."""
    return None if recipe.distil is None else check_same_tokenizer(recipe.distil.teacher, recipe, who="the teacher")


def check_axes(recipe: Recipe, sizes: Mapping[str, int]) -> None:
    """Refuse a mesh on which no process has the student's whole logits. Raises RecipeError."""
    for axis in WHOLE:
        if active_teacher(recipe) is not None and sizes[axis] > 1:
            raise RecipeError(
                f"mesh {axis}={sizes[axis]} cannot distil: no process has the student's whole logits to compare with "
                f"the teacher's; take fsdp or dp in place of {axis}, or leave out distil"
            )


def check_memory(recipe: Recipe, device: str | torch.device, *, world: int = 1) -> None:
    """Refuse a teacher that does not fit in what a device has free; processes share a CPU's. Raises DeviceError."""
    distil = active_teacher(recipe)
    if distil is None:
        return
    shape, device = load_shape_of(distil.teacher), torch.device(device)
    copies = world if device.type == "cpu" else 1
    needed, free = copies * shape.weight_bytes("bf16"), free_bytes(device)
    if needed > free:
        each = f" for {copies} processes" if copies > 1 else ""
        raise DeviceError(
            f"the teacher {distil.teacher} does not fit in the memory of {device}: its {shape.params:,} params need "
            f"{needed / 1e9:.2f} GB in bf16{each}, and {free / 1e9:.2f} GB are free; take a smaller teacher, or a "
            "device with more memory"
        )


def teacher_flops(recipe: Recipe) -> float:
    """Count the FLOPs of the teacher's forward pass for a token of training; 0 without one. Raises CheckpointError."""
    distil = active_teacher(recipe)
    return 0.0 if distil is None else load_shape_of(distil.teacher).forward_flops((recipe.seq_len + 1) / 2)


def _widen(decoder: Decoder, dtype: torch.dtype) -> None:
    """Let a bf16 decoder compute in a wider dtype, with one block's weights in it at a time."""

    def widen(block: nn.Module, given: Any) -> None:
        block.to(dtype)

    def narrow(block: nn.Module, given: Any, found: Tensor) -> None:
        block.to(torch.bfloat16)

    for block in decoder.blocks:
        block.register_forward_pre_hook(widen)
        block.register_forward_hook(narrow)
    decoder.norm.to(dtype)
    decoder.embedding.register_forward_hook(lambda _, given, rows: rows.to(dtype))
