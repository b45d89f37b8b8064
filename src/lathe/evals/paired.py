"""Compare two models on the same held-out text, sequence by sequence: what one text is harder by, both find harder.

Axes in names: n sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lathe.data.store import Split
from lathe.errors import EvaluationError
from lathe.evals.compare import Difference
from lathe.evals.estimate import Z_95
from lathe.evals.loss import Losses, estimate_ratio, sum_moments, sum_sequences
from lathe.model.checkpoint import load_model

BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLosses:
    """Hold, for each sequence of a held-out text, how many targets it has and their summed nats."""

    targets_n: NDArray[np.float64]
    nats_n: NDArray[np.float64]

    @property
    def loss(self) -> float:
        """Give the mean loss in nats per token."""
        return float(self.nats_n.sum() / self.targets_n.sum())

    @property
    def tokens(self) -> int:
        """Count the targets."""
        return int(self.targets_n.sum())


def measure_sequences(
    checkpoint: str | Path,
    split: Split,
    *,
    seq_len: int,
    most_tokens: int | None = None,
    across_documents: bool = True,
    mask_documents: bool = False,
    device: str = "cpu",
) -> SequenceLosses:
    """Measure a checkpoint's loss on each sequence of a split.

    Raises EvaluationError for losses that are no numbers, CheckpointError for a folder that is no checkpoint.
    """
    decoder = load_model(checkpoint, device=device)
    if split.dataset.manifest.vocab_size > decoder.shape.vocab_size:
        raise EvaluationError(
            f"{checkpoint} has {decoder.shape.vocab_size} tokens and {split.dataset.folder} is written in "
            f"{split.dataset.manifest.vocab_size}; evaluate it on data of its own tokenizer"
        )
    return sequence_losses(
        decoder.losses, split, seq_len=seq_len, most_tokens=most_tokens, across_documents=across_documents,
        mask_documents=mask_documents, device=device,
    )  # fmt: skip


def sequence_losses(
    losses: Losses,
    split: Split,
    *,
    seq_len: int,
    most_tokens: int | None = None,
    across_documents: bool = True,
    mask_documents: bool = False,
    device: str | torch.device = "cpu",
) -> SequenceLosses:
    """Measure each sequence's loss; the windows are those of `lathe.evals.loss.held_out_loss`.

    Raises EvaluationError for losses that are no numbers.
    """
    with torch.no_grad():
        parts = [
            torch.stack(part).cpu()
            for part in sum_sequences(
                losses, split, seq_len=seq_len, batch_sequences=max(1, BATCH_TOKENS // seq_len),
                most_tokens=most_tokens, across_documents=across_documents, mask_documents=mask_documents,
                device=device,
            )
        ]  # fmt: skip
    targets_n, nats_n = torch.cat(parts, dim=1).numpy() if parts else np.zeros((2, 0))
    kept_n = targets_n > 0
    if not np.isfinite(nats_n).all() or not kept_n.any():
        raise EvaluationError(
            f"{split.dataset.folder}: the loss on its {split.name} split is no number; look for broken weights"
        )
    return SequenceLosses(targets_n=targets_n[kept_n], nats_n=nats_n[kept_n])


def paired_difference(a: SequenceLosses, b: SequenceLosses) -> Difference:
    """Give b's loss less a's, in nats per token, with the ratio estimator's error of the paired difference.

    Raises EvaluationError for losses on different sequences.
    """
    if not np.array_equal(a.targets_n, b.targets_n):
        raise EvaluationError(
            f"losses on {len(a.targets_n)} and {len(b.targets_n)} sequences are not of the same text, cut alike; "
            "measure both on one split with one seq_len"
        )
    apart = estimate_ratio(sum_moments(torch.from_numpy(a.targets_n), torch.from_numpy(b.nats_n - a.nats_n)))
    half = None if apart.se is None else Z_95 * apart.se
    interval = None if half is None else (apart.loss - half, apart.loss + half)
    return Difference(a=a.loss, b=b.loss, difference=apart.loss, se=apart.se, interval=interval)
