"""Serve batches as a pure function of data, mixture, seed and step.

Tensors: b sequences of a batch, t tokens of a sequence, w = t + 1 tokens of a window, n samples, r boundaries.

A split's stream of tokens is cut into windows of seq_len + 1 that overlap by one: window k's inputs begin at token
k · seq_len, its targets one further. So every token but the stream's first is a target exactly once an epoch, save
those at the very end that fill no window (`Loader.dropped_tokens`).

Sample p = step · batch_sequences + i is dealt to a source by the mixture and is that source's k-th: of its epoch
k // windows, window permute(k % windows). Nothing depends on ranks, workers or what was read before, so resuming,
replaying a step and changing the number of ranks are exact.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lathe.data.mixture import BLOCK, Mixture, apportion, as_written, deal, deal_block, open_sources, whole_shares
from lathe.data.order import permute
from lathe.data.store import Dataset, Split
from lathe.data.windows import Windows, open_shards
from lathe.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "dataset"
"""What a dataset is called that is loaded alone: the same batches as a mixture of one source of this name."""
IGNORED = -1
"""The target that no loss counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Hold sequences, what follows each of their tokens, and which tokens belong together.

    `targets_bt` is the next token, -1 where none counts. `documents_bt` counts documents within a row from 0.
    """

    tokens_bt: NDArray[np.int64]
    targets_bt: NDArray[np.int64]
    documents_bt: NDArray[np.int32]


class Loader:
    """Load a dataset, or a mixture of them, in seeded order.

    Args:
        data: a dataset, read again and again without end, or a mixture.
        seq_len: inputs, and targets, of a sequence.
        batch_sequences: of a step, over all ranks.
        vocab_size: the model's, which must hold every id of the data.
        across_documents: whether a document's first token is a target, as is usual; else it is -1.

    Raises DataError for data that is missing, too small for one window, or made for a larger vocabulary.
    """

    def __init__(
        self,
        data: Dataset | Mixture,
        *,
        seq_len: int,
        batch_sequences: int,
        seed: int,
        split: str = "train",
        vocab_size: int | None = None,
        across_documents: bool = True,
    ) -> None:
        check_counts(seq_len=seq_len, batch_sequences=batch_sequences)
        if not isinstance(data, Mixture):
            data = Mixture(sources={SINGLE: str(data.folder)}, weights={SINGLE: 1.0})
        self.seq_len, self.batch_sequences, self.seed = seq_len, batch_sequences, operator.index(seed)
        self.across_documents = across_documents
        open_shard = open_shards()
        self.windows = {
            name: Windows(dataset.split(split), seq_len=seq_len, open_shard=open_shard)
            for name, dataset in open_sources(data).items()
        }
        self._repeats, self._shares = data.repeats, whole_shares(data)
        for name, windows in self.windows.items():
            _check_source(name, windows, vocab_size=vocab_size)

    @property
    def dropped_tokens(self) -> dict[str, int]:
        """Count, for each source, the tokens at its end that are never targets."""
        return {name: windows.tail_targets for name, windows in self.windows.items()}

    def epochs(self, tokens: int) -> dict[str, float]:
        """Say how many times each source is read when training on so many tokens."""
        return {name: samples / self.windows[name].count for name, samples in self._count_samples(tokens).items()}

    def check_enough(self, tokens: int) -> None:
        """Refuse to train on more tokens than the sources give within their caps. Raises DataError."""
        for name, samples in self._count_samples(tokens).items():
            if samples > self._limit(name):
                epochs = math.ceil(100 * samples / self.windows[name].count) / 100
                of, cap, mend = self._name_source(name)
                raise DataError(
                    f"{tokens:,} tokens take {epochs:g} epochs of {of}, and {cap} is {self._repeats[name]:g}; raise it "
                    f"to {epochs:g}, {mend}, or add text"
                )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Give one rank's sequences of a step: the rank-th of `world` equal slices of the step's batch.

        Raises DataError for a batch that does not split so, and where a source is used up.
        """
        check_rank(step, rank, world, batch_sequences=self.batch_sequences)
        count = self.batch_sequences // world
        start = step * self.batch_sequences + rank * count
        sources_b, numbers_b = deal(start, count, shares=self._shares, seed=self.seed)
        parts = []
        for source, name in enumerate(self.windows):
            rows = np.flatnonzero(sources_b == source)
            if rows.size:
                parts.append((rows, *self.windows[name].read(self._choose(name, numbers_b[rows]))))
        tokens_bw = np.empty((count, self.seq_len + 1), dtype=parts[0][1].dtype)
        for rows, tokens_nw, _, _ in parts:
            tokens_bw[rows] = tokens_nw
        rows_r = np.concatenate([rows[rows_r] for rows, _, rows_r, _ in parts])
        places_r = np.concatenate([places_r for _, _, _, places_r in parts])
        return _to_batch(tokens_bw, rows_r, places_r, across_documents=self.across_documents)

    def _choose(self, name: str, numbers_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the windows of a source's samples, each epoch in an order of its own."""
        if numbers_n[-1] >= self._limit(name):
            of, cap, mend = self._name_source(name)
            raise DataError(f"{of} is used up: {cap} is {self._repeats[name]:g}; raise it, {mend}, or add text")
        epochs_n, numbers_n = np.divmod(numbers_n, self.windows[name].count)
        windows_n = np.empty_like(numbers_n)
        for epoch in range(int(epochs_n[0]), int(epochs_n[-1]) + 1):
            now = epochs_n == epoch
            windows_n[now] = permute(numbers_n[now], self.windows[name].count, key=(self.seed, "windows", name, epoch))
        return windows_n

    def _name_source(self, name: str) -> tuple[str, str, str]:
        """Say for people which source, what caps it, and what would mend it: a dataset loaded alone has no name."""
        if list(self.windows) == [SINGLE]:
            return str(self.windows[name].split.dataset.folder), "data.repeats", "ask for fewer tokens"
        return f"the source {name!r}", f"repeats.{name}", "lower its weight"

    def _limit(self, name: str) -> float:
        """Count the samples that a source may give."""
        if name not in self._repeats:
            return math.inf
        return math.floor(as_written(self._repeats[name]) * self.windows[name].count)

    def _count_samples(self, tokens: int) -> dict[str, int]:
        """Count the samples that each source gives of the first so many tokens."""
        block, rest = divmod(-(-tokens // self.seq_len), BLOCK)
        whole = apportion(block * BLOCK, self._shares)
        partly = np.bincount(deal_block(block, shares=self._shares, seed=self.seed)[0][:rest], minlength=len(whole))
        return {name: a + b for name, a, b in zip(self.windows, whole, partly.tolist(), strict=True)}


def evaluation_batches(
    split: Split,
    *,
    seq_len: int,
    batch_sequences: int,
    across_documents: bool = True,
    most_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Read the windows of `evaluation_windows` in order; with ranks, every world-th batch from the rank-th on.

    The last row is padded with zeros whose targets are -1, and the last batch may have fewer rows. Raises DataError for
    a split of less than two tokens.
    """
    check_counts(seq_len=seq_len, batch_sequences=batch_sequences)
    rows_n = evaluation_windows(split, seq_len=seq_len, most_tokens=most_tokens)
    windows = Windows(split, seq_len=seq_len, open_shard=open_shards())
    batches = [rows_n[at : at + batch_sequences] for at in range(0, len(rows_n), batch_sequences)]
    return _read_in_order(windows, batches[rank::world], across_documents=across_documents)


def evaluation_windows(split: Split, *, seq_len: int, most_tokens: int | None = None) -> NDArray[np.int64]:
    """List the windows to evaluate on: all and the tail, so that every token but the first is a target exactly once.

    Under `most_tokens`, as many as they fill, but one at least: always the same, at even distances. Raises DataError
    for a split of less than two tokens.
    """
    check_counts(seq_len=seq_len, most_tokens=1 if most_tokens is None else most_tokens)
    rows = -(-max(split.tokens - 1, 0) // seq_len)
    if rows == 0:
        raise DataError(f"{split.dataset.folder}: its {split.name} split has {split.tokens} tokens; wanted 2 or more")
    chosen = rows if most_tokens is None else min(rows, max(1, most_tokens // seq_len))
    return np.arange(chosen) * rows // chosen


def _read_in_order(windows: Windows, batches: list[NDArray[np.int64]], *, across_documents: bool) -> Iterator[Batch]:
    for rows_b in batches:
        batch = _to_batch(*windows.read(rows_b), across_documents=across_documents)
        if rows_b[-1] == windows.count:
            batch.targets_bt[-1, windows.tail_targets :] = IGNORED
        yield batch


def to_torch(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Give a batch's tokens, targets and documents as tensors: in pinned memory where there is a GPU, else not copied.

    Raises MissingExtraError without torch.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("a batch of tensors", extra="train") from None
    pinned = torch.cuda.is_available()
    tensors = (torch.from_numpy(array) for array in (batch.tokens_bt, batch.targets_bt, batch.documents_bt))
    tokens_bt, targets_bt, documents_bt = (one.pin_memory() if pinned else one for one in tensors)
    return tokens_bt, targets_bt, documents_bt


def check_counts(**counts: int) -> None:
    """Refuse counts below one, by name. Raises DataError."""
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name}={value}; wanted 1 or more")


def _to_batch(
    tokens_bw: NDArray, rows_r: NDArray[np.int64], places_r: NDArray[np.int64], *, across_documents: bool
) -> Batch:
    """Split windows into inputs and targets; documents begin at places_r of rows_r."""
    targets_bt = tokens_bw[:, 1:].astype(np.int64)
    if not across_documents:
        targets_bt[rows_r, places_r - 1] = IGNORED
    documents_bt = np.zeros(targets_bt.shape, dtype=np.int32)
    inside = places_r < targets_bt.shape[1]
    documents_bt[rows_r[inside], places_r[inside]] = 1
    np.cumsum(documents_bt, axis=1, out=documents_bt)
    return Batch(tokens_bt=tokens_bw[:, :-1].astype(np.int64), targets_bt=targets_bt, documents_bt=documents_bt)


def _check_source(name: str, windows: Windows, *, vocab_size: int | None) -> None:
    folder, ids = windows.split.dataset.folder, windows.split.dataset.manifest.vocab_size
    if vocab_size is not None and ids > vocab_size:
        raise DataError(
            f"{folder} has ids below {ids}, and the model a vocabulary of {vocab_size}; give the model "
            f"vocab_size={ids} or more, or build the data with the model's tokenizer"
        )
    if windows.count == 0:
        add = "add text" if name == SINGLE else f"add text to the source {name!r}"
        raise DataError(
            f"{folder}: its {windows.split.name} split has {windows.split.tokens} tokens, less than one window of "
            f"seq_len + 1 = {windows.seq_len + 1}; {add} or take a shorter seq_len"
        )


def check_rank(step: int, rank: int, world: int, *, batch_sequences: int) -> None:
    check_counts(world=world)
    if step < 0:
        raise DataError(f"step={step}; wanted 0 or more")
    if not 0 <= rank < world:
        raise DataError(f"rank={rank} of world={world}; wanted 0 to {world - 1}")
    if batch_sequences % world:
        more = -(-batch_sequences // world) * world
        raise DataError(
            f"batch_sequences={batch_sequences} does not split evenly over {world} ranks; take {more}, or fewer ranks"
        )
