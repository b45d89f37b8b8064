"""Set predicted latencies beside measured ones on this CPU, after calibrating on three shapes.

Run it as `python benchmarks/predict.py [--save]` on a machine with nothing else to do: it takes about four minutes.
Everything is measured in two rounds, and of each shape the quieter one counts: a neighbour's work disturbs minutes, and
shapes measured in other minutes could not be compared. The device is probed first (its matmul and streaming rates),
then calibrated on CALIBRATED, and its predictions for SHAPES are set against what `measure` finds: Lathe's eager
engine, batch 1, 128 prompt and 64 new tokens, fp32, 2 threads, vocabulary 8192. Both lists keep head dim 64 and
OpenLM's d_ff; SHAPES span 8× in depth and 8× in width.

`--shapes N` takes the first N of SHAPES only, to see that everything runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("BENCH_THREADS", "2")

from _report import publish, row

from lathe.bench.compare import Comparison, compare
from lathe.bench.measure import measure
from lathe.bench.probe import probe_device
from lathe.bench.rows import Measurement
from lathe.latency.calibrate import calibrate
from lathe.shape import Shape
from lathe.workload import Workload

THREADS = int(os.environ["BENCH_THREADS"])
ASKED = Workload(prompt_tokens=128, new_tokens=64, dtype="fp32")
CALIBRATED = ((192, 18), (512, 6), (896, 6))
"""Width and depth: launches bind the first, memory the last."""
SHAPES = (
    (128, 3), (128, 24), (1024, 3), (256, 8), (512, 12), (768, 6), (256, 3), (256, 24), (384, 6), (384, 16), (512, 3),
    (640, 4), (640, 12), (768, 3), (1024, 6),
)  # fmt: skip
RUNS, ROUNDS = 3, 2


def measure_all(sizes: Sequence[tuple[int, int]]) -> list[Measurement]:
    """Measure shapes by width and depth, in ROUNDS over all of them; of each, the quickest round counts."""
    rounds = [[measure_one(width, depth) for width, depth in sizes] for _ in range(ROUNDS)]
    return [min(repeats, key=lambda m: m.latency.total_s) for repeats in zip(*rounds, strict=True)]


def measure_one(width: int, depth: int) -> Measurement:
    """Measure one shape, and say it on stderr."""
    shape = Shape.of(d_model=width, n_layers=depth, n_heads=width // 64, vocab_size=8192)
    latency = measure(shape, ASKED, engine="eager", threads=THREADS, runs=RUNS)
    settled = "" if latency.steady else ", never settled"
    print(
        f"{width}×{depth}: {latency.total_s:.4g} s, spread {latency.spread:.0%}, warm-up {latency.warmup_runs} of"
        f" {latency.warmup_runs + (latency.runs or 0)} runs{settled}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return Measurement(name=f"{width}×{depth}", shape=shape, workload=ASKED, latency=latency)


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
