"""Show that training learns as it should: beside Hugging Face's Trainer on the same batches, and over a grid of shapes.

Run it as `BENCH_THREADS=2 python benchmarks/learn.py [--save] [--only trainer|grid] [--tokens 10e6]`.

- trainer: a decoder of 2 M weights on 10 M tokens of the real text of wiki and books (../shared/data, a BPE of 2048
  tokens): the held-out loss of `lathe train` and of Trainer with the same shape, batches in the same order, schedule,
  optimiser and kind of first weights, which are drawn otherwise; both compiled. Held-out losses are by one function.
- grid: twelve tiny shapes on the built-in corpus, three token counts each by WSD branches, one order of data: how long
  it takes, and the error of the law fit to the table, with each shape left out in turn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _report import publish, row

# isort: split
import numpy as np
import torch
from torch import Tensor

from lathe.data.build import build_dataset
from lathe.data.builtin import builtin_input
from lathe.data.tokenizer import train_tokenizer
from lathe.evals.loss import held_out_loss
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.recipe import Data, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import train
from lathe.train.text import open_text

DATA = Path(__file__).parents[2] / "shared/data"
AIM_LOSS, AIM_GRID_S = 0.01, 240
SEQ_LEN, SEQUENCES, LR, WARMUP = 256, 16, 3e-3, 100


def make_recipe(data: Path, tokens: int) -> Recipe:
    """Make the recipe of 2 M weights."""
    shape = Shape.of(d_model=160, n_layers=5, n_heads=5, vocab_size=2048, max_seq_len=SEQ_LEN)
    return Recipe(
        shape=shape, tokens=tokens, seq_len=SEQ_LEN, batch_tokens=SEQUENCES * SEQ_LEN, lr=LR,
        data=Data(train=str(data), repeats=100), optimiser=Optimiser(decay="matrices"), init=Init(scheme="llama"),
        schedule=Schedule(name="cosine", warmup_steps=WARMUP, final=0.1),
    )  # fmt: skip


class InOrder(torch.utils.data.IterableDataset):
    """Give Trainer the sequences of Lathe's loader, in its order."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        loader = open_text(self.recipe).loader
        for step in range(self.recipe.steps):
            batch = loader.batch(step)
            for tokens, targets in zip(batch.tokens_bt, batch.targets_bt, strict=True):
                ids = torch.from_numpy(tokens)
                yield {"input_ids": ids, "labels": ids, "shift_labels": torch.from_numpy(targets)}


def train_theirs(recipe: Recipe, out: Path) -> float:
    """Train with Trainer; gives its model's held-out loss by Lathe's function."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    shape = recipe.shape
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, max_position_embeddings=SEQ_LEN,
            rms_norm_eps=shape.norm_eps, tie_word_embeddings=False, use_cache=False,
        )
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == shape.params
    optimiser = recipe.optimiser
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=SEQUENCES, max_steps=recipe.steps, learning_rate=recipe.lr,
        weight_decay=optimiser.weight_decay, adam_beta1=optimiser.beta1, adam_beta2=optimiser.beta2,
        max_grad_norm=recipe.clip or 0.0, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.schedule.final}, warmup_steps=WARMUP, optim="adamw_torch_fused",
        use_cpu=True, torch_compile=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        seed=0,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=InOrder(recipe)).train()
    model.eval()

    def losses(tokens_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None) -> Tensor:
        with torch.no_grad():
            logits = model(input_ids=tokens_bt).logits.flatten(0, 1)
        found = torch.nn.functional.cross_entropy(logits, targets_bt.flatten(), ignore_index=-1, reduction="none")
        return found.view_as(targets_bt)

    (split,) = open_text(recipe).validation.values()
    return held_out_loss(losses, split, seq_len=SEQ_LEN, batch_sequences=SEQUENCES).loss


def measure_trainer(tokens: int) -> list[dict[str, Any]]:
    """Train the same with both."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        texts = [DATA / "text/wiki.jsonl", DATA / "text/books.jsonl"]
        build_dataset(texts, tokenizer=DATA / "tokenizers/bpe2048.json", out=data, held_out=0.05)
        recipe = make_recipe(data, tokens)
        print(f"{recipe.shape.params:,} weights, {recipe.steps} steps", file=sys.stderr, flush=True)
        run = train(recipe, Execution(out=str(Path(folder) / "run"), log_every=200, compile=True))
        print(f"lathe: {run.loss}", file=sys.stderr, flush=True)
        theirs = train_theirs(recipe, Path(folder) / "theirs")
    name = f"Trainer {importlib.metadata.version('transformers')}"
    rows.append(row("held-out loss", run.loss, "nats", peer=name, peer_value=theirs))
    rows.append(row("standard error of it", run.loss_ses[run.validation], "nats"))
    rows.append(row("apart by", abs(run.loss / theirs - 1), "", peer="aim, at most", peer_value=AIM_LOSS))
    return rows


GRID = ((32, 1), (32, 4), (48, 2), (64, 1), (64, 3), (64, 8), (96, 1), (96, 4), (128, 1), (128, 3), (160, 2), (200, 1))
GRID_TOKENS = (100_000, 200_000, 400_000)


def train_one(data: Path, out: Path, d_model: int, n_layers: int) -> None:
    """Train one shape of the grid, at all token counts."""
    shape = Shape.of(
        d_model=d_model, n_layers=n_layers, n_heads=d_model // (16 if d_model % 16 == 0 else 8), vocab_size=1024,
        max_seq_len=128,
    )  # fmt: skip
    recipe = Recipe(
        shape=shape, tokens=GRID_TOKENS[-1], seq_len=128, batch_tokens=512, lr=4e-3 * math.sqrt(64 / d_model),
        data=Data(train=str(data)), optimiser=Optimiser(embedding_lr=2e-2),
        schedule=Schedule(name="wsd", warmup_steps=20, decay=0.2, final=0.0),
    )  # fmt: skip
    execution = Execution(
        out=str(out / f"{d_model}x{n_layers}"), runs=str(out / "runs.jsonl"), branch_at=GRID_TOKENS[:-1], threads=1,
        log_every=10**6, evaluate_sequences=32,
    )  # fmt: skip
    train(recipe, execution, report=lambda _: None)


def leave_out(runs: Any, form: str) -> list[dict[str, Any]]:
    """Predict each shape of the grid by the law of the others."""
    errors = []
    for d_model, n_layers in GRID:
        left_out = (runs["d_model"] == d_model) & (runs["n_layers"] == n_layers)
        law = fit(runs[~left_out], form, draws=0)
        errors += list(abs(law.predict(runs[left_out]) / runs[left_out]["loss"] - 1))
    numbers = {"mean": np.mean(errors), "median": np.median(errors), "largest": np.max(errors)}
    return [row(f"{form}: {name} error of a shape left out", float(value), "") for name, value in numbers.items()]


def measure_grid() -> list[dict[str, Any]]:
    """Train the grid, two shapes at a time on a core each, the largest first, and fit the law."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = builtin_input()
        train_tokenizer([text], vocab_size=1024, out=folder / "tokenizer.json")
        build_dataset([text], tokenizer=folder / "tokenizer.json", out=folder / "data", held_out=0.02)
        started = time.perf_counter()
        waiting = sorted(GRID, key=lambda size: size[0] ** 2 * size[1])
        running: list[subprocess.Popen[bytes]] = []
        while waiting or running:
            while waiting and len(running) < 2:
                size = ",".join(map(str, waiting.pop()))
                running.append(subprocess.Popen([sys.executable, __file__, "--one", size, "--folder", name]))
            running = [process for process in running if process.poll() is None]
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        runs = read_runs(folder / "runs.jsonl")
    assert len(runs) == len(GRID) * len(GRID_TOKENS)
    print(runs[["d_model", "n_layers", "tokens", "loss", "loss_se", "seconds"]].to_string(), file=sys.stderr)
    return [
        row(f"{len(GRID)} shapes × {len(GRID_TOKENS)} tokens", seconds, "s", peer="aim, most", peer_value=AIM_GRID_S),
        row("lowest loss", float(runs["loss"].min()), "nats"),
        row("highest loss", float(runs["loss"].max()), "nats"),
        *(found for form in ("auto", "width-depth") for found in leave_out(runs, form)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--only", choices=("trainer", "grid"), help="measure this alone")
    parser.add_argument("--tokens", type=float, default=10e6, help="of the comparison with Trainer")
    parser.add_argument("--one", help="train one shape of the grid, as width,depth")
    parser.add_argument("--folder", type=Path, help="with --one: where data and runs are")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one:
        d_model, n_layers = map(int, given.one.split(","))
        train_one(given.folder / "data", given.folder, d_model, n_layers)
        return
    rows = []
    if given.only != "trainer":
        rows += measure_grid()
    if given.only != "grid":
        if not DATA.is_dir():
            sys.exit("needs the real data in a folder shared/data beside the checkout; it is not there")
        rows += measure_trainer(round(given.tokens))
    publish("learn" if given.only is None else f"learn-{given.only}", rows, save=given.save)


if __name__ == "__main__":
    main()
