"""The command that starts small models from larger ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

By = Literal["first", "uniform", "rank", "mass", "similarity"]
Part = Literal["all", "attention", "mlp"]
WidthBy = Literal["slice", "svd"]


def inherit(
    checkpoint: Positional[Path | None] = None,
    out: Path | None = None,
    layers: str | None = None,
    keep_ratio: float | None = None,
    by: By | None = None,
    part: Part = "all",
    d_model: int | None = None,
    width_by: WidthBy = "slice",
    data: Path | None = None,
    analysis: Path | None = None,
    sequences: int = 100,
    seq_len: int = 100,
    scheme: str = "openlm",
    seed: int = 0,
    no_tokenizer: bool = False,
    study: Path | None = None,
) -> None:
    """Start a small model from a larger one: some of its layers, at its width or a smaller one.

    Embedding, positions, final norm, head and tokenizer always come along. The result is a checkpoint: train it by a
    recipe whose init.checkpoint it is.

    Example: lathe inherit runs/large --layers 0:6 --out runs/small

    With --study, many ways to start are trained alike and compared, at equal FLOPs and at equal latency; the same
    command goes on with a study that was stopped: lathe inherit --study examples/inherit.toml

    Args:
        checkpoint: the reference, a Lathe checkpoint's folder (see `lathe import` for others).
        out: a new folder; of a study, runs/ and its name if not given.
        layers: to take, such as 0:6 (six of them), 0,2,4:8 or 0:12:2; repeats are allowed.
        keep_ratio: share of the layers to take instead; half if only --by is given.
        by: how to choose them: the first, uniform, or those of the highest attention rank or mass, or all but the
            blocks that change the stream least (similarity). The last three need --data or --analysis.
        part: attention or mlp: the rest of each block is drawn at random.
        d_model: a smaller width, approximately; heads keep their width, and there are fewer of them.
        width_by: slice the stream's largest entries, or turn it to its principal directions first (svd; RMSNorm only).
        data: a dataset's folder, or a text, for the reference to read; --d-model without it goes by the weights.
        analysis: what `lathe analyse --out` wrote of the reference, instead of reading text for --by.
        sequences: of the text.
        seq_len: tokens of each.
        scheme: what draws weights at random.
        seed: of what is drawn.
        no_tokenizer: take a reference that has no tokenizer.
        study: a TOML file that says which ways to start to compare, in place of CHECKPOINT and all of these but --out.
    """
    from lathe import codec
    from lathe.cli.terminal import Progress
    from lathe.errors import ShapeError, StudyError
    from lathe.evals.analysis import Analysis
    from lathe.inherit.start import Inheritance
    from lathe.inherit.start import inherit as start
    from lathe.model.checkpoint import load_shape_of

    if study is not None:
        from lathe.cli.inherit_study import inherit_study

        given = (checkpoint, layers, keep_ratio, by, d_model, data, analysis)
        if any(one is not None for one in given) or part != "all":
            raise StudyError(f"--study {study} says itself what to start from and how; give --out beside it alone")
        inherit_study(study, out)
        return
    if checkpoint is None or out is None:
        raise StudyError("say what to start from and where to: CHECKPOINT and --out FOLDER, or --study study.toml")
    if layers is None and keep_ratio is None and by is None and part == "all" and d_model is None:
        raise ShapeError("say what to inherit: --layers 0:6, --keep-ratio 0.5, --by, --part or --d-model")
    asked = Inheritance(
        layers=layers, keep_ratio=keep_ratio, by=by, part=part, d_model=d_model, width_by=width_by,
        sequences=sequences, seq_len=seq_len, scheme=scheme, seed=seed, tokenizer=not no_tokenizer,
    )  # fmt: skip
    known = None if analysis is None else codec.load(Analysis, analysis, kind="analysis")
    with Progress("analysing") as progress:
        found = start(checkpoint, out, asked, data=data, analysis=known, progress=progress)
    shape = found.shape
    print(f"layers {' '.join(map(str, found.layers))} of {checkpoint}: {shape.d_model}×{shape.n_layers}")
    print(f"{found.params_inherited:,} params inherited, {found.params_drawn:,} drawn")
    if shape.d_model < load_shape_of(checkpoint).d_model:
        print("note: the width is approximate: what the directions and heads left out held is lost until it is trained")
    print(f"checkpoint: {out}")
