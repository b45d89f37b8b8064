"""Make a shallower model from some layers of a larger one.

A layer is a visit: the n-th block that a token passes through. Embedding, positions, final norm and head always come
along, as in Sanyal et al. 2024 (Inheritune), arXiv:2404.08634, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from lathe.errors import ShapeError, nearest
from lathe.hub.sharing import unroll
from lathe.model.init import draw_weights
from lathe.shape import Shape

if TYPE_CHECKING:
    from lathe.evals.analysis import Analysis

Part = Literal["all", "attention", "mlp"]
By = Literal["first", "uniform", "rank", "mass", "similarity"]
PARTS: dict[Part, tuple[str, ...]] = {
    "all": ("attention_norm", "attention", "mlp_norm", "mlp"),
    "attention": ("attention_norm", "attention"),
    "mlp": ("mlp_norm", "mlp"),
}
"""What of a block is inherited: a part comes with the norm before it."""
MEASURED: tuple[By, ...] = ("rank", "mass", "similarity")
"""Ways to choose layers that an analysis of the reference has to back."""
RANGE = re.compile(r"(?P<first>\d*):(?P<last>\d*)(?::(?P<step>[1-9]\d*))?|(?P<one>\d+)")


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Read layers as "0:13" (13 of them), "0,2,4:8", ":6" or "0:12:2" name them, in the order that stands there.

    Raises ShapeError for what names no layers, or layers that a reference of `n_layers` does not have.
    """
    found: list[int] = []
    for word in text.split(","):
        match = RANGE.fullmatch(word.strip())
        if match is None:
            raise ShapeError(f"layers {text!r}: {word.strip()!r} names no layers; wanted such as 0:6 or 0,2,4:8")
        if match["one"]:
            found.append(int(match["one"]))
        else:
            first, last, step = int(match["first"] or 0), int(match["last"] or n_layers), int(match["step"] or 1)
            if first >= last:
                raise ShapeError(f"layers {text!r}: {word.strip()} holds no layer; a range leaves out its end")
            check_layers((last - 1,), n_layers)  # before a range of any length is made
            found += range(first, last, step)
    check_layers(found, n_layers)
    return tuple(found)


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Refuse no layers, and layers beyond the reference's. Raises ShapeError."""
    if not layers:
        raise ShapeError("no layer is to be inherited; wanted one at least")
    beyond = [layer for layer in layers if not 0 <= layer < n_layers]
    if beyond:
        raise ShapeError(
            f"there is no layer {max(beyond)} in a reference of {n_layers}, counted from 0 to {n_layers - 1}; a range "
            f"leaves out its end: 0:{n_layers} is all of it"
        )


def count_layers(n_layers: int, keep_ratio: float) -> int:
    """Say how many layers a share of them is: the nearest whole number, one at least. Raises ShapeError."""
    if not 0 < keep_ratio <= 1:
        raise ShapeError(f"keep_ratio={keep_ratio:g} is no share of the layers; give a number above 0, up to 1")
    return max(1, round(keep_ratio * n_layers))


def choose_layers(n_layers: int, count: int, *, by: By, analysis: Analysis | None = None) -> tuple[int, ...]:
    """Choose which `count` of the reference's layers to keep, in its order.

    `first` are Inheritune's; `uniform` lie evenly from the first to the last (as DistilBERT's nearly do, Sanh et al.
    2019, arXiv:1910.01108); `rank` and `mass` keep the layers with the highest rank or mass of any head; `similarity`
    drops the least influential (Men et al. 2024, ShortGPT, arXiv:2403.03853). Equals go to the earlier layer.

    Raises ShapeError for a count that the reference does not have, or without the analysis that a way needs.
    """
    if by not in get_args(By):
        raise ShapeError(f"no way to choose layers is called {by!r}{nearest(str(by), get_args(By))}")
    if not 1 <= count <= n_layers:
        raise ShapeError(f"{count} layers of a reference of {n_layers}: wanted from 1 to {n_layers}")
    if by == "first":
        return tuple(range(count))
    if by == "uniform":
        return tuple(round(i * (n_layers - 1) / max(1, count - 1)) for i in range(count))
    if analysis is None:
        raise ShapeError(f"to choose layers by {by} the reference must read a text: give --data, or choose by uniform")
    scores = score_layers(analysis, by)
    if len(scores) != n_layers:
        raise ShapeError(f"the analysis is of {len(scores)} layers, the reference has {n_layers}; analyse it")
    return tuple(sorted(sorted(range(n_layers), key=lambda layer: -scores[layer])[:count]))


def score_layers(analysis: Analysis, by: By) -> tuple[float, ...]:
    """Give what layers are kept for, the higher the sooner."""
    if by == "similarity":
        return analysis.influence
    return analysis.rank_max if by == "rank" else analysis.mass_max


def inherit_layers(
    shape: Shape,
    weights: Mapping[str, Tensor],
    layers: Sequence[int],
    *,
    part: Part = "all",
    seed: int = 0,
    scheme: str = "openlm",
) -> tuple[Shape, dict[str, Tensor]]:
    """Make the model of these layers of a reference: gives its shape, and its weights, the reference's own tensors.

    Layers may come in any order, and more than once, as in stacking. Of a `part`, the rest of each block is drawn by a
    scheme of `lathe.model.init`, in the reference's dtype. A reference with shared layers keeps sharing where all of
    it is inherited; otherwise each layer gets a block. Raises ShapeError, and RecipeError for an unknown scheme.
    """
    check_layers(layers, shape.n_layers)
    if part not in PARTS:
        raise ShapeError(f"no part of a block is called {part!r}{nearest(str(part), PARTS)}")
    if tuple(layers) == tuple(range(shape.n_layers)):
        small, found = shape, dict(weights)
    else:
        flat, unrolled = unroll(shape, weights)
        small, found = dataclasses.replace(flat, n_layers=len(layers)), _pick_blocks(unrolled, layers)
    if part == "all":
        return small, found
    drawn = draw_weights(small, scheme=scheme, seed=seed)
    return small, {name: found[name] if is_part(name, part) else new.to(found[name]) for name, new in drawn}


def is_part(name: str, part: Part) -> bool:
    """Say whether a weight is inherited with a part of the blocks; what is in no block always is."""
    return not name.startswith("blocks.") or name.split(".")[2] in PARTS[part]


def _pick_blocks(weights: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    found = {name: w for name, w in weights.items() if not name.startswith("blocks.")}
    for place, layer in enumerate(layers):
        prefix = f"blocks.{layer}."
        found |= {
            f"blocks.{place}.{name.removeprefix(prefix)}": w for name, w in weights.items() if name.startswith(prefix)
        }
    return found
