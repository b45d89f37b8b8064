"""Jobs as processes of this machine: some fail, some are killed, all are accounted for."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from small_sweep import check_trained_once, find_trainer, has_steps, is_alive, make_jobs, wait_until

from lathe.recipe import Data
from lathe.sweep import local
from lathe.sweep.jobs import Job, Outcome
from lathe.sweep.local import Local
from lathe.train.loop import train

LAUNCHER = Local(slots=2, threads=1)
LONG = 40_000
"""Steps that nobody waits for."""


def test_outcomes_are_what_became_of_each(tmp_path: Path) -> None:
    """One is trained, one has no data, one is killed, and one saves when the launch is closed."""
    good, bad = make_jobs(tmp_path / "sweep", 2, branch_at=4)
    killed, closed = make_jobs(tmp_path / "sweep", 2, steps=LONG, save_every=LONG)
    bad = replace(bad, recipe=replace(bad.recipe, data=Data(train=str(tmp_path / "nowhere"))))
    killed, closed = replace(killed, name="killed"), replace(closed, name="closed")
    outcomes: dict[str, Outcome] = {}

    def watch(running: Sequence[Job]) -> None:
        assert len(running) <= 2
        if killed in running and has_steps(killed, 3):
            with suppress(ProcessLookupError):  # of a moment ago
                os.kill(find_trainer(killed), signal.SIGKILL)
        if len(outcomes) == 3 and has_steps(closed, 3):
            raise KeyboardInterrupt

    jobs = [killed, bad, good, closed]
    with closing(LAUNCHER.launch(jobs, watch=watch)) as launched, suppress(KeyboardInterrupt):
        for one in launched:
            outcomes[one.job.name] = one
    assert outcomes["killed"].error == "killed by SIGKILL"
    assert "nowhere" in (outcomes["seed-1"].error or "")
    assert not any(outcomes[name].runs for name in ("killed", "seed-1"))
    assert outcomes["seed-0"].error is None
    assert [run.tokens for run in outcomes["seed-0"].runs] == [256, 512]
    assert outcomes["seed-0"].seconds > 0
    check_trained_once(good)
    same = train(good.recipe, replace(good.execution, out=str(tmp_path / "alone"), runs=None), report=lambda _: None)
    assert same.loss == outcomes["seed-0"].runs[-1].loss
    assert not is_alive(find_trainer(closed))
    assert "stopped by SIGTERM after step" in closed.log.read_text()
    assert any((closed.folder / "checkpoints").iterdir())


def test_a_server_that_dies_takes_its_jobs_with_it_and_no_more(tmp_path: Path) -> None:
    """A new one is started for the jobs that wait."""
    (lost,) = make_jobs(tmp_path / "sweep", 1, steps=LONG, save_every=LONG)
    (next_,) = make_jobs(tmp_path / "sweep", 1)
    trainers: list[int] = []

    def watch(running: Sequence[Job]) -> None:
        if lost in running and not trainers and has_steps(lost, 3):
            trainers.append(find_trainer(lost))
            server = Path(f"/proc/{trainers[0]}/stat").read_text().rpartition(")")[2].split()[1]
            os.kill(int(server), signal.SIGKILL)

    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the server")
    first, second = Local(slots=1, threads=1).launch([lost, next_], watch=watch)
    assert "server of the local launcher died" in (first.error or "")
    assert second.error is None
    wait_until(lambda: not is_alive(trainers[0]))
    assert "stopped by SIGTERM after step" in lost.log.read_text()


def test_no_jobs_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_Server", None)
    assert list(LAUNCHER.launch([])) == []


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-1f")
    assert local._list_gpus() == ["2", "GPU-1f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local._list_gpus() == ["0", "1"]
