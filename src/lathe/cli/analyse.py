"""The command that looks into a model's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lathe.cli.terminal import Progress, open_console


def analyse(
    checkpoint: Positional[Path],
    data: Path | None = None,
    file: Path | None = None,
    sequences: int = 100,
    seq_len: int = 100,
    share: float = 0.9,
    split: Literal["held-out", "train"] = "held-out",
    text_key: str = "text",
    lens: bool = True,
    seed: int = 0,
    out: Path | None = None,
    html: Path | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Say what each layer of a checkpoint does on a text: attention's rank and mass, influence, the loss after it.

    A layer whose attention has rank one, whichever head one looks at, is lazy: it could be left out when a smaller
    model inherits from this one (see `lathe inherit --by rank`).

    Example: lathe analyse runs/tiny --data data/wiki --html analysis.html

    Args:
        checkpoint: a Lathe checkpoint's folder (see `lathe import` for others).
        data: the dataset's folder to take sequences from, made with the model's tokenizer.
        file: a file or folder of text instead, which the checkpoint's tokenizer encodes.
        sequences: how many sequences to draw.
        seq_len: tokens of a sequence.
        share: of the squared singular values that the rank's directions hold, or the mass's columns.
        split: of the dataset.
        text_key: of text in JSON lines and parquet files.
        lens: measure the loss after every layer; with many words and layers it takes most of the time.
        seed: draws the sequences.
        out: write the analysis here (.json).
        html: write a page with heat maps here (.html).
        dtype: of the weights.
        device: cpu, cuda, cuda:1, …
        json: print the analysis as JSON instead of a table.
    """
    import json as encoder

    from lathe import codec
    from lathe.documents import check_path
    from lathe.evals.analyse import analyse as look
    from lathe.evals.analyse import read_sequences
    from lathe.model.checkpoint import TOKENIZER, load_model, load_shape_of, load_tokenizer
    from lathe.report.analysis_table import analysis_table

    text = _choose_text(data, file)
    for path, suffix in ((out, ".json"), (html, ".html")):
        if path is not None:
            check_path(path, suffix)
    shape = load_shape_of(checkpoint)
    known = file is not None or (checkpoint / TOKENIZER).is_file()
    tokens_nt = read_sequences(
        text, tokenizer=load_tokenizer(checkpoint, shape) if known else None, vocab_size=shape.vocab_size,
        sequences=sequences, seq_len=seq_len, seed=seed, split=split, text_key=text_key,
    )  # fmt: skip
    model = load_model(checkpoint, dtype=dtype, device=device)
    with Progress("analysing") as tell:
        found = look(
            model, tokens_nt, name=str(checkpoint), dataset=str(text), share=share, lens=lens, progress=tell
        )  # fmt: skip
    if out is not None:
        codec.save(found, out, kind="analysis")
    if html is not None:
        from lathe.report.analysis_page import analysis_page
        from lathe.report.charts import save_chart

        save_chart(analysis_page(found), html)
    if json:
        print(encoder.dumps(codec.encode(found), indent=2))
    else:
        open_console().print(analysis_table(found))


def _choose_text(data: Path | None, file: Path | None) -> Path:
    """Give the one text that is named, and refuse a dataset that is none. Raises EvaluationError and DataError."""
    from lathe.data.store import Dataset
    from lathe.errors import EvaluationError

    if (data is None) == (file is None):
        given = "nothing says what to read" if data is None else "--data and --file are both given"
        raise EvaluationError(f"{given}; give --data, a dataset's folder, or --file, a text")
    if data is None:
        assert file is not None
        return file
    return Dataset(data).folder
