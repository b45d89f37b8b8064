"""Name the launchers, and make one from its settings."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lathe import codec
from lathe.errors import EXTRAS, CodecError, MissingExtraError, StudyError, nearest
from lathe.sweep.jobs import Launcher
from lathe.train.settings import fit_value

LAUNCHERS: dict[str, tuple[str, str]] = {
    "local": ("lathe.sweep.local", "Local"),
    "slurm": ("lathe.sweep.slurm", "Slurm"),
    "ray": ("lathe.sweep.ray_tasks", "Ray"),
}
"""name → module and class: a frozen dataclass with a `launch`; modules load when they are asked for."""
NEEDS = {"slurm": "submitit", "ray": "ray"}
"""name → the package without which it launches nothing."""


def make_launcher(name: str, settings: Mapping[str, Any] | None = None) -> Launcher:
    """Make a launcher from its settings, values or the texts to read them from.

    Raises StudyError for a name that there is not, CodecError for settings that it has not.
    """
    if name not in LAUNCHERS:
        raise StudyError(f"no launcher is called {name!r}{nearest(name, LAUNCHERS)}")
    module, kind = LAUNCHERS[name]
    wanted = getattr(import_module(module), kind)
    hints = typing.get_type_hints(wanted)
    given = {key: _read(hints.get(key), value) for key, value in (settings or {}).items()}
    try:
        return codec.decode(wanted, given, source=f"settings of the launcher {name!r}")
    except CodecError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(wanted))
        raise CodecError(f"{error} (it has {fields})") from error


def check_launcher(name: str) -> None:
    """Refuse a launcher whose packages are not installed. Raises MissingExtraError."""
    package = NEEDS.get(name)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(f"launching on {name.capitalize()}", extra=EXTRAS[package])


def _read(kind: Any, value: Any) -> Any:
    """Read a value from text, where what is wanted is no text."""
    if isinstance(value, str) and kind is not None and str not in (kind, *typing.get_args(kind)):
        with suppress(ValueError):  # the codec says what was wanted
            value = json.loads(value)
    return value if kind is None else fit_value(kind, value)
