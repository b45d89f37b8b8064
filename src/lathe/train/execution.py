"""Say how a training is carried out: where, laid out how, saved and watched how often. None of it changes the result
but in rounding; what does is the `Recipe`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lathe.errors import RecipeError, nearest

TRACKERS = ("tensorboard", "wandb", "trackio")
MESH = ("dp", "fsdp", "tp", "pp")
"""The axes of a mesh: replicas of the data-parallel kind, shards of each replica, tensor parallel, pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Hold how a recipe is trained; whatever is None is chosen from the recipe and the machine.

    Args:
        out: the run's folder, which becomes its checkpoint.
        runs: the table of runs that its `Run` is appended to; `runs.jsonl` beside `out` if None.
        name: what the run is called; its shape and id if None.
        device: cpu or cuda; cuda where there is one if None.
        mesh: ranks along each of MESH, such as {"fsdp": 4, "tp": 2}; what is not named has 1. Empty: all are replicas.
        micro_batch: sequences a rank computes with at once; gradients of the rest are added up. All if None.
        pipeline: the order of a pipeline's micro-batches.
        compile: whether each block is compiled.
        recompute_every: recompute every k-th block in the backward pass instead of keeping it; None keeps all.
        offload: whether FSDP keeps weights and optimiser on the CPU.
        threads: of a CPU process; torch's own number if None.
        save_every: steps between checkpoints, beside the last; None saves at the end alone.
        keep_last: how many of the newest checkpoints stay.
        keep_every: steps whose multiples stay for good.
        resume: go on from the newest checkpoint ("auto"), demand one ("must"), or begin anew ("never").
        evaluate_every: steps between held-out losses, beside the last.
        evaluate_tokens: how many tokens of each validation set count in between; the last evaluation reads all. None:
            always all.
        evaluate_sequences: sequences evaluated at once; as many as are trained at once if None.
        analyse_every: steps between analyses of the layers on held-out text, which metrics.jsonl keeps (see `lathe
            analyse`); never if None. The decoder must be whole on each process.
        log_every: steps between lines of the terminal and of trackers; metrics.jsonl has every step.
        trackers: which of TRACKERS also get the metrics.
        on_spike: at a loss far above those before, or one that is no number: stop, leave the batch out (skip), or go
            back to the last checkpoint and leave out the batches since (rewind).
        spike: a loss is far above when it is so many deviations over the median of the last `spike_window` steps.
        most_spikes: stop after so many.
        branch_at: tokens at which WSD branches end, each a run of its own.
    """

    out: str
    runs: str | None = None
    name: str | None = None
    device: str | None = None
    mesh: dict[str, int] | None = None
    micro_batch: int | None = None
    pipeline: Literal["gpipe", "1f1b"] = "1f1b"
    compile: bool = False
    recompute_every: int | None = None
    offload: bool = False
    threads: int | None = None
    save_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    resume: Literal["auto", "must", "never"] = "auto"
    evaluate_every: int | None = None
    evaluate_tokens: int | None = None
    evaluate_sequences: int | None = None
    analyse_every: int | None = None
    log_every: int = 10
    trackers: tuple[str, ...] = ()
    on_spike: Literal["stop", "skip", "rewind"] = "stop"
    spike: float = 10.0
    spike_window: int = 64
    most_spikes: int = 10
    branch_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (
            "micro_batch", "recompute_every", "threads", "save_every", "keep_last", "keep_every", "evaluate_every",
            "evaluate_tokens", "evaluate_sequences", "analyse_every", "log_every", "spike_window", "most_spikes",
        )  # fmt: skip
        for name in counts:
            if (value := getattr(self, name)) is not None and value < 1:
                raise RecipeError(f"{name}={value}; wanted 1 or more")
        if not 0 < self.spike < math.inf:
            raise RecipeError(f"spike={self.spike}; wanted a number above zero")
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise RecipeError(f"no tracker is called {tracker!r}{nearest(tracker, TRACKERS)}")
        for axis, ranks in (self.mesh or {}).items():
            if axis not in MESH:
                raise RecipeError(f"a mesh has no axis {axis!r}{nearest(axis, MESH)}")
            if ranks < 1:
                raise RecipeError(f"mesh {axis}={ranks}; wanted 1 or more")
        if any(tokens < 1 for tokens in self.branch_at):
            raise RecipeError(f"branch_at={list(self.branch_at)}; wanted numbers of tokens")
