"""Say what is to be measured, and make its weights and prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lathe.bench.steady import Trial
from lathe.errors import CheckpointError
from lathe.model.checkpoint import SHAPE, load_model, load_shape_of, save_checkpoint
from lathe.model.decoder import Decoder
from lathe.model.init import build
from lathe.presets.shapes import load_shape
from lathe.shape import Shape
from lathe.workload import Workload

RANDOM_SCHEME = "llama"
"""How random weights are drawn. Times do not depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Hold a shape, what it is called, and the checkpoint whose weights to use (random ones without it)."""

    name: str
    shape: Shape
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold one measurement to make: what, how it is served, and where."""

    target: Target
    workload: Workload
    engine: str
    device: torch.device
    seed: int = 0

    @property
    def shape(self) -> Shape:
        """Give the shape to serve."""
        return self.target.shape

    @property
    def kv_bytes(self) -> float:
        """Size the KV cache at the end."""
        work = self.workload
        return self.shape.kv_bytes(work.batch, work.context, work.activation_dtype)

    def prompts(self) -> list[list[int]]:
        """Draw the prompts: any token of the vocabulary is as likely as another."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (self.workload.batch, self.workload.prompt_tokens)
        return torch.randint(self.shape.vocab_size, size, generator=generator).tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Hold a model ready to serve: `once` runs the workload; `prepare_s` is what compiling or capturing took."""

    once: Callable[[], Trial]
    prepare_s: float = 0.0


def find_target(given: Shape | str | Path) -> Target:
    """Take a shape, a checkpoint's folder, a shape file or a preset's name.

    Raises CheckpointError, CodecError or PresetError.
    """
    if isinstance(given, Shape):
        return Target(name=f"{given.d_model}×{given.n_layers}", shape=given)
    path = Path(given)
    if path.is_dir() or (path / SHAPE).exists():
        return Target(name=path.resolve().name, shape=load_shape_of(path), folder=path)
    if path.suffix in (".toml", ".json"):
        return Target(name=path.stem, shape=load_shape(path))
    return Target(name=str(given), shape=load_shape(str(given)))


def make_model(job: Job, *, device: torch.device | None = None) -> Decoder:
    """Load or draw the weights, in the workload's dtype. Raises CheckpointError or DeviceError."""
    dtype, place = job.workload.dtype, device or job.device
    wide = job.workload.activation_dtype
    if job.target.folder is None:
        model = build(job.shape, scheme=RANDOM_SCHEME, seed=job.seed, dtype=wide, device=place)
        model = model.eval().requires_grad_(False)
    else:
        model = load_model(job.target.folder, dtype=wide, device=place)
    if dtype == wide:
        return model
    from lathe.model.quantise import quantise  # torchao, its extra, is needed for nothing else

    return quantise(model, dtype)


@contextmanager
def write_model(job: Job) -> Iterator[Path]:
    """Write the weights, in the workload's dtype, as a checkpoint of its own that goes when it has been used.

    Raises CheckpointError where there is no room for it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="lathe-measure-") as folder:
            model = make_model(job, device=torch.device("cpu"))
            save_checkpoint(Path(folder) / "checkpoint", job.shape, model.state_dict())
            del model
            yield Path(folder)
    except OSError as error:
        raise CheckpointError(f"no temporary checkpoint could be written: {error}") from None
