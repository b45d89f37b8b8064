"""Compare rules for weighing law forms by what cross-validation says of them, on splits of two public grids.

Run it as `python benchmarks/choose.py [--testbed FOLDER] [--save]`; about half a minute. A rule sees the fitted runs
only. Its error on a split is the RMS of log(predicted/true) over the split's test runs; errors of several splits are
averaged geometrically, so that none counts for more because its runs are harder to predict.

The splits are not independent: they share runs, and each of Morph's is there under two ways of grouping runs into
folds, which for set B come to the same. Morph's set B and all but 1B are judged on all 76 runs, fitted ones included,
as docs/laws.md judges them. `lathe.laws.choose.WITHIN` was chosen on these splits, so they show how much rules differ
and cannot prove the choice.

Axes: f a form, n a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _report import publish, row

import numpy as np  # isort: skip
import pandas as pd

from lathe.laws.choose import WITHIN
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs

TESTBED = Path(__file__).resolve().parents[2] / "shared/data/laws/scaling_testbed"
PEER = "pick"
# Of the Morph grid's ten names of sizes, those whose params are close are left out together.
SIX_SIZES = (("80M", "86M"), ("116M", "126M"), ("164M", "178M"), ("237M",), ("313M", "339M"), ("1B",))

Part = tuple[pd.DataFrame, pd.DataFrame, str]
"""The runs fitted, the runs judged, and the `folds` of the fit."""
Splits = dict[str, list[Part]]
"""Name → parts, whose errors are pooled."""
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From each form's leave-one-size-out RMS and its cv (`lathe.laws.choose.Score`) to its weight, of any sum."""


def within(factor: float) -> Rule:
    """Weigh alike the forms whose leave-one-size-out RMS is within a factor of the lowest."""
    return lambda loo_f, cv_f: np.where(loo_f <= factor * loo_f.min(), 1.0, 0.0)


RULES: dict[str, Rule] = {
    PEER: within(1.0),
    "within 1.2×": within(1.2),
    "within 1.3×": within(1.3),
    "within 1.5×": within(1.5),
    "within 1.8×": within(1.8),
    "within 2×": within(2.0),
    "loo^-2": lambda loo_f, cv_f: loo_f**-2.0,
    "loo^-4": lambda loo_f, cv_f: loo_f**-4.0,
    "√(loo·cv)^-4": lambda loo_f, cv_f: (loo_f * cv_f) ** -2.0,
}


def split_morph() -> Splits:
    """Split the Morph grid: its set B against all runs, all but 1B against all runs, and each of six sizes left out."""
    runs = read_runs("morph-2025")
    splits: Splits = {}
    for folds in ("size", "clusters"):
        splits[f"set B, folds by {folds}"] = [(runs[runs["set_b"]], runs, folds)]
        splits[f"all but 1B, folds by {folds}"] = [(runs[runs["size"] != "1B"], runs, folds)]
        splits[f"one of six sizes out, folds by {folds}"] = leave_out(runs, SIX_SIZES, folds=folds)
    return splits


def split_testbed(folder: Path) -> Splits:
    """Split the scaling testbed, each training set apart: small sizes against large, and each size left out."""
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}: give the scaling testbed's with --testbed FOLDER (models/ and evals/)")
    table = read_runs(folder)
    splits: Splits = {}
    for dataset in ("c4_original", "rpj"):
        every = table[table["dataset"] == dataset]
        for tag, runs in (("", every), (", ≥ 19 tokens per param", every[every["tokens_per_param"] >= 19])):
            small, large = runs["params"] < 5e8, runs["params"] > 1e9
            splits[f"{dataset}{tag}, to 411M → 1.4B, 6.9B"] = [(runs[small], runs[large], "auto")]
            sizes = [(size,) for size in runs["size"].unique()]
            splits[f"{dataset}{tag}, one size out"] = leave_out(runs, sizes, folds="auto")
        small, middle = every["params"] < 3e8, every["params"].between(3e8, 1e9)
        splits[f"{dataset}, to 154M → 411M"] = [(every[small], every[middle], "auto")]
    return splits


def leave_out(runs: pd.DataFrame, groups: Iterable[tuple[str, ...]], *, folds: str) -> list[Part]:
    """Leave each group of sizes out in turn."""
    return [(runs[~out], runs[out], folds) for out in (runs["size"].isin(group) for group in groups)]


def measure(parts: list[Part]) -> dict[str, float]:
    """Judge every rule on one split: rule → RMS log error in per cent."""
    errors: dict[str, list[np.ndarray]] = {rule: [] for rule in RULES}
    for fitted, judged, folds in parts:
        scores = [s for s in fit(fitted, "auto", folds=folds, draws=0).ranking if not s.excluded]
        loo_f = np.array([s.leave_one_out for s in scores], dtype=float)
        cv_f = np.array([s.cv for s in scores], dtype=float)
        guess_fn = np.array([fit(fitted, s.form, draws=0).predict(judged) for s in scores])
        miss_fn = np.log(guess_fn / judged["loss"].to_numpy(float))
        for rule, weigh in RULES.items():
            weight_f = weigh(loo_f, cv_f)
            errors[rule].append(weight_f @ miss_fn / weight_f.sum())
    return {rule: 100 * float(np.sqrt(np.mean(np.concatenate(r) ** 2))) for rule, r in errors.items()}


def measure_all(splits: Splits) -> dict[str, dict[str, float]]:
    """Judge every rule on every split, and print each as it is done."""
    width = max(map(len, splits))
    say("RMS log error, %".ljust(width), *(rule.rjust(12) for rule in RULES))
    found = {}
    for name, parts in splits.items():
        found[name] = measure(parts)
        say(name.ljust(width), *(f"{error:12.3f}" for error in found[name].values()))
    return found


def summarise(title: str, found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Average each rule's errors over splits geometrically, beside the pick's."""
    mean = {rule: float(np.exp(np.mean([np.log(errors[rule]) for errors in found.values()]))) for rule in RULES}
    return [
        row(f"{title}, {len(found)} splits: {rule}", value, "%", peer=PEER, peer_value=mean[PEER])
        for rule, value in mean.items()
    ]


def say(*words: str) -> None:
    print(*words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--testbed", type=Path, default=TESTBED, help="the scaling testbed (default: shared/data beside the checkout)"
    )
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    given = parser.parse_args()
    groups = {"Morph": split_morph(), "testbed": split_testbed(given.testbed)}
    found = measure_all({name: parts for splits in groups.values() for name, parts in splits.items()})
    say(f"geometric means; `auto` averages within {WITHIN:g}×")
    rows = [r for title, splits in groups.items() for r in summarise(title, {name: found[name] for name in splits})]
    publish("choose", [*rows, *summarise("all", found)], save=given.save)


if __name__ == "__main__":
    main()
