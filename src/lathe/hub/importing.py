"""Turn foreign models into Lathe checkpoints: Hugging Face folders and repositories, OpenLM's and llama2.c's files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lathe import documents
from lathe.errors import CheckpointError, DeviceError, MissingExtraError, nearest
from lathe.hub.families import find_family
from lathe.hub.family import Family, read_shape
from lathe.hub.folders import check_new_folder, new_folder, read_json
from lathe.hub.names import to_ours
from lathe.model.checkpoint import (
    COMPANIONS,
    DTYPES,
    GENERATION,
    SHAPE,
    TOKENIZER,
    WEIGHTS,
    copy_companions,
    read_tensors,
    read_tokenizer,
    save_checkpoint,
)
from lathe.shape import Shape

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
EMBEDDING, HEAD = "embedding", "head"


def import_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    shape: Shape | None = None,
) -> Shape:
    """Write a foreign model as a Lathe checkpoint in a new folder, and give its shape.

    Args:
        source: a folder with config.json and safetensors, a Hugging Face repository's id such as `org/name`, an OpenLM
            `.pt` file with its params beside it, a llama2.c `.bin` file, or an unquantised `.gguf` file.
        out: a folder that is not there yet, or empty.
        dtype: fp32, bf16 or fp16; the weights keep theirs if not given.
        revision: a repository's branch, tag or commit.
        tokenizer: a `tokenizer.json`, for models that bring none.
        shape: what the model is, where an OpenLM file does not say; it must agree with what the source says.

    No code that comes with a model is run, and nothing is unpickled but by torch's safe loader (OpenLM).

    Raises:
        CheckpointError: a source that cannot be read, a model that no shape can hold, weights that are not what its
            config says, a tokenizer with ids beyond the embedding, or a folder that holds something already.
        DeviceError: an unknown dtype.
        MissingExtraError: a repository without huggingface_hub.
    """
    if dtype is not None and dtype not in DTYPES:
        raise DeviceError(f"unknown dtype {dtype!r} of weights{nearest(str(dtype), DTYPES)}")
    check_new_folder(out, source=source)
    path = Path(source) if Path(source).exists() else download(str(source), revision=revision)
    words = path / TOKENIZER if tokenizer is None else Path(tokenizer)
    if tokenizer is not None and not words.is_file():
        raise CheckpointError(f"there is no tokenizer {tokenizer}; wanted a {TOKENIZER}")
    found, weights = read_foreign(path, shape)
    if shape not in (None, found):
        raise CheckpointError(f"{source} is not of the shape given: {'; '.join(_differences(found, given=shape))}")
    if words.is_file():
        read_tokenizer(words, found)
    if dtype is not None:
        weights = {name: w.to(DTYPES[dtype]) for name, w in weights.items()}
    with new_folder(out) as folder:
        if path.is_dir():
            copy_companions(path, folder)
            keep_special_tokens(path, folder)
        if words.is_file():
            shutil.copyfile(words, folder / TOKENIZER)
        save_checkpoint(folder, found, weights)
    return found


def read_foreign(path: Path, shape: Shape | None = None) -> tuple[Shape, dict[str, Tensor]]:
    """Read a foreign model's shape and weights, in our names. `shape` helps where a file says too little.

    Raises CheckpointError.
    """
    if path.is_dir():
        return read_folder(path)
    if path.suffix not in FILES:
        raise CheckpointError(f"{path} is no model to import; wanted {WANTED}")
    return FILES[path.suffix](path, shape)


def _read_openlm(path: Path, shape: Shape | None) -> tuple[Shape, dict[str, Tensor]]:
    from lathe.hub.openlm import read_openlm

    return read_openlm(path, shape=shape)


def _read_llama2c(path: Path, shape: Shape | None) -> tuple[Shape, dict[str, Tensor]]:
    from lathe.hub.llama2c import read_llama2c

    return read_llama2c(path)


def _read_gguf(path: Path, shape: Shape | None) -> tuple[Shape, dict[str, Tensor]]:
    from lathe.hub.gguf import read_gguf

    return read_gguf(path)


FILES: dict[str, Callable[[Path, Shape | None], tuple[Shape, dict[str, Tensor]]]] = {
    ".pt": _read_openlm,
    ".bin": _read_llama2c,
    ".gguf": _read_gguf,
}
"""How to read a model that is one file, by suffix."""
WANTED = (
    f"a folder with {CONFIG} and {WEIGHTS}, an OpenLM .pt, llama2.c .bin or GGUF file, or a repository like org/name"
)


def read_folder(folder: str | Path) -> tuple[Shape, dict[str, Tensor]]:
    """Read a folder as Hugging Face's transformers writes it. Raises CheckpointError."""
    folder = Path(folder)
    if (folder / SHAPE).is_file() and not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is a Lathe checkpoint already: there is nothing to import")
    config, source = read_json(folder / CONFIG), str(folder / CONFIG)
    family = find_family(config, source=source)
    shape = read_shape(family, config, source=source)
    foreign = rename(read_safetensors(folder), family, source=str(folder))
    settle_head(foreign, family, shape, source=str(folder))
    return shape, to_ours(foreign, family.names, shape, source=str(folder))


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a folder's one file, or of all that its index names. Raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder} holds its weights as {pickles[0]}, a pickle: reading it can run code. Where you trust it, "
                "convert it to safetensors first"
            )
        raise CheckpointError(f"{folder} has no {WEIGHTS} and no {INDEX}")
    index = read_json(folder / INDEX).get("weight_map")
    files = index.values() if isinstance(index, dict) else [None]
    if not isinstance(index, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise CheckpointError(f"{folder / INDEX}: weight_map should name a file of this folder for every tensor")
    found: dict[str, Tensor] = {}
    for file in sorted(set(index.values())):
        found |= read_tensors(folder / file)
    if missing := [name for name in index if name not in found]:
        raise CheckpointError(f"{folder / INDEX} names {missing[0]}, which is not in {index[missing[0]]}")
    return found


def rename(foreign: Mapping[str, Tensor], family: Family, *, source: str) -> dict[str, Tensor]:
    """Bring other spellings of names to the family's, and leave out tensors that hold no weights."""
    found: dict[str, Tensor] = {}
    for name, tensor in foreign.items():
        if any(re.search(pattern, name) for pattern in family.ignored):
            continue
        known = name
        for pattern, replacement in family.aliases:
            known = re.sub(pattern, replacement, known)
        if known in found:
            raise CheckpointError(f"{source} holds {known} twice, the other time as {name}")
        found[known] = tensor
    return found


def settle_head(foreign: dict[str, Tensor], family: Family, shape: Shape, *, source: str) -> None:
    """Leave one of embedding and head where the two are tied: files keep either, or both. Raises CheckpointError."""
    embedding, head = (f"{family.names[ours].theirs[0]}.weight" for ours in (EMBEDDING, HEAD))
    if not shape.tied or head not in foreign:
        return
    other = foreign.pop(head)
    kept = foreign.setdefault(embedding, other)
    if kept.dtype != other.dtype or not torch.equal(kept, other):
        raise CheckpointError(
            f"{source}: config.json ties the head to the embedding, but {head} and {embedding} differ; set "
            "tie_word_embeddings to false, if the head is the model's own"
        )


def download(repository: str, *, revision: str | None = None) -> Path:
    """Fetch a repository's safetensors, settings and tokenizer, and no code. Raises CheckpointError."""
    if not REPOSITORY.fullmatch(repository) or Path(repository).suffix in FILES:
        raise CheckpointError(f"there is no {repository}; wanted {WANTED}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise MissingExtraError(f"downloading {repository}", extra="hf") from None
    wanted = ["*.safetensors", INDEX, CONFIG, *COMPANIONS]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    # every failure of network and hub is one of these
    except (OSError, HFValidationError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = first.removeprefix("Got: ")
        raise CheckpointError(
            f"{repository} is no folder here, and downloading it failed: {first}; give a local folder"
        ) from None


def _differences(found: Shape, *, given: Shape) -> list[str]:
    names = [name for name in Shape.__slots__ if getattr(found, name) != getattr(given, name)]
    return [f"{name}={getattr(found, name)!r}, given {getattr(given, name)!r}" for name in names]


def keep_special_tokens(source: Path, folder: Path) -> None:
    """Write the generation settings that old models keep in config.json, where they have no file of their own."""
    if (folder / GENERATION).is_file() or not (source / CONFIG).is_file():
        return
    config = read_json(source / CONFIG)
    found = {name: config[name] for name in TOKENS if config.get(name) is not None}
    if found:
        documents.write_atomic(folder / GENERATION, json.dumps(found, indent=2) + "\n")
