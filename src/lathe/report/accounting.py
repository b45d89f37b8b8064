"""Lay out what a shape costs, as numbers and as tables: weights by group, FLOPs, cache, memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lathe.errors import ShapeError
from lathe.presets.shapes import ShapePreset
from lathe.report.tables import make_table
from lathe.shape import DTYPE_BYTES, Shape

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_CACHE_DTYPES = ("fp32", "bf16", "fp16", "int8")


def accounting(shape: Shape, *, context: int | None = None) -> dict[str, Any]:
    """Count all that `lathe shape` shows, at `context` tokens (by default the shape's longest).

    Keys: params, non_embedding_params, param_groups, stored_layers, aspect, context, forward_flops (one token
    with `context` in the cache), prefill_flops (`context` tokens), train_flops_per_token (sequences of
    `context`), kv_bytes_per_token and memory_bytes (weights, cache at batch 1, both) per dtype. Plain
    numbers, ready for JSON.
    """
    context = shape.max_seq_len if context is None else context
    if context < 1:
        raise ShapeError(f"context={context}; wanted 1 token or more")
    memory = {}
    for dtype in DTYPE_BYTES:
        cache = shape.kv_bytes(1, context, _cache_dtype(dtype))
        weights = shape.weight_bytes(dtype)
        memory[dtype] = {"weights": weights, "cache": cache, "total": weights + cache}
    return {
        "params": shape.params,
        "non_embedding_params": shape.non_embedding_params,
        "param_groups": shape.param_groups,
        "stored_layers": shape.stored_layers,
        "aspect": shape.aspect,
        "context": context,
        "forward_flops": shape.forward_flops(context),
        "prefill_flops": shape.prefill_flops(context),
        "train_flops_per_token": shape.train_flops(1, context),
        "kv_bytes_per_token": {dtype: shape.kv_bytes(1, 1, dtype) for dtype in _CACHE_DTYPES},
        "memory_bytes": memory,
    }


def accounting_table(shape: Shape, *, name: str, source: str | None = None, context: int | None = None) -> Group:
    """Lay out one shape's accounting for the terminal."""
    from rich.console import Group
    from rich.text import Text

    counted = accounting(shape, context=context)
    head = Text.assemble((name, "bold"), f"  {describe(shape)}")
    tables = [part for make in (_groups_table, _work_table, _memory_table) for part in (make(counted), "")]
    notes = [Text(f"source: {source}", style="dim")] if source else []
    remark = Text("batch 1; int4 weights keep an int8 cache; quantisation scales left out", style="dim")
    return Group(head, *notes, "", *tables[:-1], remark)


def shapes_table(presets: Iterable[ShapePreset]) -> Table:
    """Lay out the presets for the terminal, one row each."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("family")
    for title in ("params", "non-embedding", "d_model×n_layers", "heads/kv", "d_ff", "vocab"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("tied")
    table.add_column("source", overflow="fold")
    for preset in presets:
        shape = preset.shape
        table.add_row(
            preset.name,
            preset.family,
            f"{shape.params:,}",
            f"{shape.non_embedding_params:,}",
            f"{shape.d_model}×{shape.n_layers}",
            f"{shape.n_heads}/{shape.n_kv_heads}",
            str(shape.d_ff),
            str(shape.vocab_size),
            "yes" if shape.tied else "no",
            preset.source,
        )
    return table


def describe(shape: Shape) -> str:
    """Say a shape in one line."""
    shared = f", {shape.stored_layers} stored ({shape.sharing} ×{shape.sharing_count})" * (shape.sharing != "none")
    extras = f", qk-norm {shape.qk_norm}" * (shape.qk_norm != "none") + f", bias {shape.bias}" * (shape.bias != "none")
    return (
        f"{shape.d_model}×{shape.n_layers}{shared}, {shape.n_heads} heads of {shape.d_head} "
        f"({shape.n_kv_heads} kv), {shape.mlp} {shape.d_ff}, {shape.norm}, {shape.position} positions{extras}"
        f", vocab {shape.vocab_size} {'tied' if shape.tied else 'untied'}, context {shape.max_seq_len}"
    )


def _groups_table(counted: dict[str, Any]) -> Table:
    table = make_table("weights", "params", "share")
    for group, params in counted["param_groups"].items():
        if params:
            table.add_row(group, f"{params:,}", f"{params / counted['params']:.1%}")
    table.add_row("total", f"{counted['params']:,}", "100.0%", style="bold")
    table.add_row("non-embedding", f"{counted['non_embedding_params']:,}", "")
    return table


def _work_table(counted: dict[str, Any]) -> Table:
    context = counted["context"]
    table = make_table("work", "FLOPs")
    table.add_row(f"one token, {context:,} in context", f"{counted['forward_flops']:.4g}")
    table.add_row(f"prompt of {context:,} tokens", f"{counted['prefill_flops']:.4g}")
    table.add_row(f"training, a token of {context:,}", f"{counted['train_flops_per_token']:.4g}")
    return table


def _memory_table(counted: dict[str, Any]) -> Table:
    table = make_table("memory", "weights", "cache a token", f"cache at {counted['context']:,}", "total")
    for dtype, sizes in counted["memory_bytes"].items():
        a_token = counted["kv_bytes_per_token"][_cache_dtype(dtype)]
        table.add_row(dtype, *(_size(n) for n in (sizes["weights"], a_token, sizes["cache"], sizes["total"])))
    return table


def _cache_dtype(dtype: str) -> str:
    return dtype if dtype in _CACHE_DTYPES else "int8"


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} TiB"
