"""Find shapes of about the same size and different aspect ratios: what tells depth from width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lathe.errors import LatheError, StudyError
from lathe.shape import Shape

MOST_LAYERS = 512
ASPECT_OFF = 2.0
"""The largest factor by which an aspect ratio may miss the one asked for: depths are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Ask for shapes of `params`, counted as `count` says, one for each aspect ratio d_model / n_layers.

    Widths are multiples of `multiple`; sizes may be off by the share `tolerance`.
    """

    params: float
    aspect: tuple[float, ...]
    count: Literal["params", "non_embedding_params"] = "params"
    tolerance: float = 0.05
    multiple: int = 16

    def __post_init__(self) -> None:
        if not self.aspect:
            raise StudyError("a family names no aspect; give at least one, such as aspect = [8, 32, 128]")
        if bad := [one for one in (self.params, self.multiple, *self.aspect) if not 0 < one < math.inf]:
            raise StudyError(f"a family has the number {bad[0]}; params, multiple and aspect are above zero")
        if not 0 < self.tolerance < 1:
            raise StudyError(f"tolerance={self.tolerance:g}; wanted a share between 0 and 1, such as 0.05")


def find_members(
    family: Family, fields: Mapping[str, Any], *, build: Callable[[Mapping[str, Any]], Shape]
) -> list[dict[str, Any]]:
    """Add d_model and n_layers to a shape's fields, once for each aspect; `build` makes a shape of fields.

    For each depth the width whose size comes nearest is found, and of those near enough the depth whose aspect is.
    Raises StudyError where nothing is near enough.
    """
    sized, shared = [], fields.get("sharing_count") or 1
    for n_layers in range(shared, MOST_LAYERS + 1, shared):
        d_model, count = _find_width(family, {**fields, "n_layers": n_layers}, build)
        sized.append((d_model, n_layers, count))
        if d_model == family.multiple and count > family.params:
            break  # deeper ones are larger still
    near = [one for one in sized if abs(one[2] / family.params - 1) <= family.tolerance]
    if not near:
        d_model, n_layers, count = min(sized, key=lambda one: abs(math.log(one[2] / family.params)))
        raise StudyError(
            f"no shape has {family.params:g} {family.count} to within {family.tolerance:.0%} at widths of multiples of "
            f"{family.multiple}; the nearest is {d_model}×{n_layers} with {count:,}; widen tolerance, or lower multiple"
        )
    return [{**fields, "d_model": d, "n_layers": n} for d, n in (_choose(family, near, a) for a in family.aspect)]


def _find_width(
    family: Family, fields: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Shape]
) -> tuple[int, int]:
    """Find the aligned width whose size is nearest, and that size; sizes rise with width."""

    def size(steps: int) -> int:
        try:
            return getattr(build({**fields, "d_model": steps * family.multiple}), family.count)
        except LatheError as error:
            raise StudyError(
                f"{error}; a family tries all widths that are multiples of {family.multiple}: take one that heads fit"
            ) from error

    low, high = 0, 1
    while size(high) < family.params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < family.params else (low, middle)
    steps = min((one for one in (low, high) if one), key=lambda one: abs(math.log(size(one) / family.params)))
    return steps * family.multiple, size(steps)


def _choose(family: Family, near: list[tuple[int, int, int]], aspect: float) -> tuple[int, int]:
    d_model, n_layers, _ = min(near, key=lambda one: abs(math.log(one[0] / one[1] / aspect)))
    found = d_model / n_layers
    if not 1 / ASPECT_OFF <= found / aspect <= ASPECT_OFF:
        raise StudyError(
            f"no shape of {family.params:g} {family.count} has an aspect near {aspect:g}; the nearest is "
            f"{d_model}×{n_layers}, {found:.3g}; widen tolerance, lower multiple, or ask for another aspect"
        )
    return d_model, n_layers
