"""Mix tokens: rotary positions, masks, and grouped-query attention over a window or a cache.

Axes in names: b batch, t time of the queries, s time of the keys, d d_model, h query heads, g key-value heads,
r = h / g query heads of a group, e d_head.

One linear layer makes queries, keys and values. Its rows stand group by group: a group's r queries, its key, its
value. So a contiguous slice of the rows is a set of whole groups, which is what tensor parallelism splits. Foreign
checkpoints keep three matrices, or other orders: `lathe.hub` puts them in this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.model.cache import KVCache
from lathe.model.linear import Linear
from lathe.model.norm import Norm
from lathe.shape import Shape

NARROW = 16
"""Entries of a head up to which a CPU attends faster spelled out."""
QUERIES, BLOCK_SCORES = 32, 2**18
"""Queries of a block, and scores that stand at once."""


@dataclass(frozen=True, slots=True)
class Window:
    """Hold what all blocks of one forward pass share: where tokens stand and what they may see.

    `mask` is True where a query may look, [b or 1, 1, t, s]; without one, attention is causal over the tokens given
    (or over everything in the cache, for a single token). `rotary` holds cosines and sines, [b or 1, 1, t, e'/2].
    """

    rotary: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    cache: KVCache | None = None
    slots: Tensor | None = None


class Attention(nn.Module):
    """Attend with n_heads queries to n_kv_heads keys and values; each visit of the block has a cache of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        heads, groups, d_head = shape.n_heads, shape.n_kv_heads, shape.d_head
        self.d_head, self.per_group = d_head, heads // groups
        self.qkv = Linear(shape.d_model, (heads + 2 * groups) * d_head, bias=shape.bias != "none")
        self.out = Linear(heads * d_head, shape.d_model, bias=shape.bias == "all")
        self.q_norm = self.k_norm = None
        self.norm_heads = shape.qk_norm == "full"
        if shape.qk_norm != "none":
            width = (heads * d_head, groups * d_head) if self.norm_heads else (d_head, d_head)
            self.q_norm, self.k_norm = Norm(width[0], shape), Norm(width[1], shape)

    def forward(self, x_btd: Tensor, window: Window, visit: int) -> Tensor:
        q_bhte, k_bgte, v_bgte = self._read(x_btd, window)
        if window.cache is not None:
            k_bgte, v_bgte = window.cache.write(visit, k_bgte, v_bgte, window.slots)
        mixed_bhte = attend(q_bhte, k_bgte, v_bgte, window.mask)
        return self.out(mixed_bhte.transpose(1, 2).flatten(2))

    def weights(self, x_btd: Tensor, window: Window) -> Tensor:
        """Give the weights that each head's queries give to keys, [b, h, t, t] in fp32; what a cache holds has none."""
        q_bhte, k_bgse, _ = self._read(x_btd, window)
        b, h, t, e = q_bhte.shape
        groups = k_bgse.shape[1]
        q_bgrte = q_bhte.view(b, groups, h // groups, t, e).float() * e**-0.5
        scores_bhts = (q_bgrte @ k_bgse[:, :, None].float().mT).view(b, h, t, t)
        seen = window.mask if window.mask is not None else scores_bhts.new_ones(t, t, dtype=torch.bool).tril()
        return scores_bhts.masked_fill_(~seen, float("-inf")).softmax(-1)

    def _read(self, x_btd: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries [b, h, t, e], keys and values [b, g, t, e]."""
        b, t, _ = x_btd.shape
        grouped = self.qkv(x_btd).view(b, t, -1, self.per_group + 2, self.d_head)
        q_btge, k_btge, v_btge = grouped.split((self.per_group, 1, 1), dim=3)
        q_bhte = self._place(q_btge.flatten(2, 3), self.q_norm, window)
        k_bgte = self._place(k_btge.flatten(2, 3), self.k_norm, window)
        return q_bhte, k_bgte, v_btge.flatten(2, 3).transpose(1, 2)

    def _place(self, x_bthe: Tensor, norm: Norm | None, window: Window) -> Tensor:
        """Normalise queries or keys, put the heads before time, and rotate them to their positions."""
        if norm is not None:
            x_bthe = norm(x_bthe.flatten(2)).view_as(x_bthe) if self.norm_heads else norm(x_bthe)
        x_bhte = x_bthe.transpose(1, 2)
        return x_bhte if window.rotary is None else rotate(x_bhte, *window.rotary)


def attend(q_bhte: Tensor, k_bgse: Tensor, v_bgse: Tensor, mask: Tensor | None) -> Tensor:
    """Attend through the fastest kernel there is (flash where it runs); causally where no mask is given.

    A single query's group goes as r queries of one head: keys and values are not repeated. Where such a step is
    compiled for a CPU, it is spelled out: fused code takes half the time of the kernel, which is made for long queries.
    """
    b, h, t, e = q_bhte.shape
    groups = k_bgse.shape[1]
    if t == 1 and mask is not None and torch.compiler.is_compiling() and q_bhte.device.type == "cpu":
        scores_bgrs = (q_bhte.reshape(b, groups, h // groups, e) * e**-0.5) @ k_bgse.transpose(-1, -2)
        weights_bgrs = scores_bgrs.masked_fill(~mask, float("-inf")).softmax(-1)
        return (weights_bgrs @ v_bgse).reshape(b, h, 1, e)
    if t == 1 and h != groups:
        q_bgre = q_bhte.reshape(b, groups, h // groups, e)
        return F.scaled_dot_product_attention(q_bgre, k_bgse, v_bgse, attn_mask=mask).reshape(b, h, 1, e)
    causal = mask is None and t > 1
    if e <= NARROW and t > 1 and _is_plain(q_bhte):
        return _attend_narrow(q_bhte, k_bgse, v_bgse, mask)
    return F.scaled_dot_product_attention(
        q_bhte, k_bgse, v_bgse, attn_mask=mask, is_causal=causal, enable_gqa=h != groups
    )


def _is_plain(x: Tensor) -> bool:
    """Say whether something is computed on a CPU in fp32 now, to be neither differentiated nor compiled."""
    now = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return now and x.device.type == "cpu" and x.dtype == torch.float32


def _attend_narrow(q_bhte: Tensor, k_bgse: Tensor, v_bgse: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with heads so narrow that a CPU's kernels lie idle: spelled out in blocks that stay in the cache.

    Values are multiplied from the left, which makes long rows of narrow columns. Twice as fast at 8 entries a head and
    200 tokens; causal blocks leave out the keys behind them.
    """
    b, h, t, e = q_bhte.shape
    g, s = k_bgse.shape[1:3]
    r, causal = h // g, mask is None
    q_bgrte = (q_bhte * e**-0.5).view(b, g, r, t, e)
    mixed_bgert = torch.empty(b, g, e, r, t, dtype=q_bhte.dtype)
    bias = None if mask is None else torch.zeros(mask.shape, dtype=q_bhte.dtype).masked_fill_(~mask, -torch.inf)
    ahead = torch.full((QUERIES, QUERIES), -torch.inf, dtype=q_bhte.dtype).triu(1)
    for first in range(0, t, QUERIES):
        last = min(t, first + QUERIES)
        seen = s - t + last if causal else s
        rows = max(1, BLOCK_SCORES // (h * (last - first) * seen))
        for at in range(0, b, rows):
            part = slice(at, min(b, at + rows))
            q = q_bgrte[part, :, :, first:last].reshape(-1, r * (last - first), e)
            k, v = (x_bgse[part, :, :seen].reshape(-1, seen, e).transpose(1, 2) for x_bgse in (k_bgse, v_bgse))
            scores = torch.bmm(q, k).view(-1, g, r, last - first, seen)
            if causal:
                scores[..., s - t + first :] += ahead[: last - first, : last - first]
            elif bias is not None:
                scores += bias[part if len(bias) > 1 else slice(None), :, None, first:last]
            weights = scores.softmax(-1).view(-1, r * (last - first), seen)
            mixed = torch.bmm(v, weights.transpose(1, 2))
            mixed_bgert[part, :, :, :, first:last] = mixed.view(-1, g, e, r, last - first)
    return mixed_bgert.permute(0, 1, 3, 4, 2).reshape(b, h, t, e)


def rotate(x_bhte: Tensor, cos_bte: Tensor, sin_bte: Tensor) -> Tensor:
    """Rotate pairs (i, i + e'/2) of the first e' entries of each head; the rest stay. Su et al. 2021, 2104.09864."""
    half = cos_bte.shape[-1]
    first, second, rest = x_bhte[..., :half], x_bhte[..., half : 2 * half], x_bhte[..., 2 * half :]
    parts = [first * cos_bte - second * sin_bte, second * cos_bte + first * sin_bte]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)


def rotary_tables(shape: Shape, positions_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Make the cosines and sines of positions, [b, 1, t, e'/2]: computed in fp32, given in `dtype`."""
    if shape.position != "rotary":
        return None
    rotated = rotary_width(shape)
    pair = torch.arange(0, rotated, 2, device=positions_bt.device, dtype=torch.float32)
    frequency = 1.0 / (shape.rotary_theta ** (pair / rotated))
    angle = positions_bt[:, None, :, None].float() * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary_width(shape: Shape) -> int:
    """Count the entries of a head that are rotated, an even number."""
    return int(shape.d_head * shape.rotary_fraction) // 2 * 2


def document_positions(documents_bt: Tensor) -> Tensor:
    """Count each token's place within its document; `documents_bt` changes where a new one starts."""
    index = torch.arange(documents_bt.shape[1], device=documents_bt.device).expand_as(documents_bt)
    fresh = torch.ones_like(documents_bt, dtype=torch.bool)
    fresh[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    return index - torch.where(fresh, index, 0).cummax(dim=1).values


def document_mask(documents_bt: Tensor) -> Tensor:
    """Let each token see its own document up to itself, [b, 1, t, t].

    A document is a run of equal ids: the same id further on is another one.
    """
    changes = documents_bt[:, 1:] != documents_bt[:, :-1]
    run_bt = F.pad(changes.long().cumsum(1), (1, 0))
    t = documents_bt.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=documents_bt.device).tril()
    return ((run_bt[:, :, None] == run_bt[:, None, :]) & causal)[:, None]
