"""Set the memory of a training step with chunked losses beside that with whole fp32 logits, Lathe's and Hugging Face's.

Run it as `python benchmarks/memory.py [--save]`. One step, forward, backward and AdamW, of a Llama-type decoder with a
vocabulary of 50432, 256 wide and 4 deep (29 M weights), on 4 sequences of 512 tokens, fp32, on the CPU. Every variant
runs in a process of its own. Two measures: the most bytes that torch's allocator held at once, by torch's profiler in a
run of its own (weights, gradients and the optimiser's state included), and the growth of the process's peak resident
memory over what it took to import and to build nothing. The peer `transformers` is in the extra `hf`; without it its
rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from _report import publish, row

VOCAB, D_MODEL, LAYERS, HEADS, D_FF = 50432, 256, 4, 4, 768
BATCH, SEQ_LEN = 4, 512
AIM = 0.6
MEASURES = {
    "allocated_bytes": "peak of torch's allocations",
    "resident_bytes": "growth of peak resident memory",
}
Step = Callable[[Any, Any], None]


def open_lathe(*, chunked: bool) -> tuple[Any, Step]:
    """Give our decoder and its backward pass, through `Decoder.loss` or through whole logits."""
    from torch.nn import functional as F

    from lathe.model.init import build
    from lathe.shape import Shape

    shape = Shape.of(d_model=D_MODEL, n_layers=LAYERS, n_heads=HEADS, d_ff=D_FF, vocab_size=VOCAB, max_seq_len=SEQ_LEN)
    model = build(shape, scheme="llama", seed=0)

    def chunks(tokens_bt: Any, targets_bt: Any) -> None:
        losses = model.loss(tokens_bt, targets_bt)
        (losses.total / losses.count).backward()

    def whole(tokens_bt: Any, targets_bt: Any) -> None:
        F.cross_entropy(model(tokens_bt).float().flatten(0, 1), targets_bt.flatten()).backward()

    return model, chunks if chunked else whole


def open_transformers() -> tuple[Any, Step]:
    """Give Hugging Face's Llama and its own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, intermediate_size=D_FF, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=SEQ_LEN,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def step(tokens_bt: Any, targets_bt: Any) -> None:
        model(input_ids=tokens_bt, labels=tokens_bt, shift_labels=targets_bt, use_cache=False).loss.backward()

    return model, step


VARIANTS: dict[str, Callable[[], tuple[Any, Step]]] = {
    "chunked": lambda: open_lathe(chunked=True),
    "whole": lambda: open_lathe(chunked=False),
    "transformers": open_transformers,
}


def train_once(variant: str) -> None:
    """Build a model and take one step."""
    import torch

    torch.manual_seed(0)
    model, step = VARIANTS[variant]()
    adam = torch.optim.AdamW(model.parameters(), foreach=False)
    tokens_bt = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1))
    step(tokens_bt[:, :-1].contiguous(), tokens_bt[:, 1:].contiguous())
    adam.step()


def peak_resident_bytes() -> int:
    """Give the most memory this process has held: KiB on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_here(variant: str, *, profiled: bool) -> dict[str, int]:
    """Measure one step in this process: its resident memory, or its allocations."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if variant == "transformers":
        import transformers.models.llama.modeling_llama  # noqa: F401 - what importing takes is no part of the step
    else:
        import lathe.model.init  # noqa: F401
    torch.mm(torch.ones(2, 2), torch.ones(2, 2))
    if not profiled:
        before = peak_resident_bytes()
        train_once(variant)
        return {"resident_bytes": peak_resident_bytes() - before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        train_once(variant)
    events: list[Any] = seen.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = [event for event in events if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return {"allocated_bytes": most}


def measure(variant: str) -> dict[str, int]:
    """Measure one variant, each measure in a fresh process."""
    found: dict[str, int] = {}
    for flag in ([], ["--profiled"]):
        command = [sys.executable, __file__, "--variant", variant, *flag]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one in this process and print its figures")
    parser.add_argument("--profiled", action="store_true", help="with --variant: count allocations")
    given = parser.parse_args()
    if given.variant is not None:
        print(json.dumps(measure_here(given.variant, profiled=given.profiled)))
        return
    peers = {"whole": "whole fp32 logits"}
    if importlib.util.find_spec("transformers") is None:
        print(
            "the package transformers is not here, so its rows are left out: pip install 'lathe[hf]'", file=sys.stderr
        )
    else:
        peers["transformers"] = f"transformers {importlib.metadata.version('transformers')} Llama(labels=…)"
    ours, rows = measure("chunked"), []
    for variant, peer in peers.items():
        theirs = measure(variant)
        rows += [
            row(what, ours[key] / 1e6, "MB", peer=peer, peer_value=theirs[key] / 1e6) for key, what in MEASURES.items()
        ]
        if variant == "whole":
            share = ours["allocated_bytes"] / theirs["allocated_bytes"]
            rows.append(row("share of the whole logits' peak", share, "", peer="aim, at most", peer_value=AIM))
    publish("memory", rows, save=given.save)


if __name__ == "__main__":
    main()
