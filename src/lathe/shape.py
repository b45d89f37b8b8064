"""Say what a decoder looks like, and count its weights, operations and bytes.

The counting functions take a `Shape`, or any object with its fields as attributes whose numbers are arrays of
one length (int64 or float64 columns; the words `norm`, `mlp`, `bias`, … stay plain strings): they are
elementwise arithmetic, so the planner counts a million shapes with the code that counts one.

Conventions, kept by everything in Lathe:

- `n_layers` counts block *visits*, the depth a token passes through. Under sharing, `stored_layers` =
  n_layers / sharing_count blocks are kept, and each visit has a KV cache of its own (MobileLLM-LS).
- `params` counts every stored weight once, a tied head not again.
- `non_embedding_params` leaves out the token embedding, the head and learned positions, and keeps the final
  norm: Pythia's convention (Biderman et al. 2023, arXiv:2304.01373, table 1).
- FLOPs: two per weight and token in every matmul (the head's too), plus attention's two products; embedding
  rows, norms, biases, softmax and rotary are left out (under 1 % at d_model ≥ 512). Kaplan et al. 2020,
  arXiv:2001.08361, table 1. They come as floats: int64 columns would overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lathe.errors import ShapeError, nearest
from lathe.shape_checks import Bias, Mlp, Norm, Position, QkNorm, Sharing, check_count, check_shape

DTYPE_BYTES: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one stored number. Quantised weights at their ideal size: the scales are left out."""

NORM_VECTORS: dict[str, int] = {"rmsnorm": 1, "layernorm": 2, "layernorm-gain": 1, "layernorm-plain": 0}
MLP_MATRICES: dict[str, int] = {"swiglu": 3, "gelu": 2, "gelu-tanh": 2, "relu": 2}
Shaped = Any  # a Shape, or an object with Shape's fields whose numbers are arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Hold everything that fixes a decoder's weights and arithmetic, except the weights' values.

    `norm`: `layernorm` has gain and bias, `layernorm-gain` only gain, `layernorm-plain` neither. `mlp`:
    `gelu` is the exact one, `gelu-tanh` GPT-2's. `qk_norm` normalises queries and keys with the same kind of
    norm, over each head (`head`, Qwen3) or over all heads at once (`full`, OpenLM and OLMo). `bias`: on no
    linear layer, on queries, keys and values (`qkv`, Qwen2), or on all but the head. `sharing` names the
    order of the visits, see `visits`. `max_seq_len` is the longest context the model is made for; learned
    positions keep max_seq_len + position_offset rows (OPT's offset is 2). `rotary_fraction` of each head is
    rotated. `parallel_residual`: attention and MLP read the same input (GPT-NeoX). Blocks are pre-norm, with
    one final norm.

    Raises ShapeError when the fields cannot make a decoder. `Shape.of` fills in what usually follows from the
    rest.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    tied: bool = False
    sharing: Sharing = "none"
    sharing_count: int = 1
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    mlp: Mlp = "swiglu"
    position: Position = "rotary"
    rotary_theta: float = 10000.0
    rotary_fraction: float = 1.0
    max_seq_len: int = 2048
    position_offset: int = 0
    qk_norm: QkNorm = "none"
    bias: Bias = "none"
    parallel_residual: bool = False

    def __post_init__(self) -> None:
        check_shape(self)

    @classmethod
    def of(cls, **given: Any) -> Shape:
        """Make a shape from the fields given, deriving n_kv_heads, d_head and d_ff as `complete` does."""
        try:
            return cls(**complete(given))
        except TypeError as error:
            known = [f.name for f in fields(cls)]
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ShapeError(f"a shape has no field {unknown[0]!r}{nearest(unknown[0], known)}") from None
            raise ShapeError(f"a shape needs more fields: {error}") from None

    @property
    def stored_layers(self) -> int:
        """Count the blocks whose weights are kept."""
        return count_stored_layers(self)

    @property
    def visits(self) -> tuple[int, ...]:
        """List the stored block that each of the n_layers visits uses.

        Three blocks visited twice: `immediate` 0 0 1 1 2 2, `all-over` 0 1 2 0 1 2, `reverse` 0 1 2 2 1 0
        (every second pass backwards). Liu et al. 2024 (MobileLLM), arXiv:2402.14905; counts above two are
        ours.
        """
        stored, count = range(self.stored_layers), self.sharing_count
        if self.sharing == "immediate":
            return tuple(i for i in stored for _ in range(count))
        back = stored[::-1] if self.sharing == "reverse" else stored
        return tuple(i for turn in range(count) for i in (back if turn % 2 else stored))

    @property
    def param_groups(self) -> dict[str, int]:
        """Count the stored weights by group; the groups sum to `params`."""
        return count_param_groups(self)

    @property
    def params(self) -> int:
        """Count all stored weights."""
        return count_params(self)

    @property
    def non_embedding_params(self) -> int:
        """Count the stored weights but for token embedding, head and learned positions."""
        return count_non_embedding_params(self)

    @property
    def aspect(self) -> float:
        """Divide width by visited depth: d_model / n_layers."""
        return self.d_model / self.n_layers

    def forward_flops(self, context: float) -> float:
        """Count the FLOPs of one token that attends to `context` positions, itself included."""
        return count_forward_flops(self, context)

    def prefill_flops(self, prompt_tokens: float) -> float:
        """Count the FLOPs to read one sequence's prompt and give the logits of its last token."""
        return count_prefill_flops(self, prompt_tokens)

    def train_flops(self, tokens: float, seq_len: float) -> float:
        """Count the FLOPs to train on `tokens` in sequences of `seq_len`; see `count_train_flops`."""
        return count_train_flops(self, tokens, seq_len)

    def weight_bytes(self, dtype: str) -> float:
        """Size all stored weights in bytes."""
        return count_weight_bytes(self, dtype)

    def kv_bytes(self, batch: float, context: float, dtype: str) -> float:
        """Size the KV caches of `batch` sequences of `context` tokens in bytes, one cache a visit."""
        return count_kv_bytes(self, batch, context, dtype)


def openlm_d_ff(d_model: Any) -> Any:
    """Derive OpenLM's SwiGLU width, 256·ceil(⌊8d/3⌋/256), elementwise. open_lm/model.py, after Llama."""
    return 256 * -(-(8 * d_model // 3) // 256)


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add what usually follows from the other fields; a field given as None counts as not given.

    n_kv_heads = n_heads, d_head = ⌊d_model / n_heads⌋, d_ff = 4·d_model, or OpenLM's rule for SwiGLU. Raises
    ShapeError when what they follow from is no whole number.
    """
    full = {name: value for name, value in given.items() if value is not None}
    for name in ("d_model", "n_heads"):
        if name in full:
            check_count(name, full[name])
    if "n_heads" in full:
        full.setdefault("n_kv_heads", full["n_heads"])
    if "d_model" in full:
        d_model = full["d_model"]
        full.setdefault("d_ff", openlm_d_ff(d_model) if full.get("mlp", "swiglu") == "swiglu" else 4 * d_model)
        if "n_heads" in full:
            full.setdefault("d_head", d_model // full["n_heads"])
    return full


def dtype_bytes(dtype: str) -> float:
    """Look up the bytes of one number. Raises ShapeError for an unknown dtype."""
    if dtype not in DTYPE_BYTES:
        raise ShapeError(f"unknown dtype {dtype!r}{nearest(str(dtype), DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def count_stored_layers(shape: Shaped) -> Any:
    """Count the blocks whose weights are kept: n_layers / sharing_count."""
    return shape.n_layers // shape.sharing_count


def count_block_matmul_params(shape: Shaped) -> tuple[Any, Any]:
    """Count one block's matmul weights: attention's (q, k, v, output), and the MLP's."""
    attention = 2 * shape.d_model * shape.d_head * (shape.n_heads + shape.n_kv_heads)
    return attention, MLP_MATRICES[shape.mlp] * shape.d_model * shape.d_ff


def count_param_groups(shape: Shaped) -> dict[str, Any]:
    """Count the stored weights by group; biases go with their layer, a tied head is nothing."""
    d, stored = shape.d_model, count_stored_layers(shape)
    vectors = NORM_VECTORS[shape.norm]
    attention, mlp = count_block_matmul_params(shape)
    qkv_width = (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    if shape.bias != "none":
        attention = attention + qkv_width
    if shape.bias == "all":
        attention = attention + d
        mlp = mlp + (MLP_MATRICES[shape.mlp] - 1) * shape.d_ff + d
    qk_heads = {"none": 0, "head": 2, "full": shape.n_heads + shape.n_kv_heads}[shape.qk_norm]
    rows = shape.max_seq_len + shape.position_offset if shape.position == "learned" else 0
    return {
        "embedding": shape.vocab_size * d,
        "positions": rows * d,
        "attention": stored * attention,
        "mlp": stored * mlp,
        "norms": vectors * ((2 * stored + 1) * d + stored * qk_heads * shape.d_head),
        "head": (1 - shape.tied) * shape.vocab_size * d,
    }


def count_params(shape: Shaped) -> Any:
    """Count all stored weights, a tied head once."""
    return sum(count_param_groups(shape).values())


def count_non_embedding_params(shape: Shaped) -> Any:
    """Count the stored weights of the blocks and the final norm."""
    groups = count_param_groups(shape)
    return groups["attention"] + groups["mlp"] + groups["norms"]


def count_forward_flops(shape: Shaped, context: Any, *, logits: bool = True) -> Any:
    """Count the FLOPs of one token that attends to `context` positions, itself included."""
    attention, mlp = count_block_matmul_params(shape)
    scores_and_values = 4.0 * shape.n_heads * shape.d_head * context
    head = 2.0 * shape.vocab_size * shape.d_model if logits else 0.0
    return shape.n_layers * (2.0 * (attention + mlp) + scores_and_values) + head


def count_prefill_flops(shape: Shaped, prompt_tokens: Any, *, all_logits: bool = False) -> Any:
    """Count the FLOPs to read the prompt of one sequence.

    Attention is causal, (prompt_tokens + 1) / 2 positions a token on average. The head runs at the last
    position only, all that generation needs, or at every one with `all_logits`.
    """
    body = prompt_tokens * count_forward_flops(shape, (prompt_tokens + 1) / 2, logits=False)
    return body + (prompt_tokens if all_logits else 1) * 2.0 * shape.vocab_size * shape.d_model


def count_train_flops(shape: Shaped, tokens: Any, seq_len: Any) -> Any:
    """Count the FLOPs to train on `tokens` in sequences of `seq_len`.

    Three forward passes' worth (the backward pass costs two), causal attention, nothing recomputed. Not the
    6·N·D of scaling laws, which those compute themselves.
    """
    return 3.0 * tokens * count_forward_flops(shape, (seq_len + 1) / 2)


def count_weight_bytes(shape: Shaped, dtype: str) -> Any:
    """Size all stored weights in bytes, every one in `dtype`."""
    return count_params(shape) * dtype_bytes(dtype)


def count_kv_bytes(shape: Shaped, batch: Any, context: Any, dtype: str) -> Any:
    """Size the keys and values of `batch` sequences of `context` tokens in bytes, one cache a visit."""
    return 2.0 * shape.n_layers * shape.n_kv_heads * shape.d_head * batch * context * dtype_bytes(dtype)
