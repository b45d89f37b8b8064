"""Refuse to set a model beside another, or beside data, whose tokens are not its own."""

from __future__ import annotations

from pathlib import Path

from lathe.data.mixture import open_sources
from lathe.data.store import file_sha256
from lathe.errors import RecipeError
from lathe.model.checkpoint import TOKENIZER, load_shape_of
from lathe.recipe import Recipe
from lathe.shape import Shape
from lathe.train.text import open_mixture


def check_same_tokens(folder: str | Path, recipe: Recipe, *, who: str) -> Shape:
    """Refuse a checkpoint that is not over a recipe's tokens and positions; gives its shape.

    `who` is what to call it in errors, such as "the teacher". Raises RecipeError, and CheckpointError for a folder that
    is no checkpoint.
    """
    shape = load_shape_of(folder)
    if shape.vocab_size != recipe.shape.vocab_size:
        raise RecipeError(
            f"{who} {folder} has a vocabulary of {shape.vocab_size} tokens and the model to train one of "
            f"{recipe.shape.vocab_size}; they must be the same: take another that has the data's tokenizer, or build "
            f"the data with {who}'s (lathe data build --tokenizer)"
        )
    if shape.position == "learned" and shape.max_seq_len < recipe.seq_len:
        raise RecipeError(
            f"seq_len={recipe.seq_len} is more than the {shape.max_seq_len} learned positions of {who} {folder}; take "
            f"seq_len={shape.max_seq_len} or less, or another model"
        )
    return shape


def check_same_tokenizer(folder: str | Path, recipe: Recipe, *, who: str) -> str | None:
    """Refuse a checkpoint whose tokenizer is not the data's; gives a doubt where nothing says which they are.

    Raises RecipeError.
    """
    if recipe.data is None:
        return None
    path = Path(folder) / TOKENIZER
    sources = open_sources(open_mixture(recipe.data)).values()
    known = {str(one.folder): one.manifest.tokenizer_sha256 for one in sources}
    if not path.is_file() or None in known.values():
        unknown = folder if not path.is_file() else next(one for one in known if known[one] is None)
        return f"{unknown} has no {TOKENIZER}: nothing says that {who}'s tokens are the data's"
    own = file_sha256(path)
    for data, other in known.items():
        if other != own:
            raise RecipeError(
                f"{who}'s tokenizer {path} is not that of the data {data}: the same ids are other tokens; take a model "
                f"of the data's tokenizer, or build the data with {who}'s (lathe data build --tokenizer {path})"
            )
    return None
