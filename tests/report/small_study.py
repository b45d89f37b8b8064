"""A small made-up study in a folder, of real words: runs of a planted law, the law fitted to them, a plan, and so on.

Sizes are those of the quickstart, so that the page made of it looks like a real one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from small_evaluations import QUIZ, items_of, loss_of

from lathe import codec
from lathe.bench.rows import Measurement, write_row
from lathe.budget import Budget
from lathe.design.candidates import find_space
from lathe.design.choice import Choice, Plan
from lathe.design.plan import plan
from lathe.evals.results import Evaluation
from lathe.evals.summary import summarise
from lathe.latency.roofline import predict_latency
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.presets.devices import load_device, save_device
from lathe.runs import Run
from lathe.shape import Shape
from lathe.studies import Candidate, Cost, Rival, StudyResult
from lathe.workload import Workload

WORKLOAD = Workload(batch=1, prompt_tokens=64, new_tokens=64, dtype="fp32")
SHAPES = (
    (32, 1),
    (32, 4),
    (48, 2),
    (64, 1),
    (64, 2),
    (64, 8),
    (96, 1),
    (96, 4),
    (128, 2),
    (128, 4),
    (200, 1),
    (160, 3),
)
TOKENS = (100_000, 200_000, 400_000)
PLANNED = 1_000_000
SAMPLE = (
    "self, size=-1):\n    \"\"\"Return the next size bytes of the <stream>, or all & sundry.\"\"\"\n"
    "    if self.closed:\n        raise ValueError('I/O operation on closed file')\n    return self.raw.read(size)"
)  # fmt: skip


def make_shape(d_model: int, n_layers: int) -> Shape:
    heads = d_model // 8
    return Shape(
        d_model=d_model, n_layers=n_layers, n_heads=heads, n_kv_heads=heads, d_head=8,
        d_ff=4 * d_model, vocab_size=1024, max_seq_len=128,
    )  # fmt: skip


def true_loss(shape: Shape, tokens: float) -> float:
    """Give the planted law's loss."""
    return 1.5 + 5.0 / shape.d_model**0.42 + 1.1 / shape.n_layers**0.6 + 220.0 / tokens**0.45


def make_runs(path: Path) -> None:
    """Write the sweep's table: three token counts a shape, with a hundredth of noise."""
    noise = np.random.default_rng(0)
    lines = []
    for d_model, n_layers in SHAPES:
        shape = make_shape(d_model, n_layers)
        for tokens in TOKENS:
            loss = true_loss(shape, tokens) * math.exp(0.006 * noise.standard_normal())
            run = Run(
                name=f"{d_model}×{n_layers} {tokens // 1000}k", shape=shape, tokens=tokens, losses={"held-out": loss},
                validation="held-out", loss_ses={"held-out": 0.004}, trunk=f"{d_model}×{n_layers}", seconds=30.0,
            )  # fmt: skip
            lines.append(json.dumps(run.to_row()))
    path.write_text("\n".join(lines) + "\n")


def make_plan(law: Law, *, total_s: float) -> Plan:
    space = find_space(
        law.axes, base=make_shape(64, 4), d_models=tuple(range(64, 257, 8)), n_layers=tuple(range(1, 13)),
        d_heads=(8,), ff_multiple=8,
    )  # fmt: skip
    budget = Budget(total_s=total_s, params=1.0e6, min_params=0.4e6, tokens=PLANNED)
    return plan(law, load_device("epyc-9554"), WORKLOAD, budget, top=3, space=space)


def make_candidate(choice: Choice, *, rank: int, noise: float, slower: float, budget_s: float) -> Candidate:
    recipe_id = f"{0xC0FFEE0 + rank:07x}".ljust(16, "5")
    measured = slower * choice.total_s
    assert choice.loss_low is not None
    assert choice.loss_high is not None
    return Candidate(
        name=choice.name, rank=rank, recipe_id=recipe_id, folder=f"candidates/{recipe_id[:12]}", shape=choice.shape,
        tokens=PLANNED, predicted_loss=choice.loss, loss_low=choice.loss_low, loss_high=choice.loss_high,
        true_loss=true_loss(choice.shape, PLANNED) * noise, true_loss_se=0.0123, predicted_s=choice.total_s,
        measured_s=measured, measured_p95_s=1.06 * measured,
        memory_bytes=choice.memory_bytes, measured_memory_bytes=1.09 * choice.memory_bytes, train_seconds=61.3 + rank,
        train_flops=choice.train_flops, accuracies={"quiz": 0.5 + 0.05 * rank}, accuracy_ses={"quiz": 0.0456},
        bits_per_byte=1.61 + 0.01 * rank, within_budget=measured <= budget_s,
    )  # fmt: skip


def write_candidate(candidate: Candidate, folder: Path) -> None:
    """Write a candidate's metrics and its evaluation."""
    own = folder / candidate.folder
    own.mkdir(parents=True)
    noise, steps = np.random.default_rng(candidate.rank), 1000
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        tokens = PLANNED * step // steps
        loss = candidate.true_loss + 2.9 * math.exp(-step / 90) + 0.09 * noise.standard_normal()
        rows.append({"kind": "step", "step": step, "loss": loss, "lr": 4e-3, "tokens": tokens})
        if step % 250 == 0:
            held = candidate.true_loss + 0.4 * (1 - step / steps)
            losses = {"held-out": {"loss": held, "se": 0.0123, "tokens": 50_000, "sequences": 400}}
            rows.append({"kind": "evaluation", "step": step, "losses": losses})
    (own / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss = loss_of(candidate.true_loss, dataset="corpus", split="held-out", bits_per_byte=candidate.bits_per_byte)
    rights = [int(i % 3 != candidate.rank % 3) for i in range(24)]
    evaluation = Evaluation(
        checkpoint=candidate.folder, recipe_id=candidate.recipe_id, dtype="fp32", device="cpu", backend="lathe",
        tasks=(summarise(QUIZ, items_of(rights), content="c0ffee"),),
        losses=(loss,),
        versions={"lathe": "0.1.0"}, created="2026-01-02T03:04:05",
    )  # fmt: skip
    (folder / "evaluations").mkdir(exist_ok=True)
    codec.save(evaluation, folder / f"evaluations/{candidate.recipe_id}.json", kind="evaluation")


def write_measurements(folder: Path) -> None:
    """Write what calibrating measured: some of the sweep's shapes, up to a tenth off the prediction."""
    device = load_device("epyc-9554")
    for i, (d_model, n_layers) in enumerate(SHAPES[::2]):
        shape, off = make_shape(d_model, n_layers), 1 + 0.05 * (-1) ** i * (i % 3)
        at = predict_latency(shape, device=device, workload=WORKLOAD)
        latency = dataclasses.replace(
            at, prefill_s=off * float(at.prefill_s), decode_s=off * float(at.decode_s), prefill_bound=None,
            decode_bound=None, backend="lathe", spread=0.04, runs=9,
        )  # fmt: skip
        write_row(
            Measurement(name=f"{d_model}×{n_layers}", shape=shape, workload=WORKLOAD, latency=latency),
            folder / "measurements.jsonl",
        )


def find_rival(law: Law, tokens: float) -> Rival:
    shape = make_shape(128, 2)
    columns = {name: [getattr(shape, name)] for name in ("d_model", "n_layers", "params")} | {"tokens": [tokens]}
    interval = law.interval(columns, level=0.9)
    seconds = predict_latency(shape, device=load_device("epyc-9554"), workload=WORKLOAD).total_s
    return Rival(
        name="128×2, by habit", why="64 units of width a layer", shape=shape,
        predicted_loss=float(law.predict(columns)[0]), loss_low=float(interval.low[0]),
        loss_high=float(interval.high[0]), predicted_s=float(seconds),
    )  # fmt: skip


def make_study(folder: Path, *, total_s: float = 0.07, slower: tuple[float, ...] = (0.97, 1.08)) -> StudyResult:
    """Write a study's folder and give its result, which lies there too.

    Args:
        total_s: the budget of the workload's latency.
        slower: how many times its prediction each trained candidate took; whoever took more than the budget is not
            chosen.
    """
    make_runs(folder / "runs.jsonl")
    law = fit(read_runs(folder / "runs.jsonl"), "width-depth", draws=40)
    law.save(folder / "law.json")
    made = make_plan(law, total_s=total_s)
    codec.save(made, folder / "plan.json", kind="plan")
    save_device(made.device, folder / "device.json")
    write_measurements(folder)
    candidates = tuple(
        make_candidate(choice, rank=i + 1, noise=(1.004, 0.993, 1.012)[i], slower=slow, budget_s=total_s)
        for i, (choice, slow) in enumerate(zip(made.choices, slower, strict=False))
    )
    for candidate in candidates:
        write_candidate(candidate, folder)
    fits = [c for c in candidates if c.within_budget]
    chosen = min(fits, key=lambda c: c.true_loss).name if fits else None
    result = StudyResult(
        name="quickstart",
        study={"name": "quickstart", "seed": 0, "plan": {"tokens": PLANNED, "params": 1e6, "top": len(candidates)}},
        key="0123456789abcdef", created="2026-01-02T03:04:05", level=0.9, budget_s=total_s, candidates=candidates,
        chosen=chosen,
        reason="lowest held-out loss of those within the budget as measured" if chosen else "none was quick enough",
        rivals=(find_rival(law, PLANNED),), runs_table="runs.jsonl", law_file="law.json", device_file="device.json",
        plan_file="plan.json", measurements_file="measurements.jsonl",
        exported="exported" if chosen else None, prompt="def read(" if chosen else "", sample=SAMPLE if chosen else "",
        costs={
            "data": Cost(seconds=12.3), "sweep": Cost(seconds=217.0, flops=3.21e13, runs=36),
            "measure": Cost(seconds=31.4), "train": Cost(seconds=123.0, flops=1.23e13, runs=len(candidates)),
        },
        versions={"lathe": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        notes=("depth cannot be told from these runs: its standard error is as large as itself",),
        commands=("lathe run study.toml --out quickstart", "lathe next quickstart --go"),
    )  # fmt: skip
    codec.save(result, folder / "result.json", kind="study-result")
    return result
