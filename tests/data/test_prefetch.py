"""Reading ahead: in order, bounded, errors at their step, and no thread left whatever the consumer does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from made_datasets import count_up

from lathe.data.loader import Batch, Loader, to_torch
from lathe.data.prefetch import prefetch
from lathe.errors import DataError


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lathe-prefetch")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert threads() == []
    yield
    assert threads() == []


class Recording(Loader):
    """Keep the steps that were read, let earlier steps take longer, and fail at one."""

    fails_at: int | None = None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        self.read: list[int] = [*getattr(self, "read", []), step]
        time.sleep(0.004 if step % 2 == 0 else 0)
        if step == self.fails_at:
            raise DataError(f"step {step} cannot be read")
        return super().batch(step, rank, world)


@pytest.fixture
def loader(tmp_path: Path) -> Recording:
    return Recording(count_up(tmp_path, 1003), seq_len=8, batch_sequences=6, seed=0)


@pytest.mark.parametrize(("workers", "depth"), [(1, 1), (2, 4), (4, 2), (3, 50)])
def test_in_order(loader: Recording, workers: int, depth: int) -> None:
    found = list(prefetch(loader, start=5, steps=20, rank=1, world=3, threads=workers, depth=depth))
    assert len(found) == 20
    for step, batch in enumerate(found, start=5):
        np.testing.assert_array_equal(batch.tokens_bt, loader.batch(step, 1, 3).tokens_bt)


def test_no_steps(loader: Recording) -> None:
    assert list(prefetch(loader, start=5, steps=0)) == []


def test_no_more_than_depth_is_read_ahead(loader: Recording) -> None:
    with closing(prefetch(loader, start=0, steps=100, depth=3)) as batches:
        for taken in range(1, 6):
            next(batches)
            time.sleep(0.02)
            assert max(loader.read) < taken + 3


def test_an_error_surfaces_at_its_step(loader: Recording) -> None:
    loader.fails_at = 7
    batches = prefetch(loader, start=4, steps=20)
    for _ in range(3):
        next(batches)
    with pytest.raises(DataError, match="step 7 cannot be read"):
        next(batches)
    assert threads() == []
    assert list(batches) == []


def test_a_consumer_that_leaves_early(loader: Recording) -> None:
    with closing(prefetch(loader, start=0, steps=1000)) as batches:
        next(batches)
        assert threads()
    assert len(loader.read) < 10
    for _ in prefetch(loader, start=0, steps=1000):
        break
    assert threads() == []


def test_a_consumer_that_fails(loader: Recording) -> None:
    def train() -> None:
        with closing(prefetch(loader, start=0, steps=1000)) as batches:
            for _ in batches:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()


def test_never_started(loader: Recording) -> None:
    prefetch(loader, start=0, steps=10).close()
    assert not hasattr(loader, "read")


def test_prepared_in_its_thread(loader: Recording) -> None:
    names = []

    def prepare(batch: Batch) -> int:
        names.append(threading.current_thread().name)
        return len(to_torch(batch)[0])

    assert list(prefetch(loader, start=0, steps=5, prepare=prepare)) == [6] * 5
    assert all(name.startswith("lathe-prefetch") for name in names)


def test_bad_input_is_refused_at_once(loader: Recording) -> None:
    with pytest.raises(DataError, match="threads=0; wanted 1"):
        prefetch(loader, start=0, steps=1, threads=0)
    with pytest.raises(DataError, match="depth=0; wanted 1"):
        prefetch(loader, start=0, steps=1, depth=0)
    with pytest.raises(DataError, match="does not split evenly over 4 ranks"):
        prefetch(loader, start=0, steps=1, world=4)
