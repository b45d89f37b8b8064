"""Make a checkpoint that starts a small model from a larger one, and keep what it was made of.

The folder is a checkpoint like any other: a recipe's `init.checkpoint` trains it, `lathe eval` judges it. Beside it
lies `inherited.json`, the `Inherited` that says where it comes from and what choosing its layers cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lathe import codec
from lathe.errors import CheckpointError, EvaluationError, ShapeError
from lathe.evals.analyse import SEQ_LEN, SEQUENCES, Progress, analyse, read_sequences
from lathe.evals.analysis import Analysis
from lathe.hub.folders import check_new_folder, new_folder
from lathe.inherit.layers import MEASURED, By, Part, choose_layers, count_layers, inherit_layers, is_part, parse_layers
from lathe.inherit.width import WidthBy, measure_moments, moments_flops, narrow, narrow_shape
from lathe.model.checkpoint import (
    TOKENIZER,
    WEIGHTS,
    build_model,
    check_weights,
    load_shape_of,
    load_tokenizer,
    read_tensors,
    save_checkpoint,
)
from lathe.shape import Shape
from lathe.train.content import hash_weights

INHERITED = "inherited.json"
HALF = 0.5
"""The share of layers that is kept where only a way to choose them is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """Say what a small model takes from its reference; all of it where nothing is said.

    Args:
        layers: such as "0:6" or "0,2,4:8".
        keep_ratio: share of the layers to keep instead, chosen `by`; half if only `by` is given, by first if only this.
        part: attention or mlp alone of each block; the rest is drawn by `scheme` and `seed`.
        d_model: a smaller width, approximately, by slicing the residual stream or by SVD of it.
        sequences: of a text to choose layers and directions by, each of `seq_len` tokens.
        tokenizer: whether the reference must bring its tokenizer.
    """

    layers: str | None = None
    keep_ratio: float | None = None
    by: By | None = None
    part: Part = "all"
    d_model: int | None = None
    width_by: WidthBy = "slice"
    scheme: str = "openlm"
    seed: int = 0
    sequences: int = SEQUENCES
    seq_len: int = SEQ_LEN
    tokenizer: bool = True

    def __post_init__(self) -> None:
        chosen = next((name for name in ("keep_ratio", "by") if getattr(self, name) is not None), None)
        if self.layers is not None and chosen is not None:
            raise ShapeError(f"layers={self.layers!r} names the layers, and {chosen} would choose them; give one")

    @property
    def needs_analysis(self) -> bool:
        """Whether the layers are chosen by what the reference does with a text."""
        return self.by in MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """Hold what a small model was made of: reference, layers in the small model's order, counts, and FLOPs spent.

    `params_inherited` come from the reference, to the bit unless the width changed; `params_drawn` are random. A name
    that stands for several layers counts for each. `flops` are those of reading `data` to choose by.
    """

    source: str
    content: str
    asked: Inheritance
    data: str | None
    shape: Shape
    layers: tuple[int, ...]
    tensors_inherited: int
    tensors_drawn: int
    params_inherited: int
    params_drawn: int
    flops: float = 0.0


def inherit(
    checkpoint: str | Path,
    out: str | Path,
    asked: Inheritance,
    *,
    data: str | Path | None = None,
    analysis: Analysis | None = None,
    progress: Progress | None = None,
) -> Inherited:
    """Write the small model that is asked of a reference to a new folder, with its tokenizer and settings.

    `data` is a dataset's folder, or text, whose training split the reference reads: to choose layers by rank, mass or
    similarity, unless its `analysis` is given, and a narrower stream's directions, which else the weights choose.

    Raises:
        ShapeError: layers that the reference does not have, a width that its heads or norms do not allow.
        CheckpointError: no checkpoint, one without a tokenizer, a folder that holds something already.
        EvaluationError: text that is too short, or of another vocabulary; DataError if it cannot be read.
    """
    folder = Path(checkpoint)
    shape = load_shape_of(folder)
    check_new_folder(out, source=folder)
    _check_asked(asked, folder, shape, data, analysis)
    weights = read_tensors(folder / WEIGHTS)
    check_weights(shape, {name: tuple(w.shape) for name, w in weights.items()}, source=str(folder / WEIGHTS))
    tokens_nt = None if data is None else _draw_tokens(asked, data, folder, shape)
    flops = 0.0
    if asked.needs_analysis and analysis is None:
        assert tokens_nt is not None, "was checked"
        model = build_model(shape, weights, dtype="fp32", device="cpu", source=str(folder))
        analysis = analyse(model, tokens_nt, name=folder.name, dataset=str(data), lens=False, progress=progress)
        flops += analysis.flops
    layers = name_layers(asked, shape.n_layers, analysis)
    small, found = inherit_layers(shape, weights, layers, part=asked.part, seed=asked.seed, scheme=asked.scheme)
    if asked.d_model is not None:
        moments_dd = None
        if tokens_nt is not None:
            model = build_model(small, found, dtype="fp32", device="cpu", source=str(folder))
            moments_dd = measure_moments(model, tokens_nt)
            flops += moments_flops(small, *tokens_nt.shape)
        small, found = narrow(small, found, asked.d_model, by=asked.width_by, moments_dd=moments_dd)
    kept = [w.numel() for name, w in found.items() if is_part(name, asked.part)]
    made = Inherited(
        source=str(folder.resolve()), content=hash_weights(folder), asked=asked,
        data=None if data is None else str(data), shape=small, layers=layers,
        tensors_inherited=len(kept), tensors_drawn=len(found) - len(kept),
        params_inherited=sum(kept), params_drawn=small.params - sum(kept), flops=flops,
    )  # fmt: skip
    with new_folder(out) as new:
        save_checkpoint(new, small, found, companions=folder)
        codec.save(made, new / INHERITED, kind="inherited")
    return made


def _check_asked(
    asked: Inheritance, folder: Path, shape: Shape, data: str | Path | None, analysis: Analysis | None
) -> None:
    """Refuse what cannot be, before anything is computed."""
    if asked.tokenizer:
        check_tokenizer(folder, shape)
    if asked.d_model is not None:
        narrow_shape(shape, asked.d_model, by=asked.width_by)
    if analysis is not None and analysis.shape != shape:
        raise ShapeError(f"the analysis is of {analysis.name}, which has another shape than {folder}; analyse this one")
    if not asked.needs_analysis or (data is None and analysis is None):
        name_layers(asked, shape.n_layers)


def _draw_tokens(asked: Inheritance, data: str | Path, folder: Path, shape: Shape) -> Tensor:
    """Draw the sequences that the reference reads: to train on, so that what is held out stays unseen."""
    tokenizer = load_tokenizer(folder, shape) if (folder / TOKENIZER).is_file() else None
    tokens_nt = read_sequences(
        data, tokenizer=tokenizer, vocab_size=shape.vocab_size, sequences=asked.sequences,
        seq_len=min(asked.seq_len, shape.max_seq_len), seed=asked.seed, split="train",
    )  # fmt: skip
    if int(tokens_nt.max()) >= shape.vocab_size:
        raise EvaluationError(
            f"{data} holds the id {int(tokens_nt.max())}, and the reference has {shape.vocab_size}; it was made with "
            "another tokenizer"
        )
    return tokens_nt


def name_layers(asked: Inheritance, n_layers: int, analysis: Analysis | None = None) -> tuple[int, ...]:
    """Name the reference's layers that are asked for. Raises ShapeError."""
    if asked.layers is not None:
        return parse_layers(asked.layers, n_layers)
    if asked.keep_ratio is None and asked.by is None:
        return tuple(range(n_layers))
    count = count_layers(n_layers, HALF if asked.keep_ratio is None else asked.keep_ratio)
    return choose_layers(n_layers, count, by=asked.by or "first", analysis=analysis)


def check_tokenizer(folder: Path, shape: Shape) -> None:
    """Refuse a reference that brings no tokenizer, or another model's. Raises CheckpointError."""
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}: nobody could tell which text the small model's ids stand for; put the "
            "model's tokenizer there, or say that it has none (--no-tokenizer)"
        )
    load_tokenizer(folder, shape)
