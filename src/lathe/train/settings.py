"""List every setting of a training by its dotted key, and read one from text. Standard library only."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from lathe.errors import RecipeError, nearest
from lathe.recipe import Data, Distil, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.execution import Execution

SECTIONS: dict[str, type] = {
    "shape": Shape, "data": Data, "optimiser": Optimiser, "schedule": Schedule, "init": Init, "distil": Distil,
    "execution": Execution,
}  # fmt: skip
"""The tables of a file of settings; all other keys are the recipe's own."""
HEADS = {"data": "train", "optimiser": "name", "schedule": "name", "init": "scheme", "distil": "teacher"}
"""Of a section that is given as one value, the key that it stands for."""
STEP_LAW = "step-law"
BY_LAW = ("lr", "batch_tokens")
"""What the step law can choose."""
NONE = "none"
"""How a number is left out, where it may be: TOML has no word for it."""
REQUIRED = dataclasses.MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Hold what a setting may be, and its default (`REQUIRED` where it has none)."""

    kind: Any
    default: Any


@functools.cache
def list_settings() -> dict[str, Setting]:
    """List all settings by key: "lr", "tokens_per_param", "optimiser.beta2", "execution.out", …"""
    found = {key: setting for key, setting in _list_fields(Recipe).items() if key not in SECTIONS}
    found["tokens_per_param"] = Setting(kind=float | None, default=None)
    for section, word in SECTIONS.items():
        found |= {f"{section}.{key}": setting for key, setting in _list_fields(word).items()}
    return found


def _list_fields(word: type) -> dict[str, Setting]:
    hints = typing.get_type_hints(word)
    return {
        field.name: Setting(
            kind=hints[field.name],
            default=field.default if field.default_factory is REQUIRED else field.default_factory(),
        )
        for field in dataclasses.fields(word)
    }


def name_key(key: str) -> str:
    """Give a key in full: that of a section given as one value is its head's. Raises RecipeError for an unknown one."""
    key = f"{key}.{HEADS[key]}" if key in HEADS else key
    known = list_settings()
    if key not in known and key != "shape":
        section, _, name = key.rpartition(".")
        among = (
            [one.rpartition(".")[2] for one in known if one.startswith(f"{section}.")] if section in SECTIONS else known
        )
        raise RecipeError(f"unknown setting {key!r}{nearest(name if section in SECTIONS else key, among)}")
    return key


def parse_setting(key: str, text: str) -> Any:
    """Read a setting from text. Raises RecipeError for what it cannot be."""
    if key == "shape" or (key in BY_LAW and text == STEP_LAW):
        return text
    try:
        return _parse(list_settings()[key].kind, text)
    except ValueError as error:
        raise RecipeError(f"{key} is {text!r}; wanted {error}") from None


def _parse(kind: Any, text: str) -> Any:
    members = _members(kind)
    if types.NoneType in members and text == NONE:
        return None
    kind = members[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return [_parse(args[0], part) for part in text.split(",") if part]
    if origin is dict:
        pairs = [part.partition("=") for part in text.split(",") if part]
        if not all(name and value for name, _, value in pairs):
            raise ValueError(f"NAME={name_kind(args[1])}, … with commas between")
        return {name: _parse(args[1], value) for name, _, value in pairs}
    return _PARSERS.get(kind, str)(text)


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number, such as 3e-4") from None


def _parse_int(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        with suppress(ValueError):
            if isinstance(found := fit_value(int, float(text)), int):
                return found
        raise ValueError("a whole number, such as 1000 or 1e9") from None


_PARSERS: dict[Any, Callable[[str], Any]] = {bool: _parse_bool, float: _parse_float, int: _parse_int}


def fit_value(kind: Any, value: Any) -> Any:
    """Let 1e9 stand for a whole number and "none" for none, in words too; the codec refuses what is wrong."""
    members = _members(kind)
    if dataclasses.is_dataclass(kind := members[0]) and isinstance(value, Mapping):
        settings = _list_fields(typing.cast(type, kind))
        return {key: fit_value(settings[key].kind, one) if key in settings else one for key, one in value.items()}
    if value == NONE and types.NoneType in members and kind is not str:
        return None
    if isinstance(value, list | tuple) and typing.get_origin(kind) is tuple:
        return [fit_value(typing.get_args(kind)[0], one) for one in value]
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def name_kind(kind: Any) -> str:
    """Say in a word or two what a setting may be, for help."""
    members = _members(kind)
    kind = members[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        found = "|".join(args)
    elif origin is tuple:
        found = f"{name_kind(args[0])},…"
    elif origin is dict:
        found = f"NAME={name_kind(args[1])},…"
    else:
        found = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT"}.get(kind, "NAME")
    return f"{found}|{NONE}" if types.NoneType in members and kind in (int, float) else found


def _members(kind: Any) -> tuple[Any, ...]:
    """List what a kind may be, none last."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return tuple(sorted(typing.get_args(kind), key=lambda one: one is types.NoneType)) if union else (kind,)
