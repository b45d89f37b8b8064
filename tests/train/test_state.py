"""Tests of the trainer's state: saved beside the training, whole or not at all, and loaded to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import Training, assert_equal, copy, save_steps

from lathe.errors import CheckpointError
from lathe.train import snapshots
from lathe.train.snapshots import CHECKPOINTS, list_steps
from lathe.train.state import Saver, load_latest, load_step

WORKER = Path(__file__).with_name("state_worker.py")
LIMIT_S = 120


def test_what_is_loaded_goes_on_to_the_bit(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    training, saver = Training(), make_saver()
    training.step(3)
    saver.save(3, training.tensors, {"loss_sum": 0.1 + 0.2, "watch": [float("inf")]})
    saver.wait()
    other = Training(seed=1)
    assert load_latest(tmp_path, other.tensors) == (3, {"loss_sum": 0.1 + 0.2, "watch": [float("inf")]})
    assert_equal(training.tensors, other.tensors)
    assert other.tensors["optimiser.0.bias.step"] == 3
    for one in (training, other):
        one.step(3, begin=3)
    assert_equal(training.tensors, other.tensors)


def test_the_names_are_global_and_the_tensors_the_trainings_own() -> None:
    training = Training()
    training.step()
    tensors = training.tensors
    assert {
        "model.0.weight",
        "optimiser.0.weight.momentum_buffer",
        "optimiser.3.bias.exp_avg_sq",
        "ema.0.weight",
    } < set(tensors)
    assert tensors["model.0.weight"].data_ptr() == training.model[0].weight.data_ptr()
    assert tensors["ema.0.weight"] is training.ema["0.weight"]


def test_gathering_before_the_first_step_changes_nothing() -> None:
    one, other = Training(), Training()
    assert other.tensors["optimiser.0.bias.step"] == 0
    for training in (one, other):
        training.step(2)
    assert_equal(one.tensors, other.tensors)


def test_training_goes_on_while_a_state_is_written(
    tmp_path: Path, make_saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    training, saver = Training(), make_saver()
    whole = snapshots.sum_files
    monkeypatch.setattr(snapshots, "sum_files", lambda *given: time.sleep(0.2) or whole(*given))
    for step in (1, 2):  # the second reuses the first's memory
        training.step()
        held = copy(training.tensors)
        saver.save(step, training.tensors, {})
        assert step not in list_steps(tmp_path)
        training.step()
    saver.wait()
    assert saver.spent is not None
    assert saver.spent.step == 2
    assert saver.spent.bytes > sum(x.nbytes for x in held.values())
    other = Training(seed=1)
    load_latest(tmp_path, other.tensors)
    assert_equal(other.tensors, held)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 1}, [5]),
        ({"keep_last": 3}, [3, 4, 5]),
        ({"keep_last": 1, "keep_every": 2}, [2, 4, 5]),
        ({"keep_last": 1, "pinned": {1, 3}}, [1, 3, 5]),
    ],
)
def test_which_states_are_kept(
    options: dict[str, Any], kept: list[int], tmp_path: Path, make_saver: Callable[..., Saver]
) -> None:
    saver = make_saver(**options)
    for step in range(1, 6):
        saver.save(step, {"model.w": torch.full((3,), float(step))}, {})
    saver.wait()
    assert list_steps(tmp_path) == kept
    assert len([*(tmp_path / CHECKPOINTS).iterdir()]) == len(kept)


def test_states_of_a_future_that_was_given_up_go(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    save_steps(make_saver, 2, 4, 6)
    saver = make_saver(keep_last=2)
    saver.save(3, {"model.w": torch.ones(1)}, {})
    saver.wait()
    assert list_steps(tmp_path) == [2, 3]
    saver.save(3, {"model.w": torch.zeros(1)}, {"again": True})  # takes its place
    saver.wait()
    w_1 = torch.ones(1)
    assert load_latest(tmp_path, {"model.w": w_1}) == (3, {"again": True})
    assert w_1 == 0


def test_a_step_by_name(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    held = save_steps(make_saver, 1, 2)
    other = Training(seed=1)
    assert load_step(tmp_path, 1, other.tensors) == {"step": 1}
    assert_equal(other.tensors, held[1])
    with pytest.raises(CheckpointError, match="keeps no state of step 3; it keeps: 1, 2"):
        load_step(tmp_path, 3, other.tensors)


def test_another_models_state_is_refused(tmp_path: Path, make_saver: Callable[..., Saver]) -> None:
    save_steps(make_saver, 1)
    with pytest.raises(CheckpointError, match=r"Size mismatch.*model\.0\.weight.*another shape"):
        load_latest(tmp_path, Training(width=16).tensors)
    with pytest.raises(CheckpointError, match=r"Missing key.*model\.more"):
        load_latest(tmp_path, {"model.more": torch.zeros(2)})


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Let two processes save and load in every layout; gives what they found."""
    import state_worker

    folder = tmp_path_factory.mktemp("ranks")
    tensors = state_worker.make_tensors(state_worker.Model())
    state_worker.fill(tensors)
    saver = Saver(folder / "one")
    saver.save(5, tensors, {"from": "one"})
    saver.close()
    command = [sys.executable, "-W", "error", str(WORKER), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder, [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("layout", ["replicated", "sharded", "sliced", "staged"])
def test_a_state_may_change_ranks_and_layout(layout: str, two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    import state_worker

    folder, found = two_ranks
    for one in found:
        assert one[f"{layout}: from one process"] == [5, {"from": "one"}]
        assert one[f"{layout}: differing"] == []
    tensors = state_worker.make_tensors(state_worker.Model())
    assert load_latest(folder / layout, tensors) == (4, {"step": 4})
    assert state_worker.differing(tensors, salt=4) == []
    after = [value for name, value in found[0].items() if name.startswith(f"{layout}: after")]
    assert after == [[{"step": 4}, []]]


def test_all_ranks_agree_on_a_failed_save(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for one in two_ranks[1]:
        first, *_, second, good, last = one["failing: said"]
        assert [good, last] == ["good: False", "good: True"]
        assert all("No space left on device" in warning and "of step 1" in warning for warning in (first, second))
        assert one["failing: left"] == ["step-00000001"]
        assert one["failing: then"] == [1, 3]


def test_all_ranks_fall_back_together(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for one in two_ranks[1]:
        assert len(one["damaged: said"]) == 1
        assert "__1_0.distcp has changed" in one["damaged: said"][0]
        assert one["damaged: loaded"] == [1, {"step": 1}]
        assert one["damaged: differing"] == []
