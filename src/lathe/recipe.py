"""Say what is asked of a training run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lathe import codec
from lathe.errors import RecipeError
from lathe.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hold a shape and how long, in what batches and at what learning rate to train it.

    `tokens` in all and `batch_tokens` a step, in sequences of `seq_len`; `lr` is the peak. Raises RecipeError for
    numbers that make no training.
    """

    shape: Shape
    tokens: int
    seq_len: int
    batch_tokens: int
    lr: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "seq_len", "batch_tokens"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)}; wanted 1 or more")
        if not self.lr > 0:
            raise RecipeError(f"lr={self.lr}; wanted a number above zero")
        if self.tokens < self.batch_tokens:
            raise RecipeError(f"tokens={self.tokens} is less than one batch of {self.batch_tokens}; give more")
        if self.batch_tokens % self.seq_len:
            raise RecipeError(f"batch_tokens={self.batch_tokens} is not a whole number of sequences of {self.seq_len}")

    @property
    def steps(self) -> int:
        """Count the optimiser's steps."""
        return self.tokens // self.batch_tokens

    @property
    def id(self) -> str:
        """Name the recipe by its content: the same recipe has the same id on every machine."""
        return hashlib.sha256(codec.canonical_json(self).encode()).hexdigest()[:16]
