"""Commands that move models to and from other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Stored = Literal["fp32", "bf16", "fp16"]
Format = Literal["hf", "gguf"]


def import_model(
    source: Positional[str],
    out: Path,
    dtype: Stored | None = None,
    revision: str | None = None,
    tokenizer: Path | None = None,
    shape: str | None = None,
) -> None:
    """Turn a model of another library into a Lathe checkpoint.

    Reads Llama, Mistral, Qwen2, Qwen3, MobileLLM, GPT-2, GPT-NeoX, OPT, OLMo and StableLM as Hugging Face keeps them,
    OpenLM's .pt, llama2.c's .bin and unquantised .gguf files. No code that comes with a model is run.

    Example: lathe import EleutherAI/pythia-70m --out pythia-70m

    Args:
        source: a folder with config.json and safetensors, a Hugging Face repository's id, or a .pt, .bin or .gguf file.
        out: a new folder.
        dtype: to store the weights in; as they are if not given.
        revision: a repository's branch, tag or commit.
        tokenizer: a tokenizer.json, for models that bring none.
        shape: what an OpenLM file holds, where nothing beside it says so: a preset's name or a file.
    """
    from lathe.hub.importing import import_checkpoint
    from lathe.presets.shapes import load_shape

    given = None if shape is None else load_shape(shape)
    found = import_checkpoint(source, out, dtype=dtype, revision=revision, tokenizer=tokenizer, shape=given)
    print(f"{found.params:,} params, {found.d_model}×{found.n_layers}, vocabulary {found.vocab_size}")
    if not (out / "tokenizer.json").is_file():
        print("note: the model brought no tokenizer.json; to read text, put its tokenizer there")
    print(f"checkpoint: {out}")


def export_model(checkpoint: Positional[Path], to: Format, out: Path, family: str | None = None) -> None:
    """Write a Lathe checkpoint for transformers or llama.cpp.

    Example: lathe export runs/small --to hf --out small-hf

    Args:
        checkpoint: the folder.
        to: hf, a folder that AutoModelForCausalLM loads without custom code, or gguf, a file.
        out: a new folder, or the file.
        family: what to export as, such as llama; the first family that can hold the shape if not given.
    """
    from lathe.hub.exporting import export_checkpoint

    found = export_checkpoint(checkpoint, out, to=to, family=family)
    for note in found.notes:
        print(f"note: {note}")
    print(f"{found.architecture}: {found.path}")
