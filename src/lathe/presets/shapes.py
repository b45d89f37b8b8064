"""Look up published shapes by name, or read a shape from a file.

The facts are in `shapes/`, one TOML file a family: `source`, `defaults` for its shapes, and `shapes`, a table
of names. A row may carry its own `source` (otherwise the family's, with {name} filled in), and
`published_params`, the count its authors or their configuration give, which the tests hold our own count
against.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe import codec, documents
from lathe.errors import CodecError, PresetError, ShapeError, nearest
from lathe.shape import Shape, complete


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapePreset:
    """Hold a published shape with its source; `published_params` is None where no exact count was printed."""

    name: str
    family: str
    shape: Shape
    source: str
    published_params: int | None = None


def load_shape(name_or_file: str | Path) -> Shape:
    """Read a shape from a `.toml` or `.json` file, or take a preset by its name.

    A file may leave out what `lathe.shape.complete` can derive and what has a default.

    Raises PresetError for an unknown name (with the nearest), CodecError for a file that holds no shape.
    """
    if Path(name_or_file).suffix in (".toml", ".json"):
        return _read_shape(Path(name_or_file))
    return shape_preset(str(name_or_file)).shape


def shape_preset(name: str) -> ShapePreset:
    """Look up one published shape. Raises PresetError with the nearest names."""
    presets = shape_presets()
    if name not in presets:
        close = nearest(name, presets)
        if close.startswith("; known"):  # over a hundred names help nobody
            close = "; `lathe shapes` lists them, and a file's name should end in .toml or .json"
        raise PresetError(f"no shape preset is called {name!r}{close}")
    return presets[name]


def shape_names() -> tuple[str, ...]:
    """List the names of all published shapes, family by family."""
    return tuple(shape_presets())


@functools.cache
def shape_presets() -> dict[str, ShapePreset]:
    """Read every published shape; treat the result as read-only."""
    found: dict[str, ShapePreset] = {}
    for file in sorted(Path(__file__).with_name("shapes").glob("*.toml")):
        document = documents.parse_toml(file.read_text(encoding="utf-8"), source=file.name)
        for name, row in document["shapes"].items():
            assert name not in found, f"{file.name}: {name} is in two families"
            found[name] = _read_row(name, row, family=file.stem, document=document)
    return found


def _read_row(name: str, row: dict[str, Any], *, family: str, document: dict[str, Any]) -> ShapePreset:
    given = document["defaults"] | row
    source = given.pop("source", document["source"].replace("{name}", name))
    published = given.pop("published_params", None)
    shape = codec.decode(Shape, complete(given), source=f"{family}.toml: {name}")
    return ShapePreset(name=name, family=family, shape=shape, source=source, published_params=published)


def _read_shape(path: Path) -> Shape:
    body = codec.untag(documents.read_document(path), kind="shape", source=str(path), required=False)
    if None in body.values():
        empty = next(key for key, value in body.items() if value is None)
        raise CodecError(f"{path}: {empty} is null; leave the key out to have it derived")
    try:
        full = complete(body)
    except ShapeError as error:
        raise CodecError(f"{path}: {error}") from error
    return codec.decode(Shape, full, source=str(path))
