"""Give a decoder its first weights, by the scheme of a model family or by muP.

A scheme is a row of `SCHEMES`: a standard deviation for each part of a decoder, and where the normal distribution is
cut. Norm gains start at one and biases at zero in all of them. Every weight is drawn on the CPU in fp32 from a
generator of its own, seeded by the seed and the weight's name: the values depend on no device, order or sharding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lathe.errors import RecipeError, ShapeError, nearest
from lathe.model.checkpoint import check_device, check_dtype, empty_model, explain_memory
from lathe.model.decoder import Decoder
from lathe.shape import Shape

FAN_IN: dict[str, Callable[[Shape], int]] = {
    "qkv": lambda shape: shape.d_model,
    "out": lambda shape: shape.n_heads * shape.d_head,
    "gate": lambda shape: shape.d_model,
    "up": lambda shape: shape.d_model,
    "down": lambda shape: shape.d_ff,
    "head": lambda shape: shape.d_model,
}
"""The inputs that each kind of matrix sums over. Embeddings pick a row and sum nothing."""
PARTS = {
    "embedding": "embedding", "positions": "positions", "qkv": "inner", "gate": "inner", "up": "inner",
    "out": "residual", "down": "residual", "head": "head",
}  # fmt: skip
"""The part of a scheme that each kind of matrix takes its standard deviation from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Say what a scheme may look at: the matrix's kind, the shape it is in, muP's base, and its block's first visit."""

    kind: str
    shape: Shape
    base: Shape
    layer: int

    @property
    def fan_in(self) -> int:
        return FAN_IN[self.kind](self.shape)

    @property
    def base_fan_in(self) -> int:
        return FAN_IN[self.kind](self.base)


Std = Callable[[Matrix], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Hold the standard deviation of each part: `residual` matrices write to the stream, `inner` ones read it.

    `cut` redraws what lies beyond so many standard deviations. `scaled` schemes compare the shape with a base.
    """

    embedding: Std
    positions: Std
    inner: Std
    residual: Std
    head: Std
    cut: float | None = None
    scaled: bool = False
    source: str


def _flat(std: float) -> Std:
    return lambda matrix: std


def _by_visits(std: float) -> Std:
    return lambda matrix: std / (2 * matrix.shape.n_layers) ** 0.5


def _by_width(matrix: Matrix) -> float:
    return matrix.shape.d_model**-0.5


def _by_base_width(matrix: Matrix) -> float:
    return matrix.base.d_model**-0.5


def _by_fan_in(matrix: Matrix) -> float:
    return matrix.fan_in**-0.5


def _by_fan_in_and_layer(matrix: Matrix) -> float:
    return (matrix.fan_in * 2 * (matrix.layer + 1)) ** -0.5


def _small(matrix: Matrix) -> float:
    return (2 / (5 * matrix.shape.d_model)) ** 0.5


def _wang(matrix: Matrix) -> float:
    return 2 / (matrix.shape.n_layers * matrix.shape.d_model**0.5)


_OPENLM = Scheme(
    embedding=_by_width,
    positions=_by_width,
    inner=_by_fan_in,
    residual=_by_fan_in_and_layer,
    head=_by_fan_in,
    cut=3.0,
    source="mlfoundations/open_lm open_lm/model.py, which takes d_model for the attention output's fan-in",
)
_NORMAL = Scheme(
    embedding=_flat(0.02),
    positions=_flat(0.02),
    inner=_flat(0.02),
    residual=_flat(0.02),
    head=_flat(0.02),
    source="huggingface.co Llama and MobileLLM config.json: initializer_range",
)
SCHEMES: dict[str, Scheme] = {
    "openlm": _OPENLM,
    "llama": _NORMAL,
    "mobilellm": _NORMAL,
    "gpt2": replace(
        _NORMAL,
        residual=_by_visits(0.02),
        source="Radford et al. 2019, section 2.3, as Hugging Face reads it; openai/gpt-2 src/model.py divides nothing, "
        "and draws positions with 0.01",
    ),
    "opt": Scheme(
        embedding=_flat(0.006),
        positions=_flat(0.006),
        inner=_flat(0.006),
        residual=_by_visits(0.006),
        head=_flat(0.006),
        source="Zhang et al. 2022, arXiv:2205.01068, section 2.2",
    ),
    "neox": Scheme(
        embedding=_small,
        positions=_small,
        inner=_small,
        residual=_wang,
        head=_small,
        source="EleutherAI/gpt-neox megatron/model/init_functions.py: small_init (Nguyen and Salazar 2019, "
        "arXiv:1910.05895) and wang_init; Black et al. 2022, arXiv:2204.06745, section 2.3.1",
    ),
    "mup": replace(
        _OPENLM,
        embedding=_by_base_width,
        positions=_by_base_width,
        head=lambda matrix: matrix.base_fan_in**0.5 / matrix.fan_in,
        scaled=True,
        source="Yang et al. 2022, arXiv:2203.03466, table 3; at the base's width these are openlm's values",
    ),
}
"""Every scheme by name."""


def initialise(model: Decoder, *, scheme: str, seed: int, base: Shape | None = None) -> None:
    """Fill a decoder's weights in place. See `draw_weights`."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in draw_weights(model.shape, scheme=scheme, seed=seed, base=base):
            own[name].copy_(value)


def draw_weights(shape: Shape, *, scheme: str, seed: int, base: Shape | None = None) -> Iterator[tuple[str, Tensor]]:
    """Draw all weights of a shape, one after the other, by name, in fp32 on the CPU.

    `base` is the shape whose tuned learning rate muP carries over. Raises:
        RecipeError: no such scheme, or a base missing or superfluous.
        ShapeError: a shape that muP does not fit.
    """
    row = _find_scheme(scheme)
    if row.scaled != (base is not None):
        raise RecipeError(
            f"scheme={scheme!r} scales from a base; give base, the narrow shape that was tuned"
            if row.scaled
            else f"scheme={scheme!r} knows no base; leave base out, or take {_scaled_names()}"
        )
    if base is not None:
        check_base(shape, base)
    return (
        (name, _draw(name, tuple(p.shape), row, seed=seed, shape=shape, base=base or shape))
        for name, p in empty_model(shape).named_parameters()
    )


def lr_scales(shape: Shape, *, base: Shape) -> dict[str, float]:
    """Give what muP multiplies Adam's learning rate with, by the weight's name: base fan-in / fan-in for matrices.

    Embeddings, gains and biases keep it. torch's AdamW multiplies its decay with the learning rate too: divide
    `weight_decay` by the same number to decay all weights alike. Yang et al. 2022, arXiv:2203.03466, table 3. Raises
    ShapeError for a shape that muP does not fit.
    """
    check_base(shape, base)
    scales = {}
    for name, p in empty_model(shape).named_parameters():
        summed = FAN_IN.get(_kind(name)) if p.ndim == 2 else None
        scales[name] = 1.0 if summed is None else summed(base) / summed(shape)
    return scales


def build(
    shape: Shape,
    *,
    scheme: str,
    seed: int,
    base: Shape | None = None,
    dtype: str = "fp32",
    device: str | torch.device = "cpu",
) -> Decoder:
    """Make a decoder to train, with its first weights. Raises as `draw_weights`, and DeviceError."""
    place = check_device(device)
    wanted = check_dtype(dtype, place)
    weights = draw_weights(shape, scheme=scheme, seed=seed, base=base)
    with explain_memory(shape, dtype=dtype, device=place):
        loaded = {name: value.to(place, wanted) for name, value in weights}
    model = empty_model(shape)
    model.load_state_dict(loaded, assign=True)
    return model


def check_base(shape: Shape, base: Shape) -> None:
    """Refuse what muP, as it is here, does not fit. Raises ShapeError."""
    if shape.tied:
        raise ShapeError(
            "tied=True: muP draws the head and steps it unlike the embedding, so they cannot be one matrix; untie them"
        )
    if shape.d_head != base.d_head:
        raise ShapeError(
            f"d_head={shape.d_head}, the base's is {base.d_head}: attention scores are divided by √d_head, so muP "
            "holds only while it stays; widen by adding heads"
        )


def _find_scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise RecipeError(f"unknown init scheme {name!r}{nearest(str(name), SCHEMES)}")
    return SCHEMES[name]


def _scaled_names() -> str:
    return " or ".join(name for name, row in SCHEMES.items() if row.scaled)


def _kind(name: str) -> str:
    """Take the kind from a weight's name: `qkv` from `blocks.0.attention.qkv.weight`."""
    return name.split(".")[-2]


def _draw(name: str, size: tuple[int, ...], scheme: Scheme, *, seed: int, shape: Shape, base: Shape) -> Tensor:
    if len(size) == 1:
        return torch.zeros(size) if name.endswith(".bias") else torch.ones(size)
    block = int(name.split(".")[1]) if name.startswith("blocks.") else 0
    matrix = Matrix(kind=_kind(name), shape=shape, base=base, layer=shape.visits.index(block))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    drawn = torch.randn(size, generator=generator)
    if scheme.cut is not None:
        while (beyond := drawn.abs() > scheme.cut).any():
            drawn[beyond] = torch.randn(int(beyond.sum()), generator=generator)
    std: Std = getattr(scheme, PARTS[matrix.kind])
    return drawn.mul_(std(matrix))
