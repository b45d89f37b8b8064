"""Save the state of a training while it goes on, and load it again, on as many ranks as there are then.

The state is a flat dict of tensors under global names, written by torch.distributed.checkpoint:

    model.<name>              weights                    optimiser.<name>.<key>     what optimisers remember of each
    ema.<name>                the moving average

Sharded tensors (DTensors) are written shard by shard and read in whatever shards are wanted, so layout and number of
ranks may change in between. Python's own numbers go to state.json (`lathe.train.snapshots`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.optim import Optimizer

from lathe.errors import CheckpointError
from lathe.train import snapshots
from lathe.train.shards import FAILURES, all_ranks, explain, files_of, new_ranks, read_tensors, write_tensors
from lathe.train.snapshots import Sum, list_steps, part_folder, step_folder

Report = Callable[[str], None]
MODEL, OPTIMISER, EMA = "model.", "optimiser.", "ema."


def gather_tensors(
    module: nn.Module, optimisers: Iterable[Optimizer], ema: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Name all tensors of a training's state, as they are: what is loaded into them, the training has.

    Optimisers that have not stepped get the state they would begin with. Learning rates and the like are left out: they
    follow from recipe and step.
    """
    optimisers = tuple(optimisers)
    fresh = [optimiser for optimiser in optimisers if not optimiser.state]
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    remembered = get_optimizer_state_dict(module, optimisers, options=options)
    for optimiser in fresh:  # torch makes the first state by a step without gradients, and counts it
        for state in optimiser.state.values():
            if "step" in state:
                state["step"].zero_()
    parts = {
        MODEL: get_model_state_dict(module),
        OPTIMISER: {name.removeprefix("state."): x for name, x in remembered.items() if name.startswith("state.")},
        EMA: ema or {},
    }
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    odd = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    assert not odd, f"only tensors can be saved, and {odd[0]} is a {type(tensors[odd[0]]).__name__}"
    return cast(dict[str, Tensor], tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Hold where a save's time went, in seconds: what held up the training, and what happened beside it."""

    step: int
    wait_s: float
    stage_s: float
    write_s: float
    sum_s: float
    bytes: int


class Saver:
    """Save states of a run beside its training, whole or not at all.

    One a process, made and used by all ranks alike: they talk over a group of their own, so the background never meets
    the training's traffic. A save that fails is reported; training goes on and the last good one stays. `pinned` steps
    are kept for good, as are the multiples of `keep_every`. `spent` holds the last save's times.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        pinned: Collection[int] = (),
        report: Report = print,
    ) -> None:
        self.folder, self.report = Path(folder), report
        self.keep_last, self.keep_every, self.pinned = keep_last, keep_every, frozenset(pinned)
        self.spent: Spent | None = None
        self._ranks = new_ranks()
        # on a GPU's machine the copy goes to pinned memory, which is kept
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Future[str | None] | None = None
        if self._ranks.rank == 0:
            snapshots.sweep(self.folder)
        self._ranks.gather(None)  # none may begin to write before

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Save the state after a step; returns when it is copied, so that training may change it.

        Waits for the save before. `extra` is JSON, of which rank 0's counts.
        """
        begun = time.perf_counter()
        self.wait()
        waited = time.perf_counter()
        staged = self._stager.stage(dict(tensors))
        spent = {"step": step, "wait_s": waited - begun, "stage_s": time.perf_counter() - waited}
        self._pending = self._thread.submit(self._write, step, staged, dict(extra), spent)  # pyright: ignore[reportArgumentType]

    def wait(self) -> bool:
        """Wait until nothing is left to write; says whether the last save is good."""
        if self._pending is None:
            return True
        failure, self._pending = self._pending.result(), None
        if failure is not None:
            good = list_steps(self.folder)
            last = f"the last good one is of step {good[-1]}" if good else "there is none yet"
            self.report(f"warning: {failure}; training goes on, and {last}")
        return failure is None

    def poll(self) -> None:
        """Report a save that has failed meanwhile, without waiting for one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Wait for what is being written, and give back thread, memory and group."""
        self.wait()
        self._thread.shutdown()
        self._ranks.leave()

    def _write(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any], spent: dict[str, Any]) -> str | None:
        """Write a state, in the background; gives what went wrong, the same on every rank."""
        part, ranks = part_folder(self.folder, step), self._ranks
        begun = time.perf_counter()
        try:
            write_tensors(part, tensors, ranks.group)
            written = time.perf_counter()
            sums = snapshots.sum_files(part, files_of(part, ranks.rank))
            size, summed = sum(one.bytes for one in sums.values()), time.perf_counter()
            self.spent = Spent(write_s=written - begun, sum_s=summed - written, bytes=size, **spent)
        except FAILURES as error:
            sums = explain(error)
        found = ranks.gather(sums)
        return ranks.gather(self._finish(step, found, extra) if ranks.rank == 0 else None)[0]

    def _finish(self, step: int, found: list[dict[str, Sum] | str], extra: dict[str, Any]) -> str | None:
        """Make what all ranks wrote a state, or remove it: rank 0's part. Gives what went wrong."""
        part = part_folder(self.folder, step)
        failure = next((one for one in found if isinstance(one, str)), None)
        if failure is None:
            sums = {name: one for each in found if isinstance(each, dict) for name, one in each.items()}
            try:
                if missing := [name for name in sums if not (part / name).exists()]:
                    raise OSError(f"rank 0 does not see {part / missing[0]}; all ranks must share the folder")
                snapshots.write_manifest(part, step, sums, extra)
                snapshots.publish(self.folder, step)
            except FAILURES as error:
                failure = explain(error)
        if failure is not None:
            shutil.rmtree(part, ignore_errors=True)
            return f"the state of step {step} could not be saved: {failure}"
        snapshots.prune(self.folder, step, keep_last=self.keep_last, keep_every=self.keep_every, pinned=self.pinned)
        return None


def load_latest(
    folder: str | Path, tensors: Mapping[str, Tensor], *, report: Report = print
) -> tuple[int, dict[str, Any]] | None:
    """Load the newest whole state of a run into tensors that are there; gives its step and extra, None without one.

    All ranks call it together. A damaged state is reported and the one before taken. Raises CheckpointError if all are
    damaged, or if the state is another model's.
    """
    steps = all_ranks().gather(list_steps(folder))[0]
    for step in reversed(steps):
        extra, damage = _check(step_folder(folder, step))
        if extra is not None:
            read_tensors(step_folder(folder, step), tensors)
            return step, extra
        report(f"warning: the state of step {step} is damaged: {damage}; looking at the one before")
    if steps:
        raise CheckpointError(
            f"none of the {len(steps)} states in {Path(folder) / snapshots.CHECKPOINTS} is whole; put back a good "
            "copy, or remove that folder to train from the beginning"
        )
    return None


def load_step(folder: str | Path, step: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Load the state after a step into tensors that are there; gives its extra. All ranks call it together.

    Raises CheckpointError if it is not kept or damaged, or is another model's.
    """
    steps = all_ranks().gather(list_steps(folder))[0]
    if step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{folder} keeps no state of step {step}; it keeps: {kept}")
    extra, damage = _check(step_folder(folder, step))
    if extra is None:
        raise CheckpointError(f"the state of step {step} is damaged: {damage}; choose another step")
    read_tensors(step_folder(folder, step), tensors)
    return extra


def _check(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Check a state, each rank some of its files; gives its extra, or what is wrong, the same on every rank."""
    ranks = all_ranks()
    extra, damage = None, None
    try:
        extra = snapshots.check_snapshot(folder, part=ranks.rank, parts=ranks.size)
    except CheckpointError as error:
        damage = str(error)
    damage = next((one for one in ranks.gather(damage) if one is not None), None)
    return (extra, None) if damage is None else (None, damage)
