"""Write and read GGUF files, llama.cpp's format, for shapes of the Llama family.

Matrices keep their dtype and vectors become F32, as llama.cpp wants them. Quantised tensors are neither written nor
read. Which tensors and fields there are: `gguf_layout` and `gguf_tokenizer`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lathe.errors import CheckpointError, MissingExtraError
from lathe.hub.gguf_layout import choose_architecture, describe_shape, from_gguf, parse_shape, to_gguf
from lathe.hub.gguf_tokenizer import describe_tokenizer
from lathe.hub.sharing import unroll
from lathe.model.checkpoint import WEIGHTS, check_weights, load_shape_of, read_tensors
from lathe.shape import Shape

DTYPES = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}
"""GGUF's name of each dtype, and of a file whose matrices have it."""


def export_gguf(folder: str | Path, path: str | Path) -> None:
    """Write a checkpoint as one GGUF file, then read it again and compare every tensor and field.

    Shared layers are written out, a copy for each visit.

    Raises:
        ShapeError: a shape that no architecture of GGUF's holds, with the fields.
        CheckpointError: a folder that is no checkpoint, a tokenizer that GGUF cannot hold, or a file that cannot be
            written whole.
        MissingExtraError: without the gguf package.
    """
    gguf, folder, path = _load_gguf(), Path(folder), Path(path)
    stored = load_shape_of(folder)
    architecture = choose_architecture(stored)
    weights = read_tensors(folder / WEIGHTS)
    check_weights(stored, {name: tuple(w.shape) for name, w in weights.items()}, source=str(folder / WEIGHTS))
    shape, weights = unroll(stored, weights)
    if unknown := {w.dtype for w in weights.values()} - set(DTYPES):
        raise CheckpointError(
            f"{folder / WEIGHTS} holds {', '.join(map(str, unknown))}; GGUF holds fp32, fp16 and bf16"
        )
    tensors = to_gguf(weights, shape, architecture)
    fields = {
        "general.architecture": architecture,
        "general.name": folder.resolve().name,
        "general.file_type": DTYPES[weights["embedding.weight"].dtype][1],
        **describe_shape(shape, architecture),
        **describe_tokenizer(folder, shape),
    }
    neighbour = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        _write(gguf, neighbour, fields, tensors)
        check_file(neighbour, fields, tensors, source=str(path))
        neighbour.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}; nothing was changed") from None
    finally:
        neighbour.unlink(missing_ok=True)


def read_gguf(path: str | Path) -> tuple[Shape, dict[str, Tensor]]:
    """Read a GGUF file that is not quantised.

    Raises CheckpointError for a file that is damaged, quantised, or no model that a shape can be; MissingExtraError
    without the gguf package.
    """
    reader = _open(Path(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    shape = parse_shape(fields, {t.name: tuple(map(int, reversed(t.shape))) for t in reader.tensors}, source=str(path))
    tensors = {t.name: _read_tensor(t, source=str(path)) for t in reader.tensors}
    return shape, from_gguf(tensors, shape, str(fields["general.architecture"]), source=str(path))


def _write(gguf: ModuleType, path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in fields.items():
        if name != "general.architecture":  # the writer has added it
            add[type(value)](name, value)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[DTYPES[tensor.dtype][0]]
        writer.add_tensor(name, _bytes_of(tensor), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def check_file(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Read a file back, and refuse it where it is not what was to be written. Raises CheckpointError."""
    reader = _open(path)
    found = {t.name: t for t in reader.tensors}
    wrong = [name for name, value in fields.items() if not _same(reader.get_field(name), value)]
    for name, tensor in tensors.items():
        there = found.pop(name, None)
        if (
            there is None
            or there.tensor_type.name != DTYPES[tensor.dtype][0]
            or tuple(reversed(there.shape.tolist())) != tuple(tensor.shape)
            or not np.array_equal(there.data.reshape(-1).view(np.uint8), _bytes_of(tensor).reshape(-1))
        ):
            wrong.append(name)
    wrong += list(found)
    if wrong:
        raise CheckpointError(
            f"{source}: read back, {', '.join(wrong[:5])} differ from what was written; is the disk full?"
        )


def _same(field: Any, value: Any) -> bool:
    if field is None:
        return False
    if isinstance(value, float) or (isinstance(value, list) and isinstance(value[0], float)):
        return np.array_equal(np.array(field.contents(), np.float32), np.array(value, np.float32))
    return field.contents() == value


def _bytes_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """View a tensor as bytes, its last axis that many times longer: numpy has no bf16."""
    return tensor.detach().view(torch.uint8).numpy()


def _read_tensor(tensor: Any, *, source: str) -> Tensor:
    kinds = {name: dtype for dtype, (name, _) in DTYPES.items()}
    if tensor.tensor_type.name not in kinds:
        raise CheckpointError(
            f"{source}: {tensor.name} is quantised ({tensor.tensor_type.name}), and its values are lost; read a "
            f"file of {', '.join(kinds)}, or the model it was made from"
        )
    size = tuple(reversed(tensor.shape.tolist()))
    raw = torch.from_numpy(np.array(tensor.data).reshape(-1).view(np.uint8))
    return raw.view(kinds[tensor.tensor_type.name]).view(size)


def _open(path: Path) -> Any:
    """Open a GGUF file. Raises CheckpointError."""
    gguf = _load_gguf()
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, LookupError, OSError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{path} is no whole GGUF file ({error}); copy or write it again") from None


def _load_gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("GGUF files", extra="hf") from None
    return gguf
