"""List the ways to start a small model that a comparison sets side by side: each a row of `ARMS`.

An arm has so many blocks of its own; some can be made of another number, to be compared at equal latency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lathe.hub.sharing import unroll
from lathe.inherit.layers import Part, inherit_layers
from lathe.inherit.width import WidthBy, narrow, narrow_shape
from lathe.shape import Shape

Weights = Mapping[str, Tensor]
Model = tuple[Shape, Weights]
COUNT = 2
"""How often a shared block is visited in a row: MobileLLM's (Liu et al. 2024, arXiv:2402.14905)."""
DEEPEST = 4
"""How many times deeper than the reference an arm may be made, to take as long as the inherited one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Hold what arms are made from.

    `layers` of the reference are inherited; `influential` are as many, the least influential left out, None if it was
    not analysed. `width` is the narrowed arm's, made `width_by` slicing or SVD; `scheme` draws what is drawn.
    """

    shape: Shape
    weights: Weights
    layers: tuple[int, ...]
    influential: tuple[int, ...] | None = None
    width: int | None = None
    width_by: WidthBy = "slice"
    scheme: str = "openlm"

    @property
    def small(self) -> Shape:
        """Give the inherited arm's shape, which most arms have."""
        return inherit_layers(self.shape, self.weights, self.layers)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Say what a way to start is.

    Args:
        what: it is, for people.
        shape: of so many blocks; those that the arm has of its own where None.
        start: first weights, of so many blocks or its own and by a seed; drawn by the recipe's scheme where None.
        most: the most blocks that it can have, as multiples of the reference's; None where it is not to be varied.
        reference: whether it owes something to the reference's training.
        drawn: whether the seed draws some of its first weights.
        chosen: whether it inherits the study's layers, and pays for choosing them.
        analysed: whether it hangs on the blocks' influence, and pays for measuring it.
        taught: whether the reference teaches it while it trains.
        stacked: whether half of its layers train first, and are then set on top of themselves.
    """

    what: str
    shape: Callable[[Source, int | None], Shape]
    start: Callable[[Source, int | None, int], Model] | None = None
    most: int | None = None
    reference: bool = False
    drawn: bool = False
    chosen: bool = False
    analysed: bool = False
    taught: bool = False
    stacked: bool = False


def _small(source: Source, blocks: int | None) -> Shape:
    return source.small


def _inherit(part: Part) -> Callable[[Source, int | None, int], Model]:
    def start(source: Source, blocks: int | None, seed: int) -> Model:
        return inherit_layers(source.shape, source.weights, source.layers, part=part, seed=seed, scheme=source.scheme)

    return start


def _prune(source: Source, blocks: int | None, seed: int) -> Model:
    assert source.influential is not None, "the pruned arm needs the reference's analysis"
    return inherit_layers(source.shape, source.weights, source.influential)


def _pick(source: Source, blocks: int | None) -> tuple[int, ...]:
    """Take so many of the reference's layers: those to inherit first, then the others; in its order."""
    others = [layer for layer in range(source.shape.n_layers) if layer not in source.layers]
    return tuple(sorted([*source.layers, *others][: blocks or len(source.layers)]))


def _shared_shape(source: Source, blocks: int | None) -> Shape:
    visits = COUNT * (blocks or len(source.layers))
    return dataclasses.replace(source.shape, n_layers=visits, sharing="immediate", sharing_count=COUNT)


def _share(source: Source, blocks: int | None, seed: int) -> Model:
    flat, unrolled = unroll(source.shape, source.weights)
    _, weights = inherit_layers(flat, unrolled, _pick(source, blocks))
    return _shared_shape(source, blocks), weights


def _half_width(source: Source, blocks: int | None) -> Shape:
    return _set_depth(narrow_shape(source.shape, source.shape.d_model // 2), blocks)


def _narrowed_shape(source: Source, blocks: int | None) -> Shape:
    found = _set_depth(narrow_shape(source.shape, _find_width(source)), blocks)
    return dataclasses.replace(found, tied=found.tied and source.width_by == "slice")


def _find_width(source: Source) -> int:
    return source.width or source.shape.d_model // 2


def _set_depth(shape: Shape, blocks: int | None) -> Shape:
    """Make a shape so deep; one of shared layers shares them at its own depth alone."""
    if blocks in (None, shape.n_layers):
        return shape
    return dataclasses.replace(shape, n_layers=blocks or 0, sharing="none", sharing_count=1)


def _narrow(source: Source, blocks: int | None, seed: int) -> Model:
    model = source.shape, source.weights
    if blocks not in (None, source.shape.n_layers):
        model = inherit_layers(*model, tuple(range(blocks or 0)))
    return narrow(*model, _find_width(source), by=source.width_by)


ARMS: dict[str, Arm] = {
    "inherited": Arm(
        what="the chosen layers of the reference",
        shape=_small, start=_inherit("all"), reference=True, chosen=True,
    ),
    "random": Arm(what="as many layers, drawn at random", shape=_small),
    "half-width": Arm(
        what="all of the reference's layers at half its width, drawn at random", shape=_half_width, most=DEEPEST
    ),
    "stacked": Arm(
        what="half of the layers, trained from random weights and then stacked on themselves",
        shape=_small, stacked=True,
    ),
    "distilled": Arm(
        what="random weights, taught by the reference's logits", shape=_small, reference=True, taught=True
    ),
    "pruned": Arm(
        what="the reference without its least influential blocks",
        shape=_small, start=_prune, reference=True, analysed=True,
    ),
    "shared": Arm(
        what="the chosen layers, each visited twice in a row", shape=_shared_shape, start=_share, most=1,
        reference=True, chosen=True,
    ),
    "shared-random": Arm(
        what="as many layers drawn at random, each visited twice in a row", shape=_shared_shape, most=DEEPEST
    ),
    "attention-only": Arm(
        what="the chosen layers' attention; their MLPs are drawn at random",
        shape=_small, start=_inherit("attention"), reference=True, drawn=True, chosen=True,
    ),
    "mlp-only": Arm(
        what="the chosen layers' MLPs; their attention is drawn at random",
        shape=_small, start=_inherit("mlp"), reference=True, drawn=True, chosen=True,
    ),
    "narrowed": Arm(
        what="the reference's layers, made narrower", shape=_narrowed_shape, start=_narrow, most=1, reference=True
    ),
}  # fmt: skip
"""Every arm by name."""


def stack(shape: Shape, weights: Weights, n_layers: int) -> Model:
    """Set a trained model's layers on top of themselves, up to a depth.

    Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", section 3.2.
    """
    return inherit_layers(shape, weights, [i % shape.n_layers for i in range(n_layers)])
