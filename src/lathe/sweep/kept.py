"""Keep what a study's stages found, so that a stage is made again only when what it hangs on has changed.

    stages/<name>.json     a stage's key, its result, the files that it made, and what it took

A stage's key is a hash of Lathe's version, of what was asked of it and of the results of the stages before it: not of
dates and seconds, so that a stage made again with the same result leaves those after it as they are. A file that was
deleted or cut short makes its stage anew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.errors import CodecError, StudyError
from lathe.studies import Cost
from lathe.version import VERSION

STAGES = "stages"
KIND = "stage"
DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Hold what a stage gives: a result that others read, and the files it wrote, relative to the study's folder.

    `shared` are files that later stages write to as well. Without `keep` the stage is made again the next time.
    `before_s` is what earlier calls had spent on what is in it.
    """

    result: dict[str, Any]
    files: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    flops: float = 0.0
    runs: int = 0
    before_s: float = 0.0
    keep: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Hold a stage as it is kept. `sizes` are the bytes of its files, None for those that need only be there."""

    name: str
    key: str
    result: dict[str, Any]
    sizes: dict[str, int | None] = field(default_factory=dict)
    cost: Cost

    @property
    def content(self) -> str:
        """Give the hash of the result, for the keys of later stages."""
        return hash_words(self.result)


class Kept:
    """Look up the stages of a study's folder, and make those that are not there."""

    def __init__(self, folder: Path, *, report: Callable[[str], None], until: str | None = None) -> None:
        self.folder, self.report, self.until = folder, report, until
        self.done: dict[str, Stage] = {}

    def __call__(
        self, name: str, make: Callable[[], Made], *, asked: Any, after: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Give a stage's result, made now unless it is kept. Raises Reached after the last stage that is wanted."""
        key = hash_words([VERSION, name, asked, [self.done[one].content for one in after]])
        stage = self.find(name, key)
        if stage is None:
            self.report(f"{name} …")
            started = time.perf_counter()
            made = make()
            seconds = time.perf_counter() - started + made.before_s
            cost = Cost(seconds=seconds, flops=made.flops, runs=made.runs)
            sizes = dict.fromkeys(made.shared) | {file: (self.folder / file).stat().st_size for file in made.files}
            stage = Stage(name=name, key=key, result=made.result, sizes=sizes, cost=cost)
            (self.folder / STAGES).mkdir(exist_ok=True)
            if made.keep:
                codec.save(stage, self.folder / STAGES / f"{name}.json", kind=KIND)
        else:
            self.report(f"{name}: kept from before")
        self.done[name] = stage
        if name == self.until:
            raise Reached(name)
        return stage.result

    def find(self, name: str, key: str) -> Stage | None:
        """Look up a kept stage of this key whose files are whole; None if there is none."""
        stage = read_stage(self.folder, name)
        if stage is None or stage.key != key:
            return None
        for file, size in stage.sizes.items():
            path = self.folder / file
            if not path.is_file() or size not in (None, path.stat().st_size):
                self.report(f"{name}: {file} is gone or was changed, so it is made anew")
                return None
        return stage


def read_stage(folder: Path, name: str) -> Stage | None:
    """Read a stage as it was kept; None for one that is not there, broken, or of another version."""
    path = folder / STAGES / f"{name}.json"
    try:
        return codec.load(Stage, path, kind=KIND) if path.is_file() else None
    except CodecError:
        return None


class Reached(StudyError):
    """Say that the last stage that was asked for is done."""

    def __init__(self, name: str) -> None:
        super().__init__(f"stopped after {name}, as asked")
        self.stage = name


def hash_words(value: Any) -> str:
    """Hash what JSON can hold, and Lathe's words."""
    return hashlib.sha256(codec.canonical_json(codec.encode(value)).encode()).hexdigest()[:DIGITS]
