"""Time a plan over a million candidate shapes: enumerate, predict loss and latency, rank; on one core.

Run it as `python benchmarks/plan.py [--save]`. The law is the one `lathe fit morph-2025` makes, with 1000 bootstrap
draws; its fit is timed apart. Four axes that the runs held are assumed free, and the depths go up to 160, so that a
million different shapes are left. Every candidate's loss and latency is predicted, whatever the budget says of it. Each
plan is timed in a process of its own: its first call (nothing warm but imports and presets), the median of three more,
and the process's peak memory, interpreter and libraries included. No peer does this.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _report import clock, publish, row

from lathe.budget import Budget
from lathe.design.candidates import candidates, find_space
from lathe.design.plan import plan
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.presets.devices import load_device
from lathe.presets.shapes import shape_presets
from lathe.workload import Workload

DRAWS = 1000
ASSUME = ("ff_ratio", "kv_ratio", "tied", "vocab_size")
DEPTHS = tuple(range(2, 161))
LEAST = 1_000_000
BUDGETS: dict[str, tuple[str, dict[str, float]]] = {
    "eager, 2 s and 1.7B params": ("eager", {"total_s": 2.0, "params": 1.7e9}),
    "graph, 2 s and 1.7B params": ("graph", {"total_s": 2.0, "params": 1.7e9}),
    "eager, 2 s": ("eager", {"total_s": 2.0}),
    "graph, 2 s": ("graph", {"total_s": 2.0}),
    "graph, no limit but the device's memory": ("graph", {}),
}
TOKENS = 29e9


def measure(law_file: Path, what: str) -> dict[str, Any]:
    """Plan once cold and three times warm in this process."""
    law, device, (engine, given) = Law.load(law_file), load_device("a100-40gb"), BUDGETS[what]
    shape_presets()
    space, budget = find_space(law.axes, assume=ASSUME, n_layers=DEPTHS), Budget(tokens=TOKENS, **given)

    def ask() -> Any:
        return plan(law, device, Workload(), budget, engine=engine, space=space)

    begin = time.perf_counter()
    found = ask()
    first = time.perf_counter() - begin
    warm, _ = clock(ask, repeats=3)
    enumerated, _ = clock(lambda: candidates(space), repeats=3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert found.considered >= LEAST, f"{found.considered} candidates are no million"
    return {
        "considered": found.considered, "fitting": found.fitting, "first": first, "warm": warm,
        "enumerated": enumerated, "peak": peak,
    }  # fmt: skip


def measure_apart(law_file: Path, what: str) -> dict[str, Any]:
    """Measure in a process of its own, so that peak memory is that plan's."""
    command = [sys.executable, __file__, "--law", str(law_file), "--only", what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", action="store_true", help="also write the JSON under benchmarks/results/")
    parser.add_argument("--law", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=BUDGETS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        print(json.dumps(measure(given.law, given.only)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        law_file, runs = Path(folder) / "law.json", read_runs("morph-2025")
        begin = time.perf_counter()
        law = fit(runs, draws=DRAWS)
        fit_s = time.perf_counter() - begin
        law.save(law_file)
        for what in BUDGETS:
            found = measure_apart(law_file, what)
            name = f"{found['considered']:,} candidates, {what} ({found['fitting']:,} fit)"
            rows += [
                row(f"{name}: whole plan, first call", found["first"], "s", peer="wanted at most", peer_value=3.0),
                row(f"{name}: whole plan, warm", found["warm"], "s", peer="wanted at most", peer_value=3.0),
                row(f"{name}: enumeration alone", found["enumerated"], "s"),
                row(f"{name}: peak memory", found["peak"] / 1e9, "GB", peer="wanted at most", peer_value=1.0),
            ]
    rows.append(row(f"{law.name}: fit with {DRAWS} draws, apart from the plans", fit_s, "s"))
    publish("plan", rows, save=given.save)


if __name__ == "__main__":
    main()
