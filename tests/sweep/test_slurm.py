"""Train tiny decoders through submitit: on its local executor, and on commands that stand in for Slurm's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_sweep import BATCH_TOKENS, check_trained_once, find_trainer, has_steps, is_alive, make_jobs, wait_until

from lathe import codec
from lathe.errors import CodecError, MissingExtraError, StudyError
from lathe.sweep.jobs import Job, Outcome
from lathe.sweep.slurm import BATCH, FOLDER, Batch, Slurm

FAKE = Path(__file__).with_name("fake_slurm.py")
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
QUICK = Slurm(hours=0.5, ask_s=0.3, partition="gpu_small", account="lab", save_s=40)


@pytest.fixture(autouse=True)
def _submitit() -> None:
    pytest.importorskip("submitit", reason='needs submitit: pip install "lathe[slurm]"')


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a cluster's commands on the PATH; gives the folder of its state."""
    state, commands = tmp_path / "cluster", tmp_path / "bin"
    state.mkdir()
    commands.mkdir()
    for name in COMMANDS:
        script = f'#!/bin/sh\nexec {shlex.join([sys.executable, str(FAKE), name])} "$@"\n'
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def options(cluster: Path, job: str) -> dict[str, str]:
    return json.loads((cluster / job / "options.json").read_text())


def count_calls(cluster: Path, command: str) -> int:
    return sum(line.startswith(command) for line in (cluster / "calls.txt").read_text().splitlines())


def check_all(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    assert [one.error for one in outcomes] == [None] * len(jobs)
    assert sorted(one.job.name for one in outcomes) == sorted(job.name for job in jobs)
    for one in outcomes:
        assert one.runs[-1].recipe_id == one.job.recipe.id
        check_trained_once(one.job)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class TestLocalExecutor:
    def test_trainings_one_refused_and_one_killed(self, tmp_path: Path) -> None:
        good, bad, long = [
            *make_jobs(tmp_path / "sweep", 2, branch_at=4),
            *make_jobs(tmp_path / "sweep", 1, steps=4000),
        ]
        bad.folder.mkdir(parents=True)
        (bad.folder / "thesis.tex").write_text("mine")
        seen: list[str] = []

        def watch(running: Sequence[Job]) -> None:
            seen.extend(job.folder.name for job in running)
            if has_steps(long, 3) and is_alive(find_trainer(long)):
                os.kill(find_trainer(long), signal.SIGKILL)

        launcher = Slurm(cluster="local", ask_s=0.2)
        outcomes = {one.job.folder: one for one in launcher.launch([good, bad, long], watch=watch)}
        assert len(outcomes) == 3
        assert "thesis.tex" in (outcomes[bad.folder].error or "")
        assert outcomes[long.folder].error == "killed by SIGKILL"
        check_all([good], [outcomes[good.folder]])
        assert [run.tokens for run in outcomes[good.folder].runs] == [4 * BATCH_TOKENS, 8 * BATCH_TOKENS]
        assert {good.folder.name, long.folder.name} <= set(seen)


class TestCluster:
    def test_what_a_cluster_reads(self, cluster: Path, tmp_path: Path) -> None:
        (cluster / "full").touch()
        jobs = make_jobs(tmp_path / "sweep", 2)
        extra = {"nice": 10, "requeue": True, "comment": "a study's"}
        launcher = replace(
            QUICK, hours=7.5, gpus=1, cpus=4, memory_gb=24, at_once=2, setup=("export FROM_SETUP=yes",), extra=extra
        )
        with pytest.raises(KeyboardInterrupt):
            list(launcher.launch(jobs, watch=interrupt))
        read = options(cluster, "101")
        script = (cluster / "101" / "script.sh").read_text()
        wanted = {
            "array": "0-1%2", "partition": "gpu_small", "account": "lab", "time": "450", "gpus-per-node": "1",
            "cpus-per-task": "4", "ntasks-per-node": "1", "nodes": "1", "mem": "24GB", "signal": "USR2@40",
            "requeue": "", "nice": "10", "comment": "a study's", "open-mode": "append",
        }  # fmt: skip
        assert {name: read.get(name) for name in wanted} == wanted
        assert "qos" not in read
        assert "constraint" not in read
        assert Path(read["output"]).parent.parent == tmp_path / "sweep" / FOLDER
        lines = script.splitlines()
        assert lines[0] == "#!/bin/bash"
        assert lines.index("export FROM_SETUP=yes") < next(i for i, line in enumerate(lines) if line.startswith("srun"))
        assert "-m submitit.core._submit" in script
        assert count_calls(cluster, "sbatch") == 1

    def test_arrays_are_no_larger_than_a_site_allows(
        self, cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A sweep that is interrupted says what stays with the cluster, and how it is cancelled."""
        (cluster / "full").touch()
        jobs = make_jobs(tmp_path / "sweep", 3)
        with pytest.raises(KeyboardInterrupt):
            list(replace(QUICK, most=2).launch(jobs, watch=interrupt))
        assert options(cluster, "101")["array"] == "0-1%2"
        assert "array" not in options(cluster, "102")
        said = capsys.readouterr().err
        assert said.startswith("note: 3 jobs stay with the cluster, queued or running: the same command finds them")
        assert "`scancel 101 102` cancels them" in said

    def test_a_job_put_aside_and_one_lost(self, cluster: Path, tmp_path: Path) -> None:
        """Slurm's warning comes to all processes of a step; the job saves, is queued again and ends."""
        job, lost = make_jobs(tmp_path / "sweep", 2, steps=1000, save_every=1000)
        signalled: list[int] = []

        def warn(running: Sequence[Job]) -> None:
            if not signalled and has_steps(job, 5) and has_steps(lost, 5):
                signal_family(job, signal.SIGUSR2)
                signal_family(lost, signal.SIGKILL)
                signalled.append(1)

        outcomes = {one.job.name: one for one in QUICK.launch([job, lost], watch=warn)}
        assert signalled
        check_all([job], [outcomes[job.name]])
        log = job.log.read_text()
        assert log.count("stopped by SIGTERM") == log.count("going on after step") == 1
        assert count_calls(cluster, "scontrol") == 1
        assert "in state FAILED" in (outcomes[lost.name].error or "")
        assert "_log.err" in (outcomes[lost.name].error or "")


def signal_family(job: Job, number: int) -> None:
    """Send a signal to a job's trainer and to the process that watches over it, that one first."""
    trainer = find_trainer(job)
    for process in (parent_of(trainer), trainer):
        os.kill(process, number)


PARENT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from small_sweep import make_jobs
from lathe.sweep.slurm import Slurm
jobs = make_jobs(Path({sweep!r}), 2, steps=300, save_every=20)
list(Slurm(hours=.5, ask_s=.3, partition="gpu_small", account="lab", save_s=40).launch(jobs))
"""


class TestAgain:
    def test_a_sweep_that_was_killed_waits_for_its_jobs(self, cluster: Path, tmp_path: Path) -> None:
        sweep = tmp_path / "sweep"
        jobs = make_jobs(sweep, 2, steps=300, save_every=20)
        tests = Path(__file__).parent
        program = PARENT.format(path=[str(tests), str(tests.parent)], sweep=str(sweep))
        parent = subprocess.Popen([sys.executable, "-c", program])
        try:
            wait_until(lambda: all(has_steps(job, 5) for job in jobs))
        finally:
            parent.kill()
            parent.wait()
        check_all(jobs, list(QUICK.launch(jobs)))
        assert count_calls(cluster, "sbatch") == 1

    def test_a_sweep_killed_while_it_submitted(self, cluster: Path, tmp_path: Path) -> None:
        """Its jobs are cancelled by their batch's name, and submitted anew."""
        (cluster / "full").touch()
        jobs = make_jobs(tmp_path / "sweep", 1)
        with pytest.raises(KeyboardInterrupt):
            list(QUICK.launch(jobs, watch=interrupt))
        (path,) = (tmp_path / "sweep" / FOLDER).glob(f"*/{BATCH}")
        batch = codec.load(Batch, path, kind="slurm-batch")
        assert batch.ids == ("101",)
        codec.save(replace(batch, ids=()), path, kind="slurm-batch")
        with pytest.raises(KeyboardInterrupt):
            list(QUICK.launch(jobs, watch=interrupt))
        assert count_calls(cluster, "sbatch") == 2
        assert (cluster / "101" / "one.end").read_text() == "cancelled"

    def test_squeue_that_does_not_answer(self, cluster: Path, tmp_path: Path) -> None:
        (cluster / "full").touch()
        jobs = make_jobs(tmp_path / "sweep", 2)
        with pytest.raises(KeyboardInterrupt):
            list(QUICK.launch(jobs, watch=interrupt))
        (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
        with pytest.raises(StudyError, match="squeue does not answer"):
            list(QUICK.launch(jobs))
        assert count_calls(cluster, "sbatch") == 1


def interrupt(running: Sequence[Job]) -> None:
    raise KeyboardInterrupt


class TestRefused:
    def test_no_submitit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(MissingExtraError, match=r"lathe\[slurm\]"):
            list(QUICK.launch(make_jobs(tmp_path / "sweep", 1)))

    def test_no_slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(StudyError, match="srun"):
            list(QUICK.launch(make_jobs(tmp_path / "sweep", 1)))
        assert list((tmp_path / "sweep" / FOLDER).iterdir()) == []

    def test_a_partition_there_is_not(self, cluster: Path, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="invalid partition specified: closed"):
            list(replace(QUICK, partition="closed").launch(make_jobs(tmp_path / "sweep", 2)))
        assert list((tmp_path / "sweep" / FOLDER).iterdir()) == []

    @pytest.mark.parametrize(
        "bad",
        [
            {"hours": 0}, {"hours": 0.01}, {"gpus": -1}, {"cpus": 0}, {"memory_gb": -2.0}, {"turns": 0},
            {"extra": {"--qos": "x"}}, {"extra": {"exclusive": False}},
        ],
    )  # fmt: skip
    def test_what_cannot_be(self, bad: dict) -> None:
        with pytest.raises(StudyError):
            Slurm(**bad)

    def test_from_a_document(self) -> None:
        read = codec.decode(Slurm, {"partition": "a100", "hours": 4, "setup": ["module load x"], "extra": {"nice": 1}})
        assert read == Slurm(partition="a100", hours=4.0, setup=("module load x",), extra={"nice": 1})
        with pytest.raises(CodecError, match="did you mean 'partition'"):
            codec.decode(Slurm, {"partitions": "a100"})
