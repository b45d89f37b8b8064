"""Give shapes and weights the names that GGUF has for them, and back: llama.cpp's `llama`, `qwen2` and `qwen3` models.

Names and metadata: gguf-py's constants.py. `llama` rotates neighbouring pairs, so rows of queries and keys change
place; the others rotate halves, as Lathe does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lathe.errors import CheckpointError, ShapeError
from lathe.hub.layout import halve_pairs, join_qkv, pair_halves, split_qkv
from lathe.model.checkpoint import DIFFERENCES, empty_model
from lathe.shape import Shape


@dataclass(frozen=True, slots=True)
class Architecture:
    """Hold what sets one of GGUF's architectures apart: a shape's bias and qk_norm, and how positions rotate."""

    bias: str
    qk_norm: str
    pairs: bool


ARCHITECTURES = {
    "llama": Architecture("none", "none", True),
    "qwen2": Architecture("qkv", "none", False),
    "qwen3": Architecture("none", "head", False),
}
REQUIRED: dict[str, Any] = {
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "position": "rotary",
    "rotary_fraction": 1.0,
    "parallel_residual": False,
}
"""What all of these architectures have in common."""
COUNTS = {
    "max_seq_len": "context_length",
    "d_model": "embedding_length",
    "n_layers": "block_count",
    "d_ff": "feed_forward_length",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "d_head": "attention.key_length",
    "vocab_size": "vocab_size",
}
NUMBERS = {"rotary_theta": "rope.freq_base", "norm_eps": "attention.layer_norm_rms_epsilon"}
"""The keys of a shape's fields, behind the architecture's name."""
HEAD_WIDTHS = ("attention.value_length", "rope.dimension_count")
"""Keys that say d_head once more."""
NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.out": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
QKV = "attention.qkv"


def choose_architecture(shape: Shape) -> str:
    """Name the architecture that holds a shape, sharing aside. Raises ShapeError that says which fields it cannot."""
    wrong = [f"{n}={getattr(shape, n)} (wanted {v})" for n, v in REQUIRED.items() if getattr(shape, n) != v]
    found = [name for name, a in ARCHITECTURES.items() if (a.bias, a.qk_norm) == (shape.bias, shape.qk_norm)]
    if not found:
        kinds = "; ".join(f"{name}: bias={a.bias}, qk_norm={a.qk_norm}" for name, a in ARCHITECTURES.items())
        wrong.append(f"bias={shape.bias} with qk_norm={shape.qk_norm} ({kinds})")
    if wrong:
        raise ShapeError(f"GGUF's Llama-like architectures cannot hold this shape: {', '.join(wrong)}")
    return found[0]


def describe_shape(shape: Shape, architecture: str) -> dict[str, Any]:
    """Give GGUF's fields for a shape."""
    values = {key: getattr(shape, name) for name, key in (COUNTS | NUMBERS).items()}
    values |= dict.fromkeys(HEAD_WIDTHS, shape.d_head)
    return {f"{architecture}.{key}": value for key, value in values.items()}


def parse_shape(fields: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], *, source: str) -> Shape:
    """Read a shape from GGUF's fields and the sizes of its tensors. Raises CheckpointError."""
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{source} holds a {architecture} model; Lathe reads {', '.join(ARCHITECTURES)}")
    own = {k.removeprefix(f"{architecture}."): v for k, v in fields.items() if k.startswith(f"{architecture}.")}
    for key, allowed in (("rope.scaling.type", "none"), ("attention.sliding_window", 0), ("expert_count", 0)):
        if own.get(key, allowed) != allowed:
            raise CheckpointError(f"{source}: {architecture}.{key}={own[key]}; Lathe's decoders have none")
    own.setdefault("attention.head_count_kv", own.get("attention.head_count"))
    own.setdefault("rope.freq_base", 10000.0)
    own["vocab_size"] = sizes.get("token_embd.weight", (own.get("vocab_size"),))[0]
    width, heads = own.get("embedding_length"), own.get("attention.head_count")
    if type(width) is int and type(heads) is int and heads:
        own.setdefault("attention.key_length", width // heads)
    wrong = [f"{key}={own.get(key)}" for key in COUNTS.values() if type(own.get(key)) is not int]
    wrong += [f"{key}={own.get(key)}" for key in NUMBERS.values() if type(own.get(key)) is not float]
    widths = {key: own[key] for key in HEAD_WIDTHS if key in own}
    wrong += [f"{key}={width}" for key, width in widths.items() if width != own.get("attention.key_length")]
    if wrong:
        raise CheckpointError(
            f"{source} holds no model that Lathe's decoders can be: {architecture}.{', '.join(wrong)}"
        )
    kind = ARCHITECTURES[architecture]
    given = {name: own[key] for name, key in COUNTS.items()}
    given |= {name: _shortest(own[key]) for name, key in NUMBERS.items()}
    try:
        return Shape(**given, bias=kind.bias, qk_norm=kind.qk_norm, tied="output.weight" not in sizes)  # pyright: ignore[reportArgumentType]
    except ShapeError as error:
        raise CheckpointError(f"{source}: {error}") from None


def to_gguf(weights: Mapping[str, Tensor], shape: Shape, architecture: str) -> dict[str, Tensor]:
    """Give weights GGUF's names, layout and dtypes."""
    pairs = ARCHITECTURES[architecture].pairs
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        to, module, kind = _split_name(name, blocks="blocks", to="blk")
        if module == QKV:
            q, k, v = split_qkv(tensor, shape)
            if pairs:
                q, k = pair_halves(q, shape.n_heads), pair_halves(k, shape.n_kv_heads)
            found |= {f"{to}attn_{letter}.{kind}": part for letter, part in zip("qkv", (q, k, v), strict=True)}
        else:
            found[f"{to}{NAMES[module]}.{kind}"] = tensor
    return {name: (w.float() if w.dim() == 1 else w).contiguous() for name, w in found.items()}


def from_gguf(tensors: Mapping[str, Tensor], shape: Shape, architecture: str, *, source: str) -> dict[str, Tensor]:
    """Give weights our names and layout. Raises CheckpointError for tensors that are not the shape's."""
    wanted = {n: tuple(w.shape) for n, w in to_gguf(empty_model(shape).state_dict(), shape, architecture).items()}
    found_sizes = {n: tuple(w.shape) for n, w in tensors.items()}
    wrong = [
        f"{n} is {found_sizes.get(n, 'missing')}, wanted {v}" for n, v in wanted.items() if found_sizes.get(n) != v
    ]
    wrong += [f"{name} is in no such decoder" for name in tensors if name not in wanted]
    if wrong:
        more = f"; and {len(wrong) - DIFFERENCES} more" if len(wrong) > DIFFERENCES else ""
        raise CheckpointError(f"{source}: tensors and metadata disagree: {'; '.join(wrong[:DIFFERENCES])}{more}")
    pairs, ours = ARCHITECTURES[architecture].pairs, {theirs: name for name, theirs in NAMES.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        to, module, kind = _split_name(name, blocks="blk", to="blocks")
        if module == "attn_q":
            q, k, v = (tensors[name.replace("attn_q", f"attn_{letter}")] for letter in "qkv")
            if pairs:
                q, k = halve_pairs(q, shape.n_heads), halve_pairs(k, shape.n_kv_heads)
            found[f"{to}{QKV}.{kind}"] = join_qkv(q, k, v, shape)
        elif module in ours:
            found[f"{to}{ours[module]}.{kind}"] = tensor
    return found


def _split_name(name: str, *, blocks: str, to: str) -> tuple[str, str, str]:
    """Take `blocks.3.mlp.up.weight` apart: its block, renamed to `blk.3.`, the module `mlp.up`, and `weight`."""
    module, _, kind = name.rpartition(".")
    if not module.startswith(f"{blocks}."):
        return "", module, kind
    _, number, inner = module.split(".", 2)
    return f"{to}.{number}.", inner, kind


def _shortest(value: float) -> float:
    """Give the shortest number that is the same in fp32, as GGUF keeps numbers: 1e-5, and not 9.99999974e-06."""
    return float(str(np.float32(value)))
