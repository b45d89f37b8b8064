"""Open what a recipe trains on and what it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lathe.data.loader import SINGLE, Loader
from lathe.data.mixture import Mixture, load_mixture, open_sources
from lathe.data.store import Dataset, Manifest, Split
from lathe.errors import DataError, RecipeError
from lathe.recipe import Data, Recipe

HELD_OUT = "held-out"
"""What the held-out split of a single dataset is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Hold the loader, the splits to evaluate on by name, and one of the datasets' manifest and folder."""

    loader: Loader
    validation: dict[str, Split]
    manifest: Manifest
    folder: Path


def open_text(recipe: Recipe) -> Text:
    """Open a recipe's data. Raises DataError for data that are missing, too few, or of another vocabulary."""
    if recipe.data is None:
        raise RecipeError("the recipe names no data; give data.train, a dataset's folder or a mixture's file")
    mixture = open_mixture(recipe.data)
    sources = open_sources(mixture)
    loader = Loader(
        mixture, seq_len=recipe.seq_len, batch_sequences=recipe.batch_sequences, seed=recipe.seed,
        vocab_size=recipe.shape.vocab_size, across_documents=recipe.data.across_documents,
    )  # fmt: skip
    loader.check_enough(recipe.steps * recipe.batch_tokens)
    first = next(iter(sources.values()))
    return Text(
        loader=loader, validation=_open_validation(recipe.data, sources), manifest=first.manifest, folder=first.folder
    )


def open_mixture(data: Data) -> Mixture:
    """Read the mixture that data name, or make one of a single dataset, to be read no more often than allowed.

    Raises CodecError and DataError for a file or a folder that is none.
    """
    if Path(data.train).suffix in (".toml", ".json"):
        return load_mixture(data.train)
    repeats = 1.0 if data.repeats is None else data.repeats
    folder = str(Dataset(data.train).folder)  # says what is wrong with a folder that is no dataset
    return Mixture(sources={SINGLE: folder}, weights={SINGLE: 1.0}, repeats={SINGLE: repeats})


def _open_validation(data: Data, sources: dict[str, Dataset]) -> dict[str, Split]:
    if data.validation:
        splits = {name: Dataset(folder).split("held-out") for name, folder in data.validation.items()}
    else:
        single = list(sources) == [SINGLE]
        splits = {HELD_OUT if single else name: dataset.split("held-out") for name, dataset in sources.items()}
        splits = {name: split for name, split in splits.items() if split.tokens >= 2}
    if not splits:
        raise DataError(
            f"{data.train} holds nothing out, so there is no loss to report; build it with a held_out share, or name "
            "other datasets under data.validation"
        )
    return splits
