"""Build the decoder that a `Shape` describes: embedding, blocks, final norm, head.

Axes in names: b batch, t time, d d_model, f d_ff, v vocabulary. Weights are named as in `model.safetensors`:
`embedding`, `positions`, `blocks.I.{attention_norm, attention.{qkv, out, q_norm, k_norm}, mlp_norm, mlp.{gate, up,
down}}`, `norm`, `head`. Under sharing, a block that is visited twice stands there once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lathe.errors import WorkloadError
from lathe.model.attention import Attention, Window, document_mask, document_positions, rotary_tables
from lathe.model.cache import KVCache
from lathe.model.linear import Linear, project
from lathe.model.loss import Losses, chunked_losses, position_losses
from lathe.model.norm import Norm
from lathe.shape import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Mlp(nn.Module):
    """Widen to d_ff, apply the activation (gated in SwiGLU), and come back."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bias = shape.bias == "all"
        self.activation = ACTIVATIONS[shape.mlp]
        self.gate = Linear(shape.d_model, shape.d_ff, bias=bias) if shape.mlp == "swiglu" else None
        self.up = Linear(shape.d_model, shape.d_ff, bias=bias)
        self.down = Linear(shape.d_ff, shape.d_model, bias=bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x_btd)))
        return self.down(self.activation(self.gate(x_btd)) * self.up(x_btd))


class Block(nn.Module):
    """Add attention and MLP to the stream, each behind its norm; in parallel both read the same stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.parallel = shape.parallel_residual
        self.attention_norm = Norm(shape.d_model, shape)
        self.attention = Attention(shape)
        self.mlp_norm = Norm(shape.d_model, shape)
        self.mlp = Mlp(shape)

    def forward(self, x_btd: Tensor, window: Window, visit: int) -> Tensor:
        mixed_btd = self.attention(self.attention_norm(x_btd), window, visit)
        if self.parallel:
            return x_btd + mixed_btd + self.mlp(self.mlp_norm(x_btd))
        x_btd = x_btd + mixed_btd
        return x_btd + self.mlp(self.mlp_norm(x_btd))


class Decoder(nn.Module):
    """Hold the weights of a shape and compute with them.

    Built under `torch.device("meta")` it takes no memory. Weights hold torch's defaults until `initialise` or a
    checkpoint fills them. `recompute_every` = k recomputes every k-th visited block in the backward pass instead of
    keeping its activations; None keeps all.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.visits = shape.visits
        self.recompute_every: int | None = None
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        learned = shape.position == "learned"
        self.positions = nn.Embedding(shape.max_seq_len + shape.position_offset, shape.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.stored_layers))
        self.norm = Norm(shape.d_model, shape)
        self.head = None if shape.tied else Linear(shape.d_model, shape.vocab_size, bias=False)

    def forward(self, tokens_bt: Tensor, *, documents_bt: Tensor | None = None) -> Tensor:
        """Give the logits at every position, [b, t, v]."""
        return self.logits(self.hidden(tokens_bt, documents_bt=documents_bt))

    def hidden(self, tokens_bt: Tensor, *, documents_bt: Tensor | None = None) -> Tensor:
        """Give the final hidden states, [b, t, d].

        `documents_bt` holds ids that change where a new document begins: no token sees another document, and positions
        restart. Raises WorkloadError for more tokens than learned positions.
        """
        check_positions(self.shape, tokens_bt.shape[1])
        if documents_bt is None:
            positions_bt = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)[None]
            return self._run(tokens_bt, positions_bt, mask=None)
        return self._run(tokens_bt, document_positions(documents_bt), mask=document_mask(documents_bt))

    def logits(self, x_btd: Tensor) -> Tensor:
        """Turn final hidden states into logits."""
        return project(x_btd, self.output_weight) if self.head is None else self.head(x_btd)

    @property
    def output_weight(self) -> Tensor:
        """Give the head's weights, [v, d]; a tied one is the embedding."""
        return self.embedding.weight if self.head is None else self.head.weight

    def loss(
        self,
        tokens_bt: Tensor,
        targets_bt: Tensor,
        *,
        documents_bt: Tensor | None = None,
        z_weight: float = 0.0,
        chunk: int | None = None,
    ) -> Losses:
        """Sum cross-entropy and z-loss over the targets of zero and more; the logits never stand whole in memory.

        See `chunked_losses`.
        """
        x_nd = self.hidden(tokens_bt, documents_bt=documents_bt).flatten(0, 1)
        return chunked_losses(x_nd, self.output_weight, targets_bt.flatten(), z_weight=z_weight, chunk=chunk)

    @torch.no_grad()
    def losses(self, tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None) -> Tensor:
        """Give each position's cross-entropy in nats, [b, t] in fp32; 0 where the target is below zero."""
        x_nd = self.hidden(tokens_bt, documents_bt=documents_bt).flatten(0, 1)
        return position_losses(x_nd, self.output_weight, targets_bt.flatten()).view_as(targets_bt)

    def extend(self, tokens_bt: Tensor, cache: KVCache, *, longest: int | None = None) -> Tensor:
        """Read more tokens after those in the cache: gives their final hidden states and fills the cache.

        In a ragged batch the tokens before a prompt's start are padding: whatever they are, no other token sees them.
        So is what stands behind each row's last token, where rows differ; `longest` is then the longest sequence's
        length with what the cache holds of it, and must fit learned positions.
        """
        t = tokens_bt.shape[1]
        if cache.used + t > cache.slots:
            raise WorkloadError(f"{cache.used + t} tokens do not fit in a cache of {cache.slots}; make a longer one")
        check_positions(self.shape, cache.used + t if longest is None else longest)
        slots_t = torch.arange(cache.used, cache.used + t, device=tokens_bt.device)
        seen = cache.slots if cache.whole else cache.used + t
        plain = not cache.ragged and not cache.whole and (t == 1 or cache.used == 0)
        mask = None if plain else cache_mask(cache, slots_t, seen)
        positions_bt = (slots_t - cache.start_b[:, None]).clamp(min=0) if cache.ragged else slots_t[None]
        if longest is not None:
            positions_bt = positions_bt.clamp(max=longest - 1)
        x_btd = self._run(tokens_bt, positions_bt, mask=mask, cache=cache, slots=slots_t if cache.whole else None)
        cache.used += t
        return x_btd

    def step(self, tokens_b1: Tensor, slot_1: Tensor, cache: KVCache) -> Tensor:
        """Read one token a sequence into the slot given as a tensor: gives logits [b, v].

        Nothing here depends on how far decoding is but the tensors' values, so it can be compiled and captured.
        """
        positions_b1 = slot_1 - cache.start_b[:, None]
        mask = cache_mask(cache, slot_1, cache.slots)
        return self.logits(self._run(tokens_b1, positions_b1, mask=mask, cache=cache, slots=slot_1))[:, -1]

    def _run(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor,
        *,
        mask: Tensor | None,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        shape = self.shape
        x_btd = self.embedding(tokens_bt)
        if self.positions is not None:
            x_btd = x_btd + self.positions(positions_bt + shape.position_offset)
        window = Window(rotary_tables(shape, positions_bt, x_btd.dtype), mask, cache, slots)
        for visit, stored in enumerate(self.visits):
            block = self.blocks[stored]
            if self.recompute_every and self.training and visit % self.recompute_every == 0:
                x_btd = checkpoint(block, x_btd, window, visit, use_reentrant=False)
            else:
                x_btd = block(x_btd, window, visit)
        return self.norm(x_btd)


def check_positions(shape: Shape, tokens: int) -> None:
    """Refuse more tokens than a shape has learned positions. Raises WorkloadError."""
    if shape.position == "learned" and tokens > shape.max_seq_len:
        raise WorkloadError(
            f"{tokens} tokens are more than the model's {shape.max_seq_len} learned positions; shorten the prompt or "
            "ask for fewer new tokens"
        )


def cache_mask(cache: KVCache, slots_t: Tensor, seen: int) -> Tensor:
    """Let each new token see its sequence from its start up to itself, [b, 1, t, seen].

    A padding token sees itself: a row that sees nothing would be NaN, and NaN spreads.
    """
    slot_s = torch.arange(seen, device=slots_t.device)
    causal_ts = slot_s <= slots_t[:, None]
    started_bts = slot_s >= cache.start_b[:, None, None]
    return ((causal_ts & started_bts) | (slot_s == slots_t[:, None]))[:, None]
