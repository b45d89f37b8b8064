"""Keep a run's folder: one process at a time, one recipe for good.

model.safetensors shape.json recipe.json tokenizer.json …    the checkpoint; recipe.json from the first moment on
run.json             the `Run`; where it is, the recipe is finished
metrics.jsonl        a line a step              checkpoints/    states to go on from
branches/            runs that branched off     .lock           held by the process that trains
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.documents import lock_file
from lathe.errors import CheckpointError, CodecError
from lathe.model.checkpoint import RECIPE, SHAPE, WEIGHTS, list_first
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.meter import METRICS
from lathe.train.snapshots import CHECKPOINTS

RUN, LOCK = "run.json", ".lock"
BRANCHES = "branches"
"""The folder, in a trunk's, of the runs that branched off it."""
MADE = (RUN, METRICS, WEIGHTS, SHAPE, CHECKPOINTS)
"""What a training makes and `clear` takes away; the newest first, so that a clearing cut short is no finished run."""
PLACES = ("data.train", "data.validation.", "init.checkpoint", "distil.teacher")
"""Keys of a recipe that say where something lies."""
STRAY = re.compile(r"\.(lock|part|nfs.*|DS_Store|.+\.json\..+)")
"""Names that make no folder somebody's: locks, and what killed processes and systems leave."""


@contextmanager
def hold_folder(out: str | Path) -> Iterator[None]:
    """Hold a run's folder, made if need be, for this process. Raises CheckpointError if another holds it.

    The lock is the system's and ends with the process; the file it is on stays, and means nothing.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written to: {error.strerror}; choose another --out") from None
    try:
        if not lock_file(descriptor):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise CheckpointError(
                f"another process{f' ({holder})' if holder else ''} trains in {out}; wait for it, end it, or choose "
                "another --out"
            )
        with suppress(OSError):  # a full disk is no reason not to train
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def finished(out: str | Path, recipe: Recipe) -> Run | None:
    """Read the result of a recipe that is trained already; None if it is not.

    Raises CheckpointError for a folder that is another recipe's, or holds what no training wrote.
    """
    out = Path(out)
    try:
        names = sorted(path.name for path in out.iterdir())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{out} is no folder to train in: {error.strerror}; choose another --out") from None
    if RECIPE not in names:
        if others := [name for name in names if not STRAY.fullmatch(name)]:
            raise CheckpointError(f"{out} holds other files ({others[0]}) and no {RECIPE}; choose a new --out")
        return None
    _check_same(out, _read(Recipe, out / RECIPE, kind="recipe"), recipe)
    return _read(Run, out / RUN, kind="run") if RUN in names else None


def prepare(out: str | Path, recipe: Recipe) -> None:
    """Make a folder a recipe's, before anything is trained. Raises CheckpointError as `finished`, or if unwritable."""
    out = Path(out)
    finished(out, recipe)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / RECIPE).exists():
            codec.save(recipe, out / RECIPE, kind="recipe")
    except (OSError, CodecError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{out} cannot be written to: {reason}; choose another --out") from None


def clear(out: str | Path) -> None:
    """Take away what was trained in a folder, to begin anew; recipe, branches and files of others stay."""
    for path in (Path(out) / name for name in MADE):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _check_same(out: Path, found: Recipe, wanted: Recipe) -> None:
    """Refuse a recipe that is not the folder's, naming what differs. Raises CheckpointError."""
    if found.id == wanted.id:
        return
    ours, theirs = _leaves(codec.encode(wanted)), _leaves(codec.encode(found))
    differences = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not (key.startswith(PLACES) and _has_content(ours, theirs, key))
    ]
    raise CheckpointError(
        f"{out} belongs to another recipe: {list_first(differences)}; choose another --out, or repeat that recipe"
    )


def _has_content(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str) -> bool:
    """Say whether data or weights are known by their content, so that their place means nothing."""
    content = f"{key.partition('.')[0]}.content"
    return ours.get(content) is not None and theirs.get(content) is not None


def _leaves(document: Any, key: str = "") -> dict[str, Any]:
    """Flatten a document to its values under dotted keys."""
    if not isinstance(document, dict):
        return {key: document}
    return {k: v for name, item in document.items() for k, v in _leaves(item, f"{key}.{name}" if key else name).items()}


def _read(word: type, path: Path, *, kind: str) -> Any:
    try:
        return codec.load(word, path, kind=kind)
    except CodecError as error:
        raise CheckpointError(f"{error}; put back a good copy, or choose another --out") from None
