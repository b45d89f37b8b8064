"""Give the learning rate at every step: pure functions of the step, so that resuming and branching are exact.

A schedule is a row of `SCHEDULES`. Steps count from 0; progress runs from 0 at a phase's first step to just short of 1
at its last, so no step is spent at a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lathe.recipe import Recipe


def lr_share(recipe: Recipe, step: int) -> float:
    """Give the learning rate of a step as a share of the peak.

    Warmup is linear: step i of n has (i + 1) / n.
    """
    warmup = recipe.schedule.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[recipe.schedule.name](recipe, step)


def decay_start(recipe: Recipe) -> int:
    """Give the first step of WSD's decay: until then the rate hangs on the step alone, not on how long one trains."""
    return recipe.steps - max(1, round(recipe.schedule.decay * recipe.steps))


def _cosine(recipe: Recipe, step: int) -> float:
    return _between(recipe.schedule.final, (1 + math.cos(math.pi * _progress(recipe, step))) / 2)


def _linear(recipe: Recipe, step: int) -> float:
    return _between(recipe.schedule.final, 1 - _progress(recipe, step))


def _constant(recipe: Recipe, step: int) -> float:
    return 1.0


def _wsd(recipe: Recipe, step: int) -> float:
    """Stay, then decay over the last share of the steps. Hu et al. 2024, arXiv:2404.06395, section 4."""
    start = decay_start(recipe)
    if step < start:
        return 1.0
    return _between(recipe.schedule.final, DECAYS[recipe.schedule.decay_shape]((step - start) / (recipe.steps - start)))


def _power(recipe: Recipe, step: int) -> float:
    """Fall with a power of the tokens seen, then as WSD. Shen et al. 2024, arXiv:2408.13359, equation 8.

    lr = min(peak, batch · a · tokens^b), the batch in sequences.
    """
    schedule = recipe.schedule

    def at(step: int) -> float:
        tokens = (step + 1) * recipe.batch_tokens
        return min(1.0, recipe.batch_sequences * schedule.power_a * tokens**schedule.power_b / recipe.lr)

    start = decay_start(recipe)
    return at(step) if step < start else at(start) * _wsd(recipe, step)


def _progress(recipe: Recipe, step: int) -> float:
    warmup = recipe.schedule.warmup_steps
    return (step - warmup) / (recipe.steps - warmup)


def _between(final: float, share: float) -> float:
    return final + (1 - final) * share


SCHEDULES: dict[str, Callable[[Recipe, int], float]] = {
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
    "constant": _constant,
    "power": _power,
}
"""Every schedule's share of the peak after warmup, by name."""
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""Every shape of WSD's decay, from 1 to 0, by name."""
