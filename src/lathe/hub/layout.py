"""Reorder weights between foreign layouts and ours; every function has an inverse that gives the same bits back.

Ours keeps queries, keys and values in one matrix, group by group: see `lathe.model.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lathe.shape import Shape


def join_qkv(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """Join three matrices (or bias vectors) whose rows stand head by head."""
    groups, e, rest = shape.n_kv_heads, shape.d_head, q.shape[1:]
    parts = [part.reshape(groups, -1, e, *rest) for part in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def split_qkv(qkv: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Take the three matrices (or bias vectors) apart again."""
    groups, per_group, rest = shape.n_kv_heads, shape.n_heads // shape.n_kv_heads, qkv.shape[1:]
    parts = qkv.reshape(groups, per_group + 2, shape.d_head, *rest).split((per_group, 1, 1), dim=1)
    q, k, v = (part.reshape(-1, *rest) for part in parts)
    return q, k, v


def halve_pairs(rows: Tensor, heads: int) -> Tensor:
    """Move rotary pairs (0, 1), (2, 3), … of each head to (i, i + half), as Hugging Face and Lathe rotate them."""
    rest = rows.shape[1:]
    return rows.reshape(heads, -1, 2, *rest).transpose(1, 2).reshape(rows.shape)


def pair_halves(rows: Tensor, heads: int) -> Tensor:
    """Move rotary pairs (i, i + half) of each head to (0, 1), (2, 3), …"""
    rest = rows.shape[1:]
    return rows.reshape(heads, 2, -1, *rest).transpose(1, 2).reshape(rows.shape)
