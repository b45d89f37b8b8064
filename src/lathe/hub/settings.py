"""Tie the settings of a `config.json` to the fields of `Shape`, row by row, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import CheckpointError
from lathe.shape import Shape

Config = Mapping[str, Any]
TRUTH: Mapping[Any, Any] = {False: False, True: True}
"""What a setting that is true or false may hold."""


@dataclass(frozen=True, slots=True)
class Key:
    """Tie one setting to one field; several rows may hold one field, which must then agree, and are all written.

    `name` may reach into a table: `rope_parameters.rope_theta`. `values` translates theirs to ours where the two do not
    speak alike; the first of several for one of ours is written. `absent` is what a missing or null setting says, in
    their words, where it says something beside the others for the field.
    """

    name: str
    field: str
    values: Mapping[Any, Any] | None = None
    absent: Any = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Refuse a setting that no shape can hold; `accepts` sees its value (None where missing) and all settings."""

    name: str
    accepts: Callable[[Any, Config], bool]
    reason: str


def only(*values: Any) -> Callable[[Any, Config], bool]:
    """Accept these values; a missing or null setting is None."""
    return lambda value, config: any(value is v or (value == v and type(value) is type(v)) for v in values)


def look_up(config: Config, name: str) -> Any:
    """Find a setting, or None."""
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def check_rules(config: Config, rules: Sequence[Rule], *, source: str) -> None:
    """Refuse settings that no shape can hold. Raises CheckpointError."""
    for rule in rules:
        value = look_up(config, rule.name)
        if not rule.accepts(value, config):
            raise CheckpointError(f"{source}: {rule.name}={_show(value)} cannot be imported: {rule.reason}")


def read_fields(config: Config, keys: Sequence[Key], *, source: str) -> dict[str, Any]:
    """Read the fields that a table's settings give. Raises CheckpointError."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key in keys:
        value = look_up(config, key.name)
        value = key.absent if value is None else value
        if value is None:
            continue
        ours = _translate(key, value, source=source)
        said = f"{key.name}={_show(value)}"
        if found.setdefault(key.field, ours) != ours:
            raise CheckpointError(f"{source}: {origin[key.field]} and {said} contradict each other ({key.field})")
        origin.setdefault(key.field, said)
    return found


def write_keys(shape: Shape, keys: Sequence[Key]) -> dict[str, Any]:
    """Write the settings that hold a shape's fields, nested where their names say so."""
    config: dict[str, Any] = {}
    for key in keys:
        ours = getattr(shape, key.field)
        value = ours if key.values is None else next(t for t, o in key.values.items() if o == ours)
        *tables, last = key.name.split(".")
        table = config
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return config


def _translate(key: Key, value: Any, *, source: str) -> Any:
    if key.values is None:
        return value
    for theirs, ours in key.values.items():
        if theirs == value and type(theirs) is type(value):
            return ours
    known = ", ".join(_show(theirs) for theirs in key.values)
    raise CheckpointError(f"{source}: {key.name}={_show(value)} cannot be imported; Lathe knows {known}")


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
