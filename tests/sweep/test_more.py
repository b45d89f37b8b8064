"""Runs added to a study: what is proposed, and that they join the table and the law."""

import json
import shutil
from pathlib import Path

import pytest
from small_studies import finished_study, write_study

from lathe import codec
from lathe.errors import BudgetError, StudyError
from lathe.sweep.more import add, fill_grid, propose
from lathe.sweep.run import run_study
from lathe.sweep.study import Study, load_study


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shutil.copytree(finished_study(), tmp_path / "study")
    return tmp_path / "study"


def read_rows(home: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (home / "out/runs/runs.jsonl").read_text().splitlines()]


def test_what_fills_the_grid(home: Path) -> None:
    """All of four widths, three depths and three token counts, but for the 21 that there are."""
    study = codec.load(Study, home / "out/study.json", kind="study")
    dataset = next((home / "out/data").glob("*/dataset"))
    have = {str(row["recipe_id"]) for row in read_rows(home)}
    found = fill_grid(study, str(dataset), have=have)
    assert len(found) == 4 * 3 * 3 - 21
    assert not have & {entry.recipe.id for entry in found}
    assert {entry.recipe.lr for entry in found if entry.recipe.shape.d_model == 16} == {4e-3}


def test_constraints_hold_for_what_is_added(home: Path) -> None:
    study = load_study(write_study(home, ("branches = true", 'branches = true\nconstraints = ["n_layers <= 2"]')))
    dataset = next((home / "out/data").glob("*/dataset"))
    assert {entry.recipe.shape.n_layers for entry in fill_grid(study, str(dataset), have=set())} == {1, 2}


def test_new_runs_join_the_table_and_the_law(home: Path) -> None:
    before, law = read_rows(home), (home / "out/law.json").read_text()
    found = propose(home / "out", flops=4e8)
    assert 0 < len(found.entries) == len(found.found.chosen)
    assert sum(run.flops for run in found.found.chosen) <= 4e8
    assert [float(entry.recipe.tokens) for entry in found.entries] == list(found.found.columns["tokens"])
    add(home / "out", found.entries)
    said: list[str] = []
    result = run_study(found.study, home / "out", report=said.append, live=False)
    after = read_rows(home)
    assert after[: len(before)] == before
    assert {row["recipe_id"] for row in after[len(before) :]} == {entry.recipe.id for entry in found.entries}
    assert f"7 of {7 + len(found.entries)} are trained already" in said
    assert (home / "out/law.json").read_text() != law
    assert result.costs["sweep"].runs == len(after)
    assert {"data: kept from before", "law …", "plan …"} <= set(said)
    again = propose(home / "out", flops=4e8)
    assert not {entry.recipe.id for entry in again.entries} & {str(row["recipe_id"]) for row in after}


def test_rows_that_the_law_leaves_out_are_not_proposed_again(home: Path) -> None:
    study = codec.load(Study, home / "out/study.json", kind="study")
    asked = json.loads((home / "out/study.json").read_text())
    asked["law"]["where"] = "d_model > 8"
    (home / "out/study.json").write_text(json.dumps(asked))
    assert study.law.where is None
    found = propose(home / "out", flops=1e9)
    assert not {e.recipe.id for e in found.entries} & {str(row["recipe_id"]) for row in read_rows(home)}


def test_a_target_of_ones_own(home: Path) -> None:
    shape = codec.load(Study, home / "out/study.json", kind="study")
    first = propose(home / "out", flops=1e9)
    entry = first.entries[0]
    other = propose(home / "out", flops=1e9, target=(entry.recipe.shape, 1e5))
    assert shape.plan.tokens != 1e5
    assert other.found.before.loss[0] != first.found.before.loss[0]


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no study.json; carry out a study with a \[grid\]"):
        propose(tmp_path, flops=1e9)


def test_data_that_are_gone(home: Path) -> None:
    (home / "out/stages/data.json").unlink()
    with pytest.raises(StudyError, match="trained on is gone; carry it out again"):
        propose(home / "out", flops=1e9)


def test_flops_that_buy_nothing(home: Path) -> None:
    with pytest.raises(BudgetError, match="buys none of the 15 candidates"):
        propose(home / "out", flops=1.0)


def test_a_full_grid(home: Path) -> None:
    study = load_study(
        write_study(home, ("[[grid.shapes]]\nd_model = 24\nn_layers = 3\n", ""))
    )  # all of three widths and two depths
    dataset = next((home / "out/data").glob("*/dataset"))
    with pytest.raises(StudyError, match="every width, depth and token count of the grid is trained"):
        fill_grid(study, str(dataset), have={str(row["recipe_id"]) for row in read_rows(home)})
