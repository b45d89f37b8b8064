"""What a shape's fields may hold, and what makes no decoder."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, get_args

from lathe.errors import ShapeError, nearest

Sharing = Literal["none", "immediate", "all-over", "reverse"]
Norm = Literal["rmsnorm", "layernorm", "layernorm-gain", "layernorm-plain"]
Mlp = Literal["swiglu", "gelu", "gelu-tanh", "relu"]
Position = Literal["rotary", "learned", "none"]
QkNorm = Literal["none", "head", "full"]
Bias = Literal["none", "qkv", "all"]

CHOICES: dict[str, tuple[str, ...]] = {
    "sharing": get_args(Sharing),
    "norm": get_args(Norm),
    "mlp": get_args(Mlp),
    "position": get_args(Position),
    "qk_norm": get_args(QkNorm),
    "bias": get_args(Bias),
}
COUNTS = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size")


def check_shape(shape: Any) -> None:
    """Refuse fields that cannot make a decoder, and settle their types. Raises ShapeError."""
    _check_kinds(shape)
    _check_heads(shape)
    _check_sharing(shape)
    _check_positions(shape)


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one. Raises ShapeError."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ShapeError(f"{name}={value!r} should be a whole number of at least {least}")


def _check_kinds(shape: Any) -> None:
    for name in (*COUNTS, "sharing_count", "max_seq_len", "position_offset"):
        value = getattr(shape, name)
        check_count(name, value, least=0 if name == "position_offset" else 1)
        object.__setattr__(shape, name, operator.index(value))  # numpy's integers become Python's
    for name in ("norm_eps", "rotary_theta", "rotary_fraction"):
        value = getattr(shape, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ShapeError(f"{name}={value!r} should be a positive, finite number")
        object.__setattr__(shape, name, float(value))
    for name in ("tied", "parallel_residual"):
        if not isinstance(getattr(shape, name), bool):
            raise ShapeError(f"{name}={getattr(shape, name)!r} should be true or false")
    for name, choices in CHOICES.items():
        value = getattr(shape, name)
        if value not in choices:
            raise ShapeError(f"{name}={value!r} is unknown{nearest(str(value), choices)}")


def _check_heads(shape: Any) -> None:
    if shape.n_heads % shape.n_kv_heads:
        choices = [kv for kv in range(1, shape.n_heads + 1) if shape.n_heads % kv == 0]
        raise ShapeError(
            f"n_heads={shape.n_heads} is not a multiple of n_kv_heads={shape.n_kv_heads}; "
            f"for d_model={shape.d_model} try n_kv_heads in {choices}"
        )


def _check_sharing(shape: Any) -> None:
    count = shape.sharing_count
    if shape.sharing == "none" and count != 1:
        patterns = ", ".join(c for c in CHOICES["sharing"] if c != "none")
        raise ShapeError(f"sharing_count={count} needs a sharing pattern ({patterns}); got sharing='none'")
    if shape.sharing != "none" and count < 2:
        raise ShapeError(f"sharing={shape.sharing!r} needs a sharing_count of at least 2; got {count}")
    if shape.n_layers % count:
        lower = shape.n_layers // count * count
        choices = " or ".join(str(n) for n in (lower, lower + count) if n)
        raise ShapeError(
            f"n_layers={shape.n_layers} counts block visits, so it should be a multiple of "
            f"sharing_count={count}; try n_layers={choices}"
        )


def _check_positions(shape: Any) -> None:
    if shape.position == "rotary":
        rotated = shape.d_head * shape.rotary_fraction
        if shape.rotary_fraction > 1 or int(rotated) < 2 or int(rotated) % 2:
            raise ShapeError(
                f"rotary positions turn pairs of numbers: d_head={shape.d_head} x rotary_fraction="
                f"{shape.rotary_fraction:g} gives {rotated:g}; it should be even, and the fraction at most 1"
            )
    if shape.position_offset and shape.position != "learned":
        raise ShapeError(f"position_offset={shape.position_offset} needs position='learned'")
