"""Compare the runs that `next_runs` chooses with random ones, by the error the same fit then makes at large models.

Run it as `python benchmarks/next.py [--trials N] [--data FOLDER] [--save]`. From six random small runs, each arm adds
runs of the same table within one budget of training FLOPs, their true losses are then shown, and the fit under the
prior (`forecast`, form "auto") predicts the target's runs, which no arm may buy. Random choice walks a shuffled table
and takes what the rest of the budget buys. Errors are medians over trials of the mean relative error over the target.

Morph needs nothing but Lathe. The tables where the design does not pay, points read off Hoffmann et al.'s figure and
the scaling testbed, need the folder of data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import publish, row

import numpy as np  # isort: skip
import pandas as pd

from lathe.design.next import forecast, next_runs
from lathe.laws.importers import read_runs

DATA = Path(__file__).resolve().parents[2] / "shared/data/laws"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A table, the rows to predict, the rows that the first six are drawn from, and what may be spent."""

    name: str
    runs: pd.DataFrame
    target_n: np.ndarray
    start_n: np.ndarray
    flops: float
    form: str = "auto"


def list_tasks(data: Path) -> Iterator[Task]:
    morph = read_runs("morph-2025")
    small_n, large_n = (morph["params"] <= 126e6).to_numpy(), (morph["size"] == "1B").to_numpy()
    for flops in (3e19, 1e20):
        yield Task(
            name=f"Morph to its four 1B runs, {flops:.0e} FLOPs",
            runs=morph, target_n=large_n, start_n=small_n, flops=flops,
        )  # fmt: skip
    yield Task(
        name="Morph, width-depth alone, 1e+20 FLOPs",
        runs=morph, target_n=large_n, start_n=small_n, flops=1e20, form="width-depth",
    )  # fmt: skip
    if not data.is_dir():
        print(f"no folder {data}: the other tables are left out; give it with --data", file=sys.stderr)
        return
    testbed = read_runs(data / "scaling_testbed", where="nominal_tokens_per_param >= 20")
    for corpus in ("rpj", "c4_original"):
        runs = testbed[testbed["dataset"] == corpus]
        yield _quarter(f"testbed {corpus} to the 1.4B and 6.9B", runs, runs["params"].to_numpy() > 1e9, 10, 0.25)
    points = pd.read_csv(data / "chinchilla_points.csv").sort_values("loss")[:-5]
    runs = pd.DataFrame({"params": points["Model Size"], "flops": points["Training FLOP"], "loss": points["loss"]})
    runs = runs.assign(tokens=runs["flops"] / (6 * runs["params"]))
    rank = runs["flops"].rank(method="first").to_numpy()
    yield _quarter("Chinchilla's 240 points to the 8 dearest", runs, rank > len(runs) - 8, 60, 0.03)


def _quarter(name: str, runs: pd.DataFrame, target_n: np.ndarray, small: int, share: float) -> Task:
    """Start from the `small` cheapest runs, with a share of what all but the target cost."""
    cost_n = (6 * runs["params"] * runs["tokens"]).to_numpy()
    open_n = np.flatnonzero(~target_n)
    start_n = np.isin(np.arange(len(runs)), open_n[np.argsort(cost_n[open_n])][:small])
    flops = share * float(cost_n[open_n].sum())
    return Task(name=f"{name}, {flops:.1e} FLOPs", runs=runs, target_n=target_n, start_n=start_n, flops=flops)


def try_once(task: Task, seed: int) -> dict[str, float]:
    rng, runs = np.random.default_rng(seed), task.runs
    cost_n = (6 * runs["params"] * runs["tokens"]).to_numpy()
    targets, true_t = runs[task.target_n], runs.loc[task.target_n, "loss"].to_numpy()
    first = rng.choice(np.flatnonzero(task.start_n), 6, replace=False)
    rest = np.setdiff1d(np.flatnonzero(~task.target_n), first)

    def take(order: Any) -> list[int]:
        taken, left = [], task.flops
        for i in order:
            if cost_n[i] <= left:
                taken.append(int(i))
                left -= cost_n[i]
        return taken

    begin = time.perf_counter()
    found = next_runs(runs.iloc[first], targets, flops=task.flops, candidates=runs.iloc[rest], form=task.form)
    seconds = time.perf_counter() - begin
    arms = {
        "chosen": [int(rest[r.row]) for r in found.chosen],
        "random": take(rng.permutation(rest)),
        "cheapest first": take(rest[np.argsort(cost_n[rest])]),
        "dearest first": take(rest[np.argsort(-cost_n[rest])]),
        "all": [int(i) for i in rest],
    }
    result = {"seconds": seconds, "expected": float(np.mean(found.after.half_width))}
    for arm, more in arms.items():
        seen = forecast(runs.iloc[[*first, *more]], targets, form=task.form)
        result[arm] = float(np.mean(np.abs(seen.loss / true_t - 1)))
        result[f"{arm}, width"] = float(np.mean(seen.half_width))
        result[f"{arm}, covered"] = float(np.mean((seen.low <= true_t) & (true_t <= seen.high)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=30, help="trials a table, seeds 0 upwards")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of laws' data (default: beside the checkout)")
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    given = parser.parse_args()
    rows = []
    for task in list_tasks(given.data):
        trials = pd.DataFrame([try_once(task, seed) for seed in range(given.trials)])
        middle = trials.median()
        rows += [
            row(f"{task.name}: median error", middle["chosen"], "", peer=peer, peer_value=middle[peer])
            for peer in ("random", "cheapest first", "dearest first", "all")
        ]
        wins = float((trials["chosen"] < trials["random"]).mean())
        rows += [
            row(f"{task.name}: trials where chosen runs beat random", wins, ""),
            row(f"{task.name}: mean 90 % half width foreseen", float(trials["expected"].mean()), "",
                peer="reached", peer_value=float(trials["chosen, width"].mean())),
            row(f"{task.name}: share of targets inside the 90 % interval reached",
                float(trials["chosen, covered"].mean()), "",
                peer="random", peer_value=float(trials["random, covered"].mean())),
            row(f"{task.name}: next_runs", middle["seconds"], "s"),
        ]  # fmt: skip
    publish("next", rows, save=given.save)


if __name__ == "__main__":
    main()
