"""Compile one decoding step ahead of time for the CPU, and keep what was compiled for the next run.

Memory bandwidth bounds a step: each weight is read once. What reaches it is a matrix product whose weights were
packed at compile time (Inductor's C++ GEMM template, which needs them frozen), with the rest of a block fused around
it. Packed weights cannot go through torch.compile's own cache, so the step is compiled ahead of time into a package of
about the weights' size, named by everything it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lathe.errors import WorkloadError
from lathe.model.cache import KVCache
from lathe.model.decoder import Decoder

SETTINGS: dict[str, Any] = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "cpp.enable_grouped_gemm_template": True,
}
"""Inductor's: weights are constants, products its own C++ ones; those that read one input (gate and up) go as one."""
KEPT = 8
"""Packages kept on disk; the one unused for longest goes first."""
log = logging.getLogger(__name__)


class Step(nn.Module):
    """Read one token a sequence, with everything that a step depends on as a tensor."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens_b1: Tensor, slot_1: Tensor, start_b: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        return self.model.step(tokens_b1, slot_1, KVCache(start_b, keys, values, whole=True))


def compile_for_cpu(model: Decoder, cache: KVCache) -> tuple[Callable[[Tensor, Tensor], Tensor], float, bool]:
    """Compile a step over a cache: gives it, the seconds that took, and whether it was there from an earlier run.

    Raises WorkloadError where there is no C++ compiler, or no product for quantised weights.
    """
    started = time.perf_counter()
    path = cache_folder() / f"{_name(model, cache)}.pt2"
    found = path.is_file()
    if not found:
        log.info("compiling a decoding step; it takes a minute or two and is kept in %s", path.parent)
        _compile(model, cache, path)
    os.utime(path)
    run = torch._inductor.aoti_load_package(str(path))

    def step(tokens_b1: Tensor, slot_1: Tensor) -> Tensor:
        return run(tokens_b1, slot_1, cache.start_b, cache.keys, cache.values)

    return step, time.perf_counter() - started, found


def cache_folder() -> Path:
    """Name the folder of compiled steps: $LATHE_CACHE, or lathe in the user's cache folder."""
    given = os.environ.get("LATHE_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lathe"
    return base / "compiled"


def _compile(model: Decoder, cache: KVCache, path: Path) -> None:
    from torch._inductor import config, exc

    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{os.getpid()}-{path.name}")
    device = cache.start_b.device
    tokens_b1 = torch.zeros(len(cache.start_b), 1, dtype=torch.long, device=device)
    slot_1 = torch.zeros(1, dtype=torch.long, device=device)
    given = (tokens_b1, slot_1, cache.start_b, cache.keys, cache.values)
    try:
        with torch.no_grad(), config.patch(autotune_num_choices_displayed=0):
            program = torch.export.export(Step(model), given)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(neighbour), inductor_configs=dict(SETTINGS)
            )
        neighbour.replace(path)
    except exc.InvalidCxxCompiler as error:
        raise WorkloadError(
            f"engine 'compile' needs a C++ compiler: {str(error).splitlines()[0]}; install one (on Debian and Ubuntu: "
            "g++), or use engine 'eager'"
        ) from None
    except exc.InductorError as error:
        if "NoValidChoicesError" not in str(error):
            raise
        raise WorkloadError(
            "engine 'compile' has no product for these weights here: int4 takes matrices whose outputs are multiples "
            "of 64, on a processor with AVX-512; use engine 'eager'"
        ) from None
    finally:
        neighbour.unlink(missing_ok=True)
    packages = sorted(path.parent.glob("*.pt2"), key=lambda p: p.stat().st_mtime)
    for old in packages[:-KEPT]:
        old.unlink(missing_ok=True)


def _name(model: Decoder, cache: KVCache) -> str:
    """Hash what a package depends on: weights, sizes, threads, processor and versions."""
    digest = hashlib.blake2b(digest_size=16)
    size = (len(cache.start_b), cache.slots, cache.keys[0].dtype)
    machine = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
    digest.update(repr((model.shape, size, machine, sorted(SETTINGS.items()))).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):  # the step's code is ours
        digest.update(source.read_bytes())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {type(weight).__name__}".encode())
        for plain in _plain_tensors(weight):
            digest.update(plain.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(weight: Tensor) -> list[Tensor]:
    """Take a quantised weight apart: its numbers, scales and zeros."""
    if not is_traceable_wrapper_subclass(weight):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [plain for name in names for plain in _plain_tensors(getattr(weight, name))]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line for line in lines if line.startswith(("model name", "CPU part"))), "")
