"""Measure the loss on held-out text, with its standard error: in training, and of a checkpoint.

Axes in names: b sequences of a batch, t tokens of a sequence, n sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.data.loader import IGNORED, Batch, evaluation_batches, evaluation_windows, to_torch
from lathe.data.store import Split
from lathe.data.tokenise import ahead
from lathe.errors import DataError, EvaluationError
from lathe.evals.intervals import TokenLosses, sequence_interval
from lathe.evals.results import LossResult, Way
from lathe.evals.sources import Source, of_split
from lathe.evals.spans import SpanBatch, Spans, check_way, cut, read_batches
from lathe.evals.token_bytes import bits_per_byte

Losses = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Tokens, targets and documents, each [b, t], to losses_bt: nats in fp32, 0 where the target is below zero."""
Reduce = Callable[[Tensor], Tensor]
Progress = Callable[[str, float], None]

BATCH_TOKENS = 8192
DRAWS = 1000
READ_AHEAD = 4
"""Batches."""
HIGHEST = 700.0
"""Nats per token whose perplexity is still a float; a guess among 2^32 tokens takes 22."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Hold a mean loss in nats per token over `tokens` targets of `sequences`.

    `se` is its standard error over sequences, whose tokens err together; None where there is but one.
    """

    loss: float
    se: float | None
    tokens: int
    sequences: int


@torch.no_grad()
def held_out_loss(
    losses: Losses,
    split: Split,
    *,
    seq_len: int,
    batch_sequences: int,
    most_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
    across_documents: bool = True,
    mask_documents: bool = False,
    device: str | torch.device = "cpu",
) -> HeldOut:
    """Average the loss over a split: over all of it, or over a fixed part of `most_tokens`.

    Every rank calls `losses` equally often, always with `batch_sequences` rows: those that there are no sequences for
    hold no targets. So ranks may wait for one another in it, and it may be made for one size.

    Args:
        losses: gives each position's loss; documents are None unless `mask_documents`.
        rank: takes every world-th batch from this one on.
        reduce: sums a vector over the ranks; needed with more than one.
        across_documents: whether a document's first token is a target.

    Raises DataError for a split without a target.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    for targets_b, nats_b in sum_sequences(
        losses, split, seq_len=seq_len, batch_sequences=batch_sequences, most_tokens=most_tokens, rank=rank,
        world=world, across_documents=across_documents, mask_documents=mask_documents, device=device,
    ):  # fmt: skip
        sums += sum_moments(targets_b, nats_b)
    found = estimate_ratio(sums if reduce is None else reduce(sums))
    if not found.tokens:
        raise DataError(f"{split.dataset.folder}: its {split.name} split has no token to predict from another")
    return found


def sum_sequences(
    losses: Losses,
    split: Split,
    *,
    seq_len: int,
    batch_sequences: int,
    most_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    across_documents: bool = True,
    mask_documents: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sum targets and nats of each sequence of a split, [b] in fp64, a batch at a time; see `held_out_loss`."""
    rows = len(evaluation_windows(split, seq_len=seq_len, most_tokens=most_tokens))
    batches = evaluation_batches(
        split, seq_len=seq_len, batch_sequences=batch_sequences, across_documents=across_documents,
        most_tokens=most_tokens, rank=rank, world=world,
    )  # fmt: skip
    nothing = Batch(
        tokens_bt=np.zeros((0, seq_len), np.int64),
        targets_bt=np.zeros((0, seq_len), np.int64),
        documents_bt=np.zeros((0, seq_len), np.int32),
    )
    for _ in range(-(-rows // (batch_sequences * world))):
        tokens_bt, targets_bt, documents_bt = to_torch(next(batches, nothing))
        tokens_bt, documents_bt = (_fill(x, batch_sequences, 0).to(device) for x in (tokens_bt, documents_bt))
        targets_bt = _fill(targets_bt, batch_sequences, IGNORED).to(device)
        losses_bt = losses(tokens_bt, targets_bt, documents_bt if mask_documents else None)
        yield (targets_bt >= 0).sum(dim=1).double(), losses_bt.sum(dim=1, dtype=torch.float64)


@torch.no_grad()
def evaluate_loss(
    losses: Losses,
    source: Source | Split,
    *,
    way: Way = "windows",
    seq_len: int,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    most_tokens: int | None = None,
    prefix: int | None = None,
    across_documents: bool = True,
    mask_documents: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> LossResult:
    """Measure the loss on a source, its intervals over sequences and over tokens, and bits per byte.

    Every target counts exactly once. Windows are those of `held_out_loss`, which gives the same loss and error.
    Strided windows leave at least seq_len - stride tokens before each target, but at the start; a sequence is as many
    targets as a window's. Documents are read each by itself behind the token that ends documents, as in training, so
    that their first tokens count; without such a token they do not. A long document is read in strided windows and is
    one sequence. The tokens that end documents are targets as well, without a byte of text.

    With a single sequence its interval and the error are None; so are bits per byte where the bytes are not known.

    Args:
        losses: gives each position's loss, of batches of any size; documents are None unless `mask_documents`.
        stride: by how many tokens windows move on, half of seq_len if not said; not for windows.
        batch_tokens: of a batch with its padding; a batch is one row at least.
        most_tokens: evaluates a fixed part: sequences at even distances, of documents a sample by `seed`.
        prefix: the token before each document in place of the one that ends them, such as the model's first one.
        across_documents: whether a document's first token is a target, as in training; not for documents.
        mask_documents: keeps tokens to their own document, as in training; documents are so in any case.

    Raises EvaluationError for losses that are no numbers, ids beyond the vocabulary, and nothing to predict.
    """
    source = of_split(source) if isinstance(source, Split) else source
    stride = check_way(way, seq_len=seq_len, stride=stride, batch_tokens=batch_tokens, most_tokens=most_tokens)
    documents = way == "documents"
    if documents:
        prefix, across_documents, mask_documents = source.end_of_text if prefix is None else prefix, True, False
    elif prefix is not None:
        raise EvaluationError(f"prefix={prefix} stands before documents, and the way is {way!r}; leave it out")
    spans = cut(source, way=way, seq_len=seq_len, stride=stride, prefix=prefix, most_tokens=most_tokens, seed=seed)
    batches = read_batches(
        source, spans, batch_tokens=batch_tokens, across_documents=across_documents, mask_documents=mask_documents
    )
    tally = _Tally(int(spans.sequences_s.max()) + 1, device)
    with closing(ahead(batches, depth=READ_AHEAD)) as coming:
        for read in coming:
            tokens_bt, targets_bt, documents_bt = (x.to(device, non_blocking=True) for x in to_torch(read.batch))
            tally.add(losses(tokens_bt, targets_bt, documents_bt if mask_documents else None), targets_bt, read)
            if progress is not None:
                progress(source.name, tally.rows / len(spans.starts_s))
    return _summarise(tally, source, spans, way=way, seq_len=seq_len, stride=stride, draws=draws, seed=seed)


class _Tally:
    """Sum losses by sequence and gather them by size, on the device, without waiting for it."""

    def __init__(self, sequences: int, device: str | torch.device) -> None:
        self.sums_2n = torch.zeros(2, sequences, dtype=torch.float64, device=device)
        self.tokens, self.text_bytes, self.rows = TokenLosses(device), 0, 0

    def add(self, losses_bt: Tensor, targets_bt: Tensor, read: SpanBatch) -> None:
        sequences_b = torch.from_numpy(read.sequences_b).to(losses_bt.device)
        counted_2b = torch.stack([(targets_bt >= 0).sum(dim=1).double(), losses_bt.sum(dim=1, dtype=torch.float64)])
        self.sums_2n.index_add_(1, sequences_b, counted_2b)
        self.tokens.add(losses_bt.flatten(), targets_bt.flatten())
        self.text_bytes += read.text_bytes
        self.rows += len(read.sequences_b)


def _summarise(
    tally: _Tally, source: Source, spans: Spans, *, way: Way, seq_len: int, stride: int, draws: int, seed: int
) -> LossResult:
    """Make the result of summed losses."""
    sums_2n = tally.sums_2n.cpu()
    targets_n, nats_n = sums_2n[:, sums_2n[0] > 0]
    if wrong := torch.nonzero(~sums_2n[1].isfinite())[:, 0].tolist():
        _refuse(wrong, source, spans)
    found = estimate_ratio(sum_moments(targets_n, nats_n))
    if not found.tokens:
        raise EvaluationError(f"{source.name} has no token to predict from another of its document; give longer text")
    if found.loss > HIGHEST:
        raise EvaluationError(f"{source.name}: {found.loss:g} nats per token are no loss; look for broken weights")
    return LossResult(
        dataset=source.name, split=source.split, source=source.part, loss=found.loss, se=found.se,
        perplexity=math.exp(found.loss), bits_per_byte=bits_per_byte(float(nats_n.sum()), tally.text_bytes),
        tokens=found.tokens, sequences=found.sequences,
        interval_sequences=sequence_interval(targets_n.numpy(), nats_n.numpy(), draws=draws, seed=seed),
        interval_tokens=tally.tokens.interval(draws=draws, seed=seed), way=way, seq_len=seq_len,
        stride=None if way == "windows" else stride, cut=max(0, source.tokens - (way != "documents") - found.tokens),
    )  # fmt: skip


def _refuse(wrong: list[int], source: Source, spans: Spans) -> NoReturn:
    """Name the first of the sequences whose losses are no numbers."""
    here_s = np.flatnonzero(spans.sequences_s == wrong[0])
    start, stop = max(0, spans.starts_s[here_s].min()), spans.stops_s[here_s].max()
    raise EvaluationError(
        f"{source.name}: the loss of sequence {wrong[0] + 1} ({source.split} tokens {start:,} to {stop:,}) is no "
        f"number, one of {len(wrong)} such; look for broken weights, or evaluate in fp32"
    )


def _fill(x_bt: Tensor, rows: int, value: int) -> Tensor:
    """Add rows of one value up to so many."""
    return F.pad(x_bt, (0, 0, 0, rows - x_bt.shape[0]), value=value)


def sum_moments(x_b: Tensor, y_b: Tensor) -> Tensor:
    """Sum, for `estimate_ratio`, over sequences with targets: one, targets x, losses y, x², x·y and y²."""
    return torch.stack([(x_b > 0).double(), x_b, y_b, x_b * x_b, x_b * y_b, y_b * y_b]).sum(dim=1)


def estimate_ratio(sums: Tensor) -> HeldOut:
    """Divide summed losses by summed targets, with the ratio estimator's standard error.

    Cochran 1977, Sampling Techniques, chapter 6, without the finite-population factor.
    """
    sequences, x, y, xx, xy, yy = sums.tolist()
    loss = y / x if x else math.nan
    squares = yy - 2 * loss * xy + loss * loss * xx
    squares = 0.0 if squares < 0 else squares  # of rounding; NaN stays
    se = math.sqrt(squares * sequences / (sequences - 1)) / x if sequences > 1 else None
    return HeldOut(loss=loss, se=se, tokens=int(x), sequences=int(sequences))
