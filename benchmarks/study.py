"""Carry the quickstart out with several seeds: does the law predict what is trained, and does choosing by it pay?

Run it as `python benchmarks/study.py [--save] [--seeds 10] [--folder DIR]`, some seven minutes a seed on two cores. A
folder that is given keeps what was done: the same command goes on.

- prediction: how many of the trained candidates have their true loss inside the law's 90 % interval, and the largest
  error of a prediction;
- selection: of the shapes of the plan's size that fit its latency budget, three are trained alike: the law's first
  choice, the one of most params (parameters alone), and one drawn at random; their mean true losses over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import publish, row

# isort: split
import numpy as np

from lathe.design.candidates import candidates
from lathe.design.choice import Plan
from lathe.latency.roofline import predict_latency
from lathe.laws.law import Law
from lathe.presets.devices import load_device
from lathe.shape import Shape, count_params
from lathe.studies import StudyResult
from lathe.sweep.candidates import make_recipes
from lathe.sweep.launchers import make_launcher
from lathe.sweep.run import read_execution, run_study
from lathe.sweep.stages import DEVICE, LAW, load_plan, make_space
from lathe.sweep.study import Study, load_study
from lathe.sweep.sweep import sweep

AIM_INSIDE, AIM_ERROR = 0.8, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """Hold what one seed gave; losses of the three ways to choose, by name."""

    result: StudyResult
    losses: dict[str, float]
    chosen: dict[str, str]
    seconds: float


def list_within(study: Study, plan: Plan, folder: Path) -> list[Shape]:
    """List the shapes of the plan's size that its latency budget allows, as predicted."""
    found = candidates(make_space(study.plan, Law.load(folder / LAW)), references=False)
    params_n = np.asarray(count_params(found))
    latency = predict_latency(found, device=load_device(folder / DEVICE), workload=plan.workload, engine=plan.engine)
    within_n = (params_n <= study.plan.params) & (params_n >= (study.plan.min_params or 0))
    within_n &= np.asarray(latency.total_s) <= plan.budget.total_s
    return [found.shape(i) for i in np.flatnonzero(within_n)]


def carry_out(study: Study, folder: Path) -> Seed:
    """Carry the study out, and train what the two other ways choose."""
    started = time.perf_counter()
    result = run_study(study, folder, report=_say, live=False)
    seconds = time.perf_counter() - started
    plan = load_plan(folder)
    within = list_within(study, plan, folder)
    draw = np.random.default_rng(study.seed)
    chosen = {
        "the law": plan.choices[0].shape,
        "parameters alone": max(within, key=lambda shape: shape.params),
        "at random": within[int(draw.integers(len(within)))],
    }
    dataset = str(folder / json.loads((folder / "stages/data.json").read_text())["result"]["dataset"])
    entries = make_recipes(study, list(dict.fromkeys(chosen.values())), dataset)
    launch = study.launch
    swept = sweep(
        entries, folder / "candidates", launcher=make_launcher(launch.launcher, launch.settings),
        execution=read_execution(launch.execution), report=_say, live=False,
    )  # fmt: skip
    loss_of = {run.shape: run.loss for run in swept.runs}
    return Seed(
        result=result, losses={way: loss_of[shape] for way, shape in chosen.items()}, seconds=seconds,
        chosen={way: f"{shape.d_model}×{shape.n_layers}" for way, shape in chosen.items()},
    )  # fmt: skip


def measure(seeds: int, folder: Path) -> list[dict[str, Any]]:
    """Carry out all seeds, and sum up."""
    found = []
    for seed in range(seeds):
        found.append(carry_out(load_study("quickstart").with_seed(seed), folder / f"seed-{seed}"))
        one = found[-1]
        _say(f"seed {seed}: {one.chosen}, {one.losses}, {one.seconds:.0f} s")
    trained = [candidate for one in found for candidate in one.result.candidates]
    inside = sum(candidate.inside for candidate in trained)
    errors = [abs(candidate.loss_error) for candidate in trained]
    half_n = [(c.loss_high - c.loss_low) / 2 / c.predicted_loss for c in trained]
    rows = [
        row(f"candidates trained, {seeds} seeds", len(trained), ""),
        row("true loss inside its 90 % interval", inside / len(trained), "", peer="aim, least", peer_value=AIM_INSIDE),
        row("largest error of a predicted loss", max(errors), "", peer="aim, most", peer_value=AIM_ERROR),
        row("mean error of a predicted loss", float(np.mean(errors)), ""),
        row("half width of an interval", float(np.mean(half_n)), ""),
        row("a study that is new, median", float(np.median([one.seconds for one in found])), "s"),
    ]
    rows += [
        row(f"mean true loss, chosen by {way}", float(np.mean([one.losses[way] for one in found])), "nats")
        for way in found[0].losses
    ]
    for way in ("parameters alone", "at random"):
        gained = [one.losses[way] - one.losses["the law"] for one in found]
        se = float(np.std(gained, ddof=1) / np.sqrt(len(gained))) if len(gained) > 1 else 0.0
        rows += [
            row(f"the law's gain over {way}", float(np.mean(gained)), "nats"),
            row(f"… its standard error over seeds, {way}", se, "nats"),
        ]
    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the studies are kept; a temporary folder if not given")
    given = parser.parse_args()
    with _folder(given.folder) as folder:
        publish("study", measure(given.seeds, folder), save=given.save)


if __name__ == "__main__":
    main()
