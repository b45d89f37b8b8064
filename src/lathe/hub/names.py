"""Name the same weights in two languages: which foreign tensors make one of ours, and how they are arranged there.

A row joins foreign tensors into one of ours, and splits it again into the same bits. Names are written without their
`.weight` or `.bias`, and `#` stands for a block's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.hub.layout import join_qkv, split_qkv
from lathe.model.checkpoint import DTYPES, empty_model, list_first, name_size
from lathe.shape import Shape


@dataclass(frozen=True, slots=True)
class Layout:
    """Rearrange tensors: `join` foreign ones into ours, `split` ours into theirs."""

    join: Callable[[Sequence[Tensor], Shape], Tensor]
    split: Callable[[Tensor, Shape], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Names:
    """Hold the foreign tensors that make one of ours."""

    theirs: tuple[str, ...]
    layout: Layout


def _turn(x: Tensor) -> Tensor:
    return x.T if x.dim() == 2 else x


SAME = Layout(lambda parts, shape: parts[0], lambda x, shape: (x,))
TURNED = Layout(lambda parts, shape: _turn(parts[0]), lambda x, shape: (_turn(x),))
THREE = Layout(lambda parts, shape: join_qkv(parts[0], parts[1], parts[2], shape), split_qkv)


def _join_turned(parts: Sequence[Tensor], shape: Shape) -> Tensor:
    widths = [heads * shape.d_head for heads in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)]
    q, k, v = _turn(parts[0]).split(widths)
    return join_qkv(q, k, v, shape)


TURNED_QKV = Layout(_join_turned, lambda x, shape: (_turn(torch.cat(split_qkv(x, shape))),))
"""One matrix with queries, keys and values side by side in its columns (GPT-2's Conv1D)."""


def named(*theirs: str, layout: Layout = SAME) -> Names:
    """Make a row of a table of names."""
    return Names(theirs, layout)


@dataclass(frozen=True, slots=True)
class Entry:
    """Hold one tensor of ours with the foreign ones that make it, under their full names."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def list_entries(names: Mapping[str, Names], shape: Shape) -> list[Entry]:
    """List every tensor of a shape with its foreign names. The table must know all of the shape's tensors."""
    entries = []
    for ours in empty_model(shape).state_dict():
        stem, kind = ours.rsplit(".", 1)
        first, _, rest = stem.partition(".")
        number, _, inner = rest.partition(".")
        row = names[f"blocks.#.{inner}" if first == "blocks" else stem]
        entries.append(Entry(ours, tuple(f"{t.replace('#', number)}.{kind}" for t in row.theirs), row.layout))
    return entries


def to_ours(foreign: dict[str, Tensor], names: Mapping[str, Names], shape: Shape, *, source: str) -> dict[str, Tensor]:
    """Turn all foreign tensors into ours, emptying `foreign` on the way, so that weights stand in memory once.

    Raises CheckpointError, in foreign names, for tensors that are not just those of the shape.
    """
    entries = list_entries(names, shape)
    check_foreign(foreign, _foreign_sizes(entries, shape), source=source)
    return {e.ours: e.layout.join([foreign.pop(name) for name in e.theirs], shape) for e in entries}


def to_theirs(weights: Mapping[str, Tensor], names: Mapping[str, Names], shape: Shape) -> dict[str, Tensor]:
    """Turn all our tensors into foreign ones."""
    found: dict[str, Tensor] = {}
    for entry in list_entries(names, shape):
        found |= zip(entry.theirs, entry.layout.split(weights[entry.ours], shape), strict=True)
    return found


def _foreign_sizes(entries: Sequence[Entry], shape: Shape) -> dict[str, tuple[int, ...]]:
    """Size the foreign tensors, by splitting ours where they take no memory."""
    ours = empty_model(shape).state_dict()
    return {
        name: tuple(part.shape)
        for e in entries
        for name, part in zip(e.theirs, e.layout.split(ours[e.ours], shape), strict=True)
    }


def check_foreign(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Refuse foreign tensors that are not just the wanted ones, or hold no plain numbers. Raises CheckpointError."""
    differences = [
        f"{name} is missing"
        if name not in found
        else f"{name} is {name_size(found[name].shape)}, config.json asks for {name_size(size)}"
        for name, size in wanted.items()
        if name not in found or tuple(found[name].shape) != size
    ]
    differences += [f"{name} is in no such model" for name in found if name not in wanted]
    differences += [
        f"{name} holds {str(x.dtype).removeprefix('torch.')}, wanted {', '.join(DTYPES)}"
        for name, x in found.items()
        if x.dtype not in DTYPES.values()
    ]
    if differences:
        raise CheckpointError(
            f"{source}: the weights are not those that config.json describes: {list_first(differences)}"
        )
