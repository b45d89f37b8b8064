"""Turn a grid, a TOML file of settings of which some are several, into the recipes of a sweep.

    tokens = [1e5, 2e5, 4e5]           or tokens_per_param = [20, 40]; a value, list, range or rule, as all numbers here
    branches = true                    token counts are WSD branches of one run, which trains for the largest
    seeds = [0, 1]
    constraints = ["aspect >= 2", "params <= 1e6"]        over the shape, its size, and the settings at the top level

    [base]                             any setting of a recipe by the names of `lathe train`'s files
    lr = "4e-3 * sqrt(64 / d_model)"

    [shape]                            a shape's fields; every combination is one shape
    d_model = [32, 64, 128]
    n_layers = {from = 1, to = 8, factor = 2}
    n_heads = "d_model / 16"

    [[shapes]]                         or these shapes alone: [shape] fills what they leave open; a preset's name too
    [[family]]                         or shapes of one size: see `lathe.sweep.families`

Every combination of all that is several is trained. Paths are relative to the file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe import codec, documents
from lathe.data.mixture import open_sources
from lathe.errors import CodecError, ShapeError, StudyError
from lathe.recipe import Data
from lathe.shape import Shape, complete
from lathe.sweep.choices import MOST, describe, expand, is_rule, settle
from lathe.sweep.entries import Entry, check_distinct, load_entry
from lathe.sweep.expressions import evaluate
from lathe.sweep.families import Family, find_members
from lathe.sweep.grid_document import FILES, is_grid, read_grid
from lathe.train.branches import branch_recipes
from lathe.train.request import FLAGS, PREFIXED, Report, read_request
from lathe.train.settings import HEADS, fit_value, list_settings
from lathe.train.text import open_mixture

ERRORS = (*PREFIXED, CodecError, StudyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Hold what a grid asks to train; `dropped` counts the combinations that its constraints took out."""

    entries: tuple[Entry, ...]
    dropped: int = 0

    @property
    def flops(self) -> float:
        """Add up what training takes, branches included."""
        return sum(entry.flops for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """Hold one combination: a shape, and settings by dotted key, `tokens` among them."""

    shape: Shape
    settings: Mapping[str, Any]
    varied: Mapping[str, Any]


def load_grid(
    given: str | Path | Mapping[str, Any],
    *,
    source: str | None = None,
    data: str | None = None,
    report: Report | None = None,
) -> Grid:
    """Read a grid from a file, or from a document like one.

    `data` takes the place of what the grid trains on. `source` names a document in errors; `report` is told what the
    step law chose. Raises CodecError for keys and values that there are not, StudyError for a grid that leaves nothing
    or makes one recipe twice, and what `read_request` raises for a recipe that cannot be.
    """
    if isinstance(given, Mapping):
        source, folder, document = source or "the grid", Path(), given
    else:
        source, folder, document = source or str(given), Path(given).parent, documents.read_document(given)
    try:
        return _make_grid(read_grid(document, folder=folder, data=data), report)
    except ERRORS as error:
        raise type(error)(f"{source}: {error}") from error


def read_entries(
    paths: Sequence[str | Path], *, data: str | None = None, report: Report | None = None
) -> tuple[Entry, ...]:
    """Read grids and recipes' files, or folders of them, and put together what they ask to train.

    Raises as `load_grid` does.
    """
    entries: list[Entry] = []
    for path in itertools.chain.from_iterable(map(_list_files, paths)):
        if is_grid(documents.read_document(path)):
            entries += load_grid(path, data=data, report=report).entries
        else:
            entries.append(load_entry(path, data=data, report=report))
    check_distinct(entries)
    return tuple(_name_apart(entries))


def _list_files(path: str | Path) -> list[Path]:
    """List a folder's files of settings; a file is its own."""
    if not Path(path).is_dir():
        return [Path(path)]
    found = sorted(one for one in Path(path).iterdir() if one.suffix in FILES)
    if not found:
        raise StudyError(f"the folder {path} holds no recipe, no file that ends in {' or '.join(FILES)}")
    return found


def _make_grid(document: Mapping[str, Any], report: Report | None) -> Grid:
    axes = {key: _fit(key, expand(key, value)) for key, value in document["base"].items()}
    known = {key: one for key, (one, *more) in axes.items() if not more and "." not in key and not is_rule(key, one)}
    points: list[_Point] = []
    for shape, varied in _list_shapes(document, known, _find_vocabulary(axes)):
        points += _combine(shape, varied, axes)
        if len(points) > MOST:
            raise StudyError(f"makes more than {MOST:,} combinations; leave some out, or split it")
    kept = _constrain(points, document.get("constraints", []))
    entries = [
        _make_entry(group, report, branches=document.get("branches", False))
        for group in _group(kept, branches=document.get("branches", False))
    ]
    check_distinct(entries)
    return Grid(entries=tuple(_name_apart(entries)), dropped=len(points) - len(kept))


def _fit(key: str, choices: Sequence[Any]) -> list[Any]:
    return [fit_value(list_settings()[key].kind, choice) for choice in choices]


def _find_vocabulary(axes: Mapping[str, Sequence[Any]]) -> int | None:
    """Give the vocabulary of the data, which shapes have that name no other."""
    if not axes.get("data.train"):
        return None
    sources = open_sources(open_mixture(Data(train=axes["data.train"][0])))
    return next(iter(sources.values())).manifest.vocab_size


def _list_shapes(
    document: Mapping[str, Any], known: Mapping[str, Any], vocab_size: int | None
) -> Iterator[tuple[Shape, dict[str, Any]]]:
    """Yield the shapes of a grid, and of each what was chosen where there was a choice, width and depth apart."""
    common = document["shape"]
    if vocab_size is not None:
        common = {"vocab_size": vocab_size, **common}

    def build(fields: Mapping[str, Any]) -> Shape:
        settled = settle(fields, known, prefix="shape.")
        where = ", ".join(f"{name}={settled[name]}" for name in ("d_model", "n_layers") if name in settled)
        try:
            return codec.decode(Shape, complete(settled), source=f"shape of {where}" if where else "shape")
        except ShapeError as error:
            raise ShapeError(f"shape of {where}: {error}") from error

    families = [
        codec.decode(Family, _listed(one), source=f"family {i}") for i, one in enumerate(document.get("family", []), 1)
    ]
    if families and (held := [name for name in ("d_model", "n_layers") if name in common]):
        raise StudyError(f"[shape] gives {held[0]}, which a [[family]] chooses; leave it out")
    for given in [{**common, **one} for one in document["shapes"]] or [common]:
        choices = {key: _fit(f"shape.{key}", expand(f"shape.{key}", value)) for key, value in given.items()}
        several = [key for key, values in choices.items() if len(values) > 1 and key not in ("d_model", "n_layers")]
        _check_count(choices)
        for chosen in itertools.product(*choices.values()):
            fields = dict(zip(choices, chosen, strict=True))
            members = [one for family in families for one in find_members(family, fields, build=build)]
            for member in members if families else [fields]:
                yield build(member), {key: fields[key] for key in several}


def _listed(family: Mapping[str, Any]) -> dict[str, Any]:
    """Let one aspect stand for a list of it, and a range for what is in it."""
    if not isinstance(family, Mapping):
        raise CodecError(f"a family is {documents.name_value(family)}; it should be a table")
    found = {key: fit_value(int, value) if key == "multiple" else value for key, value in family.items()}
    return found | ({"aspect": expand("family.aspect", family["aspect"])} if "aspect" in family else {})


def _check_count(choices: Mapping[str, Sequence[Any]]) -> None:
    if (count := math.prod(map(len, choices.values()))) > MOST:
        raise StudyError(f"makes {count:,} combinations; at most {MOST:,} are made: leave some out, or split it")


def _combine(shape: Shape, varied: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> Iterator[_Point]:
    """Yield a shape with every combination of the settings, rules settled."""
    _check_count(axes)
    names = describe(shape)
    several = [key for key, values in axes.items() if len(values) > 1]
    for chosen in itertools.product(*axes.values()):
        given = dict(zip(axes, chosen, strict=True))
        ratio = {key: given.pop(key) for key in ("tokens_per_param",) if key in given}
        if ratio:
            ratio = settle(ratio, names)
            tokens_per_param = codec.decode(float, ratio["tokens_per_param"], source="tokens_per_param")
            given["tokens"] = round(tokens_per_param * shape.params)
        settings = settle(given, names)
        found = settings | ratio
        yield _Point(shape=shape, settings=settings, varied={**varied, **{key: found[key] for key in several}})


def _constrain(points: Sequence[_Point], constraints: Sequence[str]) -> list[_Point]:
    """Keep what all constraints hold for. Raises StudyError where that is nothing, and says which left how many."""
    kept, held = [], dict.fromkeys(constraints, 0)
    for point in points:
        names = {**describe(point.shape), **{key: one for key, one in point.settings.items() if "." not in key}}
        truths = {one: evaluate(one, names) for one in held}
        for one, truth in truths.items():
            if not isinstance(truth, bool):
                raise StudyError(f'the constraint {one!r} is {truth!r}; wanted true or false, such as "aspect >= 8"')
            held[one] += truth
        if all(truths.values()):
            kept.append(point)
    if not kept:
        counts = ", ".join(f"{one!r} holds for {count}" for one, count in held.items())
        raise StudyError(f"its constraints leave none of {len(points)} combinations: {counts}")
    return kept


def _group(points: Sequence[_Point], *, branches: bool) -> list[list[_Point]]:
    """Put together what one run trains: with branches, the points that differ in tokens alone."""
    if not branches:
        return [[point] for point in points]
    groups: dict[str, list[_Point]] = {}
    for point in points:
        rest = {key: value for key, value in point.settings.items() if key != "tokens"}
        groups.setdefault(codec.canonical_json([point.shape, rest]), []).append(point)
    return [sorted(group, key=lambda point: point.settings["tokens"]) for group in groups.values()]


def _make_entry(group: Sequence[_Point], report: Report | None, *, branches: bool) -> Entry:
    """Make the recipe of what one run trains, its branches beside."""
    trunk = group[-1]
    hidden = ("tokens", "tokens_per_param") if branches else ()
    name = _name(trunk.shape, {key: value for key, value in trunk.varied.items() if key not in hidden})
    fields = {f"shape.{key}": value for key, value in codec.encode(trunk.shape).items()}
    try:
        recipe, _ = read_request(None, {**fields, **trunk.settings}, need_data=False, report=report)
        tokens = tuple(fit_value(int, point.settings["tokens"]) for point in group[:-1])
        branch_recipes(recipe, tokens)
    except ERRORS as error:
        raise type(error)(f"{name}: {str(error).removeprefix(f'{FLAGS}: ')}") from error
    return Entry(name=name, recipe=recipe, branch_at=tokens)


def _name(shape: Shape, varied: Mapping[str, Any]) -> str:
    """Call an entry by width and depth, and what else was chosen."""
    parts = [f"{shape.d_model}x{shape.n_layers}"]
    for key, value in varied.items():
        section, _, last = key.rpartition(".")
        label = section if HEADS.get(section) == last else last
        text = f"{value:g}" if isinstance(value, float) else Path(value).stem if isinstance(value, str) else str(value)
        parts.append(f"{label}{text}" if not isinstance(value, str) else text)
    return "-".join(parts)


def _name_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Add a part of its recipe's id to each name that several entries have."""
    names = [entry.name for entry in entries]
    return [
        entry if names.count(entry.name) == 1
        else Entry(name=f"{entry.name}-{entry.recipe.id[:6]}", recipe=entry.recipe, branch_at=entry.branch_at)
        for entry in entries
    ]  # fmt: skip
