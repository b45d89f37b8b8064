"""Keep the keys and values of past tokens, allocated once for the longest context asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.shape import Shape


class KVCache:
    """Hold one pair of tensors [b, g, slots, e] a visit, and where each sequence starts.

    Prompts of different length are aligned at their ends: `start_b` counts the unused slots before each. `used` is the
    number of slots filled so far, the same for all sequences. With `whole`, attention reads every slot and relies on
    the mask, so that no tensor's shape depends on how far decoding is: what compiled and captured steps need.
    """

    def __init__(
        self, shape: Shape, *, batch: int, slots: int, dtype: torch.dtype, device: torch.device | str, whole: bool = False
    ) -> None:
        size = (shape.n_layers, batch, shape.n_kv_heads, slots, shape.d_head)
        self.keys = list(torch.zeros(size, dtype=dtype, device=device))
        self.values = list(torch.zeros(size, dtype=dtype, device=device))
        self.start_b = torch.zeros(batch, dtype=torch.long, device=device)
        self.slots, self.used, self.whole, self.ragged = slots, 0, whole, False

    def begin(self, lengths: Sequence[int]) -> None:
        """Forget everything, and expect prompts of these lengths, padded on the left to the longest."""
        longest = max(lengths)
        self.start_b.copy_(torch.tensor([longest - n for n in lengths]))
        self.used, self.ragged = 0, min(lengths) < longest

    def write(self, visit: int, k_bgte: Tensor, v_bgte: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values, and give all that attention may read."""
        keys, values = self.keys[visit], self.values[visit]
        if slots is not None:
            keys.index_copy_(2, slots, k_bgte)
            values.index_copy_(2, slots, v_bgte)
            return keys, values
        end = self.used + k_bgte.shape[2]
        keys[:, :, self.used : end] = k_bgte
        values[:, :, self.used : end] = v_bgte
        return keys[:, :, :end], values[:, :, :end]
