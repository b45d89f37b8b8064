"""Find the paths that a study's file holds, and read them as relative to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lathe.train.settings import HEADS

_TRAINING = ("data.train", "data.validation", "init.checkpoint", "distil.teacher")
PATHS = {
    "text": ("dataset", "tokenizer", "inputs"),
    "mixture": ("sources",),
    "law": ("file",),
    "grid": tuple(f"base.{key}" for key in _TRAINING),
    "device": ("file",),
    "evaluate": ("folder", "catalogue", "losses"),
    "training": _TRAINING,
}
"""Keys that hold paths, by table."""
NAMES = {"law": ("runs",), "grid": ("shape", "shapes", "base.init.base"), "training": ("init.base",)}
"""Keys that hold a preset's name or a path, by table."""


def place_paths(body: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Read paths as relative to the file, so that a study can be run from anywhere."""
    found = dict(body)
    asked = found.get("evaluate")
    if isinstance(asked, dict) and "tasks" in asked:
        found["evaluate"] = {"folder": ".", **asked}  # where items are if nothing says it: beside the study
    for keys, names in ((PATHS, False), (NAMES, True)):
        for key in (f"{table}.{key}" for table, inner in keys.items() for key in inner):
            found = _place_key(found, key, partial(_lasting, folder=folder, names=names))
    return found


def _place_key(table: dict[str, Any], key: str, place: Callable[[Any], Any]) -> dict[str, Any]:
    """Place what stands under a dotted key, written so or in tables; a key that is not there is left out."""
    if key in table:
        return {**table, key: place(table[key])}
    head, _, rest = key.partition(".")
    inner = table.get(head)
    if isinstance(inner, dict) and rest:
        return {**table, head: _place_key(inner, rest, place)}
    return {**table, head: place(inner)} if inner is not None and HEADS.get(head) == rest else table


def _lasting(value: Any, *, folder: Path, names: bool) -> Any:
    """Make paths absolute; where they may be `names` of presets, those of files that there are."""
    if isinstance(value, list):
        return [_lasting(one, folder=folder, names=names) for one in value]
    if isinstance(value, dict):
        return {key: _lasting(one, folder=folder, names=names) for key, one in value.items()}
    if isinstance(value, str) and (not names or (folder / value).exists()):
        return os.path.abspath(folder / value)
    return value
