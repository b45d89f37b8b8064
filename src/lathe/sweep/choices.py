"""Read the values of a grid's keys: one, a list, a range or a rule; and settle the rules of one combination.

lr = 3e-3                                            a value
lr = [1e-3, 3e-3]                                    a choice of each
n_layers = {from = 1, to = 16, factor = 2}           1, 2, 4, 8, 16; or step = 3; multiple = 8 rounds to eights
lr = "4e-3 * sqrt(64 / d_model)"                     a rule: an expression over the shape and other settings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lathe.documents import name_value
from lathe.errors import CodecError, ShapeError, StudyError, nearest
from lathe.shape import Shape, complete
from lathe.sweep.expressions import evaluate, list_names
from lathe.train.settings import BY_LAW, NONE, STEP_LAW, fit_value, list_settings

RANGE = ("from", "to", "step", "factor", "multiple")
MOST = 100_000
"""The most values of a range, and combinations of a grid."""
DIGITS = 6
"""Of a number that a rule gives: enough, and the same whatever machine's mathematics made it, as ids must be."""
DERIVED = ("params", "non_embedding_params", "aspect")
"""What rules and constraints can name of a shape beside its fields."""


def expand(key: str, value: Any) -> list[Any]:
    """List the choices of a key. Raises CodecError."""
    if isinstance(value, list):
        if not value:
            raise CodecError(f"{key} is an empty list, which leaves nothing to combine; give values, or leave it out")
        return value
    if isinstance(value, dict) and "from" in value:
        return _read_range(key, value)
    return [value]


def is_rule(key: str, value: Any) -> bool:
    """Say whether a setting's value is a rule: a text where a number is wanted."""
    if not isinstance(value, str) or value == NONE or (value == STEP_LAW and key in BY_LAW):
        return False
    kind = list_settings()[key].kind
    return kind in (int, float) or kind in (int | None, float | None)


def settle(given: Mapping[str, Any], known: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Replace the rules among settings by what they give, each after those it names.

    `known` are further names; `prefix` stands before keys in the list of all settings. Raises StudyError.
    """
    rules = {key: value for key, value in given.items() if is_rule(prefix + key, value)}
    settled = {key: value for key, value in given.items() if key not in rules}
    while rules:
        names = {**known, **settled, **_derive(settled, prefix, besides=rules)}
        ready = [key for key, rule in rules.items() if list_names(rule) <= names.keys()]
        if not ready:
            key, rule = next(iter(rules.items()))
            pending = sorted(list_names(rule) & rules.keys())
            if pending:
                raise StudyError(f"{prefix}{key} = {rule!r} hangs on {pending[0]}, which is not settled before it")
            evaluate(rule, names)  # says which name there is not
        for key in ready:
            settled[key] = _fit(prefix + key, rules.pop(key), names)
    return {key: settled[key] for key in given}


def describe(shape: Shape) -> dict[str, Any]:
    """List what rules and constraints can name of a shape."""
    fields = {key.removeprefix("shape."): 0 for key in list_settings() if key.startswith("shape.")}
    return {name: getattr(shape, name) for name in (*fields, *DERIVED)}


def _derive(settled: Mapping[str, Any], prefix: str, *, besides: Mapping[str, Any]) -> dict[str, Any]:
    """Give what follows from a shape's fields so far, but for fields that rules will give."""
    if prefix != "shape.":
        return {}
    with suppress(ShapeError, TypeError):  # said when the shape is built
        return {key: value for key, value in complete(settled).items() if key not in besides}
    return {}


def _fit(key: str, rule: str, names: Mapping[str, Any]) -> Any:
    value = evaluate(rule, names)
    kind = list_settings()[key].kind
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StudyError(f"{key} = {rule!r} is {value!r}; wanted a number")
    if isinstance(value, float):
        value = float(f"{value:.{DIGITS}g}") if kind in (float, float | None) else fit_value(int, value)
    if isinstance(value, float) and kind in (int, int | None):
        where = ", ".join(f"{name}={names[name]}" for name in sorted(list_names(rule)))
        raise StudyError(f"{key} = {rule!r} is {value:g} for {where}; wanted a whole number: round it, or take //")
    return value


def _read_range(key: str, given: Mapping[str, Any]) -> list[Any]:
    for name, value in given.items():
        if name not in RANGE:
            raise CodecError(f"unknown key '{key}.{name}'{nearest(name, RANGE)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CodecError(f"{key}.{name} is {name_value(value)}; it should be a number")
    if "to" not in given or ("step" in given) == ("factor" in given):
        raise CodecError(f"{key} is a range; wanted {{from = …, to = …, step = …}}, or factor in place of step")
    first, last = given["from"], given["to"]
    step, factor = given.get("step", 0), given.get("factor", 1)
    if first <= 0 or last < first or (step <= 0 and factor <= 1):
        raise CodecError(
            f"{key} goes from {first} to {last}; wanted a rising range above 0, a step above 0 or a factor above 1"
        )
    whole = all(isinstance(number, int) for number in given.values())
    found, value = [], first
    while value <= last * (1 + 1e-9) and len(found) <= MOST:
        found.append(value)
        value = first + len(found) * step if step else first * factor ** len(found)
    if len(found) > MOST:
        raise CodecError(f"{key} has more than {MOST} values; take larger steps")
    multiple = given.get("multiple")
    if multiple is not None:
        found = list(dict.fromkeys(max(1, round(value / multiple)) * multiple for value in found))
    return found if whole or multiple is None else _whole(found)


def _whole(values: Sequence[Any]) -> list[Any]:
    return [fit_value(int, value) for value in values]
