"""Train a sweep's jobs on a Slurm cluster, as arrays of jobs that submitit hands to it.

A job that Slurm puts aside for another's sake, or that runs into its time limit, saves and goes back into the queue
(`slurm_worker`). What was submitted is written down in the sweep's folder, so that a sweep that was killed finds its
jobs, queued or running, and waits for them.

    <sweep>/slurm/<batch>/batch.json    which jobs were submitted as what; without ids while that is being done
    <sweep>/slurm/<batch>/…             submitit's scripts, pickles and output
"""

from __future__ import annotations

import math
import secrets
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lathe import codec
from lathe.errors import MissingExtraError, StudyError
from lathe.sweep.jobs import Job, Outcome, Watch, conclude
from lathe.sweep.slurm_cluster import CLUSTERS, POLL_S
from lathe.sweep.slurm_worker import Training

FOLDER, BATCH = "slurm", "batch.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Run jobs on a Slurm cluster, whose nodes see the sweep's folder and the data; says what each asks for.

    Unlike other launchers' jobs, these are the cluster's: a sweep that ends before them leaves them, and finds them
    when it goes on.

    Args:
        cluster: "slurm", or "local" to run all at once on this machine, for trying out.
        partition: and account, qos, constraint: sbatch's options of these names; the cluster's own if None.
        hours: a job's time limit; one that reaches it goes on in a new turn.
        turns: how many turns a job may have so.
        nodes: nodes of a job.
        gpus: GPUs of each of its nodes.
        cpus: cores of each of its ranks.
        ranks: processes on each of its nodes; one a GPU, or one, if None.
        memory_gb: memory of each of its nodes.
        at_once: how many jobs of an array may run at once.
        most: jobs of one array; sites set an upper bound, MaxArraySize.
        save_s: seconds before its end that a job is told to save.
        setup: lines of shell before a job, such as "module load cuda".
        extra: further options of sbatch; true for one without a value.
        ask_s: seconds between questions to Slurm.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    hours: float = 24.0
    turns: int = 20
    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    ranks: int | None = None
    memory_gb: float | None = None
    at_once: int = 256
    most: int = 1000
    save_s: int = 120
    setup: tuple[str, ...] = ()
    extra: dict[str, str | int | float | bool] = field(default_factory=dict)
    ask_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("turns", "nodes", "cpus", "ranks", "at_once", "most", "save_s"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise StudyError(f"{name}={value}; wanted 1 or more")
        for name in ("hours", "memory_gb", "ask_s"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise StudyError(f"{name}={value}; wanted a number above zero")
        if self.gpus < 0:
            raise StudyError(f"gpus={self.gpus}; wanted 0 or more")
        if self.hours * 3600 <= self.save_s:
            raise StudyError(
                f"hours={self.hours} are no more than the save_s={self.save_s} a job has to save; give more"
            )
        for name, value in self.extra.items():
            if value is False or name.startswith("-"):
                raise StudyError(
                    f"extra.{name}={value!r}; wanted an option's name without dashes and its value, or true"
                )

    @property
    def tasks(self) -> int:
        """Count the processes of a job on each node."""
        return self.ranks or max(1, self.gpus)

    def launch(self, jobs: Sequence[Job], *, watch: Watch | None = None) -> Generator[Outcome, None, None]:
        """Run jobs; see `lathe.sweep.jobs.Launcher`. Raises MissingExtraError, or StudyError if Slurm refuses."""
        if not jobs:
            return
        place = jobs[0].folder.parent / FOLDER
        left = {job.folder.name: job for job in jobs}
        tasks = _find_submitted(place, self.cluster)
        new = [job for name, job in left.items() if name not in tasks]
        for begin in range(0, len(new), self.most):
            tasks |= _submit(new[begin : begin + self.most], place, self)
        try:
            yield from _follow(left, tasks, self, watch)
        finally:
            if left:
                _say_left([tasks[name] for name in left], self.cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Hold which jobs, by their folders' names, were submitted together, and the ids they got; none before they did."""

    name: str
    cluster: Literal["slurm", "local"]
    jobs: tuple[str, ...]
    ids: tuple[str, ...] = ()


def _follow(left: dict[str, Job], tasks: dict[str, Any], settings: Slurm, watch: Watch | None) -> Iterator[Outcome]:
    """Give the outcome of each job as it ends.

    A job has ended when its result is there, or when the cluster twice does not know it: its end and its file may come
    in any order.
    """
    begun: dict[str, float] = {}
    missed: set[str] = set()
    asked = -math.inf
    while left:
        ended = {name for name in left if tasks[name].paths.result_pickle.exists()}
        if time.monotonic() - asked >= settings.ask_s:
            asked = time.monotonic()
            present = CLUSTERS[settings.cluster].find_present([tasks[name] for name in left])
            absent = set() if present is None else {name for name in left if tasks[name].job_id not in present}
            ended, missed = ended | (absent & missed), absent
        for name in left:
            if tasks[name].paths.stdout.exists():
                begun.setdefault(name, time.monotonic())
        for name in sorted(ended):
            seconds = time.monotonic() - begun.get(name, time.monotonic())
            yield conclude(left.pop(name), error=_find_error(tasks[name]), seconds=seconds)
        if watch is not None:
            watch([job for name, job in left.items() if name in begun])
        if left:
            time.sleep(min(POLL_S, settings.ask_s))


def _say_left(tasks: Sequence[Any], kind: str) -> None:
    """Say which jobs a sweep leaves to the cluster as it ends before them, and how to cancel them."""
    ids = " ".join(dict.fromkeys(task.job_id.partition("_")[0] for task in tasks))
    what = f"{len(tasks)} job{'s stay' if len(tasks) > 1 else ' stays'} with the cluster, queued or running"
    print(
        f"note: {what}: the same command finds them, and `{CLUSTERS[kind].end} {ids}` cancels them", file=sys.stderr
    )  # fmt: skip


def _find_error(task: Any) -> str | None:
    """Say why a job has no result, as far as the cluster knows."""
    from submitit.core.utils import pickle_load

    if not task.paths.result_pickle.exists():
        return f"ended without a word, in state {task.state}; what it printed is in {task.paths.stderr}"
    task.wait()  # not for the result: a local job's process ends a moment after it is written
    kind, value = pickle_load(task.paths.result_pickle)
    return value if kind == "success" else str(value).strip().splitlines()[-1]


def _submit(jobs: Sequence[Job], place: Path, settings: Slurm) -> dict[str, Any]:
    """Hand jobs to the cluster as one array, and write down as what. Raises StudyError."""
    submitit = _import_submitit()
    name = f"lathe-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = place / name
    batch = Batch(name=name, cluster=settings.cluster, jobs=tuple(job.folder.name for job in jobs))
    folder.mkdir(parents=True)
    codec.save(batch, folder / BATCH, kind="slurm-batch")
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.cluster, slurm_max_num_timeout=settings.turns - 1)
        executor.update_parameters(name=name, **_parameters(settings))
        half = settings.save_s / 2  # to save in; the rest is for going back into the queue
        tasks = executor.submit_array([Training(job, save_s=half) for job in jobs])
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError, RuntimeError) as error:
        shutil.rmtree(folder)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise StudyError(
            f"Slurm did not take {len(jobs)} jobs: {reason[-1]}; mend it, or launch them locally"
        ) from None
    codec.save(replace(batch, ids=tuple(task.job_id for task in tasks)), folder / BATCH, kind="slurm-batch")
    return {job.folder.name: task.task(0) for job, task in zip(jobs, tasks, strict=True)}


def _parameters(settings: Slurm) -> dict[str, Any]:
    """Say in submitit's words what a job asks for; None is left out by it."""
    return {
        "timeout_min": math.ceil(settings.hours * 60),
        "nodes": settings.nodes,
        "tasks_per_node": settings.tasks,
        "cpus_per_task": settings.cpus,
        "gpus_per_node": settings.gpus or None,
        "mem_gb": settings.memory_gb,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_constraint": settings.constraint,
        "slurm_array_parallelism": settings.at_once,
        "slurm_signal_delay_s": settings.save_s,
        "slurm_setup": list(settings.setup) or None,
        "slurm_additional_parameters": {"requeue": True, **settings.extra},
    }


def _find_submitted(place: Path, kind: str) -> dict[str, Any]:
    """Find the tasks of jobs that an earlier sweep submitted to a kind of cluster, which still has them.

    A batch without ids is one whose sweep was killed while it submitted: it is cancelled, since what of it there is
    cannot be told. Raises StudyError if the cluster does not answer.
    """
    found: dict[str, Any] = {}
    for path in sorted(place.glob(f"*/{BATCH}")):
        batch = codec.load(Batch, path, kind="slurm-batch")
        if batch.cluster != kind:
            continue
        cluster = CLUSTERS[kind]
        if not batch.ids:
            cluster.cancel(batch.name)
            shutil.rmtree(path.parent)
            continue
        make = getattr(_import_submitit(), cluster.job)
        tasks = [make(folder=path.parent, job_id=i) for i in batch.ids]
        waiting = {n: t for n, t in zip(batch.jobs, tasks, strict=True) if not t.paths.result_pickle.exists()}
        present = cluster.find_present(list(waiting.values())) if waiting else set()
        if present is None:
            raise StudyError(f"squeue does not answer, and jobs of {path.parent} may be running; try again")
        found |= {name: task for name, task in waiting.items() if task.job_id in present}
    return found


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise MissingExtraError("launching on Slurm", extra="slurm") from None
    return submitit
