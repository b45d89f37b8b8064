"""Read a grid's document strictly: its keys, settings by their full names, paths from the current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.documents import name_value
from lathe.errors import CodecError, StudyError, nearest
from lathe.presets.shapes import load_shape
from lathe.train.settings import SECTIONS, list_settings, name_key

TOP = {"tokens": "tokens", "tokens_per_param": "tokens_per_param", "seeds": "seed"}
"""Keys at the top of a grid that are settings, and which."""
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "base": ((dict,), "a table"),
    "shape": ((dict, str), "a table"),
    "shapes": ((list,), "a list of tables"),
    "family": ((list,), "a list of tables"),
    "branches": ((bool,), "true or false"),
    "constraints": ((list,), "a list of texts"),
}
OWN = ("base", "shapes", "family", "branches", "constraints", "seeds")
"""Keys that a recipe's document has not."""
FILES = (".toml", ".json")
"""What a path ends in, where a name would do too."""
ELSEWHERE = {"shape": "[shape]", "execution": "the command's or the study's settings"}
"""Sections of a recipe that [base] does not hold, and where they are said."""


def is_grid(document: Mapping[str, Any]) -> bool:
    """Tell a grid's document from a recipe's."""
    return document.get("lathe") == "grid" or any(key in document for key in OWN)


def read_grid(document: Mapping[str, Any], *, folder: Path, data: str | None) -> dict[str, Any]:
    """Check a document, and give `base` as settings by dotted key, and `shape`, `shapes` as tables.

    Paths are relative to `folder`; `data` is what to train on instead. Raises CodecError and StudyError.
    """
    document = codec.untag(document, kind="grid", source="it", required=False)
    for key, value in document.items():
        if key not in KINDS and key not in TOP:
            raise CodecError(f"unknown key {key!r}{nearest(key, [*KINDS, *TOP])}")
        if key in KINDS and not isinstance(value, KINDS[key][0]):
            raise CodecError(f"{key} is {name_value(value)}; it should be {KINDS[key][1]}")
    if "shapes" in document and "family" in document:
        raise StudyError("has both [[shapes]] and [[family]]; give one of them, or two grids")
    if not all(isinstance(one, str) for one in document.get("constraints", [])):
        raise CodecError('constraints holds what is no text; wanted such as ["aspect >= 8"]')
    settings = _place(dict(flatten(document.get("base", {}))), folder)
    if data is not None:
        settings = {key: value for key, value in settings.items() if key != "data.content"}
        settings["data.train"] = os.path.abspath(data)
    for name, key in TOP.items():
        if name in document and key in settings:
            raise StudyError(f"{name} stands at the top and {key} in [base]; give one of them")
        settings |= {key: document[name]} if name in document else {}
    if ("tokens" in settings) == ("tokens_per_param" in settings):
        raise StudyError("says how long to train twice or not at all; give tokens or tokens_per_param at the top")
    shapes = [_open_shape(one, folder) for one in document.get("shapes", [])]
    return {**document, "base": settings, "shape": _open_shape(document.get("shape", {}), folder), "shapes": shapes}


def flatten(base: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield [base]'s settings by their full dotted keys."""
    for key, value in base.items():
        if key in ELSEWHERE:
            raise CodecError(f"base.{key} is not [base]'s to say; it has its place in {ELSEWHERE[key]}")
        inner = value.items() if key in SECTIONS and isinstance(value, dict) else [("", value)]
        for name, one in inner:
            yield name_key(f"{key}.{name}" if name else key), one


def _place(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths absolute, to be found from anywhere."""

    def lasting(path: Any) -> Any:
        if isinstance(path, list):
            return [lasting(one) for one in path]
        if isinstance(path, dict):
            return {name: lasting(one) for name, one in path.items()}
        return os.path.abspath(folder / path) if isinstance(path, str) else path

    paths = {"data.train", "data.validation", "init.checkpoint", "distil.teacher"}
    if str(settings.get("init.base", "")).endswith(FILES):
        paths.add("init.base")
    return {key: lasting(value) if key in paths else value for key, value in settings.items()}


def _open_shape(shape: Any, folder: Path) -> dict[str, Any]:
    """Give the fields of a shape that is named, by a preset's name or a file's."""
    if isinstance(shape, str):
        return codec.encode(load_shape(folder / shape if shape.endswith(FILES) else shape))
    if not isinstance(shape, dict):
        raise CodecError(f"a shape is {name_value(shape)}; it should be a table, or a preset's name")
    known = [key.removeprefix("shape.") for key in list_settings() if key.startswith("shape.")]
    for key in shape:
        if key not in known:
            raise CodecError(f"unknown key 'shape.{key}'{nearest(key, known)}")
    return shape
