"""Read what is asked of a training, a file and settings beside it, into a `Recipe` and an `Execution`.

A file's keys at the top level are the recipe's, its tables [shape], [data], [optimiser], [schedule], [init], [distil]
and [execution]. A table may be the value of its chief key alone (`HEADS`): schedule = "wsd". Paths are relative to the
file. The recipe.json of a plan or a run is such a file too.

In place of numbers there may be `tokens_per_param` for tokens, "step-law" for lr and batch_tokens, and "none" for a
number that may be left out. A shape may be a preset's or a file's name; what follows from the rest, from the data or
from the first weights may be left out of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lathe import codec, documents
from lathe.data.mixture import open_sources
from lathe.errors import CheckpointError, CodecError, DataError, PresetError, RecipeError, ShapeError, nearest
from lathe.laws.hyper import step_law
from lathe.model.checkpoint import check_device, load_shape_of
from lathe.presets.shapes import load_shape
from lathe.recipe import Data, Init, Recipe
from lathe.shape import Shape, complete
from lathe.train.branches import branch_recipes
from lathe.train.content import hash_data, hash_weights
from lathe.train.estimate import lay_out
from lathe.train.execution import Execution
from lathe.train.mesh import choose_device, count_axes
from lathe.train.settings import BY_LAW, HEADS, SECTIONS, STEP_LAW, fit_value, name_key, parse_setting
from lathe.train.teacher import check_memory, check_teacher, check_tokenizer
from lathe.train.text import open_mixture, open_text
from lathe.train.trackers import check_trackers
from lathe.train.weights import first_weights

Report = Callable[[str], None]
Document = dict[str, Any]
FLAGS = "the flags"
RUNS = "runs"
"""The folder of runs that are given no other: each in one named by its recipe's id."""
DIGITS = 4
"""Of a learning rate that a law chose: enough, and the same on every machine, as the recipe's id must be."""
FILES = (".toml", ".json")
PREFIXED = (RecipeError, DataError, ShapeError, CheckpointError, PresetError)
INSTEAD = {"tokens": "tokens_per_param", "tokens_per_param": "tokens"}
"""Keys of which one takes the other's place."""
DATED = {("data", "train"), ("data", "validation"), ("init", "checkpoint"), ("distil", "teacher")}
"""Keys with which their section's `content` goes out of date."""


def read_request(
    path: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    need_data: bool = True,
    report: Report | None = None,
) -> tuple[Recipe, Execution]:
    """Read a training's file, and settings that take the place of the file's; either may be missing.

    Args:
        path: a .toml or .json file.
        settings: by dotted key, values or the texts to read them from, such as {"lr": "1e-3", "optimiser.beta2": 0.99};
            paths in them are relative to the current folder.
        need_data: whether the recipe must say what it trains on.
        report: is told what was chosen, and what is doubtful.

    Raises CodecError for keys and values that there are not, RecipeError for a training that cannot be, DataError for
    data that are missing or too few, PresetError, ShapeError and CheckpointError for what is named and is not there.
    """
    source = FLAGS if path is None else f"{path} with {FLAGS}" if settings else str(path)
    document = {} if path is None else _read_file(Path(path))
    return _read(document, settings, source=source, need_data=need_data, report=report)


def read_tables(
    tables: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    folder: str | Path,
    source: str,
    report: Report | None = None,
) -> tuple[Recipe, Execution]:
    """Read a training that stands in another document, as `read_request` reads a file: the document lies in `folder`.

    Raises as `read_request`; the errors begin with `source`.
    """
    document = _tabulate(dict(tables), folder=Path(folder), source=source)
    return _read(document, settings, source=source, need_data=True, report=report)


def _read(
    document: Document, settings: Mapping[str, Any] | None, *, source: str, need_data: bool, report: Report | None
) -> tuple[Recipe, Execution]:
    try:
        merged = _merge(document, _nest(settings or {}))
        execution = merged.pop("execution", {})
        recipe = _make_recipe(merged, source=source, need_data=need_data, report=report or (lambda _: None))
        execution.setdefault("out", str(Path(RUNS) / recipe.id))
        carried_out = codec.decode(Execution, fit_value(Execution, execution), source=f"{source}: execution")
        _check_writable(Path(carried_out.out))
    except PREFIXED as error:
        raise type(error)(f"{source}: {error}") from error
    return recipe, carried_out


def check_request(recipe: Recipe, execution: Execution, *, world: int) -> None:
    """Refuse what `world` processes here could not carry out, before anything is started or written.

    Raises RecipeError for a mesh, a batch, a shape, branches or first weights that do not fit, DeviceError for a device
    there is not or a teacher that does not fit in memory, MissingExtraError for trackers that are not installed.
    """
    branch_recipes(recipe, execution.branch_at)
    check_trackers(execution.trackers)
    if execution.device is not None:
        check_device(execution.device)
    count_axes(execution, world)
    lay_out(recipe, execution, world=world, gpu=False)
    check_memory(recipe, choose_device(execution), world=int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    if recipe.init.checkpoint is None:
        first_weights(recipe)  # looks at scheme and base, and draws nothing yet


def _read_file(path: Path) -> Document:
    found = codec.untag(documents.read_document(path), kind="recipe", source=str(path), required=False)
    return _tabulate(found, folder=path.parent, source=str(path))


def _tabulate(found: Document, *, folder: Path, source: str) -> Document:
    """Make tables of a document's sections, its paths from the current folder."""
    known = [field.name for field in dataclasses.fields(Recipe)] + ["tokens_per_param", "execution"]
    for key in found:
        if key not in known:
            raise CodecError(f"{source}: unknown key {key!r}{nearest(key, known)}")
    if found.get("tokens") is not None and found.get("tokens_per_param") is not None:
        raise CodecError(f"{source}: has tokens and tokens_per_param; give one of them")
    for section in SECTIONS:
        value = found.get(section)
        if value is None:
            found.pop(section, None)
        elif isinstance(value, str) and section in HEADS:
            found[section] = {HEADS[section]: value}
        elif not isinstance(value, dict) and not (section == "shape" and isinstance(value, str)):
            raise CodecError(f"{source}: {section} is {documents.name_value(value)}; it should be a table")
    return _place(found, folder)


def _nest(settings: Mapping[str, Any]) -> Document:
    """Put settings by dotted key into sections, as a file has them."""
    found: Document = {}
    for given, value in settings.items():
        key, value = name_key(given), str(value) if isinstance(value, os.PathLike) else value
        section, _, name = key.rpartition(".")
        table = found.setdefault(section, {}) if section else found
        parsed = parse_setting(key, value) if isinstance(value, str) else codec.encode(value)
        if key == "shape":
            found["shape"] = _open_shape(parsed) | found.get("shape", {})
        else:
            table[name] = parsed
    if "tokens" in found and "tokens_per_param" in found:
        raise RecipeError("tokens and tokens_per_param are given; give one of them")
    return _place(found, Path())


def _place(document: Document, folder: Path) -> Document:
    """Read paths as relative to a folder; those that the recipe keeps become absolute, to be found from anywhere."""

    def lasting(path: Any) -> Any:
        return os.path.abspath(folder / path) if isinstance(path, str) else path

    data, init, distil, execution = (document.get(name, {}) for name in ("data", "init", "distil", "execution"))
    for table, key in ((data, "train"), (init, "checkpoint"), (distil, "teacher")):
        if key in table:
            table[key] = lasting(table[key])
    if isinstance(data.get("validation"), dict):
        data["validation"] = {name: lasting(path) for name, path in data["validation"].items()}
    for key in ("out", "runs"):
        if isinstance(execution.get(key), str):
            execution[key] = str(folder / execution[key])
    for table, key in ((document, "shape"), (init, "base")):
        if isinstance(table.get(key), str) and table[key].endswith(FILES):
            table[key] = str(folder / table[key])
    return document


def _merge(document: Document, given: Document) -> Document:
    """Let what is given take the place of what a file says, and of what would then no longer be true of it."""
    merged = {key: value for key, value in document.items() if INSTEAD.get(key) not in given}
    for key, value in given.items():
        if key not in SECTIONS:
            merged[key] = value
            continue
        before = merged.get(key, {})
        before = _open_shape(before) if key == "shape" else before
        stale = any((key, name) in DATED for name in value)
        merged[key] = {name: one for name, one in before.items() if not (stale and name == "content")} | value
    return merged


def _open_shape(shape: Any) -> Any:
    """Give the fields of a shape that is named."""
    return codec.encode(load_shape(shape)) if isinstance(shape, str) else shape


def _make_recipe(document: Document, *, source: str, need_data: bool, report: Report) -> Recipe:
    data = _decode_section(Data, document.get("data"), source=f"{source}: data")
    if data is None and need_data:
        raise RecipeError(
            "nothing says what to train on; give --data, or data.train: a dataset's folder or a mixture's file"
        )
    if "base" in (init := document.get("init", {})):
        base = _open_shape(init["base"])
        document["init"] = init | {"base": complete(base) if isinstance(base, dict) else base}
    first = _decode_section(Init, document.get("init", {}), source=f"{source}: init")
    shape = _make_shape(document.get("shape"), data, first, source=f"{source}: shape")
    numbers = _choose_numbers(document, shape, source=source, report=report)
    recipe = codec.decode(Recipe, fit_value(Recipe, document | numbers | {"shape": codec.encode(shape)}), source=source)
    if data is not None:
        recipe = replace(recipe, data=replace(data, content=_check_data(recipe, data)))
    if recipe.init.checkpoint is not None:
        found = hash_weights(recipe.init.checkpoint)
        _check_content(recipe.init.checkpoint, found, recipe.init.content, key="init")
        recipe = replace(recipe, init=replace(recipe.init, content=found))
    if recipe.distil is not None:
        found = hash_weights(recipe.distil.teacher)
        _check_content(recipe.distil.teacher, found, recipe.distil.content, key="distil")
        recipe = replace(recipe, distil=replace(recipe.distil, content=found))
        check_teacher(recipe)
        if (doubt := check_tokenizer(recipe)) is not None:
            report(doubt)
    return recipe


def _decode_section(word: type, table: Any, *, source: str) -> Any:
    return None if table is None else codec.decode(word, fit_value(word, table), source=source)


def _make_shape(given: Any, data: Data | None, init: Init, *, source: str) -> Shape:
    """Complete a shape: from its own fields, the data's vocabulary, or the first weights'."""
    given = _open_shape(given)
    if given is None and init.checkpoint is not None:
        return load_shape_of(init.checkpoint)
    if given is None:
        raise RecipeError("nothing says what to train; give --shape, or shape: a preset's name, a file's, or a table")
    fields = fit_value(Shape, given)
    if fields.get("vocab_size") is None and data is not None:
        sources = open_sources(open_mixture(data))
        fields = {**fields, "vocab_size": next(iter(sources.values())).manifest.vocab_size}
    try:
        return codec.decode(Shape, complete(fields), source=source)
    except ShapeError as error:
        raise CodecError(f"{source}: {error}") from error


def _choose_numbers(document: Document, shape: Shape, *, source: str, report: Report) -> Document:
    """Take the place of what is no number yet: tokens by the param, and what the step law chooses."""
    ratio, found = document.pop("tokens_per_param", None), {}
    if ratio is not None:
        ratio = codec.decode(float, ratio, source=f"{source}: tokens_per_param")
        found["tokens"] = round(ratio * shape.params)
    elif "tokens" not in document:
        raise RecipeError("nothing says how long to train; give --tokens or --tokens-per-param")
    if not any(document.get(key) == STEP_LAW for key in BY_LAW):
        return found
    if "seq_len" not in document:
        raise CodecError(f"{source}: the key 'seq_len' of a Recipe is missing")
    tokens, seq_len = (
        codec.decode(int, fit_value(int, (document | found)[key]), source=f"{source}: {key}")
        for key in ("tokens", "seq_len")
    )
    law = step_law(shape, tokens)
    sequences = min(max(1, round(law.batch_tokens / max(seq_len, 1))), max(1, tokens // max(seq_len, 1)))
    chosen = {"lr": float(f"{law.lr:.{DIGITS}g}"), "batch_tokens": sequences * seq_len}
    chosen = {key: value for key, value in chosen.items() if document.get(key) == STEP_LAW}
    report(
        "step law: "
        + ", ".join(f"{key} = {value:,}" if key != "lr" else f"lr = {value:g}" for key, value in chosen.items())
    )
    for warning in law.warnings:
        report(f"step law: {warning}")
    return found | chosen


def _check_data(recipe: Recipe, data: Data) -> str:
    """Refuse data that are missing, too few or of another vocabulary; give their hash."""
    if data.train.endswith(FILES) and data.repeats is not None:
        raise RecipeError(
            f"data.repeats={data.repeats:g} is for one dataset; {data.train} caps its sources under repeats"
        )
    found = hash_data(data, open_mixture(data))
    _check_content(data.train, found, data.content, key="data")
    open_text(recipe)
    return found


def _check_content(path: str, found: str, wanted: str | None, *, key: str) -> None:
    if wanted not in (None, found):
        raise RecipeError(
            f"{path} is not what the recipe was made with: its content is {found}, and {key}.content says {wanted}; "
            f"name the right one, or leave {key}.content out"
        )


def _check_writable(out: Path) -> None:
    """Refuse a run's folder that could not be made, before the work whose result it shall hold. Raises RecipeError."""
    place = next(one for one in (out, *out.absolute().parents) if one.exists())
    if not place.is_dir():
        raise RecipeError(f"out={out} cannot be made: {place} is a file; name another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RecipeError(f"out={out} cannot be written: {place} does not allow it; name another folder")
