"""Slice the matrices of attention and MLP over processes, each with whole groups of heads and a part of d_ff.

Embedding, norms and head stay whole on each, yet as DTensors: optimisers take all weights at once only if they are of
one kind. Gradients of norms over heads are sums over every process's heads; `sum_partial` adds them up.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from lathe.errors import RecipeError
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from lathe.train.mesh import Mesh

HEADS = Shard(2)
"""How queries and keys are cut where they are normalised, [b, t, heads, d_head]."""


class Whole(ParallelStyle):
    """Keep a module's weights whole on every process, for inputs that are whole there, or cut as `given` says."""

    def __init__(self, given: Placement | None = None) -> None:
        super().__init__()
        self.given = given or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # torch means hooks that give values, and declares None
        return distribute_module(module, device_mesh, None, self._take, self._give)  # pyright: ignore[reportArgumentType]

    def _take(self, module: nn.Module, inputs: tuple[Any, ...], device_mesh: DeviceMesh) -> tuple[DTensor]:
        return (DTensor.from_local(inputs[0], device_mesh, [self.given], run_check=False),)

    def _give(self, module: nn.Module, output: Any, device_mesh: DeviceMesh) -> Tensor:
        return output.to_local()


PLAN: dict[str, ParallelStyle] = {
    "embedding": Whole(),
    "positions": Whole(),
    "blocks.*.attention_norm": Whole(),
    "blocks.*.attention.qkv": ColwiseParallel(),
    "blocks.*.attention.q_norm": Whole(HEADS),
    "blocks.*.attention.k_norm": Whole(HEADS),
    "blocks.*.attention.out": RowwiseParallel(),
    "blocks.*.mlp_norm": Whole(),
    "blocks.*.mlp.gate": ColwiseParallel(),
    "blocks.*.mlp.up": ColwiseParallel(),
    "blocks.*.mlp.down": RowwiseParallel(),
    "norm": Whole(),
    "head": Whole(),
}
"""How each part of a decoder is laid out. Rows of qkv stand group by group: a slice of them is whole groups."""


def slice_matrices(decoder: Decoder, mesh: Mesh) -> None:
    """Lay a decoder out over the processes of tp. Raises RecipeError for a shape that does not split so."""
    check_slices(decoder.shape, mesh.sizes["tp"])
    assert mesh.devices is not None
    styles = {
        name: PLAN[re.sub(r"^blocks\.\d+", "blocks.*", name)]
        for name, module in decoder.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    parallelize_module(decoder, mesh.devices["tp"], styles)


def sum_partial(decoder: Decoder) -> None:
    """Add up gradients to which each process's heads gave a part."""
    for p in decoder.parameters():
        if isinstance(p, DTensor) and isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
            p.grad = p.grad.redistribute(placements=p.placements)


def check_slices(shape: Shape, tp: int) -> None:
    """Refuse a shape whose heads or d_ff do not split over `tp` processes. Raises RecipeError."""
    for name, count, whole in (
        ("n_kv_heads", shape.n_kv_heads, "each process holds whole groups of heads"),
        ("d_ff", shape.d_ff, "each holds equally many rows"),
    ):
        if count % tp:
            fits = [n for n in range(1, tp) if shape.n_kv_heads % n == 0 and shape.d_ff % n == 0]
            raise RecipeError(
                f"mesh tp={tp} does not divide {name}={count}: {whole}; take tp={fits[-1]} or another shape"
            )
    if shape.qk_norm == "full":
        raise RecipeError(
            f"mesh tp={tp} cannot slice a shape with qk_norm='full': that norm runs over all heads at once, and each "
            "process has some of them; take fsdp in place of tp, or qk_norm='head'"
        )
