"""Measure what it takes to analyse a model of GPT-2 medium's size with random weights: peak memory and time.

Run it as `python benchmarks/analyse.py [--save]`. 24 layers, 16 heads, 1024 wide, 50257 words, 100 sequences of 100
tokens, fp32, on the CPU with two threads. Every variant runs in a process of its own, which loads the checkpoint as
`lathe analyse` does: with the loss after every layer and without. Peak memory is the process's resident memory. Beside
it, ranks of 100 × 100 attention by eigenvalues are set against numpy's singular value decomposition, and must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("BENCH_THREADS", "2")

from _report import clock, publish, row

LAYERS, HEADS, D_MODEL, VOCAB = 24, 16, 1024, 50257
SEQUENCES, SEQ_LEN = 100, 100
LIMIT_BYTES = 4e9
MATRICES = 512
VARIANTS = {"lens": "with the loss after every layer", "plain": "without"}


def write_model(folder: Path) -> None:
    """Write a checkpoint of GPT-2 medium's shape with drawn weights."""
    from lathe.model.checkpoint import save_checkpoint
    from lathe.model.init import build
    from lathe.shape import Shape

    shape = Shape.of(
        d_model=D_MODEL, n_layers=LAYERS, n_heads=HEADS, d_ff=4 * D_MODEL, vocab_size=VOCAB, tied=True,
        norm="layernorm", mlp="gelu-tanh", position="learned", bias="all", max_seq_len=1024,
    )  # fmt: skip
    save_checkpoint(folder, shape, build(shape, scheme="gpt2", seed=0).state_dict())


def analyse_here(folder: Path, *, lens: bool) -> dict[str, float]:
    """Analyse a checkpoint in this process: its peak resident memory, and the time after loading."""
    import torch

    from lathe.evals.analyse import analyse
    from lathe.model.checkpoint import load_model

    model = load_model(folder)
    tokens_nt = torch.randint(VOCAB, (SEQUENCES, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    found = analyse(model, tokens_nt, name="gpt2-medium", dataset="random ids", lens=lens)
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_bytes": float(peak), "seconds": seconds, "flops": found.flops}


def measure(folder: Path, variant: str) -> dict[str, float]:
    """Measure one variant in a fresh process."""
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare_ranks() -> tuple[float, float]:
    """Time ranks of random attention beside those of numpy's decomposition, in seconds a matrix."""
    import numpy as np
    import torch

    from lathe.evals.spectrum import attention_rank

    scores = 3 * torch.randn(MATRICES, SEQ_LEN, SEQ_LEN, generator=torch.Generator().manual_seed(0))
    unseen = ~torch.ones(SEQ_LEN, SEQ_LEN, dtype=torch.bool).tril()
    weights_ntt = scores.masked_fill(unseen, float("-inf")).softmax(-1)

    def decompose() -> list[int]:
        squares = np.linalg.svd(weights_ntt.double().numpy(), compute_uv=False) ** 2
        return ((squares.cumsum(-1) < 0.9 * squares.sum(-1, keepdims=True)).sum(-1) + 1).tolist()

    ours, ranks = clock(lambda: attention_rank(weights_ntt), repeats=3)
    theirs, wanted = clock(decompose, repeats=3)
    if ranks.tolist() != wanted:
        raise AssertionError("ranks are not those of the singular value decomposition")
    return ours / MATRICES, theirs / MATRICES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one in this process and print its figures")
    parser.add_argument("--folder", type=Path, help="with --variant: the checkpoint")
    given = parser.parse_args()
    if given.variant is not None:
        print(json.dumps(analyse_here(given.folder, lens=given.variant == "lens")))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", f"import analyse; analyse.write_model(analyse.Path({folder!r}))"],
            cwd=Path(__file__).parent, check=True,
        )  # fmt: skip
        for variant, what in VARIANTS.items():
            found = measure(Path(folder), variant)
            rows += [
                row(f"peak resident memory, {what}", found["peak_bytes"] / 1e9, "GB", peer="limit",
                    peer_value=LIMIT_BYTES / 1e9),
                row(f"time, {what}", found["seconds"], "s"),
                row(f"speed, {what}", found["flops"] / found["seconds"] / 1e9, "GFLOPs/s"),
            ]  # fmt: skip
    ours, theirs = compare_ranks()
    rows.append(
        row("rank of a 100 × 100 matrix", 1e3 * ours, "ms", peer="numpy.linalg.svd, fp64", peer_value=1e3 * theirs)
    )
    publish("analyse", rows, save=given.save)


if __name__ == "__main__":
    main()
