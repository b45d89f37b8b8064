"""Tests of the trainer's state: saved beside the training, whole or not at all, and loaded to the last bit."""

from __future__ import annotations

import json
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
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lathe.errors import CheckpointError
from lathe.train import snapshots
from lathe.train.shards import CONTENTS, read_tensors
from lathe.train.snapshots import CHECKPOINTS, MANIFEST, list_steps, part_folder, step_folder
from lathe.train.state import Saver, gather_tensors, load_latest, load_step

WORKER = Path(__file__).with_name("state_worker.py")
LIMIT_S = 120


class Training:
    """Train a small model with Muon, AdamW and a moving average."""

    def __init__(self, *, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, width), nn.LayerNorm(width))
        weights = list(self.model.parameters())
        self.optimisers = [
            torch.optim.Muon([w for w in weights if w.ndim == 2], lr=0.01),
            torch.optim.AdamW([w for w in weights if w.ndim != 2], lr=0.01, fused=True),
        ]
        self.ema = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        self.width = width

    def step(self, count: int = 1, *, begin: int = 0) -> None:
        for number in range(begin, begin + count):
            x_bd = torch.randn(4, self.width, generator=torch.Generator().manual_seed(number))
            (self.model(x_bd) * x_bd).sum().backward()
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad()
            for name, w in self.model.named_parameters():
                self.ema[name].lerp_(w.detach(), 0.1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return gather_tensors(self.model, self.optimisers, self.ema)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, x in one.items() if not torch.equal(x, other[name])] == []


def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in tensors.items()}


def fail_on_report(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def make_saver(tmp_path: Path) -> Iterator[Callable[..., Saver]]:
    made: list[Saver] = []

    def make(**options: Any) -> Saver:
        made.append(Saver(tmp_path, **{"report": fail_on_report, **options}))
        return made[-1]

    yield make
    for saver in made:
        saver.close()


def save_steps(make_saver: Callable[..., Saver], *steps: int) -> dict[int, dict[str, Tensor]]:
    """Save the states of one training after some steps; gives what they held."""
    training, saver, held, done = Training(), make_saver(keep_last=len(steps)), {}, 0
    for step in steps:
        training.step(step - done, begin=done)
        done, held[step] = step, copy(training.tensors)
        saver.save(step, training.tensors, {"step": step})
    saver.wait()
    return held


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
