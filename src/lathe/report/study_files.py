"""Read what a study's folder holds beside its result: plan, law and runs, latencies, training curves, evaluations.

What is gone is None, and named, so that a report can be made of what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lathe import codec
from lathe.bench.compare import Comparison, compare
from lathe.bench.rows import open_rows
from lathe.design.choice import Plan
from lathe.evals.results import Evaluation
from lathe.laws.importers import list_published, read_runs
from lathe.laws.law import Law
from lathe.presets.devices import load_device
from lathe.report.law_points import Points, read_points
from lathe.runs import Table
from lathe.studies import Candidate, StudyResult
from lathe.workload import PREDICTED_AS

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations"
CURVE = 120
"""Points of a training curve, at most: each is a mean over steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hold how a candidate learnt: (tokens, training loss), each a mean over steps, and (tokens, held-out loss)."""

    name: str
    training: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Hold a study's result and what its files say; `gone` names files that are not there.

    `latencies` are of other shapes than the candidates, on the plan's workload. `evaluations` go by the candidates'
    names.
    """

    result: StudyResult
    plan: Plan | None
    law: Law | None
    runs: Table | None
    points: Points | None
    latencies: Comparison | None
    curves: tuple[Curve, ...]
    evaluations: dict[str, Evaluation]
    gone: tuple[str, ...]


def read_evidence(result: StudyResult, folder: Path) -> Evidence:
    """Read a study's files. Raises a LatheError for one that is there and cannot be read."""
    seek = _Seeker(folder)
    plan = codec.load(Plan, path, kind="plan") if (path := seek(result.plan_file)) else None
    law = Law.load(path) if (path := seek(result.law_file)) else None
    runs = _read_runs(result, law, seek)
    curves = [_read_curve(c, path) for c in result.candidates if (path := seek(f"{c.folder}/{METRICS}"))]
    return Evidence(
        result=result,
        plan=plan,
        law=law,
        runs=runs,
        points=None if law is None or runs is None else read_points(law, runs, level=result.level),
        latencies=_read_latencies(result, plan, seek),
        curves=tuple(curves),
        evaluations={
            c.name: codec.load(Evaluation, path, kind="evaluation")
            for c in result.candidates
            if (path := seek(f"{EVALUATIONS}/{c.recipe_id}.json", needed=bool(c.accuracies)))
        },
        gone=tuple(seek.gone),
    )


class _Seeker:
    """Look files up in a folder, and remember those that are not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gone: list[str] = []

    def __call__(self, name: str | None, *, needed: bool = True) -> Path | None:
        if not name:
            return None
        if (self.folder / name).is_file():
            return self.folder / name
        self.gone += [name] if needed else []
        return None


def _read_runs(result: StudyResult, law: Law | None, seek: _Seeker) -> Table | None:
    """Read the runs that the law was fitted to: a published table, or a file, and of it what the study chose."""
    table = result.runs_table if result.runs_table in list_published() else seek(result.runs_table)
    if table is None:
        return None
    asked = result.study.get("law") or {}
    target = "loss" if law is None else law.target
    return read_runs(table, where=asked.get("where"), validation=asked.get("validation"), target=target)


def _read_latencies(result: StudyResult, plan: Plan | None, seek: _Seeker) -> Comparison | None:
    """Set what was measured to calibrate the device beside what it predicts; None if too little is there."""
    measured, device = seek(result.measurements_file), seek(result.device_file)
    if measured is None or device is None or plan is None:
        return None
    trained = [candidate.shape for candidate in result.candidates]
    rows = [
        row
        for row in open_rows(measured)[0]
        if row.workload == plan.workload
        and PREDICTED_AS[row.latency.engine] == plan.engine
        and row.shape not in trained
    ]
    return compare(rows, load_device(str(device))) if rows else None


def _read_curve(candidate: Candidate, path: Path) -> Curve:
    """Read a candidate's metrics: its steps thinned, its evaluations as they are, on the first validation set."""
    from lathe.train.meter import read_metrics  # loads torch

    steps = list(read_metrics(path))
    tokens_of = {row["step"]: row["tokens"] for row in steps}
    return Curve(
        name=candidate.name,
        training=tuple(_thin([(row["tokens"], row["loss"]) for row in steps if row["loss"] is not None])),
        held_out=tuple(
            (tokens_of[row["step"]], next(iter(row["losses"].values()))["loss"])
            for row in read_metrics(path, kind="evaluation")
            if row["losses"] and row["step"] in tokens_of
        ),
    )


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours, in windows that grow as the steps do, so that they stand evenly on a logarithmic axis."""
    if len(points) <= CURVE:
        return list(points)
    values = np.array(points, dtype=np.float64)
    ends = np.unique(np.geomspace(1, len(points), CURVE).round().astype(int))
    starts = np.concatenate([[0], ends[:-1]])
    return [tuple(values[a:b].mean(axis=0).tolist()) for a, b in zip(starts, ends, strict=True)]
