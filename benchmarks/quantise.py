"""Show what int8 and int4 weights cost in quality and what they bring in speed on this CPU.

Run it as `python benchmarks/quantise.py [--save]` on a machine with nothing else to do: some five minutes, half of
them compiling; what was compiled is kept for the next time.

Quality, on a small trained model (stories260K, 260 thousand weights, tied: its embedding is never quantised) and
TinyStories text, both read from shared/data beside the checkout, and its rows left out where that is not there: the
divergence of the next token's distribution from fp32's, KL(fp32 ‖ other), and perplexity. int4 shares scales in groups
of 32 inputs, so zeros widen the model's d_ff from 172 to 192: its function stays the same, in every row.

Speed, on random weights of D_MODEL × LAYERS: decoding at batch 1 through Lathe's eager and compiled engines, the
variants side by side round after round. Of ROUNDS short ones the quickest counts, since a neighbour's work only ever
adds time; standard error also names the median.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("BENCH_THREADS", "2")

from _report import publish, row

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.bench.conditions import use_threads
from lathe.bench.job import Job, find_target
from lathe.bench.native import open_lathe
from lathe.hub.importing import import_checkpoint
from lathe.model.checkpoint import load_model, load_shape_of, load_tokenizer, read_tensors, save_checkpoint
from lathe.model.quantise import GROUP
from lathe.shape import Shape
from lathe.workload import Workload

DATA = Path(__file__).resolve().parents[2] / "shared/data"
MODEL, TEXT = DATA / "weights/stories260K_hf", DATA / "text/tinystories_sample.txt"
WINDOW, WINDOWS_AT_ONCE = 256, 32
D_MODEL, LAYERS, VOCAB = 512, 8, 8192
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 128, 16, 40
DTYPES = ("fp32", "bf16", "int8", "int4")
THREADS = int(os.environ["BENCH_THREADS"])


def widen(folder: Path, out: Path) -> None:
    """Write the checkpoint again with a d_ff that int4's groups divide; the new hidden units are zero."""
    shape, weights = load_shape_of(folder), read_tensors(folder / "model.safetensors")
    more = -shape.d_ff % GROUP
    sides = {"mlp.gate.weight": (0, 0, 0, more), "mlp.up.weight": (0, 0, 0, more), "mlp.down.weight": (0, more)}
    for name, weight in weights.items():
        side = next((side for ending, side in sides.items() if name.endswith(ending)), None)
        weights[name] = weight if side is None else F.pad(weight, side)
    save_checkpoint(out, dataclasses.replace(shape, d_ff=shape.d_ff + more), weights, companions=folder)


def read_windows(folder: Path) -> Tensor:
    """Cut the sample's tokens, without special ones, in windows of WINDOW; the rest is left out."""
    ids = load_tokenizer(folder).encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


def compare_quality(folder: Path) -> dict[str, tuple[float, float]]:
    """Give each dtype's mean KL from fp32 and its mean loss, both in nats a token."""
    models = {dtype: load_model(folder, dtype=dtype) for dtype in DTYPES}
    sums = {dtype: [0.0, 0.0] for dtype in DTYPES}
    tokens_bt = read_windows(folder)
    for part_bt in tokens_bt.split(WINDOWS_AT_ONCE):
        found = {dtype: model(part_bt[:, :-1]).float().log_softmax(-1) for dtype, model in models.items()}
        for dtype, log_p in found.items():
            sums[dtype][0] += float((found["fp32"].exp() * (found["fp32"] - log_p)).sum())
            sums[dtype][1] -= float(log_p.gather(2, part_bt[:, 1:, None]).sum())
    count = tokens_bt[:, 1:].numel()
    print(f"{count} tokens of {TEXT.name}, in windows of {WINDOW}", file=sys.stderr)
    return {dtype: (divergence / count, loss / count) for dtype, (divergence, loss) in sums.items()}


def show_quality() -> Iterator[dict[str, Any]]:
    """Make the rows of quality, if the data is there."""
    if not (MODEL.is_dir() and TEXT.is_file()):
        print("no shared/data beside the checkout: the rows of quality are left out", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary:
        narrow, folder = Path(temporary) / "narrow", Path(temporary) / "wide"
        import_checkpoint(MODEL, narrow)
        widen(narrow, folder)
        found = compare_quality(folder)
    plain = torch.tensor(found["fp32"][1]).exp().item()
    yield row("stories260K fp32, perplexity", plain, "")
    for dtype in DTYPES[1:]:
        divergence, loss = found[dtype]
        yield row(f"stories260K {dtype}, KL(fp32 ‖ {dtype})", divergence, "nats a token")
        perplexity = torch.tensor(loss).exp().item()
        yield row(f"stories260K {dtype}, perplexity", perplexity, "", peer="fp32", peer_value=plain)


def show_speed() -> Iterator[dict[str, Any]]:
    """Make the rows of speed: milliseconds and tokens a second of decoding, each engine's against its fp32."""
    shape = Shape.of(d_model=D_MODEL, n_layers=LAYERS, n_heads=D_MODEL // 64, vocab_size=VOCAB)
    target, cpu = find_target(shape), torch.device("cpu")
    seconds: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        sessions = {}
        for engine in ("eager", "compile"):
            for dtype in DTYPES:
                work = Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS, dtype=dtype)
                job = Job(target=target, workload=work, engine=engine, device=cpu)
                sessions[engine, dtype] = stack.enter_context(open_lathe(job))
                sessions[engine, dtype].once()
                print(f"ready: {engine} {dtype}, in {sessions[engine, dtype].prepare_s:.0f} s", file=sys.stderr)
        for _ in range(ROUNDS):
            for key, session in sessions.items():
                seconds.setdefault(key, []).append(session.once().decode_s / (NEW_TOKENS - 1))
    for (engine, dtype), found in seconds.items():
        what, each = f"{D_MODEL}×{LAYERS} {engine} {dtype}", min(found)
        print(f"{what}: the median of {ROUNDS} rounds is {statistics.median(found) * 1e3:.3g} ms", file=sys.stderr)
        if dtype == "fp32":
            yield row(f"{what}, a token", each * 1e3, "ms")
        else:
            plain = min(seconds[engine, "fp32"])
            yield row(f"{what}, a token", each * 1e3, "ms", peer=f"{engine} fp32", peer_value=plain * 1e3)
        yield row(f"{what}, decoding", 1 / each, "tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    given = parser.parse_args()
    with use_threads(THREADS), torch.inference_mode():
        rows = [*show_quality(), *show_speed()]
    publish("quantise", rows, save=given.save)


if __name__ == "__main__":
    main()
