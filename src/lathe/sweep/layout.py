"""Say what a study consists of: its stages, what its folder holds, and what its sweep trains.

study.json          what was asked
data/, mixture/     what models train on, where the study makes it (see `lathe.sweep.mixing`)
runs/               the sweep; candidates/ the plan's choices, trained
more/               recipes that `lathe next --go` added to the sweep
stages/             what each stage found (see `lathe.sweep.kept`)
law.json, device.json, plan.json, result.json, report.html
"""

from __future__ import annotations

from pathlib import Path

from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid, read_entries
from lathe.sweep.kept import read_stage
from lathe.sweep.mixing import MIXTURE
from lathe.sweep.study import Study

RESULT, STUDY = "result.json", "study.json"
RUNS, CANDIDATES, MORE = "runs", "candidates", "more"
STAGES = ("data", "mixture", "sweep", "law", "device", "plan", "train", "measure", "evaluate", "export")


def list_stages(study: Study) -> tuple[str, ...]:
    """List the stages that a study has, in their order."""
    has = {"data": study.text, "mixture": study.mixture, "sweep": study.grid, "measure": study.device.here}
    return tuple(name for name in STAGES if has.get(name, True))


def find_dataset(study: Study, folder: Path) -> str | None:
    """Find what a study's models train on, the dataset or the mixture; None while it is not made."""
    if study.mixture is not None:
        return str(folder / MIXTURE) if (folder / MIXTURE).is_file() else None
    data = read_stage(folder, "data")
    return None if data is None else str(folder / data.result["dataset"])


def list_entries(study: Study, folder: Path, dataset: str | None) -> tuple[Entry, ...]:
    """List what a study's sweep trains: the grid's recipes, and those that `lathe next --go` added."""
    if study.grid is None:
        return ()
    entries = load_grid({"seeds": [study.seed], **study.grid}, source="[grid]", data=dataset).entries
    added = sorted((folder / MORE).glob("*.json"))
    return (*entries, *read_entries(added, data=dataset)) if added else entries
