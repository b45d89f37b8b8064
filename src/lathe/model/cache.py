"""Keep the keys and values of past tokens, allocated once for the longest context asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.errors import WorkloadError
from lathe.shape import Shape


class KVCache:
    """Hold one pair of tensors [b, g, slots, e] a visit, and where each sequence starts.

    Prompts of different length are aligned at their ends: `start_b` counts the unused slots before each. `used` is the
    number of slots filled so far, the same for all sequences. In a `whole` cache attention reads every slot and relies
    on the mask, so that no tensor's shape depends on how far decoding is: what compiled and captured steps need.
    """

    def __init__(self, start_b: Tensor, keys: list[Tensor], values: list[Tensor], *, whole: bool) -> None:
        self.start_b, self.keys, self.values = start_b, keys, values
        self.slots, self.whole, self.used, self.ragged = keys[0].shape[2], whole, 0, False

    @classmethod
    def allocate(
        cls,
        shape: Shape,
        *,
        batch: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str,
        whole: bool = False,
    ) -> KVCache:
        """Make an empty cache for `batch` sequences of at most `slots` tokens."""
        size = (shape.n_layers, batch, shape.n_kv_heads, slots, shape.d_head)
        keys, values = (list(torch.zeros(size, dtype=dtype, device=device)) for _ in range(2))
        return cls(torch.zeros(batch, dtype=torch.long, device=device), keys, values, whole=whole)

    def begin(self, lengths: Sequence[int]) -> None:
        """Forget everything, and expect prompts of these lengths, padded on the left to the longest.

        Raises WorkloadError for another number of prompts than the cache has sequences.
        """
        if len(lengths) != len(self.start_b):
            raise WorkloadError(f"{len(lengths)} prompts for a cache of {len(self.start_b)} sequences; make another")
        longest = max(lengths)
        self.start_b.copy_(torch.tensor([longest - n for n in lengths]))
        self.used, self.ragged = 0, min(lengths) < longest

    def rows(self, first: int, last: int) -> KVCache:
        """Give some of the rows as an empty cache of their own, which fills this one."""
        return KVCache(
            self.start_b[first:last], [x[first:last] for x in self.keys], [x[first:last] for x in self.values],
            whole=self.whole,
        )  # fmt: skip

    def pick(self, rows_b: Tensor, *, lengths_b: Tensor, slots: int) -> KVCache:
        """Copy the first `lengths_b` slots of rows, each row as often as it is named, to read on behind them.

        The copies are aligned at their ends, as `begin` does with prompts, and there is room for `slots` in all.
        """
        used = int(lengths_b.max())
        shift_b = used - lengths_b
        slot_bs = (torch.arange(used, device=rows_b.device) - shift_b[:, None]).clamp(min=0)

        def copy(kept: Tensor) -> Tensor:
            found = kept.new_empty(len(rows_b), kept.shape[1], slots, kept.shape[3])
            found[:, :, :used] = kept[rows_b[:, None], :, slot_bs].transpose(1, 2)
            return found

        picked = KVCache(shift_b, [*map(copy, self.keys)], [*map(copy, self.values)], whole=False)
        picked.used, picked.ragged = used, True
        return picked

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
