"""Cut a stream of tokens into spans: what a model reads in one row, and which of its targets count.

A text of n targets is read in windows of seq_len that move on by `stride`. The first counts all its targets, each
later one those that no window before it reached: so every target counts once, with at least seq_len - stride tokens
before it but at the text's start. A text is the whole stream (windows, where the stride is seq_len, and strided) or one
document.

Axes in names: d texts, s spans, b rows of a batch, t tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from lathe.data.loader import IGNORED, Batch
from lathe.errors import EvaluationError, nearest
from lathe.evals.results import Way
from lathe.evals.sources import Source

Places = NDArray[np.int64]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """Hold places in a stream: tokens from `starts_s` to before `stops_s`, whose targets count from `firsts_s` on.

    The last token is only a target. `sequences_s` numbers what the losses err together in: documents, or seq_len
    targets on end. Where `prefix` is not None, a document is read as if it stood before it: a span whose start is
    `prefixed_s` begins with it in place of the stream's token.
    """

    starts_s: Places
    firsts_s: Places
    stops_s: Places
    sequences_s: Places
    prefixed_s: NDArray[np.bool_]
    prefix: int | None

    def take(self, chosen_s: NDArray[np.bool_]) -> Spans:
        """Leave out spans."""
        return Spans(
            starts_s=self.starts_s[chosen_s], firsts_s=self.firsts_s[chosen_s], stops_s=self.stops_s[chosen_s],
            sequences_s=self.sequences_s[chosen_s], prefixed_s=self.prefixed_s[chosen_s], prefix=self.prefix,
        )  # fmt: skip


def check_way(way: Way, *, seq_len: int, stride: int | None, batch_tokens: int, most_tokens: int | None) -> int:
    """Refuse what cuts no text, and give the stride. Raises EvaluationError."""
    if way not in WAYS:
        raise EvaluationError(f"no way to cut text is called {way!r}{nearest(way, WAYS)}")
    given = {"seq_len": seq_len, "batch_tokens": batch_tokens, "most_tokens": most_tokens, "stride": stride}
    for name, value in given.items():
        if value is not None and value < 1:
            raise EvaluationError(f"{name}={value}; wanted 1 or more")
    if way == "windows":
        if stride not in (None, seq_len):
            raise EvaluationError(
                f"stride={stride} with windows, which move on by seq_len={seq_len}; take strided ones"
            )
        return seq_len
    if stride is not None and stride > seq_len:
        raise EvaluationError(f"stride={stride} passes over targets; wanted seq_len={seq_len} at most")
    return max(1, seq_len // 2) if stride is None else stride


def cut(
    source: Source,
    *,
    way: Way,
    seq_len: int,
    stride: int,
    prefix: int | None = None,
    most_tokens: int | None = None,
    seed: int = 0,
) -> Spans:
    """Cut a source into spans, all of it or a fixed part of about `most_tokens` targets: one sequence at least.

    Of documents, the part is a seeded sample; else sequences at even distances, as training evaluates. `prefix` is for
    documents only. Raises EvaluationError for a source with nothing to predict.
    """
    if way == "documents":
        begins_d, ends_d = source.begins_d, source.ends_d
        targets_d = ends_d - begins_d - (prefix is None)
        chosen_d = _sample(targets_d, most_tokens, seed=seed)
        spans = cut_texts(begins_d[chosen_d], ends_d[chosen_d], seq_len=seq_len, stride=stride, prefix=prefix)
    else:
        whole = np.zeros(1, np.int64), np.array([source.tokens])
        spans = cut_texts(*whole, seq_len=seq_len, stride=stride, prefix=None)
        spans.sequences_s[:] = (spans.firsts_s - 1) // seq_len
        if most_tokens is not None and len(spans.starts_s):
            rows = -(-(source.tokens - 1) // seq_len)
            chosen = min(rows, max(1, most_tokens // seq_len))
            spans = spans.take(np.isin(spans.sequences_s, np.arange(chosen) * rows // chosen))
    if not len(spans.starts_s):
        raise EvaluationError(f"{source.name} has no token to predict from another; give a longer text")
    return spans


def cut_texts(begins_d: Places, ends_d: Places, *, seq_len: int, stride: int, prefix: int | None) -> Spans:
    """Cut texts, each by itself, into spans of up to seq_len inputs; a text is a sequence."""
    starts_d = begins_d - (prefix is not None)
    targets_d = np.maximum(ends_d - starts_d - 1, 0)
    pieces_d = np.where(targets_d > 0, 1 + -(-np.maximum(targets_d - seq_len, 0) // stride), 0)
    text_s = np.repeat(np.arange(len(pieces_d)), pieces_d)
    piece_s = np.arange(len(text_s)) - np.repeat(np.cumsum(pieces_d) - pieces_d, pieces_d)
    reached_s = np.minimum(targets_d[text_s], seq_len + piece_s * stride)
    before_s = np.where(piece_s > 0, seq_len + (piece_s - 1) * stride, 0)
    return Spans(
        starts_s=starts_d[text_s] + piece_s * stride, firsts_s=starts_d[text_s] + 1 + before_s,
        stops_s=starts_d[text_s] + 1 + reached_s, sequences_s=text_s,
        prefixed_s=(piece_s == 0) & (prefix is not None), prefix=prefix,
    )  # fmt: skip


def _sample(targets_d: Places, most_tokens: int | None, *, seed: int) -> Places:
    """Choose texts at random, in their order, as many as hold no more targets than asked but one at least."""
    texts_d = np.flatnonzero(targets_d > 0)
    if most_tokens is None or not len(texts_d):
        return texts_d
    shuffled_d = np.random.default_rng(seed).permutation(texts_d)
    fitting = int(np.searchsorted(np.cumsum(targets_d[shuffled_d]), most_tokens, side="right"))
    return np.sort(shuffled_d[: max(1, fitting)])


@dataclass(frozen=True, slots=True, eq=False)
class SpanBatch:
    """Hold rows to evaluate, padded on the right, each row's sequence, and the bytes of text its targets stand for."""

    batch: Batch
    sequences_b: Places
    text_bytes: int


def read_batches(
    source: Source, spans: Spans, *, batch_tokens: int, across_documents: bool, mask_documents: bool
) -> Iterator[SpanBatch]:
    """Read spans in batches, long ones first, so that rows of a batch are of about one length.

    A batch holds at most so many tokens with its padding, or one row. Raises EvaluationError for ids beyond the
    vocabulary.
    """
    lengths_s = spans.stops_s - spans.starts_s - 1
    order_s = np.argsort(-lengths_s, kind="stable")
    at = 0
    while at < len(order_s):
        rows_b = order_s[at : at + max(1, batch_tokens // int(lengths_s[order_s[at]]))]
        yield _read(source, spans, rows_b, across_documents=across_documents, mask_documents=mask_documents)
        at += len(rows_b)


def _read(source: Source, spans: Spans, rows_b: Places, *, across_documents: bool, mask_documents: bool) -> SpanBatch:
    seq_len = int((spans.stops_s - spans.starts_s)[rows_b].max()) - 1
    tokens_bt = np.zeros((len(rows_b), seq_len), np.int64)
    targets_bt = np.full((len(rows_b), seq_len), IGNORED, np.int64)
    documents_bt = np.zeros((len(rows_b), seq_len), np.int32)
    text_bytes = 0
    for row, span in enumerate(rows_b):
        start, first, stop = int(spans.starts_s[span]), int(spans.firsts_s[span]), int(spans.stops_s[span])
        ids = _read_ids(source, start, stop, prefix=spans.prefix if spans.prefixed_s[span] else None)
        targets = ids[first - start :].copy()
        if mask_documents:
            numbers = np.searchsorted(source.ends_d, np.arange(start, stop - 1), side="right")
            documents_bt[row] = numbers[-1] - numbers[0]
            documents_bt[row, : len(numbers)] = numbers - numbers[0]
        begun = source.begins_d[slice(*np.searchsorted(source.begins_d, [first, stop]))] - first
        if not across_documents:
            targets[begun] = IGNORED
            begun = begun[:0]
        if source.text is not None:
            text_bytes += source.text.count(targets[targets >= 0], begun)
        tokens_bt[row, : len(ids) - 1] = ids[:-1]
        targets_bt[row, first - start - 1 : stop - start - 1] = targets
    batch = Batch(tokens_bt=tokens_bt, targets_bt=targets_bt, documents_bt=documents_bt)
    return SpanBatch(batch, spans.sequences_s[rows_b], text_bytes)


def _read_ids(source: Source, start: int, stop: int, *, prefix: int | None) -> Places:
    """Read tokens, the prefix in the first one's place if there is one, and check that a model may read them."""
    if prefix is None:
        ids = source.read(start, stop - start).astype(np.int64)
    else:
        ids = np.concatenate([[prefix], source.read(start + 1, stop - start - 1)]).astype(np.int64)
    if (largest := int(ids.max())) >= source.vocab_size:
        raise EvaluationError(
            f"{source.name} holds the token id {largest}, and the vocabulary ends at {source.vocab_size - 1}; evaluate "
            "on text that the model's own tokenizer made"
        )
    return ids
