"""Jobs of a moment, for launchers to run."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from small_datasets import VOCAB, write_small_dataset

from lathe.recipe import Data, Recipe, Schedule
from lathe.shape import Shape
from lathe.sweep.jobs import Job
from lathe.train.execution import Execution
from lathe.train.meter import read_metrics

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, d_ff=32, vocab_size=VOCAB, max_seq_len=16)
BATCH_TOKENS = 64


def make_jobs(
    folder: Path, count: int, *, steps: int = 8, save_every: int = 4, branch_at: int | None = None
) -> list[Job]:
    """Make jobs that differ in their seed, in a sweep's folder, with data beside it."""
    data = folder.parent / f"data-{steps}"
    if not data.exists():
        write_small_dataset(data, train=BATCH_TOKENS * steps + 100, held_out=300)
    jobs = []
    for seed in range(count):
        recipe = Recipe(
            shape=SHAPE, tokens=steps * BATCH_TOKENS, seq_len=16, batch_tokens=BATCH_TOKENS, lr=1e-3, seed=seed,
            data=Data(train=str(data)), schedule=Schedule(name="wsd", warmup_steps=1, decay=0.25),
        )  # fmt: skip
        out = folder / recipe.id[:12]
        execution = Execution(
            out=str(out), runs=str(out / "runs.jsonl"), threads=1, save_every=save_every,
            branch_at=() if branch_at is None else (branch_at * BATCH_TOKENS,),
        )  # fmt: skip
        jobs.append(Job(name=f"seed-{seed}", recipe=recipe, execution=execution))
    return jobs


def check_trained_once(job: Job) -> None:
    """Check that a job has every step once, and one row."""
    steps = Counter(row["step"] for row in read_metrics(job.folder / "metrics.jsonl") if "loss" in row)
    assert steps == dict.fromkeys(range(1, job.recipe.steps + 1), 1)
    rows = [json.loads(line) for line in (job.folder / "runs.jsonl").read_text().splitlines()]
    assert [row["recipe_id"] for row in rows].count(job.recipe.id) == 1


def find_trainer(job: Job) -> int:
    """Find the process that trains a job."""
    return int((job.folder / ".lock").read_text().split()[1])


def wait_until(holds: Callable[[], bool], *, most_s: float = 40.0) -> None:
    deadline = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def has_steps(job: Job, steps: int) -> bool:
    """Say whether a job has trained so many steps."""
    path = job.folder / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= steps


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
