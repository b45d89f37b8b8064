"""Give the weights that a training begins with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.checkpoint import WEIGHTS, check_weights, load_shape_of, read_tensors
from lathe.model.init import draw_weights
from lathe.recipe import Recipe


def first_weights(recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """Give all first weights by name, in fp32 on the CPU: drawn, or those of a checkpoint.

    Raises CheckpointError for a checkpoint of another shape, RecipeError and ShapeError as `draw_weights`.
    """
    if recipe.init.checkpoint is None:
        return draw_weights(recipe.shape, scheme=recipe.init.scheme, seed=recipe.seed, base=recipe.init.base)
    folder = Path(recipe.init.checkpoint)
    load_shape_of(folder)  # says what is wrong with a folder that is no checkpoint
    weights = read_tensors(folder / WEIGHTS)
    try:
        check_weights(recipe.shape, {name: tuple(w.shape) for name, w in weights.items()}, source=str(folder))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; init.checkpoint must have the recipe's shape") from None
    return ((name, weight.float()) for name, weight in weights.items())
