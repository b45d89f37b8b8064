"""Hold what a sweep trains, entry by entry, and keep it as recipe files that `lathe train` takes too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lathe import codec
from lathe.documents import write_atomic
from lathe.errors import StudyError
from lathe.recipe import Recipe
from lathe.train.branches import branch_recipes
from lathe.train.request import Report, read_request
from lathe.train.schedule import decay_start

BLOCK_FLOPS = 5e7
"""What a block's step takes beside arithmetic, in the FLOPs that a core does meanwhile: it sets small jobs' order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Hold one run of a sweep: a recipe, and the token counts below its own at which WSD branches end."""

    name: str
    recipe: Recipe
    branch_at: tuple[int, ...] = ()

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """List what is trained, shortest first: the branches', then the recipe itself."""
        return (*branch_recipes(self.recipe, self.branch_at), self.recipe)

    @property
    def tokens(self) -> tuple[int, ...]:
        """List the token counts of which there will be losses, rising."""
        return tuple(recipe.tokens for recipe in self.recipes)

    @property
    def steps(self) -> int:
        """Count the steps of trunk and branches; what they share is trained once."""
        *branches, trunk = self.recipes
        return trunk.steps + sum(branch.steps - decay_start(branch) for branch in branches)

    @property
    def flops(self) -> float:
        """Count what training takes, branches included."""
        return self.steps * self.recipe.shape.train_flops(self.recipe.batch_tokens, self.recipe.seq_len)

    @property
    def effort(self) -> float:
        """Weigh how long training takes, beside other entries."""
        return self.flops + self.steps * self.recipe.shape.n_layers * BLOCK_FLOPS


def check_distinct(entries: Iterable[Entry]) -> None:
    """Refuse a recipe that is there twice, be it a branch. Raises StudyError."""
    seen: dict[str, str] = {}
    for entry in entries:
        for recipe in entry.recipes:
            if recipe.id in seen:
                raise StudyError(
                    f"{entry.name} and {seen[recipe.id]} are the same recipe at {recipe.tokens} tokens; leave one out"
                )
            seen[recipe.id] = entry.name


def load_entry(path: str | Path, *, data: str | None = None, report: Report | None = None) -> Entry:
    """Read a recipe's file, whose execution.branch_at says where branches end; `data` is what to train on instead.

    Raises what `read_request` does.
    """
    recipe, execution = read_request(path, None if data is None else {"data.train": data}, report=report)
    return Entry(name=Path(path).stem, recipe=recipe, branch_at=execution.branch_at)


def save_entries(entries: Sequence[Entry], folder: str | Path) -> list[Path]:
    """Write each entry as a recipe's file, named as it is. Raises CodecError for a folder that cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder} cannot be made: {error.strerror}; name another folder") from None
    paths = [folder / f"{entry.name}.json" for entry in entries]
    for entry, path in zip(entries, paths, strict=True):
        body = codec.encode(entry.recipe)
        if entry.branch_at:
            body["execution"] = {"branch_at": list(entry.branch_at)}
        write_atomic(path, json.dumps(codec.tag(body, kind="recipe"), indent=2, ensure_ascii=False) + "\n")
    return paths
