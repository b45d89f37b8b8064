"""Hash what a training reads, so that it is known again wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.data.mixture import Mixture, open_sources
from lathe.data.store import Dataset, Shard, file_sha256
from lathe.errors import CheckpointError
from lathe.model.checkpoint import WEIGHTS, load_shape_of
from lathe.recipe import Data


def hash_data(data: Data, mixture: Mixture) -> str:
    """Hash the tokens to train on and to hold out, and in what shares; folders and what datasets say else do not count.

    Raises DataError for data that are missing.
    """
    sources = open_sources(mixture)
    held_out = {name: Dataset(folder) for name, folder in data.validation.items()} or sources
    content: dict[str, Any] = {
        "train": {name: _list_sums(dataset, "train") for name, dataset in sources.items()},
        "weights": {name: mixture.weights[name] for name in sources} if len(sources) > 1 else {},
        "held-out": {name: _list_sums(dataset, "held-out") for name, dataset in held_out.items()},
    }
    return _hash(content)


def _list_sums(dataset: Dataset, split: str) -> list[str | None]:
    shards: Iterable[Shard] = (shard for shard in dataset.manifest.shards if shard.split == split)
    return [dataset.manifest.tokenizer_sha256, *(sum_ for s in shards for sum_ in (s.sha256, s.index_sha256))]


def hash_weights(folder: str | Path) -> str:
    """Hash a checkpoint's weights. Raises CheckpointError for a folder that is none."""
    load_shape_of(folder)  # says what is wrong with a folder that is no checkpoint
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint is not whole: write it again")
    return file_sha256(path)[:32]


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(codec.canonical_json(content).encode()).hexdigest()[:32]
