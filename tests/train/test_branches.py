"""Which recipes branch off a stable run, and which cannot."""

from dataclasses import replace

import pytest

from lathe.errors import RecipeError
from lathe.recipe import Recipe, Schedule
from lathe.shape import Shape
from lathe.train.branches import branch_recipes

TRUNK = Recipe(
    shape=Shape.of(d_model=32, n_layers=1, n_heads=1, vocab_size=64), tokens=6400, seq_len=16, batch_tokens=64, lr=1e-3,
    schedule=Schedule(name="wsd", warmup_steps=10, decay=0.2),
)  # fmt: skip


def test_a_branch_is_the_trunk_with_fewer_tokens() -> None:
    found = branch_recipes(TRUNK, (3200, 1600, 3200))
    assert found == [replace(TRUNK, tokens=1600), replace(TRUNK, tokens=3200)]
    assert branch_recipes(replace(TRUNK, schedule=Schedule()), ()) == []


@pytest.mark.parametrize(
    ("recipe", "tokens", "says"),
    [
        (replace(TRUNK, schedule=Schedule(name="cosine")), 3200, "cosine has no stable phase"),
        (TRUNK, 6400, "not before the end"),
        (TRUNK, 9000, "not before the end"),
        (TRUNK, 11 * 64, "within the warmup of 10"),
        (TRUNK, 63, "branch_at=63 is less than one batch of 64"),
    ],
)
def test_what_cannot_branch_is_refused(recipe: Recipe, tokens: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        branch_recipes(recipe, (tokens,))
