"""Warming up and its statistics, on times that are made up."""

import numpy as np
import pytest

from lathe.bench.foreign import time_whole
from lathe.bench.steady import MAX_WARMUP, WINDOW, Trial, collect, find_steady


def play(totals: list[float], *, runs: int = 3):
    """Give the times one by one; the last one again and again."""
    left = list(totals)
    return collect(lambda: Trial(prefill_s=0.0, decode_s=left.pop(0) if len(left) > 1 else left[0]), runs=runs)


@pytest.mark.parametrize(
    ("totals", "start"),
    [
        ([1.0] * 5, None),  # two windows are six runs
        ([1.0] * 6, 0),
        ([3.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0),  # one slow first run does not move a median of three
        ([5.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1),  # from the second run on, both medians are 1
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], None),
        ([1.0, 1.0, 1.0, 1.02, 1.02, 1.02], 0),
        ([1.0, 1.0, 1.0, 1.04, 1.04, 1.04], None),
        ([1.0, 1.0, 1.0, 1.0, 9.0, 1.0], 0),
    ],
)
def test_steady_times_begin_where_two_medians_agree(totals: list[float], start: int | None) -> None:
    assert find_steady(totals) == start


def test_warming_up_is_not_measured() -> None:
    found = play([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    assert (found.warmup_runs, found.steady, len(found.trials)) == (2, True, 2 * WINDOW)
    assert found.median("total_s") == 1.0


def test_more_runs_may_be_asked_for() -> None:
    assert len(play([1.0], runs=11).trials) == 11


def test_times_that_never_settle_are_measured_and_said() -> None:
    times = [float(2**i) for i in range(60)]
    found = play(times)
    assert (found.warmup_runs, found.steady) == (MAX_WARMUP, False)
    assert [t.total_s for t in found.trials] == times[MAX_WARMUP : MAX_WARMUP + 2 * WINDOW]


def test_statistics() -> None:
    totals = [1.0, 1.01, 1.02, 1.0, 1.01, 1.02]
    found = play(totals)
    assert found.median("decode_s") == pytest.approx(1.01)
    assert found.p95("total_s") == pytest.approx(np.percentile(totals, 95))
    assert found.spread == pytest.approx(np.percentile(totals, 95) / 1.01 - 1)


def test_whole_generations_are_split_by_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 13.0])
    monkeypatch.setattr("lathe.bench.foreign.time.perf_counter", lambda: next(clock))
    found = time_whole(lambda count: ((7,) * count,), 5)
    assert (found.prefill_s, found.decode_s, found.tokens) == (0.5, 2.0, ((7, 7, 7, 7, 7),))
    clock = iter([10.0, 10.5])
    assert time_whole(lambda count: ((7,) * count,), 1).total_s == 0.5
