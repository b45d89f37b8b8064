"""Serve a shape with Lathe's own engines. Axes in names: b batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lathe.bench.conditions import synchronise
from lathe.bench.job import Job, Session, make_model
from lathe.bench.steady import Trial
from lathe.model.engine import open_engine


@contextmanager
def open_lathe(job: Job) -> Iterator[Session]:
    """Load the model into one of Lathe's engines.

    Decoding is greedy, each token fed back as it comes, and waits for the device once a phase, not once a token.
    """
    work, prompts = job.workload, job.prompts()
    engine = open_engine(make_model(job), batch=work.batch, slots=work.context - 1, engine=job.engine)

    def once() -> Trial:
        synchronise(job.device)
        start = time.perf_counter()
        tokens_b = engine.read(prompts).argmax(-1)
        synchronise(job.device)
        read = time.perf_counter()
        found = [tokens_b]
        for _ in range(work.new_tokens - 1):
            found.append(engine.step(found[-1]).argmax(-1))
        synchronise(job.device)
        end = time.perf_counter()
        tokens = tuple(map(tuple, torch.stack(found, dim=1).tolist()))
        return Trial(prefill_s=read - start, decode_s=end - read if work.new_tokens > 1 else 0.0, tokens=tokens)

    yield Session(once=once, prepare_s=engine.prepare_s)
