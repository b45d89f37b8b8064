"""Read what a comparison of ways to start is asked: from which reference, by which arms, trained how, to serve where.

Such a study is a TOML file, as `examples/inherit.toml`. Its tables are the words below; paths in it are relative to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lathe import codec, documents
from lathe.errors import StudyError, nearest
from lathe.evals.analyse import SEQUENCES
from lathe.inherit.arms import ARMS
from lathe.inherit.layers import MEASURED, By
from lathe.inherit.width import WidthBy
from lathe.train.execution import Execution
from lathe.train.settings import HEADS, fit_value
from lathe.workload import Workload

KIND = "inherit-study"
QUIET = 10**9
"""Steps between lines of a training's log: a comparison has lines of its own."""
GIVEN = ("shape", "seed", "distil", "execution")
"""Parts of a recipe that the study or an arm says."""
FILES = (".toml", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Say where the models will serve: a `preset`, a device's `file`, or this machine, measured.

    `runs` are the fewest measured runs of a shape.
    """

    preset: str | None = None
    file: str | None = None
    device: str = "cpu"
    threads: int | None = None
    engine: Literal["eager", "compile", "graph"] = "eager"
    runs: int | None = None

    @property
    def here(self) -> bool:
        """Say whether it is this machine, so that latency can be measured."""
        return self.preset is None and self.file is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Say how the distilled arm learns from the reference: see `lathe.recipe.Distil`."""

    temperature: float = 2.0
    weight: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """Say how the narrowed arm is made: to a width, half of the reference's if not given, by slicing or SVD."""

    d_model: int | None = None
    by: WidthBy = "slice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacked:
    """Say how the stacked arm grows: the share of the FLOPs that half of its layers train on first."""

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise StudyError(f"[stacked] share={self.share:g} is no share of the FLOPs; give a number between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritStudy:
    """Hold a comparison as it is asked.

    `reference` is a checkpoint's folder; `reference_tokens` are what it was trained on, where its run does not say. The
    layers to inherit are named ("0:6"), or a `keep_ratio` of them is chosen `by` one of the ways of
    `lathe.inherit.layers.choose_layers`. All `arms` are trained from every seed, with the settings of `recipe`, whose
    tokens are the inherited arm's: the others train until they have spent as many FLOPs. `equal` says at which shapes:
    "flops" at each arm's own; "latency" at the depth whose predicted latency is nearest to the inherited shape's, off
    by no more than `latency_within` of it. Where something hangs on what the reference does with text, it is analysed
    on so many `sequences`.
    """

    name: str = "inherit"
    reference: str
    reference_tokens: float | None = None
    layers: str | None = None
    keep_ratio: float | None = None
    by: By = "first"
    sequences: int = SEQUENCES
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0,)
    equal: tuple[Literal["flops", "latency"], ...] = ("flops",)
    latency_within: float = 0.1
    recipe: dict[str, Any]
    execution: dict[str, Any] = field(default_factory=dict)
    device: Target = Target()
    workload: Workload
    distilled: Distilled = Distilled()
    narrowed: Narrowed = Narrowed()
    stacked: Stacked = Stacked()

    def __post_init__(self) -> None:
        if (self.layers is None) == (self.keep_ratio is None):
            raise StudyError(
                f"the layers to inherit are said {'twice' if self.layers else 'nowhere'}; give layers, such as "
                '"0:6", or keep_ratio, such as 0.5'
            )
        if self.layers is not None and self.by != "first":
            raise StudyError(f"by = {self.by!r} chooses layers, and layers = {self.layers!r} names them; leave one out")
        for arm in self.arms:
            if arm not in ARMS:
                raise StudyError(f"no arm is called {arm!r}{nearest(arm, ARMS)}")
        for name in ("arms", "seeds", "equal"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise StudyError(f"{name} = {list(values)}; wanted one or more, each once")

    @property
    def measures_layers(self) -> bool:
        """Say whether the layers are chosen by what the reference does with text."""
        return self.by in MEASURED


def load_inherit_study(path: str | Path) -> InheritStudy:
    """Read a study's file. Raises CodecError and StudyError for what makes no study."""
    path = Path(path)
    body = codec.untag(documents.read_document(path), kind=KIND, source=str(path), required=False)
    for key in ("recipe", "execution"):
        if not isinstance(body.get(key, {}), dict):
            raise StudyError(f"{path}: {key} is {documents.name_value(body[key])}; it should be a table")
    for table, key in ((body, "reference"), (body.get("device"), "file")):
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = os.path.abspath(path.parent / table[key])
    if "recipe" in body:
        body["recipe"] = _read_recipe(body["recipe"], path)
    study = codec.decode(InheritStudy, body, source=str(path))
    read_execution(study.execution, source=str(path))
    return study


def read_execution(settings: Mapping[str, Any], *, source: str = "the study") -> Execution:
    """Read how each training is run. Raises CodecError, and StudyError for what the study says itself."""
    if own := sorted({"out", "runs", "name", "branch_at"} & set(settings)):
        raise StudyError(f"{source}: [execution] gives {own[0]}, which the study gives each training; leave it out")
    given = fit_value(Execution, {"out": "", "log_every": QUIET, **settings})
    return codec.decode(Execution, given, source=f"{source}: [execution]")


def _read_recipe(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check that [recipe] says nothing that an arm says, and make its paths absolute."""
    found = {key: {HEADS[key]: one} if key in HEADS and isinstance(one, str) else one for key, one in table.items()}
    init = found.get("init")
    own = [key for key in GIVEN if key in found]
    own += ["init.checkpoint"] if isinstance(init, dict) and "checkpoint" in init else []
    if own:
        raise StudyError(f"{path}: [recipe] gives {own[0]}, which the study's arms and seeds say; leave it out")
    data = found.get("data")
    if not isinstance(data, dict) or "train" not in data:
        raise StudyError(f"{path}: [recipe] says nothing to train on; give data, a dataset's folder")
    placed = {key: _place(data[key], path.parent) for key in ("train", "validation") if key in data}
    found["data"] = {**data, **placed}
    if isinstance(init, dict) and str(init.get("base", "")).endswith(FILES):
        found["init"] = {**init, "base": _place(init["base"], path.parent)}
    return found


def _place(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _place(one, folder) for name, one in value.items()}
    return os.path.abspath(folder / value) if isinstance(value, str) else value
