"""Turn one stable training into several: WSD's decay, taken at several numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.errors import RecipeError
from lathe.recipe import Recipe
from lathe.train.schedule import decay_start

BRANCHING = ("wsd", "power")
"""Schedules whose rate, until they decay, hangs on the step alone: how long one trains does not change what was."""


def branch_recipes(recipe: Recipe, tokens: Sequence[int]) -> list[Recipe]:
    """Give the recipe of each branch, shortest first: the trunk's, with fewer tokens.

    Raises RecipeError for a schedule without a stable phase, or tokens that are not fewer than the trunk's.
    """
    if tokens and recipe.schedule.name not in BRANCHING:
        raise RecipeError(
            f"schedule={recipe.schedule.name} has no stable phase to branch off; take {' or '.join(BRANCHING)}"
        )
    for count in tokens:
        if count // recipe.batch_tokens >= recipe.steps:
            raise RecipeError(
                f"branch_at={count} is not before the end at {recipe.tokens} tokens, which is a run in any case"
            )
        if count < recipe.batch_tokens:
            raise RecipeError(f"branch_at={count} is less than one batch of {recipe.batch_tokens}; branch later")
    branches = [replace(recipe, tokens=count) for count in sorted(set(tokens))]
    for branch in branches:
        if decay_start(branch) < recipe.schedule.warmup_steps:
            raise RecipeError(
                f"branch_at={branch.tokens} would decay from step {decay_start(branch)}, within the warmup of "
                f"{recipe.schedule.warmup_steps}; branch later, or warm up for fewer steps"
            )
    return branches
