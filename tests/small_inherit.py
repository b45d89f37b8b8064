"""A reference of six tiny layers, trained for a moment, and studies of ways to start from it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from lathe.data.build import build_dataset
from lathe.data.readers import Layout, open_inputs
from lathe.data.tokenizer import train_tokenizer
from lathe.inherit.study import InheritStudy, Target
from lathe.recipe import Data, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import train
from lathe.workload import Workload

WORDS = ("a", "small", "model", "begins", "as", "part", "of", "its", "large", "one", "and", "learns", "the", "rest")
WORKLOAD = Workload(batch=1, prompt_tokens=8, new_tokens=8, dtype="fp32")
SEQ_LEN, BATCH_TOKENS = 16, 64


def write_reference(home: Path) -> Path:
    """Write text as a dataset, and a model trained on it, below a folder: data/ and reference/; gives the latter."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, weights=range(1, len(WORDS) + 1), k=60)) for _ in range(240)]
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    inputs = open_inputs([str(home / "text.jsonl")], Layout(text_key="text"))
    train_tokenizer(inputs, vocab_size=280, out=home / "tokenizer.json")
    build_dataset(inputs, tokenizer=home / "tokenizer.json", out=home / "data", held_out=0.1)
    shape = Shape.of(d_model=16, n_layers=6, n_heads=4, d_ff=32, vocab_size=280, max_seq_len=SEQ_LEN)
    recipe = Recipe(
        shape=shape, tokens=100 * BATCH_TOKENS, seq_len=SEQ_LEN, batch_tokens=BATCH_TOKENS, lr=1e-2,
        data=Data(train=str(home / "data")), schedule=Schedule(name="cosine", warmup_steps=5),
    )  # fmt: skip
    out = home / "reference"
    train(recipe, Execution(out=str(out), threads=1, spike=1e6, log_every=10**6), report=lambda line: None)
    return out


def make_study(home: Path, **given: Any) -> InheritStudy:
    """Ask for arms from the reference below a folder, for a device from a preset."""
    recipe = {
        "data": {"train": str(home / "data")}, "tokens": 20 * BATCH_TOKENS, "seq_len": SEQ_LEN,
        "batch_tokens": BATCH_TOKENS, "lr": 1e-2,
    } | given.pop("recipe", {})  # fmt: skip
    values: dict[str, Any] = {
        "reference": str(home / "reference"), "layers": "0:3", "sequences": 8, "workload": WORKLOAD, "recipe": recipe,
        "execution": {"threads": 1, "spike": 1e6}, "device": Target(preset="a100-40gb"),
    }  # fmt: skip
    return InheritStudy(**values | given)
