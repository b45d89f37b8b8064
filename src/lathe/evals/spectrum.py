"""Measure how much of an attention matrix a few directions, or a few columns, hold.

Axes in names: n matrices, t tokens (queries, then keys).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lathe.errors import EvaluationError

CHUNK_BYTES = 64 * 2**20
"""What the matrices that stand in fp64 at once may take."""
TIE = 1e-10
"""How far below the share, relative to it, a sum still reaches it: rounding must not split what is equal."""


def attention_rank(weights_ntt: Tensor, share: float = 0.9) -> Tensor:
    """Count the fewest singular values whose squares sum to a share of all squares', [n].

    Sanyal et al. 2024 (Inheritune), arXiv:2404.08634, section 2. The squares are the eigenvalues of A·Aᵀ in fp64, which
    are as exact as a decomposition's where a share of their sum is asked, and come sooner. Raises EvaluationError for
    entries that are no numbers.
    """
    check_share(share)
    counts = [
        _fewest(torch.linalg.eigvalsh(a_ntt @ a_ntt.mT).flip(-1).clamp_(min=0), share) for a_ntt in _chunks(weights_ntt)
    ]
    return torch.cat(counts)


def attention_mass(weights_ntt: Tensor, share: float = 0.9) -> Tensor:
    """Count the fewest columns that hold a share of the squared Frobenius norm, [n].

    Sanyal et al. 2024 (Inheritune), arXiv:2404.08634, section 2. Raises EvaluationError for entries that are no
    numbers.
    """
    check_share(share)
    squares = [a_ntt.square().sum(dim=-2).sort(dim=-1, descending=True).values for a_ntt in _chunks(weights_ntt)]
    return torch.cat([_fewest(parts_nt, share) for parts_nt in squares])


def check_share(share: float) -> None:
    """Refuse a share that nothing could hold, or anything. Raises EvaluationError."""
    if not 0 < share <= 1:
        raise EvaluationError(f"share={share}; wanted a share above 0, up to 1, such as 0.9")


def _chunks(weights_ntt: Tensor) -> Iterator[Tensor]:
    """Give the matrices in fp64, a few at a time."""
    rows = max(1, CHUNK_BYTES // (8 * weights_ntt[:1].numel() or 1))
    for part_ntt in weights_ntt.split(rows):
        if not part_ntt.isfinite().all():
            raise EvaluationError("an attention matrix has entries that are no numbers; look for broken weights")
        yield part_ntt.double()


def _fewest(parts_nt: Tensor, share: float) -> Tensor:
    """Count how many parts, the largest first, it takes to reach a share of their sum."""
    reached_nt = parts_nt.cumsum(dim=-1)
    return (reached_nt < reached_nt[:, -1:] * (share * (1 - TIE))).sum(dim=-1) + 1
