"""Two models' losses on the same sequences: the difference, its error, and what cannot be compared."""

import numpy as np
import pytest
import torch

from lathe.errors import EvaluationError
from lathe.evals.loss import held_out_loss
from lathe.evals.paired import SequenceLosses, measure_sequences, paired_difference, sequence_losses
from lathe.model.checkpoint import save_checkpoint
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from tests.small_datasets import VOCAB, write_small_dataset

SHAPE = Shape.of(d_model=8, n_layers=1, n_heads=2, d_ff=16, vocab_size=VOCAB, max_seq_len=16)


def make(targets, nats) -> SequenceLosses:
    return SequenceLosses(targets_n=np.array(targets, dtype=float), nats_n=np.array(nats, dtype=float))


def test_the_mean_is_that_of_the_held_out_loss(tmp_path) -> None:
    split = write_small_dataset(tmp_path / "data", train=64, held_out=500).split("held-out")
    torch.manual_seed(0)
    decoder = Decoder(SHAPE).eval()
    found = sequence_losses(decoder.losses, split, seq_len=16)
    wanted = held_out_loss(decoder.losses, split, seq_len=16, batch_sequences=3)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert (found.tokens, len(found.nats_n)) == (wanted.tokens, wanted.sequences)
    save_checkpoint(tmp_path / "model", SHAPE, decoder.state_dict())
    kept = measure_sequences(tmp_path / "model", split, seq_len=16)
    assert np.allclose(kept.nats_n, found.nats_n)


def test_what_is_hard_for_both_is_no_error() -> None:
    draw = np.random.default_rng(0)
    hard_n = draw.normal(300, 100, 400)
    a, b = make(np.full(400, 100), hard_n), make(np.full(400, 100), hard_n + draw.normal(2, 1, 400))
    found = paired_difference(a, b)
    assert found.difference == pytest.approx(0.02, abs=0.002)
    assert found.se == pytest.approx(0.01 / 20, rel=0.15)
    assert found.b - found.a == pytest.approx(found.difference)
    assert found.interval is not None
    assert found.interval[0] < 0.02 < found.interval[1]


def test_its_error_is_as_large_as_it_says() -> None:
    draw = np.random.default_rng(1)
    differences, errors = [], []
    for _ in range(300):
        targets_n = draw.integers(20, 100, 80)
        a_n = targets_n * draw.normal(3, 0.5, 80)
        apart_n = targets_n * draw.normal(0.1, 0.3, 80)
        found = paired_difference(make(targets_n, a_n), make(targets_n, a_n + apart_n))
        differences.append(found.difference)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.1)


def test_one_sequence_has_no_error() -> None:
    found = paired_difference(make([5], [10]), make([5], [15]))
    assert (found.difference, found.se, found.interval) == (1.0, None, None)


def test_other_sequences_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="not of the same text"):
        paired_difference(make([5, 5], [1, 1]), make([5, 6], [1, 1]))


def test_broken_weights_are_named(tmp_path) -> None:
    split = write_small_dataset(tmp_path, train=64, held_out=100).split("held-out")
    with pytest.raises(EvaluationError, match="no number"):
        sequence_losses(lambda x, y, d: torch.full(y.shape, torch.nan), split, seq_len=16)


def test_data_of_a_larger_vocabulary(tmp_path) -> None:
    split = write_small_dataset(tmp_path / "data", train=64, held_out=100, vocab_size=VOCAB + 1).split("held-out")
    save_checkpoint(tmp_path / "model", SHAPE, Decoder(SHAPE).state_dict())
    with pytest.raises(EvaluationError, match="data of its own tokenizer"):
        measure_sequences(tmp_path / "model", split, seq_len=16)
