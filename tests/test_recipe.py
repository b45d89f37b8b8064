"""What may be asked of a training, and that a recipe is named by its content."""

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import codec
from lathe.errors import RecipeError
from lathe.recipe import Recipe
from lathe.shape import Shape

SHAPE = Shape.of(d_model=256, n_layers=4, n_heads=4, vocab_size=32000)
RECIPE = Recipe(shape=SHAPE, tokens=10**9, seq_len=2048, batch_tokens=64 * 2048, lr=3e-3)


@given(tokens=st.integers(1, 10**12), seq_len=st.integers(1, 8192), sequences=st.integers(1, 4096))
def test_steps_are_whole_batches_within_the_tokens(tokens: int, seq_len: int, sequences: int) -> None:
    given: dict[str, Any] = {"tokens": tokens, "seq_len": seq_len, "batch_tokens": sequences * seq_len}
    if tokens < sequences * seq_len:
        with pytest.raises(RecipeError, match="less than one batch"):
            replace(RECIPE, **given)
        return
    found = replace(RECIPE, **given)
    assert found.steps >= 1
    assert found.steps * found.batch_tokens <= tokens < (found.steps + 1) * found.batch_tokens


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"seq_len": -1}, "seq_len=-1"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"batch_tokens": 3000}, "not a whole number of sequences of 2048"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": -1e-3}, "lr=-0.001"),
    ],
)
def test_what_makes_no_training_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        replace(RECIPE, **given)


def test_the_id_is_the_content() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", RECIPE.id)
    assert replace(RECIPE).id == RECIPE.id
    assert codec.decode(Recipe, codec.encode(RECIPE)).id == RECIPE.id
    others = [
        replace(RECIPE, seed=1), replace(RECIPE, lr=2e-3), replace(RECIPE, tokens=10**9 + 1),
        replace(RECIPE, batch_tokens=2048), replace(RECIPE, shape=replace(SHAPE, tied=True)),
    ]  # fmt: skip
    assert len({r.id for r in (RECIPE, *others)}) == 6


def test_the_id_is_the_same_in_another_process() -> None:
    program = "import sys; from lathe import codec, documents; from lathe.recipe import Recipe; "
    program += "print(codec.decode(Recipe, documents.parse_json(sys.argv[1])).id)"
    command = [sys.executable, "-c", program, codec.dumps(RECIPE)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == RECIPE.id
