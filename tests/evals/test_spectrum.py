"""Ranks and masses of attention: known matrices, a singular value decomposition, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lathe.errors import EvaluationError
from lathe.evals import spectrum
from lathe.evals.spectrum import attention_mass, attention_rank

T = 24
SHARES = (0.05, 0.5, 0.9, 0.99, 1.0)


def reference_rank(a_tt: Tensor, share: float) -> int:
    """Count singular values of numpy's decomposition."""
    squares = np.linalg.svd(a_tt.double().numpy(), compute_uv=False) ** 2
    return fewest(squares, share)


def reference_mass(a_tt: Tensor, share: float) -> int:
    squares = np.square(a_tt.double().numpy()).sum(axis=0)
    return fewest(squares, share)


def fewest(parts: np.ndarray, share: float) -> int:
    whole, reached = parts.sum(), 0.0
    for count, part in enumerate(sorted(parts, reverse=True), start=1):
        reached += part
        if reached >= share * whole * (1 - 1e-10):
            return count
    raise AssertionError


def softmax_like(count: int, *, seed: int, scale: float) -> Tensor:
    """Make causal attention of random scores."""
    scores = scale * torch.randn(count, T, T, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf")).softmax(-1)


def hand_made() -> dict[str, tuple[Tensor, float, int, int]]:
    """Give matrices with a share, the rank and the mass."""
    sink = torch.zeros(T, T)
    sink[:, 0] = 1
    first, second = torch.zeros(T, T), torch.zeros(T, T)
    first[:, 0], second[:, 1] = 3.0, 1.0  # squares 9 : 1, and columns that are alike make one direction
    two = torch.zeros(T, T)
    two[: T // 2, 0], two[T // 2 :, 1] = 1.0, 1.0
    mean = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    return {
        "identity": (torch.eye(T), 0.5, T // 2, T // 2),
        "identity, all of it": (torch.eye(T), 1.0, T, T),
        "sink column": (sink, 0.9, 1, 1),
        "sink column, all of it": (sink, 1.0, 1, 1),
        "one direction, every column": (torch.full((T, T), 1 / T), 0.75, 1, 18),
        "one direction, columns 9 to 1": (first + second, 0.9, 1, 1),
        "one direction, columns beyond 9 to 1": (first + second, 0.91, 1, 2),
        "two directions of equal weight": (two, 0.5, 1, 1),
        "two directions of equal weight, more": (two, 0.51, 2, 2),
        "running means": (mean, 0.9, reference_rank(mean, 0.9), reference_mass(mean, 0.9)),
    }


@pytest.mark.parametrize("name", hand_made())
def test_hand_made_matrices(name: str) -> None:
    a_tt, share, rank, mass = hand_made()[name]
    assert attention_rank(a_tt[None], share).tolist() == [rank]
    assert attention_mass(a_tt[None], share).tolist() == [mass]
    assert (reference_rank(a_tt, share), reference_mass(a_tt, share)) == (rank, mass)


def test_a_tie_at_a_hundred_tokens_is_no_more_than_the_share() -> None:
    assert attention_rank(torch.eye(100)[None], 0.9).tolist() == [90]
    assert attention_mass(torch.eye(100)[None], 0.9).tolist() == [90]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 30.0])
def test_random_attention_is_as_in_a_dense_decomposition(scale: float, share: float) -> None:
    weights_ntt = softmax_like(20, seed=int(scale * 10), scale=scale)
    assert attention_rank(weights_ntt, share).tolist() == [reference_rank(a_tt, share) for a_tt in weights_ntt]
    assert attention_mass(weights_ntt, share).tolist() == [reference_mass(a_tt, share) for a_tt in weights_ntt]


def test_random_matrices_of_any_sign_and_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(8, T, T, generator=generator)
    low = torch.randn(8, T, 3, generator=generator) @ torch.randn(8, 3, T, generator=generator)
    for weights_ntt in (full, low, low.double()):
        assert attention_rank(weights_ntt).tolist() == [reference_rank(a_tt, 0.9) for a_tt in weights_ntt]
        assert attention_mass(weights_ntt).tolist() == [reference_mass(a_tt, 0.9) for a_tt in weights_ntt]
    assert int(attention_rank(low, 0.9999).max()) <= 3


def test_neither_scale_nor_the_order_of_rows_counts() -> None:
    weights_ntt = softmax_like(6, seed=1, scale=2.0)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(0))
    for measure in (attention_rank, attention_mass):
        assert torch.equal(measure(weights_ntt), measure(weights_ntt[:, order] * 1e-3))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_ntt = softmax_like(11, seed=2, scale=1.0)
    whole = attention_rank(weights_ntt), attention_mass(weights_ntt)
    monkeypatch.setattr(spectrum, "CHUNK_BYTES", 8 * T * T * 4)
    for before, after in zip(whole, (attention_rank(weights_ntt), attention_mass(weights_ntt)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("measure", [attention_rank, attention_mass])
def test_a_share_that_is_none(measure, share: float) -> None:
    with pytest.raises(EvaluationError, match=r"share=.*; wanted a share above 0, up to 1"):
        measure(torch.eye(3)[None], share)


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [attention_rank, attention_mass])
def test_entries_that_are_no_numbers(measure, entry: float) -> None:
    weights_ntt = torch.eye(3)[None].repeat(2, 1, 1)
    weights_ntt[1, 0, 0] = entry
    with pytest.raises(EvaluationError, match="entries that are no numbers"):
        measure(weights_ntt)
