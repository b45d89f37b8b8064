"""Losses of a checkpoint: those of a plain loop, the same in every batch, and told in words where they cannot be."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_datasets import VOCAB, write_small_dataset
from torch import Tensor

from lathe import codec
from lathe.data.store import Split
from lathe.errors import EvaluationError
from lathe.evals.loss import evaluate_loss, held_out_loss
from lathe.evals.results import LossResult, Way
from lathe.evals.scorer import open_scorer
from lathe.evals.sources import Source, of_split
from lathe.evals.token_bytes import TokenBytes, token_bytes
from lathe.model.decoder import Decoder
from lathe.model.init import build
from lathe.model.loss import position_losses
from lathe.shape import Shape

SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=VOCAB)
PREFIX = 7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Decoder:
    decoder = build(SHAPE, scheme="openlm", seed=0).eval().double()
    with torch.no_grad():
        decoder.output_weight.mul_(6)  # far from uniform
    return decoder


class Model:
    """Give a decoder's losses, and keep the shapes that were asked of it."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.shapes = decoder, []

    def __call__(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        self.shapes.append(tuple(tokens_bt.shape))
        x_nd = self.decoder.hidden(tokens_bt, documents_bt=documents_bt).flatten(0, 1)
        return position_losses(x_nd, self.decoder.output_weight, targets_bt.flatten()).view_as(targets_bt)


def write_split(folder: Path, tokens: int = 70, *, document: int = 23) -> Split:
    return write_small_dataset(folder, held_out=tokens, document=document).split("held-out")


def texts_of(split: Split, way: Way) -> list[list[int]]:
    """Give what is read together: the stream, or each document behind a prefix."""
    ids = split.read(0, split.tokens).tolist()
    if way != "documents":
        return [ids]
    ends = [0, *split.index_nc[:, 0].tolist()]
    return [[PREFIX, *ids[a:b]] for a, b in pairwise(ends)]


@torch.no_grad()
def plain_losses(decoder: Decoder, ids: list[int], *, seq_len: int, stride: int) -> list[float]:
    """Give each target's loss by one forward pass of its own over what stands before it in its window."""
    found = []
    for target in range(1, len(ids)):
        window = max(0, math.ceil((target - seq_len) / stride))
        logits_v = decoder(torch.tensor([ids[window * stride : target]]))[0, -1]
        found.append(-float(logits_v.log_softmax(dim=0)[ids[target]]))
    return found


@pytest.mark.parametrize(
    ("way", "stride"), [("windows", None), ("strided", 3), ("strided", 1), ("documents", 5), ("documents", 8)]
)
def test_as_a_plain_loop(tmp_path: Path, model: Decoder, way: Way, stride: int | None) -> None:
    split = write_split(tmp_path)
    expected = [plain_losses(model, ids, seq_len=8, stride=stride or 8) for ids in texts_of(split, way)]
    flat = np.concatenate(expected)
    for batch_tokens in (1, 20, 64, 4096):
        found = evaluate_loss(
            Model(model), split, way=way, seq_len=8, stride=stride, batch_tokens=batch_tokens,
            prefix=PREFIX if way == "documents" else None,
        )  # fmt: skip
        assert found.loss == pytest.approx(flat.mean(), abs=1e-6)
        assert found.tokens == len(flat) == (70 if way == "documents" else 69)
        assert found.perplexity == pytest.approx(math.exp(flat.mean()), rel=1e-5)
        if way == "documents":
            assert found.sequences == len(expected) == 4
            counts, sums = np.array([len(x) for x in expected]), np.array([sum(x) for x in expected])
            residuals = sums - flat.mean() * counts
            assert found.se == pytest.approx(math.sqrt((residuals**2).sum() * 4 / 3) / counts.sum(), rel=1e-5)


@pytest.mark.parametrize("most_tokens", [None, 50])
@pytest.mark.parametrize(("across", "mask"), [(True, False), (False, True)])
def test_windows_are_training_s_evaluation(
    tmp_path: Path, model: Decoder, most_tokens: int | None, across: bool, mask: bool
) -> None:
    split = write_split(tmp_path, 203, document=11)
    how = {"seq_len": 16, "most_tokens": most_tokens, "across_documents": across, "mask_documents": mask}
    expected = held_out_loss(Model(model), split, batch_sequences=4, **how)
    found = evaluate_loss(Model(model), split, batch_tokens=100, **how)
    assert (found.loss, found.se) == (pytest.approx(expected.loss, rel=1e-7), pytest.approx(expected.se, rel=1e-5))
    assert (found.tokens, found.sequences, found.cut) == (expected.tokens, expected.sequences, 202 - expected.tokens)
    assert (found.way, found.stride, found.split, found.dataset) == ("windows", None, "held-out", str(tmp_path))


def test_nothing_hangs_on_batches(tmp_path: Path, model: Decoder) -> None:
    split = write_split(tmp_path, 400, document=31)
    asked, results = [], []
    for batch_tokens in (1, 50, 10_000):
        watched = Model(model)
        results.append(evaluate_loss(watched, split, way="documents", seq_len=24, stride=8, batch_tokens=batch_tokens))
        asked.append(len(watched.shapes))
    assert asked[0] > asked[1] > asked[2] == 1
    for one in results[1:]:
        assert one.interval_sequences == pytest.approx(results[0].interval_sequences, rel=1e-6)
        assert one.interval_tokens == pytest.approx(results[0].interval_tokens, rel=1e-6)
        assert (one.loss, one.tokens, one.sequences) == (pytest.approx(results[0].loss), 400 - 13, 13)
    first = results[0]
    assert first.interval_sequences is not None
    assert first.interval_sequences[0] < first.loss < first.interval_sequences[1]
    assert first.interval_tokens is not None
    assert first.interval_tokens[0] < first.loss < first.interval_tokens[1]
    assert codec.decode(LossResult, codec.encode(first)) == first


def flat(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
    return (targets_bt >= 0) * 2.0


def test_bits_per_byte_are_of_the_bytes_that_were_targets(tmp_path: Path) -> None:
    ids = np.array([1, 2, 3, 0, 1, 1, 0, 3, 3, 0], dtype=np.uint16)
    bytes_v = np.array([0, 1, 10, 100])

    def source(lead: int) -> Source:
        return Source(
            name="made up", split="text", tokens=10, read=lambda start, count: ids[start : start + count],
            begins_d=np.array([0, 4, 7]), ends_d=np.array([4, 7, 10]), end_of_text=0, vocab_size=4,
            text=TokenBytes(bytes_v, lead),
        )  # fmt: skip

    def text_bytes(lead: int, **how: object) -> float:
        found = evaluate_loss(flat, source(lead), seq_len=3, **how)
        assert found.bits_per_byte is not None
        return found.tokens * 2 / math.log(2) / found.bits_per_byte

    assert text_bytes(0) == pytest.approx(312)  # all but the first token
    assert text_bytes(0, way="strided", stride=1) == pytest.approx(312)
    assert text_bytes(0, way="documents") == pytest.approx(313)
    assert text_bytes(1) == pytest.approx(310)
    assert text_bytes(1, way="documents") == pytest.approx(310)
    assert text_bytes(0, across_documents=False) == pytest.approx(211)
    assert text_bytes(1, across_documents=False) == pytest.approx(211)
    assert evaluate_loss(flat, write_split(tmp_path), seq_len=8).bits_per_byte is None


def test_one_sequence_has_no_interval_over_sequences(tmp_path: Path) -> None:
    found = evaluate_loss(flat, write_split(tmp_path), seq_len=100)
    assert (found.sequences, found.se, found.interval_sequences) == (1, None, None)
    assert found.interval_tokens == pytest.approx((2, 2))


def test_progress_and_seeds(tmp_path: Path, model: Decoder) -> None:
    split, shares = write_split(tmp_path, 203), []
    how = {"seq_len": 16, "batch_tokens": 64}
    once = evaluate_loss(Model(model), split, progress=lambda _, share: shares.append(share), **how)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert evaluate_loss(Model(model), split, **how) == once
    other = evaluate_loss(Model(model), split, seed=1, **how)
    assert (other.loss, other.se) == (once.loss, once.se)
    assert other.interval_sequences != once.interval_sequences


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_its_sequence(tmp_path: Path, number: float) -> None:
    split = write_split(tmp_path)
    bad = int(split.read(20, 1)[0])

    def losses(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        found_bt = flat(tokens_bt, targets_bt, documents_bt)
        found_bt[(targets_bt == bad) & (tokens_bt == int(split.read(19, 1)[0]))] = number
        return found_bt

    with pytest.raises(EvaluationError, match=r"sequence 3 \(held-out tokens 16 to 25\) is no number, one of 1 such"):
        evaluate_loss(losses, split, seq_len=8)
    with pytest.raises(EvaluationError, match=r"800 nats per token are no loss"):
        evaluate_loss(lambda x, t, d: flat(x, t, d) * 400, split, seq_len=8)


def test_what_cannot_be_evaluated(tmp_path: Path, model: Decoder) -> None:
    split = write_split(tmp_path)
    for message, how in (
        ("prefix=3 stands before documents", {"seq_len": 8, "prefix": 3}),
        ("seq_len=0", {"seq_len": 0}),
        ("passes over targets", {"seq_len": 8, "way": "strided", "stride": 9}),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate_loss(flat, split, **how)
    with pytest.raises(EvaluationError, match=r"holds the token id \d+, and the vocabulary ends at 19"):
        evaluate_loss(flat, of_split(split, vocab_size=20), seq_len=8)
    alone = write_split(tmp_path / "alone", 9, document=1)
    with pytest.raises(EvaluationError, match="no token to predict"):
        evaluate_loss(flat, alone, seq_len=8, across_documents=False)
    with pytest.raises(EvaluationError, match="no token to predict"):
        evaluate_loss(flat, alone, seq_len=8, way="documents")


def test_a_trained_model_on_its_own_kind_of_text(shared_data: Path) -> None:
    """The data's notes give 1.452 nats a token on the first 9,472 tokens, in windows of 256."""
    tokenizer = shared_data / "weights/stories260K/tokenizer.json"
    scorer = open_scorer(shared_data / "weights/stories260K_hf", tokenizer=tokenizer)
    text = (shared_data / "text/tinystories_sample.txt").read_text("utf-8")[:30_000]
    ids = np.array(scorer.words.tokenizer.encode(text, add_special_tokens=False).ids[:9472])
    source = Source(
        name="stories", split="text", tokens=len(ids), read=lambda start, count: ids[start : start + count],
        begins_d=np.array([0]), ends_d=np.array([len(ids)]), end_of_text=None, vocab_size=512,
        text=token_bytes(scorer.words.tokenizer),
    )  # fmt: skip
    found = evaluate_loss(scorer.losses, source, seq_len=256, batch_tokens=2048)
    assert (found.tokens, found.sequences) == (9471, 37)
    assert found.loss == pytest.approx(1.452, abs=0.005)
    assert found.interval_sequences is not None
    assert found.interval_sequences[0] < 1.452 < found.interval_sequences[1]
    written = len(scorer.words.tokenizer.decode(ids.tolist()).encode())
    assert found.bits_per_byte == pytest.approx(found.loss * 9471 / math.log(2) / written, rel=0.001)
