"""Turn words into documents and back: JSON written and read, TOML read, nothing guessed.

A word is a frozen dataclass of bool, int, float, str, None, Literal, tuple, list, dict[str, X], unions and
other words. Reading is strict: a key that is unknown, missing, doubled or of the wrong type is a CodecError
that names the key, its file and the nearest known key. Fields with a default may be left out; a whole number
may stand for a float, nothing else stands for anything. NaN and infinity are refused both ways, since JSON
has no way to write them.

Files carry a tag, `{"lathe": "shape", "version": 1, …}`, so that a file of another kind, or of a newer Lathe,
says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from lathe.documents import name_value, read_document, write_atomic
from lathe.errors import CodecError, LatheError, nearest

T = TypeVar("T")


def encode(value: Any, *, key: str = "") -> Any:
    """Turn a word into dicts, lists and scalars that JSON can hold. Raises CodecError, for NaN too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        return {name: encode(getattr(value, name), key=_join(key, name)) for name in names}
    if isinstance(value, Mapping):
        for name in value:
            _check_text(name, key=_join(key, str(name)))
        return {name: encode(item, key=_join(key, name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, key=f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise CodecError(f"{key or 'the value'} is {value}, which JSON cannot hold; give a finite number")
    if isinstance(value, str):
        return _check_text(value, key=key)
    if value is None or type(value) in (bool, int, float):
        return value
    raise CodecError(f"{key or 'the value'} is a {type(value).__name__}, which a document cannot hold")


def decode(wanted: type[T], data: Any, *, source: str = "the document") -> T:
    """Build a word from what `encode` gives. `source`, usually a file name, begins every error.

    Raises CodecError.
    """
    return _decode(wanted, data, source=source, key="")


def dumps(value: Any) -> str:
    """Write a word as indented JSON."""
    return json.dumps(encode(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_json(value: Any) -> str:
    """Write a word as JSON of which equal words have one form only: sorted keys, no spaces. For hashes."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def save(value: Any, path: str | Path, *, kind: str, version: int = 1) -> None:
    """Write a word, tagged, to a `.json` file in one step. Raises CodecError."""
    if Path(path).suffix != ".json":
        raise CodecError(f"{path}: the name should end in .json")
    body = tag(encode(value), kind=kind, version=version)
    write_atomic(path, json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load(wanted: type[T], path: str | Path, *, kind: str, version: int = 1) -> T:
    """Read a word from a `.json` or `.toml` file, which may have no tag. Raises CodecError."""
    body = untag(read_document(path), kind=kind, version=version, source=str(path), required=False)
    return decode(wanted, body, source=str(path))


def tag(body: Mapping[str, Any], *, kind: str, version: int = 1) -> dict[str, Any]:
    """Put the kind and the format's version before a document's own keys."""
    assert not {"lathe", "version"} & body.keys(), "a word's own keys would hide its tag"
    return {"lathe": kind, "version": version, **body}


def untag(
    document: Mapping[str, Any],
    *,
    kind: str,
    version: int = 1,
    source: str = "the document",
    required: bool = True,
) -> dict[str, Any]:
    """Check a document's tag and take it off; `version` is the newest that the caller can read.

    Raises CodecError when it is another kind's, a newer version's, or, if `required`, when there is none.
    """
    body = dict(document)
    if "lathe" not in body:
        if required:
            raise CodecError(f'{source}: not a Lathe {kind}: it has no "lathe": "{kind}" key')
        return body
    found, number = body.pop("lathe"), body.pop("version", None)
    if found != kind:
        raise CodecError(f"{source}: holds a {found}, and a {kind} was wanted")
    if type(number) is not int or number < 1:
        raise CodecError(f"{source}: version={number!r} should be a whole number of at least 1")
    if number > version:
        raise CodecError(
            f"{source}: written by a newer Lathe ({kind} version {number}; this one reads up to {version}); "
            "run: pip install --upgrade lathe"
        )
    return body


def _decode(wanted: Any, data: Any, *, source: str, key: str) -> Any:
    if wanted is Any:
        return data
    origin, args = get_origin(wanted), get_args(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _decode_word(wanted, data, source=source, key=key)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, source=source, key=key)
    if origin is Literal:
        for choice in args:
            if type(data) is type(choice) and data == choice:
                return data
        raise CodecError(f"{_where(source, key)} is {name_value(data)}{nearest(str(data), map(str, args))}")
    if origin in (tuple, list):
        return _decode_items(origin, args, data, source=source, key=key)
    if origin is dict:
        if not isinstance(data, dict):
            raise _mismatch("a table", data, source=source, key=key)
        return {k: _decode(args[1], v, source=source, key=_join(key, k)) for k, v in data.items()}
    if wanted is float and type(data) is int and abs(data) <= 2**53:
        return float(data)
    if wanted is None or wanted is types.NoneType:
        wanted = types.NoneType
    elif wanted not in (bool, int, float, str):
        raise TypeError(f"{key}: the codec knows no type {wanted!r}")
    if type(data) is not wanted:
        raise _mismatch(_WANTED[wanted], data, source=source, key=key)
    if wanted is float and not math.isfinite(data):
        raise CodecError(f"{_where(source, key)} is {data}; it must be finite")
    return data


def _decode_word(wanted: type, data: Any, *, source: str, key: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(f"the keys of a {wanted.__name__}", data, source=source, key=key)
    known = [f for f in dataclasses.fields(wanted) if f.init]
    names = [f.name for f in known]
    for name in data:
        if name not in names:
            raise CodecError(f"{source}: unknown key {_join(key, name)!r}{nearest(name, names)}")
    hints = _hints(wanted)
    values = {n: _decode(hints[n], item, source=source, key=_join(key, n)) for n, item in data.items() if n in names}
    for field in known:
        optional = not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        if field.name not in data and not optional:
            raise CodecError(f"{source}: the key {_join(key, field.name)!r} of a {wanted.__name__} is missing")
    try:
        return wanted(**values)
    except LatheError as error:
        raise CodecError(f"{source}: {key + ': ' if key else ''}{error}") from error


def _decode_union(args: tuple[Any, ...], data: Any, *, source: str, key: str) -> Any:
    if data is None and types.NoneType in args:
        return None
    members = [a for a in args if a is not types.NoneType]
    if len(members) == 1:
        return _decode(members[0], data, source=source, key=key)
    # an exact match first, so that 1 stays an int in `float | int`
    for member in sorted(members, key=lambda m: m is not type(data)):
        try:
            return _decode(member, data, source=source, key=key)
        except CodecError:
            continue
    raise _mismatch(" or ".join(_WANTED.get(m, str(m)) for m in members), data, source=source, key=key)


def _decode_items(origin: Any, args: tuple[Any, ...], data: Any, *, source: str, key: str) -> Any:
    if not isinstance(data, list | tuple):
        raise _mismatch("a list", data, source=source, key=key)
    if origin is list or args[1:] == (...,):
        kinds = [args[0]] * len(data)
    else:
        kinds = list(args)
        if len(kinds) != len(data):
            raise CodecError(f"{_where(source, key)} should hold {len(kinds)} items, and holds {len(data)}")
    items = [_decode(k, x, source=source, key=f"{key}[{i}]") for i, (k, x) in enumerate(zip(kinds, data, strict=True))]
    return origin(items)


_WANTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    types.NoneType: "nothing",
}


@functools.cache
def _hints(word: type) -> dict[str, Any]:
    return typing.get_type_hints(word)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _where(source: str, key: str) -> str:
    return f"{source}: {key}" if key else f"{source}: the value"


def _mismatch(wanted: str, data: Any, *, source: str, key: str) -> CodecError:
    return CodecError(f"{_where(source, key)} is {name_value(data)}; it should be {wanted}")


def _check_text(text: Any, *, key: str) -> str:
    if not isinstance(text, str):
        raise CodecError(f"{key}: the key {text!r} is not a string, and a document's keys must be")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CodecError(f"{key or 'the value'} holds half a surrogate pair, which UTF-8 cannot write") from None
    return text
