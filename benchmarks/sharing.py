"""Set layers that are visited twice beside as many and twice as many of their own: bytes, time, and prediction.

Run it as `python benchmarks/sharing.py [--save]` on a machine with nothing else to do: it takes four minutes. For
each of SIZES, k blocks are served as they are, visited twice in every pattern, and as 2·k blocks of their own: Lathe's
eager engine, batch 1, 32 prompt and 64 new tokens, fp32, 2 threads, vocabulary 4096. The k blocks are beyond the
processor's cache, a single one is not, or nearly so. Bytes are those of the tensors themselves. The device is probed,
then calibrated on CALIBRATED, shapes of other widths which share nothing, and its predictions are set beside what was
measured. All models stay open and take turns, back and forth, so that a neighbour's work disturbs all of them alike;
each time is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

os.environ.setdefault("BENCH_THREADS", "2")

from _report import publish, row

from lathe.device import Device
from lathe.latency.calibrate import calibrate
from lathe.latency.roofline import predict_latency
from lathe.shape import Shape
from lathe.workload import Workload

THREADS = int(os.environ["BENCH_THREADS"])
ASKED = Workload(prompt_tokens=32, new_tokens=64, dtype="fp32")
SIZES = ((256, 12), (384, 6), (512, 4), (640, 3))
"""Width and k: 41 to 61 MB in the k blocks, 3.4, 7.1, 13.6 and 20.3 MB in one."""
CALIBRATED = ((128, 4), (128, 24), (320, 8), (768, 4))
PATTERNS = ("immediate", "reverse", "all-over")
ROUNDS, WARMUP = 15, 2
Times = Mapping[str, Sequence[float]]


def plain(d_model: int, n_layers: int) -> Shape:
    """Make a shape that shares nothing."""
    return Shape.of(d_model=d_model, n_layers=n_layers, n_heads=d_model // 64, vocab_size=4096)


def variants(d_model: int, k: int) -> dict[str, Shape]:
    """Name the shapes to compare, k blocks first and 2·k last."""
    few, many = plain(d_model, k), plain(d_model, 2 * k)
    shared = {f"{d_model}: 2×{k} {p}": replace(many, sharing=p, sharing_count=2) for p in PATTERNS}
    return {f"{d_model}: {k}": few, **shared, f"{d_model}: {2 * k}": many}


def measure_all(shapes: Mapping[str, Shape], rounds: int) -> tuple[Times, Times]:
    """Serve all shapes in turns; give every round's prefill and decode seconds of each."""
    import torch  # not above: `_report` must hold its threads first

    from lathe.bench.job import Job, Target
    from lathe.bench.native import open_lathe

    prefill_s: dict[str, list[float]] = {name: [] for name in shapes}
    decode_s: dict[str, list[float]] = {name: [] for name in shapes}
    with ExitStack() as stack:
        sessions = {}
        for name, shape in shapes.items():
            job = Job(target=Target(name=name, shape=shape), workload=ASKED, engine="eager", device=torch.device("cpu"))
            sessions[name] = stack.enter_context(open_lathe(job))
        for turn in range(WARMUP + rounds):
            print(f"round {turn + 1} of {WARMUP + rounds}", file=sys.stderr, flush=True)
            for name in list(sessions)[:: 1 if turn % 2 else -1]:
                trial = sessions[name].once()
                if turn >= WARMUP:
                    prefill_s[name].append(trial.prefill_s)
                    decode_s[name].append(trial.decode_s)
    return prefill_s, decode_s


def calibrate_here(prefill_s: Times, decode_s: Times, shapes: Mapping[str, Shape]) -> Device:
    """Probe this machine, and fit its overheads and fractions to the shapes that share nothing."""
    from lathe.bench.probe import probe_device

    device = probe_device(threads=THREADS)
    table = {
        "shape": list(shapes.values()),
        **{name: getattr(ASKED, name) for name in ("batch", "prompt_tokens", "new_tokens", "dtype")},
        "prefill_s": [statistics.median(prefill_s[name]) for name in shapes],
        "decode_s": [statistics.median(decode_s[name]) for name in shapes],
    }
    found = calibrate(table, device)
    numbers = {n: getattr(found.device, n) for n in ("bytes_per_s", "cache_bytes", "cache_bytes_per_s", *found.fitted)}
    print(", ".join(f"{name} {value:.4g}" for name, value in numbers.items()), file=sys.stderr)
    for one in found.residuals:
        print(f"calibrated on {one.name}: {one.phase} {one.error:+.1%}", file=sys.stderr)
    return found.device


def count_bytes(shape: Shape) -> tuple[float, float]:
    """Size the tensors themselves: a model's weights, and its cache for the whole context."""
    import torch

    from lathe.model.cache import KVCache
    from lathe.model.checkpoint import empty_model

    cache = KVCache.allocate(shape, batch=1, slots=ASKED.context, dtype=torch.float32, device="meta")
    weights = empty_model(shape).parameters()
    return sum(4.0 * p.numel() for p in weights), sum(4.0 * x.numel() for x in (*cache.keys, *cache.values))


def report(shapes: Mapping[str, Shape], decode_s: Times, device: Device) -> tuple[list[dict[str, Any]], list[float]]:
    """Make the rows of one width, and give the errors of its predictions."""
    (few, *shared, many), rows, errors = shapes, [], []
    measured_s = {name: statistics.median(decode_s[name]) / (ASKED.new_tokens - 1) for name in shapes}
    for name in (few, *shared, many):
        decode = predict_latency(shapes[name], device=device, workload=ASKED).decode_s / (ASKED.new_tokens - 1)
        errors.append(decode / measured_s[name] - 1)
        rows.append(row(f"{name}: predicted a token", decode, "s", peer="measured", peer_value=measured_s[name]))
    for name in shared:
        weights, cached = count_bytes(shapes[name])
        rows += [
            row(f"{name}: weights", weights, "bytes", peer=few, peer_value=count_bytes(shapes[few])[0]),
            row(f"{name}: keys and values", cached, "bytes", peer=many, peer_value=count_bytes(shapes[many])[1]),
        ]
        way = (measured_s[name] - measured_s[few]) / (measured_s[many] - measured_s[few])
        rows.append(row(f"{name}: its time's way from {few} to {many}", way, "1"))
    return rows, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often to serve each of them")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    known = {f"{d}×{n}": plain(d, n) for d, n in CALIBRATED}
    asked = [variants(d, k) for d, k in SIZES]
    prefill_s, decode_s = measure_all({**known, **{n: s for part in asked for n, s in part.items()}}, given.rounds)
    device = calibrate_here(prefill_s, decode_s, known)
    rows, errors = [], []
    for part in asked:
        more, off = report(part, decode_s, device)
        rows, errors = rows + more, errors + off
    worst = max(map(abs, errors))
    largest = row("largest error of a predicted token", worst, "1")
    mean = row("mean error of a predicted token", statistics.mean(map(abs, errors)), "1")
    publish("sharing", [largest, mean, *rows], save=given.save)


if __name__ == "__main__":
    main()
