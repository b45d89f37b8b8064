"""Add runs to a study: those of its grid's widths, depths and token counts that would tell most about its choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lathe import codec
from lathe.design.next import NextRuns, next_runs
from lathe.errors import StudyError
from lathe.laws.importers import read_runs
from lathe.shape import Shape
from lathe.sweep.entries import Entry, save_entries
from lathe.sweep.grid import load_grid
from lathe.sweep.layout import MORE, RUNS, STUDY, find_dataset, list_entries
from lathe.sweep.mixing import VARIED
from lathe.sweep.stages import PLAN, load_plan
from lathe.sweep.study import Study

REPLACED = ("family", "tokens_per_param")
"""Parts of a grid in whose place its full product stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Hold the runs to add to a study: what they should tell, and their recipes, best first."""

    study: Study
    found: NextRuns
    entries: tuple[Entry, ...]


def propose(folder: str | Path, *, flops: float, target: tuple[Shape, float] | None = None) -> Proposal:
    """Choose the runs that would narrow the prediction at a target most, for so many training FLOPs.

    The target is the plan's first choice if not given. Candidates are all combinations of the grid's widths, depths and
    token counts that no run has. Raises StudyError for a folder without a study that has come to its plan, or whose
    grid is full.
    """
    folder = Path(folder)
    for name in (STUDY, f"{RUNS}/runs.jsonl", PLAN):
        if not (folder / name).is_file():
            raise StudyError(
                f"{folder} has no {name}; carry out a study with a [grid] there first: lathe run STUDY.toml"
            )
    study = codec.load(Study, folder / STUDY, kind="study")
    dataset = find_dataset(study, folder)
    if dataset is None:
        raise StudyError(f"what the study in {folder} trained on is gone; carry it out again, by lathe run")
    runs = read_runs(folder / RUNS / "runs.jsonl", where=study.law.where, validation=study.law.validation)
    planned = list_entries(study, folder, dataset)
    entries = fill_grid(study, dataset, have={recipe.id for entry in planned for recipe in entry.recipes})
    if target is None:
        choices = load_plan(folder).choices
        if not choices:
            raise StudyError(f"the plan in {folder} has no choice to tell more about; give --shape and --tokens")
        target = choices[0].shape, choices[0].tokens
    table = {
        **{name: np.array([getattr(entry.recipe.shape, name) for entry in entries]) for name in (*VARIED, "params")},
        "tokens": np.array([float(entry.recipe.tokens) for entry in entries]),
    }
    found = next_runs(runs, target, flops=flops, candidates=table, form=study.law.form)
    return Proposal(study=study, found=found, entries=tuple(entries[run.row] for run in found.chosen))


def fill_grid(study: Study, dataset: str, *, have: set[str]) -> list[Entry]:
    """List every combination of a grid's widths, depths and token counts that no run has.

    Where the grid has no rule for heads, of its shapes and token counts alone. Raises StudyError.
    """
    grid = study.grid or {}
    swept = load_grid({"seeds": [study.seed], **grid}, source="[grid]", data=dataset).entries
    tokens = sorted({count for entry in swept for count in entry.tokens})
    common = grid.get("shape", {})
    common = {key: value for key, value in common.items() if key not in VARIED} if isinstance(common, dict) else {}
    shapes = [codec.encode(shape) for shape in dict.fromkeys(entry.recipe.shape for entry in swept)]
    if "n_heads" in common:  # else nothing says what another width or depth would look like
        shapes = [{name: sorted({shape[name] for shape in shapes}) for name in VARIED}]
    else:
        common = {}
    document: dict[str, Any] = {
        **{key: value for key, value in grid.items() if key not in REPLACED}, "branches": False, "tokens": tokens,
        "seeds": [study.seed], "shape": common, "shapes": shapes,
    }  # fmt: skip
    found = [entry for entry in load_grid(document, source="[grid]", data=dataset).entries if _is_new(entry, have)]
    if not found:
        raise StudyError("every width, depth and token count of the grid is trained; give the study a larger grid")
    return found


def _is_new(entry: Entry, have: set[str]) -> bool:
    return entry.recipe.id not in have


def add(folder: str | Path, entries: Sequence[Entry]) -> None:
    """Write recipes down as a study's own: they are trained, and the law is fitted anew, when it is carried out."""
    save_entries(entries, Path(folder) / MORE)
