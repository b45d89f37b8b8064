"""Make families of shapes and workloads around one, to measure what each number of it costs.

As Bian et al. 2025, arXiv:2501.18107, swept depth, width, head dim and shapes of equal params on an A100.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lathe.errors import ShapeError, WorkloadError, nearest
from lathe.shape import MLP_MATRICES, Shape
from lathe.workload import Workload

FACTORS = (0.25, 0.5, 1.0, 2.0)
D_HEADS = (32, 64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32)
DEPTHS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Depths of equal-params shapes, as parts of the base's."""
SAME_PARAMS = 0.02
FF_MULTIPLE = 32
FF_FACTOR = 1.5
"""How far the d_ff ratio may leave the base's, to make up the params that whole heads cannot."""

Points = Iterator[tuple[str, Shape, Workload]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Hold how a family is made from a base's name, shape and workload, and what is `tried` for it, in words."""

    points: Callable[[str, Shape, Workload], Points]
    tried: str


def sweep(kind: str, name: str, shape: Shape, workload: Workload) -> list[tuple[str, Shape, Workload]]:
    """List a family's members with their names: each differs from the base in what `kind` says, and what follows.

    Raises WorkloadError for an unknown kind, ShapeError where the base leaves nothing to vary.
    """
    if kind not in SWEEPS:
        raise WorkloadError(f"unknown sweep {kind!r}{nearest(str(kind), SWEEPS)}")
    found = {(s, w): label for label, s, w in SWEEPS[kind].points(name, shape, workload)}
    if len(found) < 2:
        raise ShapeError(f"{name} leaves nothing to sweep in {kind}: fewer than two of {SWEEPS[kind].tried} fit it")
    return [(label, s, w) for (s, w), label in found.items()]


def _depth(name: str, shape: Shape, workload: Workload) -> Points:
    for factor in FACTORS:
        stored = max(round(shape.stored_layers * factor), 1)
        deep = dataclasses.replace(shape, n_layers=stored * shape.sharing_count)
        yield f"{name}, {deep.n_layers} layers", deep, workload


def _width(name: str, shape: Shape, workload: Workload) -> Points:
    """Keep head dim, d_ff ratio and queries a group, so widths go in whole groups of heads."""
    for factor in FACTORS:
        wide = _widen(shape, max(round(shape.n_kv_heads * factor), 1))
        if wide is not None:
            yield f"{name}, {wide.d_model} wide", wide, workload


def _head_dim(name: str, shape: Shape, workload: Workload) -> Points:
    """Split the same width of queries, keys and values into other heads."""
    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    for d_head in D_HEADS:
        if keys % d_head == 0:
            heads = {"n_heads": queries // d_head, "n_kv_heads": keys // d_head, "d_head": d_head}
            yield f"{name}, heads of {d_head}", dataclasses.replace(shape, **heads), workload


def _batch(name: str, shape: Shape, workload: Workload) -> Points:
    for batch in BATCHES:
        yield f"{name}, batch {batch}", shape, dataclasses.replace(workload, batch=batch)


def _iso_params(name: str, shape: Shape, workload: Workload) -> Points:
    """Go from wide and shallow to narrow and deep at equal params; d_ff makes up what whole heads cannot."""
    for factor in DEPTHS:
        stored = max(round(shape.stored_layers * factor), 1)
        like = dataclasses.replace(shape, n_layers=stored * shape.sharing_count)
        near = [s for groups in range(1, 8 * shape.n_kv_heads + 1) if (s := _fill(like, groups, shape)) is not None]
        if near:
            best = min(near, key=lambda s: abs(math.log(_ff_ratio(s) / _ff_ratio(shape))))
            yield f"{name}, {best.d_model}×{best.n_layers}", best, workload


def _widen(shape: Shape, groups: int) -> Shape | None:
    """Change the number of groups of heads, and the width with it; None where the width is no whole number."""
    d_model = shape.d_model * groups / shape.n_kv_heads
    if not d_model.is_integer():
        return None
    heads = shape.n_heads // shape.n_kv_heads * groups
    d_ff = max(round(_ff_ratio(shape) * d_model / FF_MULTIPLE), 1) * FF_MULTIPLE
    if groups == shape.n_kv_heads:
        d_ff = shape.d_ff
    return dataclasses.replace(shape, d_model=int(d_model), n_heads=heads, n_kv_heads=groups, d_ff=d_ff)


def _fill(like: Shape, groups: int, base: Shape) -> Shape | None:
    """Set the d_ff that gives the base's params at another depth and width; None where none near its ratio does."""
    wide = _widen(like, groups)
    if wide is None:
        return None
    if wide.params != base.params:
        each = MLP_MATRICES[wide.mlp] * wide.d_model * wide.stored_layers
        d_ff = wide.d_ff + round((base.params - wide.params) / each / FF_MULTIPLE) * FF_MULTIPLE
        if d_ff < 1:
            return None
        wide = dataclasses.replace(wide, d_ff=d_ff)
    off = abs(math.log(_ff_ratio(wide) / _ff_ratio(base)))
    same = abs(wide.params / base.params - 1) <= SAME_PARAMS
    return wide if same and off <= math.log(FF_FACTOR) else None


def _ff_ratio(shape: Shape) -> float:
    return shape.d_ff / shape.d_model


def _join(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


SWEEPS: Mapping[str, Sweep] = {
    "depth": Sweep(points=_depth, tried=f"{_join(FACTORS)} times its layers"),
    "width": Sweep(points=_width, tried=f"{_join(FACTORS)} times its width, in whole heads,"),
    "head-dim": Sweep(points=_head_dim, tried=f"the head dims {_join(D_HEADS)}"),
    "batch": Sweep(points=_batch, tried=f"the batches {_join(BATCHES)}"),
    "iso-params": Sweep(points=_iso_params, tried=f"{_join(DEPTHS)} times its layers, at its params,"),
}
"""How to make each family from its base."""
