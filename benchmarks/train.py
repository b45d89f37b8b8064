"""Set training steps beside Hugging Face's Trainer and a nanoGPT-style loop, and beside bare matrix products.

Run it as `BENCH_THREADS=2 python benchmarks/train.py [--save] [--only throughput|memory|gpu]`.

- Throughput (CPU, fp32): decoders of 640×3 and 512×8 with a vocabulary of 8192 on batches of 8 × 256 tokens, AdamW and
  clipping, eager and compiled. The three loops run in one process and take turns, a step each: every one of them is its
  real loop, from reading a batch to having stepped, held up between steps until it is its turn. Medians of the steps.
  Their FLOPs are counted by torch and must agree within 3 %. The bound is the time of the step's matrix products alone,
  on the same shapes, in between: by torch, and as Lathe multiplies (on processors not Intel's, by oneDNN). The others
  compile the whole model, Lathe each block.
- Memory: the peak resident memory of a few steps at a vocabulary of 50432, in processes of their own.
- GPU (only where there is one): 2048×24 and 3072×12 at a vocabulary of 50432, batches of 8 × 2048 in bf16: tokens/s and
  MFU, against the datasheet's peak and against a measured product of 8192³.

Needs the extras `hf` and `bench` (transformers, accelerate); what is not there is left out, and said.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _report import publish, row

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # each loop has threads of torch's

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.model.linear import multiply, multiply_over_rows
from lathe.recipe import Data, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape

VOCAB, SEQ_LEN, SEQUENCES = 8192, 256, 8
SHAPES = {"640x3": (640, 3, 10), "512x8": (512, 8, 8)}
WARMUP, STEPS = 3, 12
AIM_SPEED, AIM_GEMM, AIM_MEMORY, AIM_MFU = 1.0, 0.7, 0.6, 0.55
LR, DECAY, CLIP = 1e-3, 0.1, 1.0


def make_shape(d_model: int, n_layers: int, n_heads: int, *, vocab_size: int = VOCAB, seq_len: int = SEQ_LEN) -> Shape:
    """Make a Llama-type shape."""
    return Shape.of(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, vocab_size=vocab_size, max_seq_len=seq_len, norm="rmsnorm"
    )


def write_tokens(folder: Path, *, tokens: int, vocab_size: int) -> None:
    """Write a dataset of random ids, in one document."""
    from lathe import codec
    from lathe.data.store import MANIFEST, Manifest, Shard, dtype_of

    folder.mkdir(parents=True)
    random, shards = np.random.default_rng(0), []
    for split, count in (("train", tokens), ("held-out", 4 * SEQ_LEN)):
        name, ids = f"{split}-00000", random.integers(0, vocab_size, count).astype(dtype_of(vocab_size))
        parts = {".bin": ids.tobytes(), ".idx": np.array([[count, count]], dtype=np.uint64).tobytes()}
        for suffix, content in parts.items():
            (folder / f"{name}{suffix}").write_bytes(content)
        sums = [hashlib.sha256(content).hexdigest() for content in parts.values()]
        shards.append(
            Shard(
                name=name, split=split, tokens=count, documents=1, text_bytes=count, sources=("random",),
                sha256=sums[0], index_sha256=sums[1],
            )
        )  # fmt: skip
    manifest = Manifest(
        vocab_size=vocab_size, dtype=dtype_of(vocab_size), end_of_text=None, tokenizer_sha256=None, held_out=0.01,
        shards=tuple(shards), bad_lines={},
    )  # fmt: skip
    codec.save(manifest, folder / MANIFEST, kind="dataset")


Step = Callable[[], None]
Loop = Callable[[Step], None]
"""A training loop; it is given what to call at the end of every step."""


Bounds = dict[str, float]


@dataclass
class Turns:
    """Let loops in threads take turns, a step each, and keep each step's seconds."""

    names: list[str]
    steps: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    _turn: int = 0
    _errors: list[BaseException] = field(default_factory=list)
    _change: threading.Condition = field(default_factory=threading.Condition)

    def run(self, loops: dict[str, Loop], *, between: Callable[[], Bounds]) -> list[Bounds]:
        """Run all loops to their end; each is given what to call at the end of every step."""
        self.seconds = {name: [] for name in self.names}
        self._between, self._bounds = between, list[Bounds]()
        threads = [threading.Thread(target=self._loop, args=(name, loops[name])) for name in self.names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return self._bounds

    def _loop(self, name: str, loop: Loop) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._wait(name)
        started = time.perf_counter()

        def step_done() -> None:
            nonlocal started
            self.seconds[name].append(time.perf_counter() - started)
            self._pass_on()
            self._wait(name)
            started = time.perf_counter()

        try:
            loop(step_done)
        except BaseException as error:
            self._errors.append(error)
        finally:
            self.names.remove(name) if name in self.names else None
            self._pass_on(leaving=True)

    def _wait(self, name: str) -> None:
        with self._change:
            self._change.wait_for(lambda: self._errors or self.names[self._turn % len(self.names)] == name)

    def _pass_on(self, *, leaving: bool = False) -> None:
        with self._change:
            if not leaving:
                self._turn = (self._turn + 1) % max(1, len(self.names))
                if self._turn == 0:
                    self._bounds.append(self._between())
            self._change.notify_all()


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "torch": (F.linear, lambda y, x: y.T @ x),
    "lathe": (multiply, multiply_over_rows),
}
"""Ways to multiply: x · weightᵀ, and yᵀ · x."""


def time_products(shape: Shape, positions: int) -> Callable[[], dict[str, float]]:
    """Make a call that times the matrix products of a training step alone, forward and both gradients, in each way."""
    d, qkv = shape.d_model, (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    block = [(qkv, d), (d, shape.n_heads * shape.d_head), (shape.d_ff, d), (shape.d_ff, d), (d, shape.d_ff)]
    sizes = block * shape.n_layers + [(shape.vocab_size, d)]
    weights = [torch.randn(size) for size in sizes]
    xs = {n: torch.randn(positions, n) for size in sizes for n in size}

    def call() -> dict[str, float]:
        seconds = {}
        for name, (by, over_rows) in PRODUCTS.items():
            started = time.perf_counter()
            for (rows, columns), weight in zip(sizes, weights, strict=True):
                by(xs[columns], weight)
                by(xs[rows], weight.T)
                over_rows(xs[rows], xs[columns])
            seconds[name] = time.perf_counter() - started
        return seconds

    return call


def loop_lathe(shape: Shape, data: Path, out: Path, *, compiled: bool) -> Loop:
    """Run `lathe.train.loop.train` itself."""

    def loop(step_done: Step) -> None:
        from lathe.train import watch
        from lathe.train.execution import Execution
        from lathe.train.loop import train

        recipe = make_recipe(shape, data)

        class Watched(watch.Watch):
            def step(self, step: int, **values: Any) -> None:
                super().step(step, **values)
                step_done()

        import lathe.train.loop as module

        module.Watch = Watched  # pyright: ignore[reportAttributeAccessIssue]
        train(recipe, Execution(out=str(out), compile=compiled, log_every=10**6), report=lambda _: None)

    return loop


def make_recipe(shape: Shape, data: Path) -> Recipe:
    """Make the recipe that all loops follow."""
    return Recipe(
        shape=shape, tokens=(WARMUP + STEPS) * SEQUENCES * SEQ_LEN, seq_len=SEQ_LEN, batch_tokens=SEQUENCES * SEQ_LEN,
        lr=LR, data=Data(train=str(data), repeats=100), optimiser=Optimiser(weight_decay=DECAY), clip=CLIP,
        schedule=Schedule(name="cosine"), init=Init(scheme="llama"),
    )  # fmt: skip


class Windows(torch.utils.data.Dataset):
    """Give Trainer windows of the tokens."""

    def __init__(self, data: Path, seq_len: int) -> None:
        self.ids, self.seq_len = np.memmap(data / "train-00000.bin", dtype=np.uint16, mode="r"), seq_len

    def __len__(self) -> int:
        return len(self.ids) // self.seq_len - 1

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.ids[i * self.seq_len : (i + 1) * self.seq_len + 1].astype(np.int64))
        return {"input_ids": ids[:-1], "labels": ids[:-1], "shift_labels": ids[1:]}


def open_hf(shape: Shape) -> Any:
    """Make Hugging Face's Llama of a shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads, max_position_embeddings=shape.max_seq_len,
            tie_word_embeddings=shape.tied, use_cache=False,
        )
    )  # fmt: skip


def open_trainer(
    shape: Shape,
    data: Path,
    out: Path,
    *,
    compiled: bool,
    step_done: Step,
    steps: int,
    bf16: bool = False,
) -> Any:
    """Make Hugging Face's Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class AtEnd(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step_done()

    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=SEQUENCES, max_steps=steps, learning_rate=LR,
        weight_decay=DECAY, adam_beta2=0.95, max_grad_norm=CLIP, lr_scheduler_type="cosine", optim="adamw_torch_fused",
        use_cpu=not bf16, bf16=bf16, torch_compile=compiled, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, dataloader_num_workers=0, seed=0,
    )  # fmt: skip
    return Trainer(
        model=open_hf(shape), args=arguments, train_dataset=Windows(data, shape.max_seq_len), callbacks=[AtEnd()]
    )


def loop_trainer(shape: Shape, data: Path, out: Path, *, compiled: bool) -> Loop:
    """Run Trainer.train itself."""

    def loop(step_done: Step) -> None:
        open_trainer(shape, data, out, compiled=compiled, step_done=step_done, steps=WARMUP + STEPS).train()

    return loop


def turn(x: Tensor) -> Tensor:
    """Turn pairs by a quarter, for rotary positions."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class PlainBlock(nn.Module):
    """Write a block as nanoGPT does, with the parts of a Llama."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.heads = shape.n_heads
        self.norm_1, self.norm_2 = (nn.RMSNorm(d, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up = (nn.Linear(d, shape.d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.d_ff, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(d, dim=2))
        q, k = (y * cos + turn(y) * sin for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PlainModel(nn.Module):
    """Write the model as nanoGPT does: whole logits, and one cross-entropy over them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=1e-6)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        frequency = 1e4 ** (-torch.arange(0, shape.d_head, 2) / shape.d_head)
        angle = torch.outer(torch.arange(shape.max_seq_len), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).view(-1, self.head.out_features), targets.view(-1))


def loop_plain(shape: Shape, data: Path, out: Path, *, compiled: bool) -> Loop:
    """Run a loop as nanoGPT's train.py has it, on one process."""

    def loop(step_done: Step) -> None:
        torch.manual_seed(0)
        model = PlainModel(shape)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=DECAY, fused=True)
        called: Any = torch.compile(model) if compiled else model
        ids = np.memmap(data / "train-00000.bin", dtype=np.uint16, mode="r")
        for step in range(WARMUP + STEPS):
            for group in optimiser.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / (WARMUP + STEPS)))
            starts = torch.randint(len(ids) - SEQ_LEN - 1, (SEQUENCES,)).tolist()
            window = torch.stack([torch.from_numpy(ids[s : s + SEQ_LEN + 1].astype(np.int64)) for s in starts])
            loss = called(window[:, :-1].contiguous(), window[:, 1:].contiguous())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()
            step_done()

    return loop


LOOPS = {"lathe": loop_lathe, "Trainer": loop_trainer, "nanoGPT-style": loop_plain}


def count_linear(x_size: Any, weight_size: Any, *_: Any, **options: Any) -> int:
    """Count the FLOPs of oneDNN's product, which torch's counter does not know."""
    return 2 * math.prod(x_size) * weight_size[0]


def count_flops(shape: Shape) -> dict[str, float]:
    """Count what torch multiplies in a step of each model."""
    from torch.utils.flop_counter import FlopCounterMode

    from lathe.model.init import build

    tokens = torch.randint(VOCAB, (2, SEQ_LEN + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ours, plain = build(shape, scheme="llama", seed=0), PlainModel(shape)
    calls: dict[str, Callable[[], Tensor]] = {
        "lathe": lambda: ours.loss(inputs, targets).total,
        "nanoGPT-style": lambda: plain(inputs, targets),
    }
    if importlib.util.find_spec("transformers") is not None:
        theirs = open_hf(shape)
        calls["Trainer"] = lambda: theirs(input_ids=inputs, labels=inputs, shift_labels=targets).loss
    found = {}
    for name, call in calls.items():
        with FlopCounterMode(
            display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: count_linear}
        ) as counter:
            call().backward()
        found[name] = counter.get_total_flops() * SEQUENCES / 2
    return found


def measure_throughput(only: str | None) -> list[dict[str, Any]]:
    """Let the loops take turns, for each shape, eager and compiled."""
    rows = []
    has_trainer = all(importlib.util.find_spec(name) for name in ("transformers", "accelerate"))
    names = [name for name in LOOPS if has_trainer or name != "Trainer"]
    if not has_trainer:
        print("transformers and accelerate are not both installed: Trainer is left out", file=sys.stderr)
    for title, size in SHAPES.items():
        shape = make_shape(*size)
        flops = count_flops(shape)
        off = max(abs(count / flops["lathe"] - 1) for count in flops.values())
        print(f"{title}: { ({n: f'{f / 1e9:.4g} GFLOP' for n, f in flops.items()}) }", file=sys.stderr)
        assert off <= 0.03, f"the loops do not the same arithmetic: {flops}"
        products = time_products(shape, SEQUENCES * SEQ_LEN)
        products()
        for mode in ("eager", "compiled"):
            if only not in (None, title, mode, f"{title}-{mode}"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                write_tokens(Path(folder) / "data", tokens=2**20, vocab_size=VOCAB)
                loops = {
                    name: LOOPS[name](shape, Path(folder) / "data", Path(folder) / name, compiled=mode == "compiled")
                    for name in names
                }
                turns = Turns(list(names), WARMUP + STEPS)
                bounds = turns.run(loops, between=products)
            step = {name: statistics.median(times[WARMUP:]) for name, times in turns.seconds.items()}
            best = min((name for name in names if name != "lathe"), key=lambda name: step[name])
            case = f"{title} {mode}"
            for name in names[1:]:
                peer = f"{name} {importlib.metadata.version('transformers')}" if name == "Trainer" else name
                rows.append(row(f"{case}: step", step["lathe"], "s", peer=peer, peer_value=step[name]))
            ahead = step[best] / step["lathe"]
            rows.append(row(f"{case}: {best} over lathe", ahead, "", peer="aim", peer_value=AIM_SPEED))
            for name in PRODUCTS:
                share = statistics.median(one[name] for one in bounds[WARMUP:]) / step["lathe"]
                aim = {"peer": "aim", "peer_value": AIM_GEMM} if name == "lathe" else {}
                rows.append(row(f"{case}: rate of bare products by {name} reached", share, "", **aim))
    return rows


MEMORY_SHAPE = (256, 4, 4)
MEMORY_VOCAB, MEMORY_STEPS = 50432, 3


def train_once(name: str, folder: Path) -> None:
    """Train a few steps, and print by how much the peak resident memory grew over what imports took."""
    if name == "Trainer":
        import transformers  # noqa: F401
    else:
        import lathe.train.loop  # noqa: F401
    torch.ones(256, 256) @ torch.ones(256, 256)
    before = read_status("VmRSS")
    global WARMUP, STEPS
    WARMUP, STEPS = 0, MEMORY_STEPS
    shape = make_shape(*MEMORY_SHAPE, vocab_size=MEMORY_VOCAB)
    LOOPS[name](shape, folder / "data", folder / name, compiled=False)(lambda: None)
    print(read_status("VmHWM") - before)


def read_status(key: str) -> int:
    """Read a line of /proc/self/status, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure_memory() -> list[dict[str, Any]]:
    """Compare the peaks of a few steps, in processes of their own."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder) / "data", tokens=2**18, vocab_size=MEMORY_VOCAB)
        for name in LOOPS:
            command = [sys.executable, __file__, "--once", name, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name] = int(done.stdout.split()[-1]) / 1e6
    what = f"peak of a step, V {MEMORY_VOCAB}, {SEQUENCES} × {SEQ_LEN} tokens"
    rows = [row(what, peaks["lathe"], "MB", peer=name, peer_value=peaks[name]) for name in LOOPS if name != "lathe"]
    share = peaks["lathe"] / peaks["Trainer"]
    return [*rows, row("share of Trainer's", share, "", peer="aim, at most", peer_value=AIM_MEMORY)]


GPU_SHAPES = {"2048x24": (2048, 24, 16), "3072x12": (3072, 12, 24)}
GPU_SEQ_LEN, GPU_VOCAB, GPU_STEPS = 2048, 50432, 20


def measure_gpu() -> list[dict[str, Any]]:
    """Train on a GPU in bf16, and set it beside Trainer."""
    global SEQ_LEN, WARMUP, STEPS
    SEQ_LEN, WARMUP, STEPS = GPU_SEQ_LEN, 5, GPU_STEPS
    from lathe.train.execution import Execution
    from lathe.train.loop import train
    from lathe.train.meter import find_peak, measure_peak, read_metrics

    device = torch.device("cuda")
    peak, product = find_peak(device, "bf16"), measure_peak(device, "bf16", size=8192)
    tera = product.flops_per_s / 1e12, peak.flops_per_s / 1e12
    rows = [row("8192³ product", tera[0], "TFLOP/s", peer=peak.origin, peer_value=tera[1])]
    for title, size in GPU_SHAPES.items():
        shape = make_shape(*size, vocab_size=GPU_VOCAB, seq_len=GPU_SEQ_LEN)
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder) / "data", Path(folder) / "lathe"
            write_tokens(data, tokens=2**22, vocab_size=GPU_VOCAB)
            base = make_recipe(shape, data)
            recipe = Recipe(**{f: getattr(base, f) for f in base.__dataclass_fields__} | {"dtype": "bf16-mixed"})
            train(recipe, Execution(out=str(out), compile=True, log_every=5), report=print)
            seconds = statistics.median(r["seconds"] for r in list(read_metrics(out / "metrics.jsonl"))[WARMUP:])
            theirs: list[float] = []
            started = time.perf_counter()

            def step_done(theirs: list[float] = theirs) -> None:
                nonlocal started
                torch.cuda.synchronize()
                theirs.append(time.perf_counter() - started)
                started = time.perf_counter()

            if importlib.util.find_spec("accelerate") is not None:
                torch.cuda.empty_cache()
                trainer = open_trainer(
                    shape,
                    data,
                    Path(folder) / "hf",
                    compiled=True,
                    step_done=step_done,
                    steps=WARMUP + STEPS,
                    bf16=True,
                )
                trainer.train()
                del trainer
                torch.cuda.empty_cache()
        tokens = SEQUENCES * GPU_SEQ_LEN
        flops_per_s = shape.train_flops(tokens, GPU_SEQ_LEN) / seconds
        peer_s = statistics.median(theirs[WARMUP:]) if theirs else None
        rows += [
            row(f"{title} step", seconds, "s", peer="Trainer, compiled", peer_value=peer_s),
            row(f"{title} tokens/s", tokens / seconds, "tokens/s"),
            row(f"{title} MFU of the datasheet", flops_per_s / peak.flops_per_s, "", peer="aim", peer_value=AIM_MFU),
            row(f"{title} MFU of the 8192³ product", flops_per_s / product.flops_per_s, ""),
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--only", help="throughput, memory or gpu; or a shape, a mode, or shape-mode of throughput")
    parser.add_argument("--once", choices=list(LOOPS), help="train a few steps and print the peak memory")
    parser.add_argument("--folder", type=Path, help="with --once: where the data are")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.once:
        train_once(given.once, given.folder)
        return
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "throughput": lambda: measure_throughput(None if given.only == "throughput" else given.only),
        "memory": measure_memory,
    }
    if torch.cuda.is_available():
        parts = {"gpu": measure_gpu}
    chosen = list(parts.values()) if given.only is None else [parts.get(given.only, parts["throughput"])]
    rows = [found for part in chosen for found in part()]
    publish("train" if given.only is None else f"train-{given.only}", rows, save=given.save)


if __name__ == "__main__":
    main()
