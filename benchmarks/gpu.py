"""Serve Morph's 1B family on a GPU: Lathe's eager and graph engines beside Transformers' `generate`.

Run it as `python benchmarks/gpu.py [--save]` on a machine with a CUDA device: about ten minutes, most of them
compilation. Shapes of about 1.1 to 1.7 billion params from 24 layers to 12 (Bian et al. 2025, arXiv:2501.18107), batch
1, 128 prompt and 256 new tokens, bf16, random weights. The bound is what a decoding step must read, its weights but for
the unused rows of the embedding, at the rate of a large sum on the same device. The device preset's predictions, after
calibrating on the first and the last shape, are set beside the rest.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from _report import clock, publish, row

SHAPES = tuple(f"scale_open_lm_1b_v{n}" for n in (1, 2, 3, 6, 8))
PEERS = (("lathe", "eager"), ("lathe", "graph"), ("hf", "eager"))


def measure_stream() -> float:
    """Measure how fast a large sum reads the device's memory, in bytes per second."""
    import torch

    large = torch.ones(2**30, dtype=torch.bfloat16, device="cuda")

    def once() -> None:
        large.sum(dtype=torch.float32)
        torch.cuda.synchronize()

    seconds, _ = clock(once, repeats=9)
    return large.nbytes / seconds


def measure_shape(name: str, *, stream: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Serve one shape with every peer; returns its rows, and Lathe's measurements by engine."""
    from lathe.bench.measure import measure
    from lathe.presets.shapes import load_shape
    from lathe.workload import Workload

    shape, work = load_shape(name), Workload(batch=1, prompt_tokens=128, new_tokens=256, dtype="bf16")
    found = {
        f"{backend} {engine}": measure(shape, work, engine=engine, backend=backend, device="cuda", runs=5)
        for backend, engine in PEERS
    }
    hf, graph = found["hf eager"], found["lathe graph"]
    read_bytes = shape.weight_bytes("bf16") - 2.0 * shape.vocab_size * shape.d_model
    step_s = graph.decode_s / (work.new_tokens - 1)
    what = f"{name} {shape.d_model}×{shape.n_layers}"
    rows = [
        row(f"{what}: Lathe eager, total", found["lathe eager"].total_s, "s", peer="hf", peer_value=hf.total_s),
        row(f"{what}: Lathe graph, total", graph.total_s, "s", peer="hf generate", peer_value=hf.total_s),
        row(f"{what}: Lathe graph, decoding", graph.decode_s, "s", peer="hf generate", peer_value=hf.decode_s),
        row(f"{what}: share of the streaming rate", read_bytes / step_s / stream, "1"),
        row(f"{what}: preparing graph", graph.prepare_s or 0.0, "s"),
    ]
    return rows, found


def compare_predictions(measured: dict[str, dict[str, Any]], device_name: str) -> list[dict[str, Any]]:
    """Calibrate a preset on the first and the last shape, and set its predictions of the others beside them."""
    from lathe.latency.calibrate import calibrate
    from lathe.latency.roofline import predict_latency
    from lathe.presets.devices import load_device
    from lathe.presets.shapes import load_shape
    from lathe.workload import Workload

    rows, work = [], Workload(batch=1, prompt_tokens=128, new_tokens=256, dtype="bf16")
    for engine in ("eager", "graph"):
        times = {name: found[f"lathe {engine}"] for name, found in measured.items()}
        ends = [SHAPES[0], SHAPES[-1]]
        table = {
            "shape": ends, "prompt_tokens": 128, "new_tokens": 256, "dtype": "bf16", "engine": engine,
            "prefill_s": [times[n].prefill_s for n in ends], "decode_s": [times[n].decode_s for n in ends],
        }  # fmt: skip
        device = calibrate(table, load_device(device_name)).device
        for name in SHAPES[1:-1]:
            predicted = predict_latency(load_shape(name), device=device, workload=work, engine=engine)
            what = f"{name}: predicted total, {engine}"
            rows.append(row(what, predicted.total_s, "s", peer="measured", peer_value=times[name].total_s))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--device", default="h100", help="the preset to calibrate (see `lathe devices`)")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and torch finds none")
    stream = measure_stream()
    rows, measured = [row("a large sum reads", stream, "B/s")], {}
    for name in SHAPES:
        found, measured[name] = measure_shape(name, stream=stream)
        rows += found
    rows += compare_predictions(measured, given.device)
    publish(f"gpu-{torch.cuda.get_device_name().lower().replace(' ', '-')}", rows, save=given.save)


if __name__ == "__main__":
    main()
