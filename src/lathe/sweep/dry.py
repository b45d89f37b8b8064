"""Say what a study would do, what of it is there already, and what the trainings would take."""

from __future__ import annotations

from pathlib import Path

import torch

from lathe import codec
from lathe.errors import CodecError
from lathe.sweep.grid import load_grid
from lathe.sweep.jobs import read_outcome
from lathe.sweep.kept import KIND, Stage
from lathe.sweep.kept import STAGES as FOLDER
from lathe.sweep.run import RUNS, STAGES
from lathe.sweep.study import Study
from lathe.sweep.sweep import make_job
from lathe.train.estimate import MFU
from lathe.train.live import format_seconds
from lathe.train.meter import find_peak


def describe_study(study: Study, folder: Path, *, device: str = "cpu") -> list[str]:
    """Describe each stage in a line, with FLOPs and time where it trains. Nothing is written.

    Time is FLOPs over `MFU` of this machine's peak, shared by the cores or GPUs that the launcher has; models so small
    that a step is launches take longer.
    """
    lines = [f"study {study.name}, in {folder}"]
    kept = {name: _find(folder, name) for name in STAGES}
    for name in STAGES:
        stage = kept[name]
        state = "to do" if stage is None else f"made before, in {format_seconds(stage.cost.seconds)}"
        lines.append(f"  {name:<9} {state}")
    if study.grid is None:
        return [*lines, "no sweep: the law is from elsewhere"]
    data = kept["data"]
    dataset = None if data is None else str(folder / data.result["dataset"])
    if dataset is None:
        shape = {"vocab_size": study.text.vocab_size if study.text else 0, **study.grid.get("shape", {})}
        entries = load_grid({"seeds": [study.seed], **study.grid, "shape": shape}, source="[grid]").entries
    else:
        entries = load_grid({"seeds": [study.seed], **study.grid}, source="[grid]", data=dataset).entries
    done = [e for e in entries if dataset and read_outcome(make_job(e, folder / RUNS, None)) is not None]
    flops = sum(entry.flops for entry in entries if entry not in done)
    planned = 6.0 * study.plan.params * study.plan.tokens * study.plan.top
    peak = find_peak(torch.device(device), "fp32" if device == "cpu" else "bf16")
    seconds = (flops + planned) / (MFU["cpu" if device == "cpu" else "gpu"] * peak.flops_per_s)
    return [
        *lines,
        f"sweep: {len(entries)} trainings, {sum(len(e.recipes) for e in entries)} runs, {len(done)} done; "
        f"{flops:.3g} FLOPs to do",
        f"candidates: {study.plan.top}, at most {planned:.3g} FLOPs",
        f"time: {format_seconds(seconds)} or more here, at {MFU['cpu']:.0%} of {peak.flops_per_s:.3g} FLOP/s",
    ]


def _find(folder: Path, name: str) -> Stage | None:
    path = folder / FOLDER / f"{name}.json"
    try:
        return codec.load(Stage, path, kind=KIND) if path.is_file() else None
    except CodecError:
        return None
