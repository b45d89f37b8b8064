"""Read batches ahead on threads, and hand them out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from lathe.data.loader import Batch, Loader, check_counts, check_rank

T = TypeVar("T")


def _as_it_is(batch: Batch) -> Any:
    return batch


def prefetch(
    loader: Loader,
    *,
    start: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    threads: int = 2,
    depth: int = 4,
    prepare: Callable[[Batch], T] = _as_it_is,
) -> Generator[T, None, None]:
    """Give the batches of `steps` steps from `start` on, in order, with up to `depth` read ahead.

    `prepare` is called on each in its thread, such as `to_torch` to pin memory there. An error surfaces at its step.
    The threads end with the generator: when it is used up, fails, or is closed (`contextlib.closing` closes one that is
    left early). Raises DataError.
    """
    check_counts(threads=threads, depth=depth)
    check_rank(start, rank, world, batch_sequences=loader.batch_sequences)
    return _read_ahead(
        lambda step: prepare(loader.batch(step, rank, world)), range(start, start + steps), threads=threads, depth=depth
    )


def _read_ahead(read: Callable[[int], T], steps: range, *, threads: int, depth: int) -> Generator[T, None, None]:
    waiting = iter(steps)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lathe-prefetch")
    try:
        ahead: deque[Future[T]] = deque(pool.submit(read, step) for step in islice(waiting, depth))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(read, step) for step in islice(waiting, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
