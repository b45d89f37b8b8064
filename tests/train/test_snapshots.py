"""Tests of states that are damaged, cut short, or find no room: nothing is lost, and what happened is said."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_training import Training, assert_equal, copy, fail_on_report, save_steps

from lathe.errors import CheckpointError
from lathe.train.shards import CONTENTS, read_tensors
from lathe.train.snapshots import CHECKPOINTS, MANIFEST, list_steps, part_folder, step_folder
from lathe.train.state import Saver, load_latest, load_step

LIMIT_S = 120


def test_the_next_start_takes_away_what_was_half_written(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    held = save_steps(make_saver, 1, 2)
    part_folder(tmp_path, 3).mkdir()
    (part_folder(tmp_path, 3) / "__0_0.distcp").write_bytes(b"half")
    step_folder(tmp_path, 2).rename(tmp_path / CHECKPOINTS / ".step-00000002.old.part")  # killed while it was replaced
    make_saver()
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["step-00000001", "step-00000002"]
    other = Training(seed=1)
    assert load_latest(tmp_path, other.tensors, report=fail_on_report) == (2, {"step": 2})
    assert_equal(other.tensors, held[2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut": ("__0_0.distcp", lambda path: os.truncate(path, 100), "has 100 bytes of"),
    "flipped": ("__0_0.distcp", flip, "its sha256 is another"),
    "gone": ("__0_0.distcp", Path.unlink, "is missing"),
    "contents gone": (CONTENTS, Path.unlink, "is missing"),
    "manifest gone": (MANIFEST, Path.unlink, "is missing"),
    "manifest cut": (MANIFEST, lambda path: os.truncate(path, 50), "cannot be read"),
    "manifest changed": (
        MANIFEST,
        lambda path: path.write_text(path.read_text().replace('"step": 2', '"step": 3')),
        "its sha256 is another",
    ),
    "manifest of another": (MANIFEST, lambda path: path.write_text('{"lathe": "shape", "version": 1}'), "a shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_taken(
    damage: str, tmp_path: Path, make_saver: Callable[..., Saver]
) -> None:
    held = save_steps(make_saver, 1, 2)
    name, harm, word = DAMAGES[damage]
    harm(step_folder(tmp_path, 2) / name)
    said: list[str] = []
    other = Training(seed=1)
    assert load_latest(tmp_path, other.tensors, report=said.append) == (1, {"step": 1})
    assert_equal(other.tensors, held[1])
    assert len(said) == 1
    assert "state of step 2 is damaged" in said[0]
    assert word in said[0]
    assert name in said[0]
    with pytest.raises(CheckpointError, match="step 2 is damaged"):
        load_step(tmp_path, 2, other.tensors)


def test_no_whole_state_says_what_to_do(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    assert load_latest(tmp_path / "nowhere", {}) is None
    save_steps(make_saver, 1, 2)
    for step in (1, 2):
        (step_folder(tmp_path, step) / MANIFEST).unlink()
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"none of the 2 states .* or remove that folder to train from the begin"):
        load_latest(tmp_path, Training().tensors, report=said.append)
    assert len(said) == 2


def test_a_table_of_contents_runs_nothing(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    save_steps(make_saver, 1)
    for bad in (os.system, eval, torch.load, pickle.loads):
        (step_folder(tmp_path, 1) / CONTENTS).write_bytes(pickle.dumps(bad))
        with pytest.raises(CheckpointError, match=f"asks for .*{bad.__name__}"):
            read_tensors(step_folder(tmp_path, 1), Training().tensors)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 9000])  # nothing can be written; some of the weights can
def test_a_full_disk_ends_no_training(limit: int, tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    said: list[str] = []
    training, saver = Training(), make_saver(report=said.append)
    training.step()
    held = copy(training.tensors)
    saver.save(1, training.tensors, {})
    saver.wait()
    for step in (2, 3):
        training.step()
        with full_disk(limit):
            saver.save(step, training.tensors, {})
            assert not saver.wait()
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000001"]
    assert [f"step {step} could not be saved" in one for step, one in zip((2, 3), said, strict=True)] == [True, True]
    assert all("training goes on, and the last good one is of step 1" in one for one in said)
    other = Training(seed=1)
    assert load_latest(tmp_path, other.tensors) == (1, {})
    assert_equal(other.tensors, held)
    saver.save(4, training.tensors, {})
    assert saver.wait()
    assert list_steps(tmp_path) == [1, 4]


def test_a_failed_save_is_told_of_soon_and_without_waiting(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    (tmp_path / CHECKPOINTS).write_text("in the way")
    said: list[str] = []
    saver = make_saver(report=said.append)
    saver.save(1, {"model.w": torch.ones(1)}, {})
    for _ in range(500):
        saver.poll()
        if said:
            break
        time.sleep(0.01)
    assert "there is none yet" in said[0]
    assert saver.wait()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_ends_no_training(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    said: list[str] = []
    saver = make_saver(report=said.append)
    tmp_path.chmod(0o500)
    saver.save(1, {"model.w": torch.ones(1)}, {})
    saver.wait()
    tmp_path.chmod(0o700)
    assert "Permission denied" in said[0]


KILLED = """
import sys, torch
from lathe.train.state import Saver
saver = Saver(sys.argv[1])
for step in range(1, 100000):
    saver.save(step, {"model.w": torch.full((50_000,), float(step))}, {"step": step})
"""


def test_a_kill_leaves_the_last_state_whole(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        deadline = time.monotonic() + LIMIT_S
        while max(list_steps(tmp_path), default=0) < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = list_steps(tmp_path)
    w_n = torch.zeros(50_000)
    assert load_latest(tmp_path, {"model.w": w_n}, report=fail_on_report) == (steps[-1], {"step": steps[-1]})
    assert bool((w_n == steps[-1]).all())
    Saver(tmp_path).close()
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == [
        step_folder(tmp_path, step).name for step in steps
    ]
