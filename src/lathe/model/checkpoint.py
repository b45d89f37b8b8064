"""Read and write a checkpoint: a folder with the weights, the shape they have, and the files that go with them.

    model.safetensors      every stored weight, under the names of `lathe.model.decoder`
    shape.json             the `Shape`
    tokenizer.json, …      the tokenizer and the generation settings, as Hugging Face keeps them (`COMPANIONS`)
    recipe.json            what trained it, where that is known

Nothing is unpickled, and the folder's content is checked against its shape before any weight is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lathe import codec, documents
from lathe.errors import CheckpointError, DeviceError, MissingExtraError, nearest
from lathe.model.decoder import Decoder
from lathe.model.quantise import QUANTISED, WIDE, quantise
from lathe.recipe import Recipe
from lathe.shape import Shape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, SHAPE, RECIPE, TOKENIZER = "model.safetensors", "shape.json", "recipe.json", "tokenizer.json"
GENERATION = "generation_config.json"
COMPANIONS = (
    TOKENIZER, GENERATION, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files that travel with the weights wherever they go."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DIFFERENCES = 5
"""How many disagreements of shape and weights an error lists."""


def save_checkpoint(
    folder: str | Path,
    shape: Shape,
    weights: Mapping[str, Tensor],
    *,
    companions: str | Path | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Write a checkpoint: whole beside the old one first, then in its place, the weights last.

    `companions` is a folder to copy tokenizer and generation settings from. Raises CheckpointError for weights that are
    not the shape's, or a folder that cannot be written; what stood there is then as it was.
    """
    folder = Path(folder)
    staged = folder / ".part"
    check_weights(shape, {name: tuple(w.shape) for name, w in weights.items()}, source="the weights to save")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        if companions is not None:
            copy_companions(companions, staged)
        codec.save(shape, staged / SHAPE, kind="shape")
        if recipe is not None:
            codec.save(recipe, staged / RECIPE, kind="recipe")
        save_tensors(weights, staged / WEIGHTS)
        for path in sorted(staged.iterdir(), key=lambda path: path.name == WEIGHTS):
            path.replace(folder / path.name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def save_tensors(weights: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in one step. Raises CheckpointError."""
    neighbour = path.with_name(f".{path.name}.part")
    try:
        save_file(_separate(weights), neighbour, metadata={"format": "pt", **(metadata or {})})
        neighbour.chmod(0o666 & ~_umask())  # safetensors makes files that others cannot read
        neighbour.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; is the disk full?") from None
    finally:
        neighbour.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own: safetensors refuses two names for one."""
    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, w in weights.items():
        w = w.detach().contiguous()
        place = w.untyped_storage().data_ptr()
        whole[name] = w.clone() if place in seen else w
        seen.add(place)
    return whole


def copy_companions(source: str | Path, folder: str | Path) -> list[str]:
    """Copy the files that travel with weights; returns their names."""
    found = [name for name in COMPANIONS if (Path(source) / name).is_file()]
    for name in found:
        if (Path(source) / name).resolve() != (Path(folder) / name).resolve():
            shutil.copyfile(Path(source) / name, Path(folder) / name)
    return found


def load_shape_of(folder: str | Path) -> Shape:
    """Read a checkpoint's shape. Raises CheckpointError for a folder that is no checkpoint."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; a checkpoint is a folder with {WEIGHTS} and {SHAPE}")
    if not (folder / SHAPE).is_file():
        foreign = " It holds config.json: run `lathe import` on it first." if (folder / "config.json").is_file() else ""
        raise CheckpointError(f"{folder} is no Lathe checkpoint: it has no {SHAPE}.{foreign}")
    return codec.load(Shape, folder / SHAPE, kind="shape")


def load_model(folder: str | Path, *, dtype: str = "fp32", device: str | torch.device = "cpu") -> Decoder:
    """Load a checkpoint's decoder, ready to compute with: in evaluation mode, without gradients.

    For int8 and int4 see `lathe.model.quantise`.

    Raises:
        CheckpointError: no checkpoint, or weights that are not its shape's.
        DeviceError: a dtype or device that there is not, or too little memory.
        ShapeError: matrices that int4's groups do not divide.
        MissingExtraError: int8 or int4 without torchao.
    """
    shape, path = load_shape_of(folder), Path(folder) / WEIGHTS
    return build_model(shape, read_tensors(path), dtype=dtype, device=device, source=str(path))


def build_model(
    shape: Shape, weights: Mapping[str, Tensor], *, dtype: str, device: str | torch.device, source: str
) -> Decoder:
    """Build a decoder of these weights, as `load_model` does; `source` is what to call them in errors."""
    model = empty_model(shape)
    check_weights(shape, {name: tuple(w.shape) for name, w in weights.items()}, source=source)
    place = check_device(device)
    quantised = dtype in QUANTISED
    wanted = check_dtype(WIDE if quantised else dtype, place)
    with explain_memory(shape, dtype=dtype, device=place):
        wide_at = torch.device("cpu") if quantised else place  # the device never holds what is to be quantised whole
        model.load_state_dict({name: w.to(wide_at, wanted) for name, w in weights.items()}, assign=True)
        if quantised:
            quantise(model, dtype, device=place)
    return model.eval().requires_grad_(False)


def empty_model(shape: Shape) -> Decoder:
    """Build a decoder without memory for its weights, on the meta device."""
    with torch.device("meta"):
        return Decoder(shape)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint is not whole: write it again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); copy or write it again") from None


def check_weights(shape: Shape, found: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Refuse tensors that are not just those of a shape; the error lists the first differences.

    Raises CheckpointError.
    """
    wanted = {name: tuple(p.shape) for name, p in empty_model(shape).state_dict().items()}
    differences = [
        f"{name} is missing"
        if name not in found
        else f"{name} is {name_size(found[name])}, the shape wants {name_size(size)}"
        for name, size in wanted.items()
        if found.get(name) != size
    ]
    differences += [f"{name} is in no such decoder" for name in found if name not in wanted]
    if differences:
        raise CheckpointError(f"{source}: weights and shape disagree: {list_first(differences)}")


def list_first(differences: Sequence[str]) -> str:
    """List the first of many differences, and say how many more there are."""
    more = len(differences) - DIFFERENCES
    return "; ".join(differences[:DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def load_tokenizer(folder: str | Path, shape: Shape | None = None) -> Tokenizer:
    """Load a checkpoint's tokenizer. Raises CheckpointError if it is missing, or knows ids that the shape does not."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER}; put the model's tokenizer there")
    return read_tokenizer(path, shape)


def read_tokenizer(path: Path, shape: Shape | None = None) -> Tokenizer:
    """Read a tokenizer's file. Raises CheckpointError if it is none, or knows ids that the shape does not."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("reading text", extra="train") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer: {error}") from None
    if shape is not None:
        check_vocabulary(tokenizer, shape, source=str(path))
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, shape: Shape, *, source: str) -> None:
    """Refuse a tokenizer with ids beyond the embedding. Raises CheckpointError."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= shape.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer's largest id is {largest}, but the embedding has {shape.vocab_size} rows; this "
            "is another model's tokenizer, or the embedding must be enlarged"
        )


def load_stop_tokens(folder: str | Path) -> tuple[int, ...]:
    """Read the ids that end a generation, from the generation settings; none if there are none."""
    path = Path(folder) / GENERATION
    if not path.is_file():
        return ()
    found = documents.read_document(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int for i in ids):
        raise CheckpointError(f"{path}: eos_token_id is {json.dumps(found)}; wanted an id or a list of ids")
    return tuple(ids)


def check_device(device: str | torch.device) -> torch.device:
    """Name a device that is there. Raises DeviceError."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"torch cannot use the device {str(device)!r} here: {reason}") from None
    return place


def check_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Name a dtype that the device computes in. Raises DeviceError."""
    if dtype not in DTYPES:
        raise DeviceError(f"unknown dtype {dtype!r} of weights{nearest(str(dtype), DTYPES)}")
    found = DTYPES[dtype]
    try:
        one = torch.ones(2, 2, dtype=found, device=device)
        torch.nn.functional.silu(one @ one)
    except RuntimeError as error:
        raise DeviceError(f"{device} does not compute in {dtype}: {str(error).splitlines()[0]}") from None
    if dtype == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic; use fp16 or fp32")
    return found


@contextmanager
def explain_memory(shape: Shape, *, dtype: str, device: torch.device, more_bytes: float = 0.0) -> Iterator[None]:
    """Turn running out of memory into an error that says what was needed and what would fit.

    `more_bytes` are needed beside the weights. Raises DeviceError.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        needed, free = shape.weight_bytes(dtype) + more_bytes, free_bytes(device)
        fits = [d for d in ("bf16", "int8", "int4") if shape.weight_bytes(d) + more_bytes < min(free, needed)]
        advice = f"{fits[0]} weights would fit" if fits else "take a smaller shape, batch or context"
        raise DeviceError(
            f"{device} ran out of memory: weights in {dtype} and caches need at least {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; {advice}"
        ) from None


def free_bytes(device: torch.device) -> float:
    """Say how much memory a device has free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("inf")


def name_size(size: Sequence[int]) -> str:
    """Write a tensor's sizes."""
    return "×".join(map(str, size)) or "a scalar"
