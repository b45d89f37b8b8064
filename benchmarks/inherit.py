"""Show what inheriting pays: six layers of a trained model of twelve against six random ones, and every other start.

Run it as `BENCH_THREADS=2 python benchmarks/inherit.py [--save] [--folder DIR]`, some twenty minutes on two quiet
cores. A folder that is given keeps what was done: the same command goes on. `--smoke` tries it all out in a minute or
two, on sizes that show nothing.

A reference of 64×12 is trained on the real text of wiki and books (../shared/data, a BPE of 2048 tokens) for a few
minutes; then, from that one reference:

- arms: every way to start, at equal FLOPs and at equal latency, with the ledger and measured latencies, from one seed;
- layers: its first six layers against as many random ones, at equal steps, from five seeds;
- width: half of its width by slicing and by SVD against random weights, before and after training.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import publish, row

# isort: split
from lathe.data.build import build_dataset
from lathe.inherit.compare import compare_starts
from lathe.inherit.results import InheritResult, Row
from lathe.inherit.study import InheritStudy, Narrowed, Target
from lathe.recipe import Data, Init, Optimiser, Recipe, Schedule
from lathe.report.charts import save_chart
from lathe.report.inherit_page import inherit_page
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import train
from lathe.workload import Workload

DATA = Path(__file__).parents[2] / "shared/data"
TEXTS, TOKENIZER, VOCAB = ("text/wiki.jsonl", "text/books.jsonl"), "tokenizers/bpe2048.json", 2048
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
OTHERS = (
    "inherited", "random", "half-width", "stacked", "distilled", "pruned", "shared", "shared-random", "attention-only",
    "mlp-only", "narrowed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Hold how large all of it is. `tokens` are the inherited arm's."""

    d_model: int
    n_layers: int
    reference_tokens: int
    tokens: int
    seq_len: int
    sequences: int
    seeds: int
    latency_within: float
    workload: Workload
    device: Target

    @property
    def batch_tokens(self) -> int:
        return self.sequences * self.seq_len


FULL = Size(
    d_model=64, n_layers=12, reference_tokens=3_600_000, tokens=400_000, seq_len=128, sequences=16, seeds=5,
    latency_within=0.1, workload=Workload(batch=1, prompt_tokens=64, new_tokens=64, dtype="fp32"),
    device=Target(threads=THREADS),
)  # fmt: skip
SMOKE = Size(
    d_model=16, n_layers=4, reference_tokens=20_000, tokens=5_000, seq_len=32, sequences=8, seeds=2,
    latency_within=0.6, workload=Workload(batch=1, prompt_tokens=8, new_tokens=8, dtype="fp32"),
    device=Target(threads=THREADS, runs=3),
)  # fmt: skip


def train_reference(size: Size, folder: Path) -> float:
    """Build the data and train the reference, or go on; gives the reference's held-out loss."""
    if not (folder / "data/dataset.json").is_file():
        build_dataset([DATA / text for text in TEXTS], tokenizer=DATA / TOKENIZER, out=folder / "data", held_out=0.03)
    shape = Shape.of(
        d_model=size.d_model, n_layers=size.n_layers, n_heads=4, d_ff=4 * size.d_model, vocab_size=VOCAB,
        max_seq_len=256,
    )  # fmt: skip
    recipe = Recipe(
        shape=shape, tokens=size.reference_tokens, seq_len=size.seq_len, batch_tokens=size.batch_tokens, lr=3e-3,
        data=Data(train=str(folder / "data"), repeats=4), optimiser=Optimiser(decay="matrices"),
        init=Init(scheme="gpt2"), schedule=Schedule(name="cosine", warmup_steps=50 if size is FULL else 5),
    )  # fmt: skip
    execution = Execution(out=str(folder / "reference"), threads=THREADS, save_every=200, log_every=100, spike=100)
    return train(recipe, execution, report=say).loss


def make_study(size: Size, folder: Path, name: str, **given: Any) -> InheritStudy:
    """Ask for arms, trained as the reference was but for tokens."""
    return InheritStudy(
        name=name, reference=str(folder / "reference"), layers=f"0:{size.n_layers // 2}", workload=size.workload,
        recipe={
            "data": {"train": str(folder / "data"), "repeats": 4}, "tokens": size.tokens, "seq_len": size.seq_len,
            "batch_tokens": size.batch_tokens, "lr": 2e-3, "optimiser": {"decay": "matrices"},
            "init": {"scheme": "gpt2"}, "schedule": {"name": "cosine", "warmup_steps": 10 if size is FULL else 1},
        },
        execution={"threads": THREADS, "spike": 100.0}, sequences=20 if size is FULL else 2, **given,
    )  # fmt: skip


def measure_layers(size: Size, folder: Path) -> list[dict[str, Any]]:
    """Set inherited layers beside random ones at equal steps, over all seeds."""
    # from the first seed these are runs of "arms": in one folder they are trained once
    study = make_study(size, folder, "layers", arms=OTHERS[:2], seeds=tuple(range(size.seeds)), device=size.device)
    result = carry_out(study, folder / "arms")
    inherited, random = result.rows
    assert inherited.tokens == random.tokens
    assert inherited.versus_random is not None
    steps = inherited.tokens // size.batch_tokens
    return [
        row("the reference's held-out loss", result.reference.loss, "nats"),
        row(f"inherited lower than random at {steps} steps, of {size.seeds} seeds", float(inherited.lower or 0),
            "seeds", peer="aim", peer_value=size.seeds),
        row("inherited: held-out loss", inherited.loss, "nats", peer="random", peer_value=random.loss),
        row("inherited less random, paired", inherited.versus_random.difference, "nats"),
        row("standard error of it", inherited.versus_random.se or 0.0, "nats"),
        row("inherited: deviation between seeds", inherited.loss_sd or 0.0, "nats", peer="random",
            peer_value=random.loss_sd),
        *charge(inherited), *charge(random),
    ]  # fmt: skip


def measure_arms(size: Size, folder: Path) -> list[dict[str, Any]]:
    """Compare every way to start, at equal FLOPs and at equal latency."""
    study = make_study(
        size, folder, "arms", arms=OTHERS, equal=("flops", "latency"), latency_within=size.latency_within,
        device=size.device,
    )  # fmt: skip
    result = carry_out(study, folder / "arms")
    rows = []
    for one in result.ranked():
        where = f"{one.name} ({one.shape.d_model}×{one.shape.n_layers}, {' and '.join(one.equal)})"
        rows.append(row(f"{where}: loss before", one.start_loss, "nats"))
        rows.append(row(f"{where}: held-out loss", one.loss, "nats", peer="the reference",
                        peer_value=result.reference.loss))  # fmt: skip
        if one.serving.measured_s is not None:
            rows.append(row(f"{where}: latency measured", 1e3 * one.serving.measured_s, "ms", peer="predicted",
                            peer_value=1e3 * one.serving.predicted_s))  # fmt: skip
        rows += charge(one)
    return rows


def measure_width(size: Size, folder: Path) -> list[dict[str, Any]]:
    """Set half of the reference's width beside random weights of that shape, before and after training."""
    rows = []
    for by in ("slice", "svd"):
        study = make_study(
            size, folder, f"width by {by}", arms=("narrowed", "half-width"), seeds=(0, 1), narrowed=Narrowed(by=by),
            device=Target(preset="epyc-9554"),
        )  # fmt: skip
        narrowed, random = carry_out(study, folder / "width").rows
        steps = narrowed.tokens // size.batch_tokens
        rows.append(row(f"width by {by}: loss at 0 steps", narrowed.start_loss, "nats", peer="random",
                        peer_value=random.start_loss))  # fmt: skip
        rows.append(row(f"width by {by}: loss at {steps} steps", narrowed.loss, "nats", peer="random",
                        peer_value=random.loss))  # fmt: skip
    return rows


def charge(one: Row) -> list[dict[str, Any]]:
    """Give what an arm cost, beside that with the reference's own training."""
    with_reference = one.ledger.flops_with_reference
    return [
        row(f"{one.name}: FLOPs charged", one.ledger.flops or 0.0, "FLOPs", peer="with the reference's training",
            peer_value=with_reference)
    ]  # fmt: skip


def carry_out(study: InheritStudy, folder: Path) -> InheritResult:
    result = compare_starts(study, folder, report=say)
    save_chart(inherit_page(result), folder / f"{study.name}.html")
    return result


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Size, Path], list[dict[str, Any]]]] = {
    "arms": measure_arms,
    "layers": measure_layers,
    "width": measure_width,
}


@contextlib.contextmanager
def open_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--folder", type=Path, help="keep all that is made here, and go on with what is there")
    parser.add_argument("--only", choices=PARTS, help="measure this alone")
    parser.add_argument("--smoke", action="store_true", help="try it out on sizes that show nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if not DATA.is_dir():
        sys.exit("needs the real data in a folder shared/data beside the checkout; it is not there")
    size = SMOKE if given.smoke else FULL
    with open_folder(given.folder) as folder:
        rows, started = [], time.perf_counter()
        train_reference(size, folder)
        rows.append(row("the reference trained in", time.perf_counter() - started, "s"))
        for name, measure in PARTS.items():
            if given.only in (None, name):
                rows += measure(size, folder)
        rows.append(row("all of it took", time.perf_counter() - started, "s"))
    publish("inherit" if given.only is None else f"inherit-{given.only}", rows, save=given.save)


if __name__ == "__main__":
    main()
