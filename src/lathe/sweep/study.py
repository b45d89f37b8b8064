"""Read what a study is asked: on which data, from which law, for which device and budget.

A study is a TOML file, `examples/` has several. Its tables are the words below; paths in it are relative to the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lathe import codec, documents
from lathe.errors import StudyError, nearest
from lathe.laws.importers import MEAN
from lathe.sweep.study_paths import place_paths
from lathe.workload import Workload

KIND = "study"
STUDIES = Path(__file__).parents[1] / "presets" / "studies"
MEDIAN = "median"
VALIDATION = "data.validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Say what models are trained and held out on: a built `dataset`, files to build one from, or the built-in corpus.

    Files need a `tokenizer`, or one of `vocab_size` is trained on them. `limit_bytes` cuts the built-in corpus short.
    """

    dataset: str | None = None
    inputs: tuple[str, ...] = ()
    builtin: bool = False
    limit_bytes: int | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    held_out: float = 0.01
    text_key: str = "text"

    def __post_init__(self) -> None:
        given = [name for name in ("dataset", "inputs", "builtin") if getattr(self, name)]
        if len(given) != 1:
            raise StudyError(
                f"[text] gives {' and '.join(given) or 'no text'}; give one of dataset, inputs and builtin = true"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """Say which datasets to train on, and by which small runs to find out in what shares (see `lathe.sweep.mixing`).

    `sources` are the datasets' folders; `sizes` their tokens, those they have if not given, of which no more than
    `max_repeats` times go into the plan's tokens. So many `proxies` of a `shape`, a grid's, train on `tokens` each, to
    make the `target` low: the mean held-out loss over the sources, or the loss on one validation set.
    """

    sources: dict[str, str]
    shape: dict[str, Any]
    proxies: int
    tokens: float
    model: Literal["linear", "quadratic", "boosted"] = "linear"
    target: str = MEAN
    max_repeats: float = 4.0
    sizes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise StudyError(f"[mixture] names {len(self.sources)} sources; give two or more, or a dataset in [text]")
        if MEAN in self.sources:
            raise StudyError(f"[mixture] calls a source {MEAN!r}, which stands for all of them; call it otherwise")
        if self.sizes and (odd := sorted(self.sizes.keys() ^ self.sources.keys())):
            raise StudyError(f"[mixture] gives a source or a size of {odd[0]!r}, and not the other; give both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """Say which law to go by: fitted to the sweep's runs, to those of a table (`runs`), or in a `file`."""

    form: str = "auto"
    draws: int = 1000
    folds: str = "auto"
    runs: str | None = None
    where: str | None = None
    validation: str | None = None
    file: str | None = None
    level: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Say where the model will serve: a `preset`, a device's `file`, or this machine, measured.

    `shapes` are how many of the sweep's shapes, the most different ones, are measured to calibrate this machine.
    """

    preset: str | None = None
    file: str | None = None
    device: str = "cpu"
    threads: int | None = None
    engine: Literal["eager", "compile", "graph"] = "eager"
    shapes: int = 5
    runs: int | None = None

    @property
    def here(self) -> bool:
        """Say whether it is this machine, so that candidates can be measured."""
        return self.preset is None and self.file is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Hold whole numbers from `start` to `stop`, that one included, in steps of `step`."""

    start: int
    stop: int
    step: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.step < 1 or self.stop < self.start:
            raise StudyError(f"start={self.start}, stop={self.stop}, step={self.step} is no span of numbers above zero")

    @property
    def numbers(self) -> tuple[int, ...]:
        """List them, the last one included."""
        return tuple(range(self.start, self.stop + 1, self.step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """Say what to plan: shapes of `min_params` to `params`, trained on `tokens`, within the budget.

    `total_s` may be "median": the median latency of all those shapes, so that half of them are too slow. At most
    `most_flops` times the FLOPs of the largest run are asked of the law. The best `top` are trained.

    Shapes are all of the widths `d_model` and depths `n_layers`, with the first of `d_heads` that divides a width, and
    d_ff a multiple of `ff_multiple`; where these are left out, they are the planner's own (see `lathe plan`).
    """

    tokens: float
    params: float
    min_params: float | None = None
    total_s: float | Literal["median"] | None = None
    per_token_s: float | None = None
    first_token_s: float | None = None
    memory_bytes: float | None = None
    d_model: Span | None = None
    n_layers: Span | None = None
    d_heads: tuple[int, ...] | None = None
    ff_multiple: int | None = None
    assume: tuple[str, ...] = ()
    like: str | None = None
    most_flops: float | None = None
    top: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Say what the trained candidates are asked beside their held-out loss.

    `continuations` items are made from held-out text: tell how a passage goes on. `tasks` are the catalogue's, with
    their files in `folder`; `losses` are further texts to measure the loss on.
    """

    continuations: int = 0
    tasks: tuple[str, ...] = ()
    folder: str = "."
    catalogue: str | None = None
    losses: tuple[str, ...] = ()
    shots: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launching:
    """Say how trainings are run: by which launcher, with what `settings` of its own, and each how.

    `execution` are settings of `lathe.train.execution.Execution`, such as save_every; none of them changes a recipe.
    """

    launcher: str = "local"
    retries: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Hold a study as it is asked.

    `name` is its folder's, too; `seed` that of first weights, of the data's order and of draws. `grid` is a sweep's
    document (see `lathe.sweep.grid`), None for a law from elsewhere. `training` are settings in which the chosen
    models' training differs from the grid's; `prompt` begins a sample of text, a held-out passage if not given.
    `export` is what the chosen model is written as, beside its checkpoint.
    """

    name: str = "study"
    seed: int = 0
    text: Text | None = None
    mixture: Mixing | None = None
    grid: dict[str, Any] | None = None
    law: Fitting = Fitting()
    device: Target = Target()
    workload: Workload
    plan: Planning
    evaluate: Questions = Questions()
    launch: Launching = Launching()
    training: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    export: Literal["hf", "gguf", "none"] = "hf"

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.law.runs is None and self.law.file is None):
            wanted = "[grid] to sweep, or [law] runs or file"
            raise StudyError(f"the law comes from {'both' if self.grid else 'nowhere'}; give one of {wanted}")
        if self.text is not None and self.mixture is not None:
            raise StudyError("[text] and [mixture] both say what to train on; give one of them")
        if self.grid is not None and self.text is None and self.mixture is None:
            raise StudyError("a [grid] needs [text] or a [mixture] to train on")

    def with_seed(self, seed: int) -> Study:
        """Give the same study with another seed."""
        return dataclasses.replace(self, seed=seed)

    def settled(self) -> Study:
        """Give the study with what follows from its mixture: every run is asked for its loss on all of the sources.

        The law of its own grid is of the mixture's target, if it names no validation set.
        """
        if self.mixture is None:
            return self
        if self.grid is None:
            return dataclasses.replace(self, training=_hold_out(self.training, self.mixture.sources))
        grid = {**self.grid, "base": _hold_out(self.grid.get("base", {}), self.mixture.sources)}
        law = dataclasses.replace(self.law, validation=self.law.validation or self.mixture.target)
        return dataclasses.replace(self, grid=grid, law=law)


def _hold_out(settings: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Add the sources as validation sets, unless the settings name some."""
    data = settings.get("data")
    named = VALIDATION in settings or (isinstance(data, dict) and "validation" in data)
    return {**settings} if named else {**settings, VALIDATION: dict(sources)}


def load_study(given: str | Path) -> Study:
    """Read a study: a file, or one of Lathe's own by name, such as quickstart.

    Raises CodecError for what makes no study, StudyError for a name that there is not.
    """
    path = Path(given)
    if not path.suffix:
        path = STUDIES / f"{given}.toml"
        if not path.is_file():
            known = [p.stem for p in STUDIES.glob("*.toml")]
            raise StudyError(f"there is no study {str(given)!r}{nearest(str(given), known)} (a file ends in .toml)")
    body = codec.untag(documents.read_document(path), kind=KIND, source=str(path), required=False)
    return codec.decode(Study, place_paths(body, path.parent), source=str(path))
