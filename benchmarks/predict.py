"""Set predicted latencies beside measured ones on this CPU, after calibrating on three shapes.

Run it as `python benchmarks/predict.py [--save]` on a machine with nothing else to do: it takes three minutes. The
device is probed first (its matmul and streaming rates), then calibrated on CALIBRATED, and its predictions for SHAPES
are set against what serving them takes: Lathe's eager engine, batch 1, 128 prompt and 64 new tokens, fp32, 2 threads,
vocabulary 8192. All shapes stay open and take turns, one run each a round, so that a neighbour's work that disturbs a
minute disturbs all of them alike; each time is the median over the rounds. Both lists keep head dim 64 and OpenLM's
d_ff; SHAPES span 8× in depth and 8× in width.

`--shapes N` takes the first N of SHAPES only, to see that everything runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

os.environ.setdefault("BENCH_THREADS", "2")

from _report import publish, row

from lathe.bench.compare import Comparison, compare
from lathe.bench.job import Job, Target
from lathe.bench.native import open_lathe
from lathe.bench.probe import probe_device
from lathe.bench.rows import Measurement
from lathe.bench.steady import Sample, Trial
from lathe.latency.calibrate import calibrate
from lathe.shape import Shape
from lathe.workload import Latency, Workload

THREADS = int(os.environ["BENCH_THREADS"])
ASKED = Workload(prompt_tokens=128, new_tokens=64, dtype="fp32")
CALIBRATED = ((128, 3), (128, 24), (1024, 12))
"""Width and depth: corners of the grid, so that a step's cost, launches and memory can be told apart."""
SHAPES = tuple(
    (width, depth)
    for width in (128, 256, 512, 1024)
    for depth in (3, 6, 12, 24)
    if (width, depth) not in (*CALIBRATED, (1024, 24))  # the last takes as long as all others together
)
ROUNDS, WARMUP = 10, 1


def measure_all(sizes: Sequence[tuple[int, int]]) -> list[Measurement]:
    """Serve shapes of these widths and depths in turns, and give each one's median times."""
    import torch  # not above: `_report` must hold its threads first

    shapes = [Shape.of(d_model=d, n_layers=n, n_heads=d // 64, vocab_size=8192) for d, n in sizes]
    names = [f"{d}×{n}" for d, n in sizes]
    trials: list[list[Trial]] = [[] for _ in sizes]
    with ExitStack() as stack:
        sessions = []
        for name, shape in zip(names, shapes, strict=True):
            job = Job(target=Target(name=name, shape=shape), workload=ASKED, engine="eager", device=torch.device("cpu"))
            sessions.append(stack.enter_context(open_lathe(job)))
        for turn in range(WARMUP + ROUNDS):
            found = [session.once() for session in sessions]
            print(f"round {turn + 1}: {sum(t.total_s for t in found):.1f} s", file=sys.stderr, flush=True)
            if turn >= WARMUP:
                for kept, trial in zip(trials, found, strict=True):
                    kept.append(trial)
    return [
        Measurement(name=name, shape=shape, workload=ASKED, latency=summarise(shape, kept))
        for name, shape, kept in zip(names, shapes, trials, strict=True)
    ]


def summarise(shape: Shape, trials: Sequence[Trial]) -> Latency:
    """Put the medians of a shape's runs into the word that predictions use."""
    sample = Sample(trials=tuple(trials), warmup_runs=WARMUP, steady=True)
    return Latency(
        prefill_s=sample.median("prefill_s"), decode_s=sample.median("decode_s"), engine="eager", backend="lathe",
        weight_bytes=shape.weight_bytes("fp32"), kv_bytes=shape.kv_bytes(1, ASKED.context, "fp32"),
        activation_bytes=0.0, tokens_per_s=ASKED.new_tokens / sample.median("total_s"), spread=sample.spread,
        runs=len(trials),
    )  # fmt: skip


def show(found: Comparison) -> None:
    """Say each error on stderr."""
    errors = zip(*(found.errors(phase) for phase in ("prefill_s", "decode_s", "total_s")), strict=True)
    for one, (prefill, decode, total) in zip(found.measured, errors, strict=True):
        print(f"{one.name}: prefill {prefill:+.1%}, decode {decode:+.1%}, total {total:+.1%}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of SHAPES to take")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    device = probe_device(threads=THREADS)
    rates = f"{device.flops_per_s['fp32'] / 1e9:.3g} GFLOP/s, {device.bytes_per_s / 1e9:.3g} GB/s"
    print(f"probed: {rates}, {device.launch_s * 1e6:.3g} µs a launch", file=sys.stderr)
    measured = measure_all((*CALIBRATED, *SHAPES[: given.shapes]))
    known = measured[: len(CALIBRATED)]
    table = {
        "shape": [one.shape for one in known],
        **{name: getattr(ASKED, name) for name in ("batch", "prompt_tokens", "new_tokens", "dtype")},
        **{phase: [getattr(one.latency, phase) for one in known] for phase in ("prefill_s", "decode_s")},
    }
    fitted = calibrate(table, device)
    numbers = ", ".join(f"{name} {getattr(fitted.device, name):.4g}" for name in fitted.fitted)
    print(f"calibrated: {numbers}; assumed: {', '.join(fitted.assumed)}", file=sys.stderr)
    found = compare(measured[len(CALIBRATED) :], fitted.device)
    show(compare(known, fitted.device))
    show(found)
    on = f"{len(found.measured)} shapes, calibrated on {len(known)}"
    errors = found.errors("total_s")
    rows = [
        row(f"mean absolute error of the total, {on}", found.mean_error(), "1"),
        row("largest absolute error of the total", max(map(abs, errors)), "1"),
        row("mean absolute error of decoding", found.mean_error("decode_s"), "1"),
        row("mean absolute error of the first token", found.mean_error("prefill_s"), "1"),
        *([] if found.spearman is None else [row("Spearman, predicted and measured totals", found.spearman, "1")]),
        *(
            row(f"{one.name}: predicted total", predicted.total_s, "s", peer="measured", peer_value=one.latency.total_s)
            for one, predicted in zip(found.measured, found.predicted, strict=True)
        ),
    ]
    publish("predict", rows, save=given.save)


if __name__ == "__main__":
    main()
