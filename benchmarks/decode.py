"""Decode on this CPU with Lathe's engines, Transformers' `generate` and llama.cpp, side by side in one run.

Run it as `python benchmarks/decode.py [--save] [--rounds 9] [--shapes 512x8 …]`. Batch 1, 128 prompt and 64 new tokens,
fp32, 2 threads, the same random weights for all. The time is decoding's alone: 63 steps. Rounds are interleaved, and
every figure is a median over them. The bound is what a step must read, its weights but for the unused rows of the
embedding, at the rate of a large sum. Memory can be fast one second and slow the next, so each run of compile is set
against the sums just before and after it. llama.cpp (llama-cpp-python) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("BENCH_THREADS", "2")

from _report import clock, publish, row

THREADS = int(os.environ["BENCH_THREADS"])
SHAPES = ("512x8", "640x3", "384x22")
VOCAB_SIZE, D_HEAD = 8192, 64
PROMPT_TOKENS, NEW_TOKENS = 128, 64
PEERS = (("hf", "eager"), ("lathe", "eager"), ("lathe", "compile"), ("llama.cpp", "graph"))


def measure_shape(name: str, *, rounds: int) -> tuple[list[dict[str, Any]], float]:
    """Measure one shape with every peer; returns its rows, and how many times faster compile is than Transformers."""
    import torch

    from lathe.bench.backends import BACKENDS, check_job
    from lathe.bench.job import Job, Target
    from lathe.errors import LatheError
    from lathe.shape import Shape
    from lathe.workload import Workload

    d_model, n_layers = map(int, name.split("x"))
    shape = Shape.of(d_model=d_model, n_layers=n_layers, n_heads=d_model // D_HEAD, vocab_size=VOCAB_SIZE)
    work = Workload(batch=1, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS, dtype="fp32")
    read_bytes = shape.weight_bytes("fp32") - 4.0 * VOCAB_SIZE * d_model
    sessions, times, tokens = {}, {}, {}
    with ExitStack() as stack:
        for backend, engine in PEERS:
            label = f"{backend} {engine}"
            job = Job(target=Target(name=name, shape=shape), workload=work, engine=engine, device=torch.device("cpu"))
            try:
                check_job(job, backend=backend)
                sessions[label] = stack.enter_context(BACKENDS[backend].open(job))
            except LatheError as error:
                print(f"{label} is left out: {error}", file=sys.stderr)
        for _ in range(2):  # warm up
            tokens = {label: session.once().tokens for label, session in sessions.items()}
        large, shares = torch.ones(2**26), []
        for _ in range(rounds):
            for label, session in sessions.items():
                before_s, _ = clock(large.sum, repeats=3)
                times.setdefault(label, []).append(session.once().decode_s / (NEW_TOKENS - 1))
                after_s, _ = clock(large.sum, repeats=3)
                times.setdefault("a large sum", []).append((before_s + after_s) / 2)
                if label == "lathe compile":
                    shares.append(read_bytes / times[label][-1] / (large.nbytes / times["a large sum"][-1]))
    step_s = {label: statistics.median(values) for label, values in times.items()}
    stream = large.nbytes / step_s["a large sum"]
    compiled, hf = step_s["lathe compile"], step_s["hf eager"]
    rows = [
        row(f"{name}: Lathe eager, a step", step_s["lathe eager"], "s", peer="hf generate", peer_value=hf),
        row(f"{name}: Lathe compile, a step", compiled, "s", peer="hf generate", peer_value=hf),
        row(f"{name}: compile's reading rate", read_bytes / compiled, "B/s", peer="a large sum", peer_value=stream),
        row(f"{name}: share of the streaming rate, median of paired", statistics.median(shares), "1"),
        row(f"{name}: preparing compile", sessions["lathe compile"].prepare_s, "s"),
    ]
    if "llama.cpp graph" in step_s:
        peer_s = step_s["llama.cpp graph"]
        rows.append(row(f"{name}: Lathe compile, a step", compiled, "s", peer="llama.cpp F32", peer_value=peer_s))
    for label, found in tokens.items():
        same = sum(a == b for a, b in zip(found[0], tokens["hf eager"][0], strict=True))
        rows.append(row(f"{name}: {label}, greedy tokens as Transformers'", same, f"of {NEW_TOKENS}"))
    return rows, hf / compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="WIDTHxDEPTH")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    rows, ratios = [], []
    for name in given.shapes:
        found, ratio = measure_shape(name, rounds=given.rounds)
        rows += found
        ratios.append(ratio)
    rows.append(row("compile over hf generate, geometric mean", statistics.geometric_mean(ratios), "times"))
    publish("decode", rows, save=given.save)


if __name__ == "__main__":
    main()
