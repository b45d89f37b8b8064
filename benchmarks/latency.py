"""Set latency predictions for three published shapes beside GenZ's and beside what was measured.

Run it as `python benchmarks/latency.py [--save]`. The shapes are Open-LM-1B (2048×24), Morph-1B-v2 (2560×16) and
Morph-1B (3072×12) on an A100-40GB, batch 1, 128 prompt and 256 new tokens, bf16; the measured latencies are those that
Bian et al. 2025, arXiv:2501.18107, report with Hugging Face's `generate`. The preset a100-40gb takes its launch and
step overheads from the first and the last of them, so only 2560×16 is a prediction.

The peer is the PyPI package `genz-llm` (GenZ, Bambhaniya et al. 2024, arXiv:2406.01698), in the extra `bench`; without
it its rows are left out. GenZ is a roofline at full peak rates (`system_eff=1`, its default) without launch overhead,
so its like is Lathe's `graph` engine, not `eager`. Its decoding latency is one step's, and linear in the context: the
middle step's is taken 255 times.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import warnings
from typing import Any

from _report import clock, publish, row

from lathe.latency.roofline import predict_latency
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.shape import Shape
from lathe.workload import Workload

MEASURED = {"m1b_neox": 3.61, "scale_open_lm_1b_v3": 2.57, "scale_open_lm_1b_v8": 1.96}
"""Seconds, by the preset's name."""
GENZ_SYSTEM = "A100_40GB_GPU"
ASKED = Workload()


def predict_with_genz(shape: Shape) -> tuple[float, float]:
    """Give GenZ's seconds for the prompt, and for all decoding steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from GenZ import ModelConfig, decode_moddeling, prefill_moddeling  # pyright: ignore[reportMissingImports]

        model = ModelConfig(
            model=f"lathe-{shape.d_model}x{shape.n_layers}", vocab_size=shape.vocab_size, hidden_size=shape.d_model,
            intermediate_size=shape.d_ff, num_ffi=2, num_decoder_layers=shape.n_layers,
            num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads, head_dim=shape.d_head,
        )  # fmt: skip
        asked = {"model": model, "batch_size": ASKED.batch, "system_name": GENZ_SYSTEM, "bits": ASKED.dtype}
        steps = ASKED.new_tokens - 1
        prompt = prefill_moddeling(input_tokens=ASKED.prompt_tokens, **asked)
        step = decode_moddeling(input_tokens=ASKED.prompt_tokens, output_tokens=(steps + 1) // 2, Bb=1, **asked)
    return float(prompt["Latency"]) / 1e3, steps * float(step["Latency"]) / 1e3


def compare(name: str, measured_s: float, *, genz: str | None) -> list[dict[str, Any]]:
    """Compare one shape's predictions with each other and with the measurement."""
    shape, device = load_shape(name), load_device("a100-40gb")
    what, published = f"{shape.d_model}×{shape.n_layers}", "published, Hugging Face generate"

    def ours(engine: str) -> Any:
        return predict_latency(shape, device=device, workload=ASKED, engine=engine)

    eager, graph = ours("eager"), ours("graph")
    rows = [
        row(f"{what}: Lathe eager, total", eager.total_s, "s", peer=published, peer_value=measured_s),
        row(f"{what}: Lathe graph, total", graph.total_s, "s", peer=published, peer_value=measured_s),
    ]
    if genz is None:
        return rows
    prefill_s, decode_s = predict_with_genz(shape)
    seconds, _ = clock(lambda: ours("eager"), repeats=30)
    theirs, _ = clock(lambda: predict_with_genz(shape), repeats=5)
    return [
        *rows,
        row(f"{what}: {genz}, total", prefill_s + decode_s, "s", peer=published, peer_value=measured_s),
        row(f"{what}: Lathe graph, prefill", graph.prefill_s, "s", peer=genz, peer_value=prefill_s),
        row(f"{what}: Lathe graph, decoding", graph.decode_s, "s", peer=genz, peer_value=decode_s),
        row(f"{what}: one prediction of Lathe's", seconds, "s", peer=genz, peer_value=theirs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    given = parser.parse_args()
    genz = None
    if importlib.util.find_spec("GenZ") is None:
        print("the package genz-llm is not here, so its rows are left out: pip install 'lathe[bench]'", file=sys.stderr)
    else:
        genz = f"genz-llm {importlib.metadata.version('genz-llm')}"
    rows = [line for name, measured_s in MEASURED.items() for line in compare(name, measured_s, genz=genz)]
    publish("latency", rows, save=given.save)


if __name__ == "__main__":
    main()
