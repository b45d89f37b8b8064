"""A sweep as a whole: what is done is skipped, what failed is tried again, and the table is always the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_datasets import write_small_dataset
from small_sweep import wait_until

from lathe.cli import main
from lathe.cli.sweep import FAILED
from lathe.errors import CheckpointError, Stopped, StudyError
from lathe.laws.importers import read_runs
from lathe.sweep import local as real_local
from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid
from lathe.sweep.jobs import Job, Launcher, Outcome, Watch, conclude
from lathe.sweep.live_table import LiveTable, read_progress
from lathe.sweep.sweep import SweepResult, sweep
from lathe.train.execution import Execution
from lathe.train.folder import hold_folder
from lathe.train.launch import STOPPED
from lathe.train.loop import train
from lathe.train.record import add_scores

GRID = """
tokens = [256, 512, 1024]
branches = true

[base]
data = "data"
seq_len = 16
batch_tokens = 64
lr = "1e-3 * sqrt(32 / d_model)"
schedule = {name = "wsd", warmup_steps = 1, decay = 0.25}

[shape]
d_model = [16, 32]
n_layers = [1, 2]
n_heads = 2
max_seq_len = 16
"""
TABLE = "runs.jsonl"
TIMES = ("seconds", "created", "git")
EXECUTION = Execution(out="", threads=1, log_every=10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Give jobs what they were trained to before, in any order; some fail a few times first."""

    order: Callable[[Sequence[Job]], Sequence[Job]] = lambda jobs: jobs
    failing: dict[str, int] = field(default_factory=dict)
    before: Callable[[Job], object] = lambda job: None
    launched: list[str] = field(default_factory=list)

    def launch(self, jobs: Sequence[Job], *, watch: Watch | None = None) -> Generator[Outcome, None, None]:
        for job in self.order(jobs):
            self.launched.append(job.name)
            self.before(job)
            if watch is not None:
                watch([job])
            if self.failing.get(job.name, 0) > 0:
                self.failing[job.name] -= 1
                job.log.parent.mkdir(exist_ok=True)
                job.log.write_text("lathe: the disk is on fire\n")
                yield Outcome(job=job, error="the disk is on fire")
            else:
                shutil.copytree(TRAINED[job.recipe.id], job.folder)
                yield conclude(job)


TRAINED: dict[str, Path] = {}
"""Folders by recipe: ids hang on what data hold, not on where they lie."""


@pytest.fixture(scope="module", autouse=True)
def trained(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train what the tests of this file ask for, once."""
    folder = tmp_path_factory.mktemp("trained")
    for entry in make_entries(folder):
        out = folder / "runs" / entry.name
        train(entry.recipe, replace(EXECUTION, out=str(out), branch_at=entry.branch_at), report=lambda _: None)
        TRAINED[entry.recipe.id] = out


@pytest.fixture
def entries(tmp_path: Path) -> tuple[Entry, ...]:
    return make_entries(tmp_path)


def make_entries(folder: Path) -> tuple[Entry, ...]:
    write_small_dataset(folder / "data", train=2000, held_out=200)
    (folder / "grid.toml").write_text(GRID)
    return load_grid(folder / "grid.toml").entries


def run(entries: Sequence[Entry], folder: Path, launcher: Launcher | None = None, **options: Any) -> SweepResult:
    options = {"report": lambda _: None, "execution": EXECUTION, "live": False, **options}
    return sweep(entries, folder, launcher=launcher or Here(), **options)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read a table's rows, without what no two trainings share."""
    found = [json.loads(line) for line in (folder / TABLE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def test_a_grid_is_trained_longest_first_into_one_table(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    said: list[str] = []
    launcher = Here()
    result = run(entries, tmp_path / "runs", launcher, report=said.append)
    assert launcher.launched == ["32x2", "16x2", "32x1", "16x1"]
    assert (result.failures, result.skipped, result.table) == ((), 0, tmp_path / "runs" / TABLE)
    assert [run.tokens for run in result.runs] == [256, 512, 1024] * 4
    assert [run.recipe_id for run in result.runs] == [recipe.id for entry in entries for recipe in entry.recipes]
    assert [row["recipe_id"] for row in rows(tmp_path / "runs")] == [run.recipe_id for run in result.runs]
    assert said[0].startswith("1/4 32x2: loss ")
    assert len(read_runs(result.table)) == 12


def test_the_table_hangs_on_no_order_and_on_no_failure(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    run(entries, tmp_path / "a")
    said: list[str] = []
    launcher = Here(order=lambda jobs: jobs[::-1], failing={"16x2": 1, "32x1": 2})
    result = run(entries, tmp_path / "b", launcher, retries=2, report=said.append)
    assert not result.failures
    assert launcher.launched == ["16x1", "32x1", "16x2", "32x2", "16x2", "32x1", "32x1"]
    assert any("16x2 failed, and is tried again: the disk is on fire; the end of " in line for line in said)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_what_is_done_starts_nothing(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    first = run(entries[:2], tmp_path / "runs")
    before = (tmp_path / "runs" / TABLE).read_bytes()
    launcher = Here()
    again = run(entries[:2], tmp_path / "runs", launcher)
    assert launcher.launched == []
    assert (again.skipped, again.runs) == (2, first.runs)
    assert (tmp_path / "runs" / TABLE).read_bytes() == before
    launcher = Here()
    more = run(entries, tmp_path / "runs", launcher)
    assert sorted(launcher.launched) == ["32x1", "32x2"]
    assert (more.skipped, len(more.runs)) == (2, 12)
    assert (tmp_path / "runs" / TABLE).read_bytes().startswith(before)


def test_rows_of_others_and_scores_stay(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    folder = tmp_path / "runs"
    result = run(entries[:1], folder)
    trunk = folder / entries[0].recipe.id[:12]
    add_scores(trunk, accuracies={"arc": 0.5}, losses={})
    other = '{"name": "of another", "loss": 3}'
    with open(result.table, "a") as table:
        table.write(f"{other}\n")
    again = run(entries[1::-1], folder)
    lines = result.table.read_text().splitlines()
    assert lines[3] == other
    assert len(lines) == 7
    scored = [json.loads(line) for line in lines if '"accuracy_arc": 0.5' in line]
    assert [row["recipe_id"] for row in scored] == [entries[0].recipe.id]
    assert again.runs[-1].accuracies == {"arc": 0.5}


def test_failures_stop_nothing_and_are_told(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    said: list[str] = []
    launcher = Here(failing={"32x1": 9})
    result = run(entries, tmp_path / "runs", launcher, report=said.append, retries=1)
    assert [failure.name for failure in result.failures] == ["32x1"]
    assert result.failures[0].error == "the disk is on fire"
    assert result.failures[0].log.read_text() == "lathe: the disk is on fire\n"
    assert launcher.launched.count("32x1") == 2
    assert len(result.runs) == 9
    assert said[-1].startswith("32x1 failed: the disk is on fire")
    assert len(run(entries, tmp_path / "runs").runs) == 12


def test_a_folder_of_another_recipe_is_left_alone(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    one, other = entries[:2]
    run([one], tmp_path / "runs")
    taken = tmp_path / "runs" / other.recipe.id[:12]
    (tmp_path / "runs" / one.recipe.id[:12]).rename(taken)
    before = (taken / "run.json").read_bytes()
    result = run([one, other], tmp_path / "runs")
    assert [failure.name for failure in result.failures] == [other.name]
    assert "belongs to another recipe" in result.failures[0].error
    assert (taken / "run.json").read_bytes() == before
    assert len(result.runs) == 3


def test_a_signal_ends_a_sweep_that_then_goes_on(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    launcher = Here()
    launcher = replace(
        launcher, before=lambda job: len(launcher.launched) == 3 and os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Stopped, match="stopped by SIGTERM with 2 of 4 trained; what ran is saved"):
        run(entries, tmp_path / "runs", launcher)
    assert len(rows(tmp_path / "runs")) == 6
    assert run(entries, tmp_path / "runs").skipped == 2
    run(entries, tmp_path / "whole")
    assert rows(tmp_path / "runs") == rows(tmp_path / "whole")


def test_one_sweep_at_a_time_has_a_folder(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    with hold_folder(tmp_path / "runs"), pytest.raises(CheckpointError, match="another process"):
        run(entries, tmp_path / "runs")


def test_bad_sweeps_are_refused(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    with pytest.raises(StudyError, match="no recipes"):
        run([], tmp_path / "runs")
    with pytest.raises(StudyError, match="retries=-1"):
        run(entries, tmp_path / "runs", retries=-1)
    with pytest.raises(StudyError, match="are the same recipe"):
        run([*entries, replace(entries[0], name="again")], tmp_path / "runs")
    with pytest.raises(StudyError, match="two entries are called '16x1'"):
        run([entries[0], replace(entries[1], name="16x1")], tmp_path / "runs")
    with pytest.raises(StudyError, match="16x1 names no data"):
        run([replace(entries[0], recipe=replace(entries[0].recipe, data=None))], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


PARENT = """
import sys
from lathe.sweep.grid import load_grid
from lathe.sweep.local import Local
from lathe.sweep.sweep import sweep
from lathe.train.execution import Execution
sweep(
    load_grid(sys.argv[1]).entries, sys.argv[2], launcher=Local(slots=2, threads=1),
    execution=Execution(out="", save_every=20),
)
"""  # no guard of __main__: it needs none


def test_a_killed_sweep_goes_on_to_the_same_table(tmp_path: Path) -> None:
    write_small_dataset(tmp_path / "data", train=20_000, held_out=200)
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.replace("256, 512, 1024", "2048, 4096, 8192").replace("[16, 32]", "16"))
    entries = load_grid(grid).entries
    folder, whole = tmp_path / "runs", tmp_path / "whole"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(grid), str(folder)], stdout=subprocess.DEVNULL)
    outs = [folder / entry.recipe.id[:12] for entry in entries]
    wait_until(lambda: all((out / "metrics.jsonl").exists() for out in outs), most_s=60)
    parent.kill()
    parent.wait()
    assert not (folder / TABLE).exists()
    result = run(entries, folder, real_local.Local(slots=2, threads=1))
    said = [(folder / "logs" / f"{out.name}.log").read_text() for out in outs]
    assert any("stopped by SIGTERM after step" in one and "going on after step" in one for one in said)
    assert [run.recipe_id for run in result.runs] == [recipe.id for entry in entries for recipe in entry.recipes]
    for entry in entries:
        out = str(whole / entry.name)
        train(entry.recipe, Execution(out=out, threads=1, branch_at=entry.branch_at), report=lambda _: None)
    assert sorted(rows(folder), key=str) == sorted(rows(whole), key=str)


def test_what_runs_is_shown(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    folder, jobs = tmp_path / "runs", list[Job]()
    run(entries[:1], folder, replace(Here(), before=jobs.append))
    (job,) = jobs
    progress = read_progress(job)
    assert progress.done == progress.steps == entries[0].steps
    assert progress.share == 1
    assert progress.loss is not None
    metrics = job.folder / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:4]) + b'{"kind": "st')
    for branch in (job.folder / "branches").iterdir():
        (branch / "metrics.jsonl").unlink()
    assert read_progress(job).done == 4
    console = Console(width=80, force_terminal=False)
    table = LiveTable(entries, console=console)
    with console.capture() as shown:
        console.print(table.draw([job], done=[entries[1].name]))
    assert f"4/{entries[0].steps}" in shown.get()
    assert "1 of 4 ended" in shown.get()


def test_a_terminal_shows_the_table(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    console = Console(width=80, force_terminal=True)
    with console.capture() as shown, LiveTable(entries, console=console) as table:
        table.show([], done=[entries[0].name])
    assert "1 of 4 ended" in shown.get()


@pytest.fixture
def command(
    tmp_path: Path, entries: tuple[Entry, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `lathe sweep` beside grid.toml, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lathe.sweep.launchers.import_module", lambda name: sys.modules[__name__])

    def call(*options: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["sweep", "grid.toml", "--out", "out", *options])
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


Local = Here
"""What `make_launcher` finds here in the place of the real one."""


def test_the_command_trains(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, printed, _ = command("--set", "threads=1", "save_every=3")
    assert (code, printed.splitlines()[-1]) == (0, "runs: out/runs.jsonl")
    assert len(rows(tmp_path / "out")) == 12
    code, printed, _ = command("--set", "threads=1")
    assert (code, printed.splitlines()) == (0, ["4 of 4 are trained already", "runs: out/runs.jsonl"])


def test_the_command_says_how_it_ended(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lathe.sweep.launchers.LAUNCHERS", {"local": ("", "Failing")})
    code, _, errors = command("--set", "threads=1")
    assert code == FAILED
    assert "lathe: 32x1 failed: the disk is on fire; its log is out/logs/" in errors
    monkeypatch.setattr("lathe.sweep.launchers.LAUNCHERS", {"local": ("", "Stopping")})
    code, _, errors = command("--set", "threads=1")
    assert code == STOPPED
    assert "with 3 of 4 trained" in errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing(Here):
    failing: dict[str, int] = field(default_factory=lambda: {"32x1": 2})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Here):
    before: Callable[[Job], object] = lambda job: os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--set out=here", "a sweep gives each run its own"),
        ("--set thread=1", "did you mean 'threads'"),
        ("--set threads", "--set 'threads' is no KEY=VALUE"),
        ("--set threads=0", "threads=0"),
        ("--with partition", "--with 'partition' is no KEY=VALUE"),
        ("--launcher lokal", "did you mean 'local'"),
        ("--data nowhere", "nowhere"),
    ],
)
def test_the_command_refuses(
    command: Callable[..., tuple[int, str, str]], options: str, says: str, tmp_path: Path
) -> None:
    code, _, errors = command(*options.split())
    assert code == 2
    assert says in errors
    assert not (tmp_path / "out").exists()
