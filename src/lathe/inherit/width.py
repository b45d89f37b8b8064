"""Make a narrower model from a larger one: fewer directions of the residual stream, fewer heads, a smaller MLP.

This is approximate at every width but the full one: what the stream holds in the directions left out is lost, and so
is what the heads and hidden units left out computed. It is a start for training, not a model to use.

    slice   keeps the stream's entries that hold most, as they are
    svd     turns the stream to its principal directions first and keeps those that hold most: Ashkboos et al. 2024
            (SliceGPT), arXiv:2401.15024. Only RMSNorm commutes with a turn, once its gains stand in the matrices that
            read the stream; a tied head, which then differs from the embedding, becomes one of its own.

What a direction holds is its second moment, over what the weights write into the stream, or over a text's streams.

Axes in names: n sequences, t time, d d_model, k the new d_model, g key-value heads, r query heads of a group, e d_head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.errors import ShapeError, nearest
from lathe.model.decoder import Decoder
from lathe.shape import Shape, count_forward_flops

WidthBy = Literal["slice", "svd"]
Weights = dict[str, Tensor]
AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("token", "stream"),
    "positions": ("position", "stream"),
    "attention_norm": ("stream",),
    "qkv": ("qkv", "stream"),
    "q_norm": ("queries",),
    "k_norm": ("keys",),
    "out": ("stream", "mixed"),
    "mlp_norm": ("stream",),
    "gate": ("hidden", "stream"),
    "up": ("hidden", "stream"),
    "down": ("stream", "hidden"),
    "norm": ("stream",),
    "head": ("token", "stream"),
}
"""What the axes of each kind of weight count; a bias or a gain has the first alone."""
READERS = {"attention_norm": ("attention.qkv",), "mlp_norm": ("mlp.gate", "mlp.up"), "norm": ("head",)}
"""The matrices that read the stream behind each norm, named from the norm's block."""


def narrow(
    shape: Shape,
    weights: Mapping[str, Tensor],
    d_model: int,
    *,
    by: WidthBy = "slice",
    moments_dd: Tensor | None = None,
) -> tuple[Shape, Weights]:
    """Make a model of d_model from a wider one, approximately: gives its shape and weights.

    Heads keep their width; whole groups of them, and hidden units, are left out in proportion, those first whose
    matrices are smallest. `moments_dd` say what the stream holds (`measure_moments`); those of the weights if not
    given. At the full width, slicing changes nothing, and svd only the rounding.

    Raises ShapeError for a width that leaves no whole groups, or svd of LayerNorm.
    """
    small = narrow_shape(shape, d_model, by=by)
    moments_dd = write_moments(shape, weights) if moments_dd is None else moments_dd.double()
    if moments_dd.shape != (shape.d_model, shape.d_model):
        raise ShapeError(f"second moments of {len(moments_dd)} directions for a stream of d_model={shape.d_model}")
    narrowed, share = STREAMS[by](shape, weights, moments_dd, d_model)
    if not 0 < share < math.inf:
        raise ShapeError("the stream's second moments are zero or no numbers; is the checkpoint sound?")
    # Norms divide by the mean over fewer entries, each of which holds more than the mean did before.
    narrowed = _scale_norms(narrowed, math.sqrt(shape.d_model / d_model * share))
    for block in range(shape.stored_layers):
        narrowed |= _narrow_block(shape, small, narrowed, f"blocks.{block}.")
    return small, narrowed


def narrow_shape(shape: Shape, d_model: int, *, by: WidthBy = "slice") -> Shape:
    """Give the shape that `narrow` makes: heads and d_ff scaled with d_model, d_head kept. Raises ShapeError as it."""
    if by not in STREAMS:
        raise ShapeError(f"no way to narrow a model is called {by!r}{nearest(str(by), STREAMS)}")
    if by == "svd" and shape.norm != "rmsnorm":
        raise ShapeError(f"svd turns the stream, which only RMSNorm allows; with norm={shape.norm!r} narrow by slice")
    step = shape.d_model // math.gcd(shape.n_kv_heads, shape.d_model)
    if not 1 <= d_model <= shape.d_model or d_model % step:
        raise ShapeError(
            f"d_model={d_model} from {shape.d_model}: heads keep their d_head={shape.d_head}, so whole groups of heads "
            f"are left out, and n_kv_heads={shape.n_kv_heads} must shrink in proportion; widths that work: the "
            f"multiples of {step} up to {shape.d_model}"
        )
    n_kv_heads = shape.n_kv_heads * d_model // shape.d_model
    return dataclasses.replace(
        shape,
        d_model=d_model,
        n_heads=shape.n_heads // shape.n_kv_heads * n_kv_heads,
        n_kv_heads=n_kv_heads,
        d_ff=max(1, round(shape.d_ff * d_model / shape.d_model)),
        tied=shape.tied and by == "slice",
    )


def write_moments(shape: Shape, weights: Mapping[str, Tensor]) -> Tensor:
    """Sum the second moments of what the weights write into the stream, [d, d], float64.

    As if embeddings and positions came equally often, and blocks wrote from uncorrelated inputs of variance one.
    """
    moments_dd = torch.zeros(shape.d_model, shape.d_model, dtype=torch.float64)
    for name, w in weights.items():
        kind = _kind(name)
        if kind in ("embedding", "positions"):
            moments_dd += (w.float().T @ w.float()).double() / len(w)
        elif kind in ("out", "down"):
            columns = w.double().reshape(shape.d_model, -1)
            moments_dd += shape.sharing_count * columns @ columns.T
    if shape.norm != "rmsnorm":  # LayerNorm takes the mean off
        moments_dd -= moments_dd.mean(0)
        moments_dd -= moments_dd.mean(1, keepdim=True)
    return moments_dd


@torch.no_grad()
def measure_moments(model: Decoder, tokens_nt: Tensor, *, batch_sequences: int = 8) -> Tensor:
    """Average the second moments of a text's streams where norms read them, [d, d], float64.

    Each token's stream counts as normalised, without gain, so that no outlier speaks for all.
    """
    shape = model.shape
    width = (shape.d_model,)
    moments_dd = torch.zeros(shape.d_model, shape.d_model, dtype=torch.float64)

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_btd = inputs[0].float()
        rms = shape.norm == "rmsnorm"
        x_btd = F.rms_norm(x_btd, width, eps=shape.norm_eps) if rms else F.layer_norm(x_btd, width, eps=shape.norm_eps)
        x_nd = x_btd.flatten(0, 1)
        moments_dd.add_((x_nd.T @ x_nd).double().cpu())

    norms = [norm for name, norm in model.named_modules() if name.rpartition(".")[2] in READERS]
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        for batch_bt in tokens_nt.split(batch_sequences):
            model.hidden(batch_bt)
    finally:
        for hook in hooks:
            hook.remove()
    return moments_dd / ((2 * shape.n_layers + 1) * tokens_nt.numel())


def moments_flops(shape: Shape, sequences: int, seq_len: int) -> float:
    """Count the FLOPs of `measure_moments`: the forward pass without a head, and the products of the streams."""
    products = (2 * shape.n_layers + 1) * 2.0 * shape.d_model**2
    return sequences * seq_len * (count_forward_flops(shape, (seq_len + 1) / 2, logits=False) + products)


def _slice_stream(
    shape: Shape, weights: Mapping[str, Tensor], moments_dd: Tensor, d_model: int
) -> tuple[Weights, float]:
    held_d = moments_dd.diagonal()
    kept_k = _largest(held_d, d_model)
    return _take(weights, {"stream": kept_k}), float(held_d[kept_k].sum() / held_d.sum())


def _turn_stream(
    shape: Shape, weights: Mapping[str, Tensor], moments_dd: Tensor, d_model: int
) -> tuple[Weights, float]:
    held_d, directions_dd = torch.linalg.eigh(moments_dd)  # ascending
    basis_dk = directions_dd[:, -d_model:]
    head = {"head.weight": weights["embedding.weight"]} if shape.tied else {}
    turned: Weights = {}
    for name, w in _fold_gains({**weights, **head}).items():
        axes = AXES[_kind(name)][: w.dim()]
        axis = axes.index("stream") if "stream" in axes else None
        if _kind(name) in READERS:
            turned[name] = w[:d_model]  # gains, which are all one by now
        elif axis is None:
            turned[name] = w
        else:
            turned[name] = (w.double().movedim(axis, -1) @ basis_dk).movedim(-1, axis).to(w.dtype)
    return turned, float(held_d[-d_model:].sum() / held_d.sum())


STREAMS: dict[WidthBy, Callable[[Shape, Mapping[str, Tensor], Tensor, int], tuple[Weights, float]]] = {
    "slice": _slice_stream,
    "svd": _turn_stream,
}
"""How the stream is narrowed: gives the weights, and the share of what the stream held that is kept."""


def _fold_gains(weights: Mapping[str, Tensor]) -> Weights:
    """Move the gains of norms into the matrices that read behind them."""
    folded = dict(weights)
    for name in _gains(weights):
        gain_d = weights[name].double()
        folded |= {reader: (folded[reader] * gain_d).to(folded[reader].dtype) for reader in _readers(name, folded)}
        folded[name] = torch.ones_like(weights[name])
    return folded


def _scale_norms(weights: Mapping[str, Tensor], factor: float) -> Weights:
    """Multiply what norms give by a factor: their gains, or, where they have none, the matrices that read behind them.

    A tied head behind a norm without gain stays as it is: it is the embedding too.
    """
    readers = [name for name in weights if name.endswith((".qkv.weight", ".gate.weight", ".up.weight", "head.weight"))]
    return {**weights, **{name: weights[name] * factor for name in _gains(weights) or readers}}


def _narrow_block(shape: Shape, small: Shape, weights: Mapping[str, Tensor], prefix: str) -> Weights:
    """Keep the groups of heads and the hidden units whose matrices, read to written, are largest."""
    block = {name: w for name, w in weights.items() if name.startswith(prefix)}
    r, e = shape.n_heads // shape.n_kv_heads, shape.d_head
    size = {name.removeprefix(prefix): w.double() for name, w in _fold_gains(block).items()}
    values = size["attention.qkv.weight"].reshape(shape.n_kv_heads, r + 2, e, -1)[:, -1]
    out = size["attention.out.weight"].reshape(small.d_model, shape.n_kv_heads, r * e)
    groups = _largest(values.norm(dim=(1, 2)) * out.norm(dim=(0, 2)), small.n_kv_heads)
    units = size["mlp.down.weight"].norm(dim=0)
    for reader in ("mlp.gate.weight", "mlp.up.weight"):
        units = units * size[reader].norm(dim=1) if reader in size else units
    kept = {"qkv": _rows(groups, (r + 2) * e), "mixed": _rows(groups, r * e), "hidden": _largest(units, small.d_ff)}
    if shape.qk_norm == "full":
        kept |= {"queries": kept["mixed"], "keys": _rows(groups, e)}
    return _take(block, kept)


def _take(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Weights:
    """Keep these entries of the axes named, and all of the others."""
    taken = dict(weights)
    for name, w in weights.items():
        for axis, what in enumerate(AXES[_kind(name)][: w.dim()]):
            if what in kept:
                taken[name] = taken[name].index_select(axis, kept[what])
    return taken


def _largest(size_n: Tensor, count: int) -> Tensor:
    """Give the indices of the largest entries, in their order; equals go to the earlier."""
    return size_n.argsort(descending=True, stable=True)[:count].sort().values


def _rows(units_n: Tensor, rows: int) -> Tensor:
    """Turn the indices of units into those of the rows that each has."""
    return (units_n[:, None] * rows + torch.arange(rows)).flatten()


def _gains(weights: Mapping[str, Tensor]) -> list[str]:
    return [name for name in weights if _kind(name) in READERS and name.endswith(".weight")]


def _readers(gain: str, weights: Mapping[str, Tensor]) -> list[str]:
    *block, kind, _ = gain.split(".")
    names = [".".join([*block, reader, "weight"]) for reader in READERS[kind]]
    return [name for name in names if name in weights]


def _kind(name: str) -> str:
    """Take the kind from a weight's name: `qkv` from `blocks.0.attention.qkv.weight`."""
    return name.split(".")[-2]
