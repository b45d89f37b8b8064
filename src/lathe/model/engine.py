"""Run a decoder token by token: prompts are read at once, then each step reads one token a sequence.

Axes in names: b batch, t time, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lathe.errors import WorkloadError, nearest
from lathe.model.cache import KVCache
from lathe.model.decoder import Decoder, check_positions

ENGINES = ("eager", "compile", "graph")


class Engine:
    """Hold a decoder, its cache, and how a step runs: use it for one batch of prompts after another.

    `prepare_s` is what compiling or capturing took.
    """

    def __init__(self, model: Decoder, *, batch: int, slots: int, kind: str) -> None:
        weight = model.embedding.weight
        self.model, self.kind, self.prepare_s = model, kind, 0.0
        self.cache = KVCache(
            model.shape, batch=batch, slots=slots, dtype=weight.dtype, device=weight.device, whole=kind != "eager"
        )

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts from their beginning, and give the logits after each one's last token, [b, v]."""
        longest = max(map(len, prompts))
        self.cache.begin([len(p) for p in prompts])
        padded = [[0] * (longest - len(p)) + list(p) for p in prompts]
        tokens_bt = torch.tensor(padded, device=self.cache.start_b.device)
        return self.model.logits(self.model.extend(tokens_bt, self.cache)[:, -1:])[:, -1]

    @torch.inference_mode()
    def step(self, tokens_b: Tensor) -> Tensor:
        """Read one more token a sequence, and give the logits after it, [b, v]."""
        return self.model.logits(self.model.extend(tokens_b[:, None], self.cache))[:, -1]


def open_engine(model: Decoder, *, batch: int, slots: int, engine: str = "eager") -> Engine:
    """Make an engine for `batch` sequences of at most `slots` tokens. Raises WorkloadError."""
    if engine not in ENGINES:
        raise WorkloadError(f"unknown engine {engine!r}{nearest(str(engine), ENGINES)}")
    check_positions(model.shape, slots)
    return Engine(model, batch=batch, slots=slots, kind=engine)
