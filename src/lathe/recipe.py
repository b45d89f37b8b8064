"""Say what is asked of a training run: all that its result hangs on, and nothing else.

How the work is laid out over devices, saved and watched is `lathe.train.execution`'s: the same recipe gives the same
model however it runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lathe import codec
from lathe.errors import RecipeError, nearest
from lathe.shape import Shape

DTYPES = ("fp32", "bf16", "bf16-mixed")
"""What a training computes in. In bf16-mixed the weights stay fp32 and products are bf16; in bf16 all is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Name what is trained on and what is held out.

    `train` is a dataset's folder or a mixture's file. `validation` maps names to datasets, whose held-out splits count;
    if empty, it is the training data's own, under "held-out" or the names of the mixture's sources. `repeats` is how
    often a dataset may be read, once if None; a mixture's file says so itself. `mask_documents` lets no token see
    another document; with `across_documents` a document's first token is a target all the same. `content` hashes the
    tokens: where it is known, it is what identifies the data, wherever they lie.
    """

    train: str
    validation: dict[str, str] = field(default_factory=dict)
    repeats: float | None = None
    mask_documents: bool = False
    across_documents: bool = True
    content: str | None = None

    def __post_init__(self) -> None:
        _check_range(self, ("repeats",), "a number above zero", lambda x: 0 < x < math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """Hold an optimiser's settings.

    `decay` says what weight decay acts on: all weights, or matrices alone (no norms, no biases). `embedding_lr` is the
    peak for embedding and positions, where it is not the recipe's. Muon orthogonalises the momentum of the blocks'
    matrices, with AdamW's step size (Liu et al. 2025, arXiv:2502.16982, section 2.2), and leaves the rest to AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["all", "matrices"] = "all"
    momentum: float = 0.95
    embedding_lr: float | None = None

    def __post_init__(self) -> None:
        _check_range(self, ("beta1", "beta2", "momentum"), "a share from 0 to below 1", lambda x: 0 <= x < 1)
        _check_range(self, ("eps", "embedding_lr"), "a number above zero", lambda x: 0 < x < math.inf)
        _check_range(self, ("weight_decay",), "a number of 0 or more", lambda x: 0 <= x < math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Say how the learning rate goes: see `lathe.train.schedule`.

    `final` is the last step's share of the peak. `decay` is the share of all steps that WSD decays over, along a
    `decay_shape`. `power_a` and `power_b` are the power schedule's.
    """

    name: Literal["cosine", "wsd", "linear", "constant", "power"] = "cosine"
    warmup_steps: int = 0
    final: float = 0.1
    decay: float = 0.1
    decay_shape: Literal["linear", "cosine", "sqrt"] = "linear"
    power_a: float = 4.6
    power_b: float = -0.51

    def __post_init__(self) -> None:
        _check_range(self, ("warmup_steps",), "0 or more", lambda x: x >= 0)
        _check_range(self, ("final",), "a share from 0 to 1", lambda x: 0 <= x <= 1)
        _check_range(self, ("decay",), "a share above 0, up to 1", lambda x: 0 < x <= 1)
        _check_range(self, ("power_a",), "a number above zero", lambda x: 0 < x < math.inf)
        _check_range(self, ("power_b",), "a number below zero", lambda x: -math.inf < x < 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """Say what the weights begin as: drawn by a scheme of `lathe.model.init`, or a checkpoint's.

    muP draws and steps them as the shape `base`, the narrow one that was tuned, says. `content` hashes the
    checkpoint's weights: where it is known, it is what identifies them.
    """

    scheme: str = "openlm"
    base: Shape | None = None
    checkpoint: str | None = None
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distil:
    """Name a teacher, a checkpoint's folder, whose distribution is learned beside the text.

    The loss is (1 - weight) · cross-entropy + weight · temperature² · KL(teacher ‖ student), both softened by the
    temperature: Hinton et al. 2015, arXiv:1503.02531, section 2. `content` hashes the teacher's weights: where it is
    known, it is what identifies them.
    """

    teacher: str
    content: str | None = None
    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self, ("temperature",), "a number above zero", lambda x: 0 < x < math.inf)
        _check_range(self, ("weight",), "a share from 0 to 1", lambda x: 0 <= x <= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hold a shape, what to train it on, and how long, in what batches and how to step.

    `tokens` in all and `batch_tokens` a step, in sequences of `seq_len`; `lr` is the peak. `clip` bounds the gradient's
    norm, `z_loss` weighs the squared log-partition, `ema` keeps a moving average of the weights with that memory,
    which is then what is evaluated and kept; `distil` adds a teacher. Raises RecipeError for numbers that make no
    training.
    """

    shape: Shape
    tokens: int
    seq_len: int
    batch_tokens: int
    lr: float
    seed: int = 0
    data: Data | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    init: Init = field(default_factory=Init)
    dtype: Literal["fp32", "bf16", "bf16-mixed"] = "fp32"
    clip: float | None = 1.0
    z_loss: float = 0.0
    ema: float | None = None
    distil: Distil | None = None

    def __post_init__(self) -> None:
        _check_range(self, ("tokens", "seq_len", "batch_tokens"), "1 or more", lambda x: x >= 1)
        _check_range(self, ("lr", "clip"), "a number above zero", lambda x: 0 < x < math.inf)
        _check_range(self, ("z_loss",), "a number of 0 or more", lambda x: 0 <= x < math.inf)
        _check_range(self, ("ema",), "a share between 0 and 1", lambda x: 0 < x < 1)
        if self.dtype not in DTYPES:
            raise RecipeError(f"unknown dtype {self.dtype!r} to train in{nearest(str(self.dtype), DTYPES)}")
        if self.tokens < self.batch_tokens:
            raise RecipeError(f"tokens={self.tokens} is less than one batch of {self.batch_tokens}; give more")
        if self.batch_tokens % self.seq_len:
            raise RecipeError(f"batch_tokens={self.batch_tokens} is not a whole number of sequences of {self.seq_len}")
        if self.schedule.warmup_steps >= self.steps and self.schedule.warmup_steps:
            raise RecipeError(
                f"warmup_steps={self.schedule.warmup_steps} leaves nothing of {self.steps} steps; warm up for fewer"
            )

    @property
    def batch_sequences(self) -> int:
        """Count the sequences of a step."""
        return self.batch_tokens // self.seq_len

    @property
    def steps(self) -> int:
        """Count the optimiser's steps."""
        return self.tokens // self.batch_tokens

    @property
    def id(self) -> str:
        """Name the recipe by its content: the same recipe has the same id on every machine."""
        data, init, distil = self.data, self.init, self.distil
        if data is not None and data.content is not None:
            data = replace(data, train="", validation=dict.fromkeys(data.validation, ""), repeats=None)
        if init.content is not None:
            init = replace(init, checkpoint="")
        if distil is not None and distil.content is not None:
            distil = replace(distil, teacher="")
        content = codec.encode(replace(self, data=data, init=init, distil=distil))
        if distil is None:
            del content["distil"]  # recipes that were named before there were teachers keep their names
        return hashlib.sha256(codec.canonical_json(content).encode()).hexdigest()[:16]


def _check_range(word: object, names: tuple[str, ...], wanted: str, fits: Callable[[Any], bool]) -> None:
    for name in names:
        value = getattr(word, name)
        if value is not None and not fits(value):
            raise RecipeError(f"{name}={value}; wanted {wanted}")
