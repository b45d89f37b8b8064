"""Tests of a run's folder: one process at a time, one recipe for good."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lathe import codec
from lathe.errors import CheckpointError
from lathe.model.checkpoint import RECIPE, WEIGHTS
from lathe.recipe import Data, Recipe, Schedule
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.folder import LOCK, RUN, clear, finished, hold_folder, prepare
from lathe.train.snapshots import CHECKPOINTS

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, vocab_size=64)
RECIPE_A = Recipe(shape=SHAPE, tokens=4096, seq_len=32, batch_tokens=256, lr=1e-3, data=Data(train="corpus"))
RUN_A = Run(name="a", shape=SHAPE, tokens=4096, losses={"c4": 3.5}, validation="c4", recipe_id=RECIPE_A.id)
HOLD = """
import sys
from lathe.errors import CheckpointError
from lathe.train.folder import hold_folder
try:
    with hold_folder(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except CheckpointError as error:
    print(error, flush=True)
"""


def hold_elsewhere(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with hold_folder(out):
        outside = hold_elsewhere(out)
        said, _ = outside.communicate(timeout=60)
    assert f"pid {os.getpid()} " in said
    assert "choose another --out" in said
    assert str(out) in said


def test_the_lock_of_a_killed_process_holds_nobody(tmp_path: Path) -> None:
    outside = hold_elsewhere(tmp_path)
    try:
        assert first_line(outside) == "held\n"
        with pytest.raises(CheckpointError, match=f"pid {outside.pid} on "), hold_folder(tmp_path):
            pass
    finally:
        outside.kill()
        outside.communicate()
    assert (tmp_path / LOCK).exists()
    with hold_folder(tmp_path):
        pass
    assert finished(tmp_path, RECIPE_A) is None  # a lock makes no folder somebody's


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for action in (lambda out: hold_folder(out).__enter__(), lambda out: prepare(out, RECIPE_A)):
        with pytest.raises(CheckpointError, match=r"file.*choose another --out"):
            action(tmp_path / "file" / "run")
        with pytest.raises(CheckpointError, match=r"file.*choose another --out"):
            action(tmp_path / "file")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"), hold_folder(tmp_path):
        pass
    tmp_path.chmod(0o700)


def test_a_finished_recipe_is_found(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert finished(out, RECIPE_A) is None
    prepare(out, RECIPE_A)
    prepare(out, RECIPE_A)
    assert codec.load(Recipe, out / RECIPE, kind="recipe") == RECIPE_A
    assert finished(out, RECIPE_A) is None
    codec.save(RUN_A, out / RUN, kind="run")
    assert finished(out, RECIPE_A) == RUN_A


def test_the_same_data_elsewhere_are_the_same_recipe(tmp_path: Path) -> None:
    prepare(tmp_path, replace(RECIPE_A, data=Data(train="here", content="abc")))
    there = replace(RECIPE_A, data=Data(train="there", content="abc"))
    prepare(tmp_path, there)
    with pytest.raises(CheckpointError, match=r"another recipe: lr is 0\.001 there and 0\.1 here; choose"):
        prepare(tmp_path, replace(there, lr=0.1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 3e-3}, ["lr is 0.001 there and 0.003 here"]),
        ({"seed": 1, "tokens": 8192}, ["seed is 0 there and 1 here", "tokens is 4096 there and 8192 here"]),
        ({"schedule": Schedule(name="wsd")}, ["schedule.name is 'cosine' there and 'wsd' here"]),
        ({"shape": replace(SHAPE, n_layers=3)}, ["shape.n_layers is 2 there and 3 here"]),
        ({"data": Data(train="other")}, ["data.train is 'corpus' there and 'other' here"]),
        ({"data": None}, ["data.train is 'corpus' there and None here"]),
    ],
)
def test_another_recipes_folder_is_refused(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    prepare(tmp_path, RECIPE_A)
    other = replace(RECIPE_A, **changes)
    for check in (finished, prepare):
        with pytest.raises(CheckpointError) as caught:
            check(tmp_path, other)
        assert "belongs to another recipe" in str(caught.value)
        assert [word for word in words if word not in str(caught.value)] == []
    assert finished(tmp_path, RECIPE_A) is None


@pytest.mark.parametrize("name", ["thesis.tex", WEIGHTS, RUN])
def test_a_folder_with_other_files_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"other files \({re.escape(name)}\).*choose a new --out"):
        prepare(tmp_path, RECIPE_A)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [RECIPE, RUN])
def test_a_damaged_word_says_so(name: str, tmp_path: Path) -> None:
    prepare(tmp_path, RECIPE_A)
    codec.save(RUN_A, tmp_path / RUN, kind="run")
    os.truncate(tmp_path / name, 40)
    with pytest.raises(CheckpointError, match=rf"{name}.*put back a good copy"):
        finished(tmp_path, RECIPE_A)


def test_beginning_anew_keeps_what_no_training_made(tmp_path: Path) -> None:
    prepare(tmp_path, RECIPE_A)
    codec.save(RUN_A, tmp_path / RUN, kind="run")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    (tmp_path / CHECKPOINTS / "step-00000001" / "state.json").write_text("")
    clear(tmp_path)
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.md", RECIPE]
    assert finished(tmp_path, RECIPE_A) is None
