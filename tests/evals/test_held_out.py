"""Held-out loss: its mean and standard error, its parts, its ranks, and what it asks of a model."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_datasets import VOCAB, write_small_dataset
from torch import Tensor

from lathe.data.loader import evaluation_batches, to_torch
from lathe.data.store import Split
from lathe.errors import DataError
from lathe.evals.loss import HeldOut, held_out_loss
from lathe.model.init import build
from lathe.model.loss import position_losses
from lathe.shape import Shape


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_split(folder: Path, tokens: int, *, document: int = 9) -> Split:
    return write_small_dataset(folder, held_out=tokens, document=document).split("held-out")


def made_up(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
    """Give every position a loss that hangs on its token and target."""
    losses_bt = (tokens_bt * 7 + targets_bt * 3) % 11 / 4
    return (losses_bt * (targets_bt >= 0)).float()


def approx(found: HeldOut) -> tuple[object, ...]:
    return pytest.approx(found.loss, rel=1e-12), pytest.approx(found.se, rel=1e-9), found.tokens, found.sequences


def values(found: HeldOut) -> tuple[object, ...]:
    return found.loss, found.se, found.tokens, found.sequences


def test_mean_and_error_of_equal_sequences(tmp_path: Path) -> None:
    split = write_split(tmp_path, 12 * 8 + 1)
    found = held_out_loss(made_up, split, seq_len=8, batch_sequences=5)
    ids = torch.from_numpy(split.read(0, split.tokens).astype(np.int64))
    means = made_up(ids[:-1].view(12, 8), ids[1:].view(12, 8), None).mean(dim=1).tolist()
    assert found.loss == pytest.approx(statistics.fmean(means), rel=1e-6)
    assert found.se == pytest.approx(statistics.stdev(means) / math.sqrt(12), rel=1e-6)
    assert (found.tokens, found.sequences) == (96, 12)


def test_error_of_unequal_sequences_is_that_of_a_ratio(tmp_path: Path) -> None:
    """The jackknife over sequences gives nearly the same, by another way."""
    split = write_split(tmp_path, 60 * 16 + 6, document=11)
    counts, sums = [], []

    def watch(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        losses_bt = made_up(tokens_bt, targets_bt, documents_bt)
        counts.extend((targets_bt >= 0).sum(dim=1).tolist())
        sums.extend(losses_bt.sum(dim=1).tolist())
        return losses_bt

    found = held_out_loss(watch, split, seq_len=16, batch_sequences=7, across_documents=False)
    n, m = sum(counts), sum(c > 0 for c in counts)
    assert len(set(counts)) > 2
    assert (found.tokens, found.sequences, m) == (n, 61, 61)
    assert found.loss == pytest.approx(sum(sums) / n, rel=1e-12)
    without = [(sum(sums) - s) / (n - c) for c, s in zip(counts, sums, strict=True) if c]
    jackknife = math.sqrt((m - 1) / m * sum((w - statistics.fmean(without)) ** 2 for w in without))
    assert found.se == pytest.approx(jackknife, rel=0.02)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_sequences", [1, 4, 100])
@pytest.mark.parametrize("most_tokens", [None, 100])
def test_any_number_of_ranks_and_batches_gives_the_same(
    tmp_path: Path, world: int, batch_sequences: int, most_tokens: int | None
) -> None:
    split = write_split(tmp_path, 203)
    settings = {"seq_len": 8, "most_tokens": most_tokens}
    expected = held_out_loss(made_up, split, batch_sequences=3, **settings)
    shares: list[Tensor] = []
    calls: list[int] = []

    def keep(share: Tensor) -> Tensor:
        shares.append(share)
        return torch.stack(shares).sum(dim=0)

    for rank in range(world):
        sizes = []

        def watch(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, sizes: list = sizes) -> Tensor:
            sizes.append((tokens_bt.shape, targets_bt.shape))
            return made_up(tokens_bt, targets_bt, documents_bt)

        try:
            found = held_out_loss(
                watch, split, batch_sequences=batch_sequences, rank=rank, world=world, reduce=keep, **settings
            )
        except DataError:  # a rank's share may be empty: the sum so far, not that of all
            found = None
        calls.append(len(sizes))
        assert {size for pair in sizes for size in pair} == {(batch_sequences, 8)}
    assert found is not None
    assert values(found) == approx(expected)
    assert len(set(calls)) == 1


def test_a_part_is_fixed_and_within_its_tokens(tmp_path: Path) -> None:
    split = write_split(tmp_path, 203)
    part, again = (held_out_loss(made_up, split, seq_len=8, batch_sequences=b, most_tokens=50) for b in (2, 9))
    assert values(part) == approx(again)
    assert (part.tokens, part.sequences) == (48, 6)
    assert held_out_loss(made_up, split, seq_len=8, batch_sequences=2, most_tokens=1).sequences == 1
    whole = held_out_loss(made_up, split, seq_len=8, batch_sequences=2)
    assert values(held_out_loss(made_up, split, seq_len=8, batch_sequences=2, most_tokens=10**6)) == approx(whole)


def test_documents_are_given_only_to_masks(tmp_path: Path) -> None:
    split = write_split(tmp_path, 60)
    for mask in (False, True):
        given = []

        def watch(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None, given: list = given) -> Tensor:
            given.append(documents_bt)
            return made_up(tokens_bt, targets_bt, documents_bt)

        held_out_loss(watch, split, seq_len=8, batch_sequences=5, mask_documents=mask)
        assert len(given) == 2
        assert all((d is not None and d.shape == (5, 8) and d.any()) if mask else d is None for d in given)


def test_a_decoder(tmp_path: Path) -> None:
    split = write_split(tmp_path, 121)
    shape = Shape(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=VOCAB)
    model = build(shape, scheme="openlm", seed=0).eval()

    def losses(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        x_nd = model.hidden(tokens_bt, documents_bt=documents_bt).flatten(0, 1)
        return position_losses(x_nd, model.output_weight, targets_bt.flatten(), chunk=7).view_as(targets_bt)

    found = held_out_loss(losses, split, seq_len=8, batch_sequences=4, mask_documents=True)
    (batch,) = evaluation_batches(split, seq_len=8, batch_sequences=100)
    tokens_bt, targets_bt, documents_bt = to_torch(batch)
    whole = model.loss(tokens_bt, targets_bt, documents_bt=documents_bt)
    assert found.loss == pytest.approx(float(whole.cross_entropy / whole.count), rel=1e-5)
    assert found.tokens == whole.count == 120
    assert not any(p.grad is not None for p in model.parameters())


def test_equal_losses_have_no_error_and_one_sequence_none_to_tell(tmp_path: Path) -> None:
    split = write_split(tmp_path, 42)

    def flat(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        return (targets_bt >= 0) * 3.3

    assert held_out_loss(flat, split, seq_len=8, batch_sequences=5).se == pytest.approx(0, abs=1e-7)
    assert held_out_loss(flat, split, seq_len=64, batch_sequences=5).se is None


def test_no_number_stays_one(tmp_path: Path) -> None:
    split = write_split(tmp_path, 42)
    found = held_out_loss(lambda x, t, d: made_up(x, t, d) * math.nan, split, seq_len=8, batch_sequences=5)
    assert math.isnan(found.loss)
    assert found.se is not None
    assert math.isnan(found.se)


def test_nothing_to_predict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="held-out split has 1 tokens; wanted 2 or more"):
        held_out_loss(made_up, write_split(tmp_path / "one", 1), seq_len=8, batch_sequences=2)
    alone = write_split(tmp_path / "alone", 9, document=1)
    with pytest.raises(DataError, match="no token to predict"):
        held_out_loss(made_up, alone, seq_len=8, batch_sequences=2, across_documents=False)
