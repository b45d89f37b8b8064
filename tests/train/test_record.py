"""Tests of the table that trainings add their runs to: whole lines, no doubles, many writers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lathe import codec
from lathe.columns import find_column
from lathe.errors import RunsError
from lathe.laws.importers import read_runs
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.record import add_scores, append_run, find_run

SHAPE = Shape.of(d_model=64, n_layers=2, n_heads=2, vocab_size=512, tied=True)
WRITER = """
import sys
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.record import append_run
shape = Shape.of(d_model=64, n_layers=2, n_heads=2, vocab_size=512)
for i in range(40):
    run = Run(name="r", shape=shape, tokens=1000, losses={"c4": 3.5}, validation="c4", seed=i % 30,
              recipe_id=sys.argv[2] if i % 2 else "shared")
    append_run(sys.argv[1], run)
"""


def make_run(**changes: Any) -> Run:
    given: dict[str, Any] = {"name": "a", "losses": {"c4": 3.5}, "validation": "c4", "seed": 0, "recipe_id": "abc"}
    return Run(**{"shape": SHAPE, "tokens": 1_000_000, **given, **changes})


def test_what_is_added_is_what_laws_are_fit_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    more = {
        "train_loss": 4.25, "steps": 100, "seq_len": 128, "batch_tokens": 10_000, "lr": 3e-3, "energy_j": 120.5,
        "git": "0123abc-dirty", "created": "2026-01-02T03:04:05+00:00", "seconds": 10.0, "flops": 1e9,
        "loss_ses": {"c4": 0.01},
    }  # fmt: skip
    assert append_run(path, make_run(**more))
    assert append_run(path, make_run(**{**more, "seed": 1, "name": "é", "losses": {"c4": 3.25, "wiki": 3.0}}))
    frame = read_runs(path)
    assert frame["loss"].tolist() == [3.5, 3.25]
    assert frame["train_loss"].tolist() == [4.25, 4.25]
    assert frame["name"].tolist() == ["a", "é"]
    assert frame["energy_j"].tolist() == [120.5, 120.5]
    assert frame["batch_tokens"].tolist() == [10_000, 10_000]
    assert frame["git"].tolist() == ["0123abc-dirty"] * 2
    assert all(find_column(name) for name in frame)
    assert find_run(path, "abc") == make_run(**more).to_row()


def test_a_run_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert append_run(path, make_run())
    before = path.read_bytes()
    assert not append_run(path, make_run())
    assert not append_run(path, make_run(losses={"c4": 3.25}))  # it replaces nothing
    assert path.read_bytes() == before
    for change in ({"seed": 1}, {"tokens": 2_000_000}, {"recipe_id": "abd"}):
        assert append_run(path, make_run(**change))
    assert len(read_runs(path)) == 4


def test_runs_without_a_recipe_are_all_added(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert append_run(path, make_run(recipe_id=None))
    assert append_run(path, make_run(recipe_id=None, seed=1))
    assert find_run(path, "abc") is None
    assert find_run(tmp_path / "nowhere.jsonl", "abc") is None


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_what_a_killed_writer_left_of_a_line_goes(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_run(path, make_run())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: cut - 1] if cut < 200 else whole + whole[:-2])
    assert append_run(path, make_run(seed=1))
    assert read_runs(path)["seed"].tolist() == [0, 1]
    assert path.read_bytes().startswith(whole)


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_run(path, make_run())
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert not append_run(path, make_run())
    assert append_run(path, make_run(seed=1))
    assert read_runs(path)["seed"].tolist() == [0, 1]


def test_lines_that_are_no_rows_are_left_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("# a comment\n[1]\n")
    assert append_run(path, make_run())
    assert path.read_text().startswith("# a comment\n[1]\n{")
    assert find_run(path, "abc") == make_run().to_row()


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_run(path, make_run())
    path.write_bytes(path.read_bytes() + b'{"torn')
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 20):  # nothing fits, and a part of the line
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
        try:
            with pytest.raises(RunsError, match="'b' could not be added"):
                append_run(path, make_run(name="b", seed=1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before


def test_a_table_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match=r"could not be added: Is a directory.*train the recipe again"):
        append_run(tmp_path, make_run())
    with pytest.raises(RunsError, match="cannot be read"):
        find_run(tmp_path, "abc")


def test_many_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(i)], env={**os.environ, "OMP_NUM_THREADS": "1"}) for i in range(3)]
    try:
        assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = sorted((row["recipe_id"], row["seed"]) for row in rows)
    odd, even = range(1, 30, 2), range(0, 30, 2)
    assert found == sorted([("shared", i) for i in even] + [(str(w), i) for w in range(3) for i in odd])


class TestAddScores:
    def test_row_and_run_have_them(self, tmp_path: Path) -> None:
        table, folder = tmp_path / "runs.jsonl", tmp_path / "b"
        other, run = make_run(recipe_id="x"), make_run(recipe_id="y", accuracies={"boolq": 0.5})
        folder.mkdir()
        for one in (other, run):
            append_run(table, one)
        codec.save(run, folder / "run.json", kind="run")
        found = add_scores(folder, accuracies={"arc_easy": 0.25}, losses={"wiki": (3.25, 0.01), "c4": (3.4, None)})
        assert found == codec.load(Run, folder / "run.json", kind="run")
        assert found.accuracies == {"boolq": 0.5, "arc_easy": 0.25}
        first, second = map(json.loads, table.read_text().splitlines())
        assert first == other.to_row()
        assert second == found.to_row()
        assert (second["accuracy_arc_easy"], second["loss_wiki"], second["loss"]) == (0.25, 3.25, 3.4)

    def test_a_run_that_the_table_lacks_is_added(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        codec.save(make_run(), tmp_path / "b/run.json", kind="run")
        found = add_scores(tmp_path / "b", accuracies={"arc_easy": 0.25}, losses={})
        assert json.loads((tmp_path / "runs.jsonl").read_text()) == found.to_row()

    def test_writers_that_wait_find_the_new_table(self, tmp_path: Path) -> None:
        """While rows are put in place, which makes a new file each time, nobody's row is lost."""
        table, folder = tmp_path / "runs.jsonl", tmp_path / "b"
        folder.mkdir()
        codec.save(make_run(recipe_id="mine"), folder / "run.json", kind="run")
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(table), "theirs"])
        try:
            for i in range(40):
                add_scores(folder, accuracies={"t": i / 40}, losses={})
        finally:
            assert writer.wait(60) == 0
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        assert sum(row["recipe_id"] == "mine" for row in rows) == 1
        assert {row["seed"] for row in rows if row["recipe_id"] == "theirs"} == set(range(1, 30, 2))
        assert {row["seed"] for row in rows if row["recipe_id"] == "shared"} == set(range(0, 30, 2))
