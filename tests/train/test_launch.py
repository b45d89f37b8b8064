"""Processes of one machine start, fail and stop together."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lathe.train import launch as module
from lathe.train.launch import launch

WORKER = Path(__file__).with_name("launch_worker.py")


def command(task: str, folder: Path) -> list[str]:
    return [sys.executable, "-S", str(WORKER), task, str(folder)]


def await_files(paths: list[Path]) -> None:
    limit = time.monotonic() + 20
    while not all(path.is_file() and path.read_text() for path in paths):
        assert time.monotonic() < limit, f"never written: {paths}"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_processes_get_the_environment_of_torchrun(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(command("tell", tmp_path), nproc=3) == 0
    told = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(3)]
    assert [one[:2] for one in told] == [[str(rank)] * 2 for rank in range(3)]
    assert all(one[2:5] == ["3", "3", "127.0.0.1"] for one in told)
    assert len({one[5] for one in told}) == 1
    assert all(int(one[6]) >= 1 for one in told)


def test_given_threads_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch(command("tell", tmp_path), nproc=1) == 0
    assert (tmp_path / "0.txt").read_text().split()[6] == "7"


def test_one_failure_ends_all_and_is_shown(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "GRACE_S", 0.5)
    assert launch(command("fail_alone", tmp_path), nproc=2) == 1
    said = capfd.readouterr().err
    assert said.startswith("rank 1:")
    assert said.count("ValueError: rank one is ill") == 1
    pid = tmp_path / "0.pid"
    assert not pid.exists() or has_ended(int(pid.read_text()))


def test_what_all_ranks_say_is_said_once(tmp_path, capfd):
    assert launch(command("fail_alike", tmp_path), nproc=3) == 2
    assert capfd.readouterr().err == "lathe: the recipe is wrong\n"


def test_the_cause_is_shown_rather_than_its_effect(tmp_path, capfd):
    assert launch(command("fail_apart", tmp_path), nproc=2) == 2
    assert capfd.readouterr().err == "rank 1:\nlathe: disk full on rank one\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once_and_their_saves_end(tmp_path, number):
    before = signal.getsignal(number)

    def ask() -> None:
        await_files([tmp_path / f"{rank}.pid" for rank in range(3)])
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    code = launch(command("stop_when_asked", tmp_path), nproc=3)
    asking.join()
    assert code == 75
    assert [(tmp_path / f"{rank}.asked").read_text() for rank in range(3)] == [str(int(number))] * 3
    assert signal.getsignal(number) == before


def test_a_killed_process_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    pids = [tmp_path / f"{rank}.pid" for rank in range(2)]

    def kill() -> None:
        await_files(pids)
        os.kill(int(pids[1].read_text()), signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    assert launch(command("sleep", tmp_path), nproc=2) == 128 + signal.SIGKILL
    killing.join()
    assert has_ended(int(pids[0].read_text()))


def test_a_command_that_is_not_there_leaves_nothing_behind(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        launch([str(tmp_path / "nothing")], nproc=2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_launching_needs_no_torch():
    code = "import sys, lathe.train.launch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
