"""Say what a study would do, what of it is there already, what it lacks, and what the trainings would take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lathe.data.store import Dataset
from lathe.errors import BudgetError, DataError, LatheError
from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid
from lathe.sweep.inputs import find_missing
from lathe.sweep.jobs import read_outcome
from lathe.sweep.kept import read_stage
from lathe.sweep.layout import RUNS, find_dataset, list_entries, list_stages
from lathe.sweep.mixing import proxy_document
from lathe.sweep.stages import check_reach, find_largest
from lathe.sweep.study import Study
from lathe.sweep.sweep import make_job
from lathe.train.estimate import MFU
from lathe.train.live import format_seconds
from lathe.train.meter import find_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Hold what a study would do, a line each, and what of that which it names is not there."""

    lines: tuple[str, ...]
    missing: tuple[str, ...]


def describe_study(study: Study, folder: Path, *, device: str = "cpu") -> Outline:
    """Describe each stage in a line, with FLOPs and time where it trains. Nothing is written.

    Time is FLOPs over `MFU` of this machine's peak, shared by the cores or GPUs that the launcher has; models so small
    that a step is launches take longer. Raises BudgetError for a plan that goes too far beyond the grid.
    """
    study = study.settled()
    missing = tuple(find_missing(study))
    lines = [f"study {study.name}, in {folder}"]
    for name in list_stages(study):
        stage = read_stage(folder, name)
        state = "to do" if stage is None else f"made before, in {format_seconds(stage.cost.seconds)}"
        lines.append(f"  {name:<9} {state}")
    try:
        lines += _describe_trainings(study, folder, device)
    except LatheError as error:
        if not missing or isinstance(error, BudgetError):
            raise
        lines.append("what trainings take cannot be told without what is missing")
    return Outline(lines=tuple(lines), missing=missing)


def _describe_trainings(study: Study, folder: Path, device: str) -> list[str]:
    """Say which trainings there are and what they take. Raises LatheError where it cannot be known."""
    lines = []
    flops = planned = 6.0 * study.plan.params * study.plan.tokens * study.plan.top
    if study.mixture is not None and read_stage(folder, "mixture") is None:
        document = _with_vocabulary(study, proxy_document(study, study.mixture))
        (proxy, *_) = load_grid(document, source="[mixture]").entries
        proxies = proxy.flops * study.mixture.proxies
        flops += proxies
        lines.append(f"mixture: {study.mixture.proxies} proxies, {proxies:.3g} FLOPs to do")
    if study.grid is None:
        lines.append("no sweep: the law is from elsewhere")
    else:
        entries, done = _list_sweep(study, folder)
        check_reach(study.plan, find_largest(entries))
        left = sum(entry.flops for entry in entries if entry not in done)
        flops += left
        runs = sum(len(entry.recipes) for entry in entries)
        lines.append(f"sweep: {len(entries)} trainings, {runs} runs, {len(done)} done; {left:.3g} FLOPs to do")
    kind = "cpu" if device == "cpu" else "gpu"
    peak = find_peak(torch.device(device), "fp32" if device == "cpu" else "bf16")
    seconds = flops / (MFU[kind] * peak.flops_per_s)
    return [
        *lines,
        f"candidates: {study.plan.top}, at most {planned:.3g} FLOPs",
        f"time: {format_seconds(seconds)} or more here, at {MFU[kind]:.0%} of {peak.flops_per_s:.3g} FLOP/s",
    ]


def _list_sweep(study: Study, folder: Path) -> tuple[Sequence[Entry], list[Entry]]:
    """List what the sweep trains, and what of it is trained."""
    dataset = find_dataset(study, folder)
    if dataset is None:
        document = _with_vocabulary(study, {"seeds": [study.seed], **(study.grid or {})})
        return load_grid(document, source="[grid]").entries, []
    entries = list_entries(study, folder, dataset)
    return entries, [one for one in entries if read_outcome(make_job(one, folder / RUNS, None)) is not None]


def _with_vocabulary(study: Study, document: dict[str, Any]) -> dict[str, Any]:
    """Add to a grid what its data, which are not made yet, would say; and leave them out.

    Of a dataset that is not there nothing is added: shapes may say their vocabulary themselves.
    """
    given = study.text.dataset if study.text else next(iter(study.mixture.sources.values())) if study.mixture else None
    known: dict[str, Any] = {}
    with suppress(DataError):
        named = study.text.vocab_size if study.text and given is None else Dataset(str(given)).manifest.vocab_size
        known["vocab_size"] = named
    base = {key: value for key, value in document.get("base", {}).items() if not key.startswith("data")}
    shape = document.get("shape", {})
    return {
        **document,
        "base": base,
        "shape": {**known, **shape} if isinstance(shape, dict) else shape,
    }
