"""Turn Lathe checkpoints into folders that transformers loads without custom code, or into GGUF files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lathe import documents
from lathe.errors import CheckpointError, CodecError, ShapeError, nearest
from lathe.hub.families import FAMILIES
from lathe.hub.family import Family, list_obstacles, write_config
from lathe.hub.folders import check_new_folder, new_folder, read_json
from lathe.hub.importing import CONFIG, TOKENS
from lathe.hub.names import to_theirs
from lathe.hub.sharing import unroll
from lathe.model.checkpoint import (
    GENERATION,
    TOKENIZER,
    WEIGHTS,
    check_weights,
    copy_companions,
    load_shape_of,
    read_tensors,
    save_tensors,
)
from lathe.shape import Shape

TOKENIZER_CONFIG = "tokenizer_config.json"
FORMATS = ("hf", "gguf")


@dataclass(frozen=True, slots=True)
class Export:
    """Say what was written: where, as which architecture, and what a reader should know about it."""

    path: Path
    architecture: str
    notes: tuple[str, ...] = ()


def export_checkpoint(
    folder: str | Path, out: str | Path, *, to: Literal["hf", "gguf"] = "hf", family: str | None = None
) -> Export:
    """Write a checkpoint for others: `hf`, a new folder for transformers, or `gguf`, a file for llama.cpp.

    `family` is one of `FAMILIES`; the first that can hold the shape, if not given. Shared layers are written out, a
    copy for each visit; norms that have only gains get biases of zero where no family goes without. Notes say so.

    Raises:
        ShapeError: a shape that no family can hold, with the fields.
        CheckpointError: a folder that is no checkpoint, or a place that cannot be written.
        MissingExtraError: GGUF without the gguf package.
    """
    if to not in FORMATS:
        raise CheckpointError(f"unknown format {to!r}{nearest(str(to), FORMATS)}")
    if to == "gguf":
        if family is not None:
            raise CheckpointError("a family is chosen for hf only; a GGUF file says by itself which model it holds")
        from lathe.hub.gguf import export_gguf

        export_gguf(folder, out)
        return Export(Path(out), "gguf")
    return _export_folder(Path(folder), Path(out), family)


def _export_folder(folder: Path, out: Path, family_name: str | None) -> Export:
    check_new_folder(out, source=folder)
    stored = load_shape_of(folder)
    family, written = choose_family(stored, family_name)
    weights = read_tensors(folder / WEIGHTS)
    check_weights(stored, {name: tuple(w.shape) for name, w in weights.items()}, source=str(folder / WEIGHTS))
    shape, weights = unroll(stored, weights)
    if shape.norm != written.norm:
        shape, weights = add_norm_biases(shape, weights)
    tokens = read_tokens(folder)
    config = {**write_config(family, shape), **tokens, "dtype": _dtype_name(weights)}
    with new_folder(out) as new:
        copied = copy_companions(folder, new)
        if TOKENIZER in copied and TOKENIZER_CONFIG not in copied:
            _write_json(new / TOKENIZER_CONFIG, minimal_tokenizer_config(new / TOKENIZER, tokens))
        _write_json(new / CONFIG, config)
        save_tensors(to_theirs(weights, family.names, shape), new / WEIGHTS)
    return Export(out, family.architectures[0], _notes(stored, shape))


def choose_family(shape: Shape, name: str | None = None) -> tuple[Family, Shape]:
    """Choose the first family that can hold a shape, or the one named; gives the shape as it is written there too.

    That is the shape with shared layers written out, and, where no family holds it otherwise, with zero biases in its
    norms. Raises ShapeError with the fields that stand against it, CheckpointError for an unknown name.
    """
    known = {n: family for n, family in FAMILIES.items() if family.exported}
    if name is not None and name not in known:
        raise CheckpointError(f"no family to export as is called {name!r}{nearest(name, known)}")
    forms = [unroll(shape, {})[0]]
    if shape.norm == "layernorm-gain":
        forms.append(add_norm_biases(forms[0], {})[0])
    tried = [(list_obstacles(f, form), f, form) for form in forms for n, f in known.items() if name in (None, n)]
    obstacles, family, form = min(tried, key=lambda one: len(one[0]))
    if not obstacles:
        return family, form
    who = family.name if name else f"no Hugging Face family holds this shape; the nearest, {family.name},"
    raise ShapeError(f"{who} cannot hold {'; '.join(obstacles)}")


def add_norm_biases(shape: Shape, weights: Mapping[str, Tensor]) -> tuple[Shape, dict[str, Tensor]]:
    """Give norms that have only gains biases of zero: the same arithmetic, in more families."""
    gains = {name: w for name, w in weights.items() if name.endswith("norm.weight")}
    biases = {f"{name.removesuffix('weight')}bias": torch.zeros_like(w) for name, w in gains.items()}
    return dataclasses.replace(shape, norm="layernorm"), {**weights, **biases}


def read_tokens(folder: Path) -> dict[str, Any]:
    """Read which ids begin, end and pad texts; None where the checkpoint does not say."""
    given: Mapping[str, Any] = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    return {name: given.get(name) for name in TOKENS}


def minimal_tokenizer_config(tokenizer: Path, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a tokenizer.json so that AutoTokenizer takes it as it is. Raises CheckpointError."""
    added = read_json(tokenizer).get("added_tokens") or []
    words = {row.get("id"): row.get("content") for row in added if isinstance(row, dict)}
    special = {name.removesuffix("_id"): words[i] for name, i in tokens.items() if type(i) is int and i in words}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}


def _dtype_name(weights: Mapping[str, Tensor]) -> str:
    """Name the dtype to load a model in: that of the embedding."""
    return str(weights["embedding.weight"].dtype).removeprefix("torch.")


def _notes(stored: Shape, written: Shape) -> tuple[str, ...]:
    found = []
    if stored.sharing != written.sharing:
        found.append(
            f"shared layers ({stored.sharing}, {stored.sharing_count} visits a block) were written out, a copy for "
            f"each visit: {written.params:,} params for {stored.params:,}, the same logits"
        )
    if stored.norm != written.norm:
        found.append("the norms, which have only gains, were given biases of zero: the same logits")
    return tuple(found)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    try:
        documents.write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except CodecError as error:
        raise CheckpointError(str(error)) from None
