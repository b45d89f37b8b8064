"""Bootstrap intervals: what they cover, and that gathering units in cells changes nothing that matters."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lathe.evals import intervals
from lathe.evals.intervals import BINS, BINS_PER_NAT, CELLS, TokenLosses, sequence_interval


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gather(losses_n: np.ndarray) -> TokenLosses:
    found = TokenLosses()
    found.add(torch.from_numpy(losses_n), torch.zeros(len(losses_n), dtype=torch.int64))
    return found


def width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_sequences_cover_the_truth_where_tokens_of_one_err_together_and_tokens_do_not() -> None:
    """Each sequence of random length is off by its own amount: 95 % intervals over sequences hold what they say."""
    random, truth, times = np.random.default_rng(0), 3.0, 400
    by_sequence = by_token = 0
    for seed in range(times):
        lengths_n = random.integers(10, 60, 60)
        off_n = random.normal(0, 0.5, 60)
        losses_t = np.repeat(off_n, lengths_n) + random.gamma(9, 1 / 3, lengths_n.sum())
        nats_n = np.add.reduceat(losses_t, np.cumsum(lengths_n) - lengths_n)
        low, high = sequence_interval(lengths_n, nats_n, draws=300, seed=seed) or (0, 0)
        by_sequence += low <= truth <= high
        low, high = gather(np.maximum(losses_t, 0)).interval(draws=60, seed=seed) or (0, 0)
        by_token += low <= truth <= high
    assert 0.93 <= by_sequence / times <= 0.97
    assert by_token / times < 0.75


def test_tokens_cover_the_truth_where_they_err_alone() -> None:
    random, times, covered = np.random.default_rng(1), 600, 0
    for seed in range(times):
        low, high = gather(random.gamma(2, 1.25, 120)).interval(draws=300, seed=seed) or (0, 0)
        covered += low <= 2.5 <= high
    assert 0.93 <= covered / times <= 0.97


def test_few_sequences_are_drawn_as_they_are() -> None:
    """Draws by hand, sequence for sequence, have the same percentiles."""
    random = np.random.default_rng(2)
    targets_n = random.integers(5, 50, 60).astype(float)
    nats_n = targets_n * random.normal(3, 0.4, 60)
    chosen_rn = random.integers(0, 60, (40_000, 60))
    expected = np.quantile(nats_n[chosen_rn].sum(1) / targets_n[chosen_rn].sum(1), [0.025, 0.975])
    assert sequence_interval(targets_n, nats_n, draws=40_000, seed=0) == pytest.approx(expected, abs=0.003)


def test_many_sequences_in_cells_give_the_interval_of_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    targets_n = random.integers(5, 50, 5000).astype(float)
    nats_n = targets_n * random.normal(3, 0.4, 5000)
    gathered = sequence_interval(targets_n, nats_n, draws=2000, seed=0)
    monkeypatch.setattr(intervals, "CELLS", 5000)
    assert gathered == pytest.approx(sequence_interval(targets_n, nats_n, draws=2000, seed=1), abs=0.001)
    monkeypatch.setattr(intervals, "CELLS", 1)  # all variance inside one cell: the normal interval, no narrower
    assert width(sequence_interval(targets_n, nats_n, draws=2000, seed=0)) == pytest.approx(width(gathered), rel=0.08)


def test_bins_lose_no_variance_even_beyond_the_last() -> None:
    """Losses of two values in the last bin and of one value in another."""
    top = BINS / BINS_PER_NAT
    losses_n = np.repeat([top + 1, top + 9, 0.5], [500, 500, 1000])
    expected = 2 * 1.96 * losses_n.std() / np.sqrt(2000)
    assert width(gather(losses_n).interval(draws=4000, seed=0)) == pytest.approx(expected, rel=0.06)


def test_batches_of_tokens_add_up_and_ignored_ones_do_not_count() -> None:
    losses_n = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 9
    targets_n = torch.arange(500) % 4 - 1
    once, parts, kept = TokenLosses(), TokenLosses(), TokenLosses()
    once.add(losses_n, targets_n)
    kept.add(losses_n[targets_n >= 0], targets_n[targets_n >= 0])
    for at in range(0, 500, 37):
        parts.add(losses_n[at : at + 37], targets_n[at : at + 37])
    torch.testing.assert_close(parts.cells_3g, once.cells_3g)
    torch.testing.assert_close(kept.cells_3g, once.cells_3g)
    assert once.cells_3g[0].sum() == 375
    assert once.interval(draws=50, seed=7) == once.interval(draws=50, seed=7)
    assert once.interval(draws=50, seed=7) != once.interval(draws=50, seed=8)


def test_one_unit_has_no_interval_and_equal_ones_none_to_speak_of() -> None:
    assert sequence_interval(np.array([7.0]), np.array([20.0]), draws=10, seed=0) is None
    assert sequence_interval(np.zeros(0), np.zeros(0), draws=10, seed=0) is None
    assert gather(np.array([2.0])).interval(draws=10, seed=0) is None
    assert TokenLosses().interval(draws=10, seed=0) is None
    assert gather(np.full(9, 2.25)).interval(draws=10, seed=0) == pytest.approx((2.25, 2.25))
    equal = sequence_interval(np.arange(1, 9.0), np.arange(1, 9.0) * 3, draws=10, seed=0)
    assert equal == pytest.approx((3, 3))
    assert CELLS > 100
