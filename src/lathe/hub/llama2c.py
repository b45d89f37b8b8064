"""Read the fp32 `.bin` files of llama2.c: a header of seven numbers, then every tensor in a fixed order.

Version 0 is the original layout; version 1 begins with a magic number and keeps no rotary tables. Formats: llama2.c's
export.py, `legacy_export` and `version1_export`. Each tensor stands for all layers before the next one begins. Queries
and keys are rotated in neighbouring pairs there, in halves here. Every such model has RMSNorm with eps 1e-5 and rotary
theta 10000, which the files do not say.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.errors import CheckpointError, ShapeError
from lathe.hub.layout import halve_pairs, join_qkv
from lathe.shape import Shape

MAGIC = 0x616B3432
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
HEADERS = {0: 28, 1: 256}
"""The size in bytes of each version's header."""
ORDER = {
    0: (
        "embedding",
        "attention_norm",
        "q",
        "k",
        "v",
        "out",
        "mlp_norm",
        "gate",
        "down",
        "up",
        "norm",
        "rotary",
        "head",
    ),
    1: ("attention_norm", "mlp_norm", "norm", "embedding", "q", "k", "v", "out", "gate", "down", "up", "head"),
}
NAMES = {
    "embedding": "embedding.weight",
    "norm": "norm.weight",
    "head": "head.weight",
    "attention_norm": "blocks.{}.attention_norm.weight",
    "out": "blocks.{}.attention.out.weight",
    "mlp_norm": "blocks.{}.mlp_norm.weight",
    "gate": "blocks.{}.mlp.gate.weight",
    "down": "blocks.{}.mlp.down.weight",
    "up": "blocks.{}.mlp.up.weight",
}
"""Our names; queries, keys and values are joined, and the rotary tables are left out."""


class Header(NamedTuple):
    """Hold what a file's first bytes say."""

    version: int
    shape: Shape


def read_llama2c(path: str | Path) -> tuple[Shape, dict[str, Tensor]]:
    """Read a llama2.c model in fp32.

    Raises CheckpointError for a file that is quantised, cut short, too long, or no such model.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            header = parse_header(file.read(max(HEADERS.values())), source=str(path))
        found = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    sizes = tensor_sizes(header.shape)
    order = [name for name in ORDER[header.version] if name in sizes]
    offset = HEADERS[header.version] // 4
    numbers = offset + sum(_count(sizes[name]) for name in order)
    _check_length(found, 4 * numbers, header, source=str(path))
    everything = torch.from_file(str(path), shared=False, size=numbers, dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for name in order:
        count = _count(sizes[name])
        parts[name] = everything[offset : offset + count].view(sizes[name])
        offset += count
    return header.shape, _name_weights(parts, header.shape)


def parse_header(data: bytes, *, source: str) -> Header:
    """Read the version and the shape from a file's first bytes. Raises CheckpointError."""
    if len(data) < HEADERS[0]:
        raise CheckpointError(f"{source}: {len(data)} bytes are too few for a llama2.c header of {HEADERS[0]}")
    version, begin, tied = 0, 0, None
    if struct.unpack_from("<I", data)[0] == MAGIC:
        version, begin = struct.unpack_from("<i", data, 4)[0], 8
        if version not in HEADERS or version == 0:
            raise CheckpointError(
                f"{source}: llama2.c's version {version} (2 is quantised to int8); only fp32 files, versions 0 and 1, "
                "can be read"
            )
        if len(data) < HEADERS[version]:
            raise CheckpointError(f"{source}: cut short within its header of {HEADERS[version]} bytes")
        tied = bool(data[begin + 28])
    values = dict(zip(FIELDS, struct.unpack_from("<7i", data, begin), strict=True))
    if version == 0:  # a negative vocabulary says that the head has weights of its own
        tied, values["vocab_size"] = values["vocab_size"] > 0, abs(values["vocab_size"])
    told = ", ".join(f"{name}={value}" for name, value in values.items())
    if min(values.values()) < 1 or values["dim"] % values["n_heads"]:
        raise CheckpointError(f"{source}: no llama2.c model: its header says {told}")
    try:
        shape = Shape(
            d_model=values["dim"],
            n_layers=values["n_layers"],
            n_heads=values["n_heads"],
            n_kv_heads=values["n_kv_heads"],
            d_head=values["dim"] // values["n_heads"],
            d_ff=values["hidden_dim"],
            vocab_size=values["vocab_size"],
            tied=bool(tied),
            max_seq_len=values["max_seq_len"],
        )
    except ShapeError as error:
        raise CheckpointError(f"{source}: no llama2.c model: its header says {told}: {error}") from None
    return Header(version, shape)


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Give the size of each tensor in a file, all layers together; the rotary tables of version 0 as one."""
    layers, d, d_ff = shape.n_layers, shape.d_model, shape.d_ff
    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    sizes = {
        "embedding": (shape.vocab_size, d),
        "attention_norm": (layers, d),
        "q": (layers, queries, d),
        "k": (layers, keys, d),
        "v": (layers, keys, d),
        "out": (layers, d, queries),
        "mlp_norm": (layers, d),
        "gate": (layers, d_ff, d),
        "down": (layers, d, d_ff),
        "up": (layers, d_ff, d),
        "norm": (d,),
        "rotary": (2, shape.max_seq_len, shape.d_head // 2),
    }
    return sizes if shape.tied else sizes | {"head": (shape.vocab_size, d)}


def _name_weights(parts: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for part, name in NAMES.items():
        if part in parts and "{}" not in name:
            weights[name] = parts[part].clone()
        elif part in parts:
            weights |= {name.format(i): layer.clone() for i, layer in enumerate(parts[part])}
    for i, (q, k, v) in enumerate(zip(parts["q"], parts["k"], parts["v"], strict=True)):
        q, k = halve_pairs(q, shape.n_heads), halve_pairs(k, shape.n_kv_heads)
        weights[f"blocks.{i}.attention.qkv.weight"] = join_qkv(q, k, v, shape)
    return weights


def _check_length(found: int, wanted: int, header: Header, *, source: str) -> None:
    if found == wanted:
        return
    shape = header.shape
    about = (
        f"{source}: {found} bytes; a llama2.c model of version {header.version} with d_model={shape.d_model}, "
        f"n_layers={shape.n_layers}, vocab_size={shape.vocab_size} has {wanted}"
    )
    if found < wanted:
        raise CheckpointError(f"{about}: the file is cut short, or not llama2.c's; copy it again")
    raise CheckpointError(f"{about}: {found - wanted} bytes follow its end; the file is not llama2.c's, or damaged")


def _count(size: tuple[int, ...]) -> int:
    return torch.Size(size).numel()
