"""What a worker does with a job, and what is read of it afterwards."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_sweep import make_jobs

from lathe.errors import CodecError, Stopped, StudyError
from lathe.sweep import jobs as module
from lathe.sweep.jobs import conclude, read_outcome, read_tail, train_job
from lathe.sweep.launchers import LAUNCHERS, make_launcher
from lathe.sweep.local import Local
from lathe.train.folder import RUN, hold_folder


def test_a_job_is_trained_with_its_branches(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path / "sweep", 1, branch_at=4)
    assert read_outcome(job) is None
    assert train_job(job) is None
    outcome = conclude(job, seconds=1.0)
    assert (outcome.error, outcome.attempts) == (None, 1)
    assert [run.tokens for run in outcome.runs] == [256, 512]
    assert outcome.runs == read_outcome(job)
    assert outcome.runs[-1].recipe_id == job.recipe.id
    assert "step 8/8" in job.log.read_text()
    assert not (tmp_path / "sweep/runs.jsonl").exists(), "the sweep's table is the parent's"
    (job.folder / "branches/256" / RUN).unlink()
    assert read_outcome(job) is None
    assert conclude(job).error == "ended without a result"


def test_a_job_that_fails_says_why_in_its_log(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path / "sweep", 1)
    (tmp_path / "data-8/dataset.json").write_text("{}")
    error = train_job(job)
    assert error
    assert read_tail(job.log) == f"lathe: {error}"
    assert conclude(job).error == error
    assert conclude(job, error="killed").error == "killed"


def test_a_fault_of_ours_leaves_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr("lathe.train.loop.train", fail)
    (job,) = make_jobs(tmp_path / "sweep", 1)
    assert train_job(job) == "ZeroDivisionError: no such thing"
    assert "Traceback" in job.log.read_text()
    assert conclude(job).error == "ZeroDivisionError: no such thing"


def test_a_job_that_is_stopped_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr("lathe.train.loop.train", stop)
    (job,) = make_jobs(tmp_path / "sweep", 1)
    with pytest.raises(Stopped):
        train_job(job)


def test_a_folder_of_another_recipe_is_an_outcome(tmp_path: Path) -> None:
    one, other = make_jobs(tmp_path / "sweep", 2)
    train_job(one)
    one.folder.rename(other.folder)
    assert "belongs to another recipe: seed is 0 there and 1 here" in (conclude(other).error or "")


def test_a_job_waits_for_its_folder(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path / "sweep", 1)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_folder(job.folder):
            held.set()
            free.wait()

    holder, found = threading.Thread(target=hold), []
    trainer = threading.Thread(target=lambda: found.append(train_job(job)))
    holder.start()
    held.wait()
    trainer.start()
    time.sleep(0.3)
    assert trainer.is_alive()
    free.set()
    trainer.join()
    holder.join()
    assert found == [None]


def test_a_job_waits_no_longer_than_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_S", 0.2)
    (job,) = make_jobs(tmp_path / "sweep", 1)
    with hold_folder(job.folder):
        assert "another process" in (train_job(job) or "")


def test_other_ranks_do_not_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first holds the folder for as long as all of them train."""
    trained: list[str] = []
    monkeypatch.setattr("lathe.train.loop.train", lambda recipe, execution, **options: trained.append(execution.out))
    monkeypatch.setattr(module, "_wait_until_free", lambda folder: pytest.fail("it waited"))
    monkeypatch.setenv("RANK", "1")
    (job,) = make_jobs(tmp_path / "sweep", 1)
    assert train_job(job) is None
    assert trained == [str(job.folder)]


@pytest.mark.parametrize(
    ("text", "tail"),
    [("", ""), ("one\n", "one"), ("1\n2\n3\n", "2\n3"), ("x" * 20000 + "\nlast", "x" * 8187 + "\nlast")],
)
def test_tails(tmp_path: Path, text: str, tail: str) -> None:
    (tmp_path / "log").write_text(text)
    assert read_tail(tmp_path / "log", lines=2) == tail
    assert read_tail(tmp_path / "none") == ""


def test_launchers_are_made_of_settings() -> None:
    assert make_launcher("local", {"slots": "2", "threads": 1}) == Local(slots=2, threads=1)
    assert make_launcher("local", {"slots": "none"}) == Local()
    assert list(LAUNCHERS) == ["local", "slurm", "ray"]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("locl", {}, "did you mean 'local'"),
        ("local", {"slot": 1}, "did you mean 'slots'"),
        ("local", {"slots": "many"}, "slots is .many."),
        ("local", {"slots": 0}, "slots=0; wanted 1 or more"),
    ],
)
def test_bad_launchers_are_refused(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises((StudyError, CodecError), match=says):
        make_launcher(name, settings)
