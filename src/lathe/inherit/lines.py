"""List what a comparison trains: each arm, at its own depth or at one as quick, until it has spent what all spend."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lathe.device import Device
from lathe.errors import LatheError, StudyError
from lathe.inherit.arms import ARMS, Arm, Source
from lathe.inherit.ledger import Charge
from lathe.inherit.results import Equal
from lathe.inherit.serving import match_depth
from lathe.inherit.study import InheritStudy
from lathe.recipe import Distil, Recipe
from lathe.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Hold an arm at one shape, and the recipe of its training but for seed and first weights.

    `blocks` are None at the arm's own depth. `before` is what it spends before it is trained; `first` the recipe of the
    stacked arm's first training, of half of its layers.
    """

    name: str
    arm: Arm
    key: str
    equal: tuple[Equal, ...]
    blocks: int | None
    recipe: Recipe
    before: tuple[Charge, ...] = ()
    first: Recipe | None = None

    @property
    def shape(self) -> Shape:
        """Give the shape in the end."""
        return self.recipe.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Hold what FLOPs are counted with: the study's recipe, a teacher for those that have one, and an analysis."""

    study: InheritStudy
    base: Recipe
    teacher: Shape
    distil: Distil
    analysis: Charge | None

    def step_flops(self, shape: Shape, arm: Arm) -> float:
        """Count what a step of training takes, a teacher's forward pass with it."""
        return shape.train_flops(self.base.batch_tokens, self.base.seq_len) + self.teacher_flops(arm)

    def teacher_flops(self, arm: Arm) -> float:
        """Count what the teacher takes a step."""
        if not arm.taught or not self.distil.weight:
            return 0.0
        return self.base.batch_tokens * self.teacher.forward_flops((self.base.seq_len + 1) / 2)

    def before(self, arm: Arm) -> tuple[Charge, ...]:
        """List what an arm spends before it is trained."""
        pays = arm.analysed or (arm.chosen and self.study.measures_layers)
        return (self.analysis,) if pays and self.analysis is not None else ()

    @property
    def budget(self) -> float:
        """Count what the inherited arm spends, and so all of them."""
        inherited = ARMS["inherited"]
        steps = self.base.steps * self.step_flops(self.base.shape, inherited)
        return steps + sum(one.flops or 0.0 for one in self.before(inherited))


def list_lines(costs: Costs, source: Source, device: Device) -> list[Line]:
    """List the arms at the shapes that the study asks for, with so many tokens that all spend the same FLOPs.

    Raises StudyError for a depth that no arm has, or a budget that leaves no step, and what recipes raise.
    """
    study, found = costs.study, list[Line]()
    for key in study.arms:
        arm = ARMS[key]
        for blocks, equal in _list_depths(key, arm, costs, source, device):
            shape = arm.shape(source, blocks)
            name = key if blocks is None else f"{key}, {shape.n_layers} layers"
            try:
                found.append(_allot(name, key, arm, shape, blocks, equal, costs))
            except LatheError as error:
                raise type(error)(f"{name}: {error}") from error
    return found


def _list_depths(
    key: str, arm: Arm, costs: Costs, source: Source, device: Device
) -> list[tuple[int | None, tuple[Equal, ...]]]:
    """List an arm's depths, and at what it is equal there: blocks, None for its own."""
    equal = costs.study.equal
    if "latency" not in equal or arm.most is None:
        return [(None, equal)]
    blocks = match_depth(key, arm, source, device, costs.study)
    if arm.shape(source, blocks) == arm.shape(source, None):
        return [(None, equal)]
    own: list[tuple[int | None, tuple[Equal, ...]]] = [(None, ("flops",))] if "flops" in equal else []
    return [*own, (blocks, ("latency",))]


def _allot(
    name: str, key: str, arm: Arm, shape: Shape, blocks: int | None, equal: tuple[Equal, ...], costs: Costs
) -> Line:
    """Give an arm the tokens with which it comes to the budget, to half a step."""
    base, before = costs.base, costs.before(arm)
    left, first = costs.budget - sum(one.flops or 0.0 for one in before), None
    if arm.stacked:
        if shape.n_layers < 2:
            raise StudyError("one layer cannot be stacked of half as many; inherit two or more, or leave the arm out")
        half = replace(shape, n_layers=-(-shape.n_layers // 2), sharing="none", sharing_count=1)
        step = costs.step_flops(half, arm)
        first = _train_for(left * costs.study.stacked.share, base, half, step)
        left -= first.steps * step
    recipe = _train_for(left, base, shape, costs.step_flops(shape, arm))
    if arm.taught:
        recipe = replace(recipe, distil=costs.distil)
    return Line(
        name=name, arm=arm, key=key, equal=equal, blocks=blocks, recipe=recipe, before=before, first=first
    )  # fmt: skip


def _train_for(flops: float, base: Recipe, shape: Shape, step_flops: float) -> Recipe:
    steps = math.floor(flops / step_flops + 0.5)
    if steps < 1:
        raise StudyError(
            f"{max(0.0, flops):.3g} FLOPs are left to train with, and a step takes {step_flops:.3g}; give [recipe] "
            "more tokens, or leave the arm out"
        )
    return replace(base, shape=shape, tokens=steps * base.batch_tokens)
