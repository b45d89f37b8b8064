"""Train tiny decoders as tasks of a local Ray cluster, with workers that die."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_sweep import check_trained_once, find_trainer, has_steps, make_jobs, wait_until

from lathe import codec
from lathe.errors import CodecError, MissingExtraError, StudyError
from lathe.sweep.jobs import Job
from lathe.sweep.ray_tasks import Ray

pytestmark = [
    # Ray leaves it to the end of the interpreter to close pipes and sockets to the processes it started
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of two workers, which launchers join."""
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "lathe[ray]"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


class TestClusters:  # first, before there is a cluster to join
    def test_a_cluster_of_its_own_ends_with_the_sweep(self, tmp_path: Path) -> None:
        ray = pytest.importorskip("ray", reason='needs Ray: pip install "lathe[ray]"')
        with pytest.raises(StudyError, match="gpus=64"):
            list(Ray(slots=1, gpus=64).launch(make_jobs(tmp_path / "sweep", 1)))
        assert not ray.is_initialized()

    def test_no_ray(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match=r"lathe\[ray\]"):
            list(Ray().launch(make_jobs(tmp_path / "sweep", 1)))

    def test_no_jobs_need_no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        assert list(Ray().launch([])) == []

    def test_no_cluster_at_an_address(self, tmp_path: Path) -> None:
        pytest.importorskip("ray", reason='needs Ray: pip install "lathe[ray]"')
        with pytest.raises(StudyError, match=r"ray start --head"):
            list(Ray(address="auto").launch(make_jobs(tmp_path / "sweep", 1)))


class TestTraining:
    def test_a_worker_killed_in_mid_sweep(self, cluster: object, tmp_path: Path) -> None:
        """Four jobs over two workers: one killed, every recipe ends, none twice."""
        jobs = make_jobs(tmp_path / "sweep", 4, steps=200, save_every=20)
        killed: list[int] = []

        def kill(running: Sequence[Job]) -> None:
            if not killed and running:
                wait_until(lambda: has_steps(running[0], 25))
                killed.append(find_trainer(running[0]))
                os.kill(killed[0], signal.SIGKILL)

        outcomes = list(Ray().launch(jobs, watch=kill))
        assert killed
        assert sorted(one.job.name for one in outcomes) == [job.name for job in jobs]
        assert [one.error for one in outcomes] == [None] * 4
        assert all([run.recipe_id for run in one.runs] == [one.job.recipe.id] for one in outcomes)
        for job in jobs:
            check_trained_once(job)
        assert sum("going on after step" in job.log.read_text() for job in jobs) == 1

    def test_a_job_that_fails_stops_no_other(self, cluster: object, tmp_path: Path) -> None:
        jobs = make_jobs(tmp_path / "sweep", 2)
        jobs[0].folder.mkdir(parents=True)
        (jobs[0].folder / "thesis.tex").write_text("mine")
        outcomes = {one.job.name: one for one in Ray().launch(jobs)}
        assert "thesis.tex" in (outcomes["seed-0"].error or "")
        assert outcomes["seed-1"].error is None

    def test_closing_lets_what_runs_save(self, cluster: object, tmp_path: Path) -> None:
        jobs = make_jobs(tmp_path / "sweep", 3, steps=3000, save_every=3000)

        def stop(running: Sequence[Job]) -> None:
            if running:
                wait_until(lambda: has_steps(running[0], 5))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(Ray().launch(jobs, watch=stop))
        assert any("stopped by SIGINT" in job.log.read_text() for job in jobs if job.log.exists())
        assert not any((job.folder / "run.json").exists() for job in jobs)

    def test_a_folder_that_the_workers_do_not_have(
        self, cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getcwd", lambda: "/nowhere/at/all")
        (outcome,) = Ray().launch(make_jobs(tmp_path / "sweep", 1))
        assert "/nowhere/at/all" in (outcome.error or "")


class TestSettings:
    @pytest.mark.parametrize(
        "bad", [{"cpus": 1.5}, {"gpus": -1.0}, {"slots": 0}, {"retries": -1}, {"slots": 2, "address": "auto"}]
    )
    def test_what_cannot_be(self, bad: dict) -> None:
        with pytest.raises(StudyError):
            Ray(**bad)

    def test_from_a_document(self) -> None:
        wanted = Ray(address="auto", gpus=0.5, resources={"a100": 1.0})
        assert codec.decode(Ray, {"address": "auto", "gpus": 0.5, "resources": {"a100": 1}}) == wanted
        with pytest.raises(CodecError, match="did you mean 'gpus'"):
            codec.decode(Ray, {"gpu": 1})
