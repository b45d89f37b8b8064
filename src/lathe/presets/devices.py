"""Look up devices by name, read one from a file, or write one.

The facts are in `devices/`, one TOML file a device, named as it is typed. A file holds a `Device` as the codec reads
it: its numbers, `flops_per_s` by dtype, and in `origins` the kind and source of every number. `save_device` writes the
same layout, so that a preset can be copied and changed, and a calibrated device read back.

Memory is counted in GiB where vendors write GB, as their drivers report it.
"""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from lathe import codec, documents
from lathe.device import Device
from lathe.errors import CodecError, PresetError, nearest


def load_device(name_or_file: str | Path) -> Device:
    """Read a device from a `.toml` or `.json` file, or take a preset by its name.

    A preset goes by its short name, or by its vendor's with or without the vendor; case, spaces and underscores do not
    matter: "h100-pcie", "H100 PCIe" and "NVIDIA H100 PCIe" are one.

    Raises PresetError for an unknown name (with the nearest), CodecError for a file that holds no device.
    """
    if Path(name_or_file).suffix in (".toml", ".json"):
        return codec.load(Device, name_or_file, kind="device")
    presets = device_presets()
    typed = _typed(str(name_or_file))
    if typed in presets:
        return presets[typed]
    for device in presets.values():
        if typed in (_typed(device.name), _typed(device.name).partition("-")[2]):
            return device
    raise PresetError(
        f"no device preset is called {str(name_or_file)!r}{nearest(typed, presets)}"
        " (a file's name should end in .toml or .json)"
    )


def device_names() -> tuple[str, ...]:
    """List the presets' short names."""
    return tuple(device_presets())


@functools.cache
def device_presets() -> dict[str, Device]:
    """Read every preset, by its short name; treat the result as read-only."""
    files = Path(__file__).with_name("devices").glob("*.toml")
    found = {file.stem: codec.load(Device, file, kind="device") for file in files}
    return dict(sorted(found.items(), key=lambda item: (item[1].family, item[0])))


def save_device(device: Device, path: str | Path) -> None:
    """Write a device to a `.toml` or `.json` file in one step; `load_device` reads back the same numbers to the bit.

    Raises CodecError.
    """
    if Path(path).suffix == ".json":
        codec.save(device, path, kind="device")
    elif Path(path).suffix == ".toml":
        documents.write_atomic(path, _write_toml(codec.tag(codec.encode(device), kind="device")))
    else:
        raise CodecError(f"{path}: the name should end in .toml or .json")


def _typed(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _write_toml(body: dict[str, Any]) -> str:
    """Write scalars first, then one section a table; a table within a table stands on one line; None is left out."""
    lines = [
        f"{key} = {_toml(value)}" for key, value in body.items() if value is not None and not isinstance(value, dict)
    ]
    for title, table in body.items():
        if isinstance(table, dict):
            lines += ["", f"[{title}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert type(value) is int, f"a device holds no {type(value).__name__}"
    return str(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _float(value: float) -> str:
    """Write the shortest decimal that gives the same float: 0.8, 312e12, 42_949_672_960."""
    if value == 0 or 1e-3 <= value < 1e6:
        return repr(value)
    shortest = Decimal(repr(value)).normalize()
    if len(shortest.as_tuple().digits) > 6 and value.is_integer() and value < 2**53:
        return f"{int(value):_}"
    power = shortest.adjusted() // 3 * 3
    return f"{shortest.scaleb(-power):f}e{power}"
