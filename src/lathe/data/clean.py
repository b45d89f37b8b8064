"""Clean a corpus through datatrove: filters and duplicates, here or on a cluster, with counts of what each removed.

documents/      what is left: 00000.jsonl.gz, …, moved here when all of it is written
removed/<step>/ what each step removed
logs/<pass>/    datatrove's logs and counts of each pass; what is done is not done again
report.json     the `CleanReport`, written last: without it the cleaning is not finished
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import codec
from lathe.data.clean_recipe import CleanRecipe, encode_recipe
from lathe.data.readers import COMPRESSIONS, Layout, find_inputs
from lathe.documents import read_document, write_atomic
from lathe.errors import DataError, MissingExtraError, nearest

if TYPE_CHECKING:
    from lathe.data.clean_stages import Compression, Folders, OnBadLine, Stage

Executor = Literal["local", "slurm", "ray"]
EXECUTORS = ("local", "slurm", "ray")
SAMPLES, SAMPLE_CHARS = 3, 300
REQUEST, REPORT, SUBMITTED = "request.json", "report.json", "submitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Show the start of a removed document, and why it was removed where its step says so."""

    id: str
    reason: str | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Count what one step saw and removed, by reason where it says so."""

    label: str
    seen: int
    removed: int
    reasons: dict[str, int]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanReport:
    """Count documents through the steps; `read` leaves out bad lines and rows without text, which were skipped."""

    documents: str
    """The folder of what is left."""
    read: int
    kept: int
    bad_lines: int
    without_text: int
    steps: tuple[StepReport, ...]


def clean_corpus(
    recipe: CleanRecipe,
    *,
    inputs: Sequence[str | Path],
    out: str | Path,
    executor: Executor = "local",
    tasks: int = 2,
    text_key: str = "text",
    on_bad_line: OnBadLine = "fail",
    compression: Compression = ".gz",
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> CleanReport | None:
    """Clean a corpus into a folder; what an interrupted call finished is not done again.

    Args:
        inputs: files and folders of .txt, .jsonl (.gz, .zst) and parquet; all keys of a row are kept.
        out: a new folder, or that of an earlier call with the same arguments.
        executor: `slurm` submits the jobs and returns None; the same call gives the report once they are done.
        tasks: how many processes share the files; a file is never split.
        on_bad_line: what to do with a JSON line that holds no text.
        compression: of what is written.

    Raises:
        MissingExtraError: datatrove is not installed.
        DataError: an input, step or executor lacks something; said before any work, but for broken files.
    """
    if executor not in EXECUTORS:
        raise DataError(f"there is no executor {executor!r}{nearest(executor, EXECUTORS)}")
    if tasks < 1:
        raise DataError(f"tasks={tasks}; wanted 1 or more")
    _need_datatrove()
    from lathe.data.clean_stages import Folders, build_stages

    folders = Folders(out=Path(out).resolve())
    files = _find_files(inputs, text_key)
    if executor == "slurm" and recipe.slurm is None:
        raise DataError("the slurm executor needs a table [slurm] with partition and time in the recipe")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise DataError("the ray executor needs the package ray, which is not installed; run: pip install ray")
    known = {
        "recipe": encode_recipe(recipe),
        "text_key": text_key,
        "compression": compression,
        "on_bad_line": on_bad_line,
    }
    states = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    tasks = min(tasks, len(files))
    if _open_folder(folders.out, {**known, "tasks": tasks, "files": states}):
        return codec.load(CleanReport, folders.out / REPORT, kind="clean-report")
    try:
        stages = build_stages(
            recipe, files, folders, tasks=tasks, text_key=text_key, on_bad_line=on_bad_line, compression=compression
        )
        if not _run(stages, executor, recipe, folders, tasks, progress):
            return None
    except BaseException:
        _discard(folders)
        raise
    report = _count(stages, recipe.labels, folders)
    folders.cleaned.mkdir(parents=True, exist_ok=True)
    os.replace(folders.cleaned, folders.documents)
    codec.save(report, folders.out / REPORT, kind="clean-report")
    shutil.rmtree(folders.out / "work")
    return report


def make_executors(
    stages: Sequence[Stage], executor: Executor, recipe: CleanRecipe, *, logs: Path, workers: int
) -> list[Any]:
    """Make datatrove's executor of each pass, each depending on the one before it."""
    from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

    from lathe.data.clean_steps import QuietExecutor

    made: list[Any] = []
    for stage in stages:
        before, folder = (made[-1] if made else None), str(logs / stage.name)
        if executor == "local":
            # run one after another by hand: `depends` looks for the one before only every two minutes
            made.append(QuietExecutor(stage.pipeline, stage.tasks, min(workers, stage.tasks), folder))
        elif executor == "ray":
            asked = recipe.ray
            made.append(
                RayPipelineExecutor(
                    stage.pipeline, stage.tasks, -1 if asked.workers is None else asked.workers,
                    before,  # pyright: ignore[reportArgumentType]
                    logging_dir=folder, cpus_per_task=asked.cpus_per_task, mem_per_cpu_gb=asked.mem_per_cpu_gb,
                )
            )  # fmt: skip
        else:
            cluster = recipe.slurm
            assert cluster is not None, "checked with the arguments"
            made.append(
                SlurmPipelineExecutor(
                    stage.pipeline, stage.tasks, cluster.time, cluster.partition, cluster.cpus_per_task,
                    cluster.mem_per_cpu_gb, workers=-1 if cluster.workers is None else cluster.workers,
                    job_name=f"clean-{stage.name}", venv_path=cluster.venv,  # pyright: ignore[reportArgumentType]
                    sbatch_args=dict(cluster.sbatch_args), depends=before, logging_dir=folder,
                )
            )  # fmt: skip
    return made


def _run(
    stages: Sequence[Stage], executor: Executor, recipe: CleanRecipe, folders: Folders, tasks: int,
    progress: Callable[[str, float], None],
) -> bool:  # fmt: skip
    """Run what is not yet done; says whether all of it is."""
    made = make_executors(stages, executor, recipe, logs=folders.logs, workers=tasks)
    if executor == "slurm":
        return _submit(made, folders)
    for i, (stage, one) in enumerate(zip(stages, made, strict=True)):
        progress(stage.name, i / len(stages))
        one.run()
    return True


def _submit(made: Sequence[Any], folders: Folders) -> bool:
    """Submit all passes at once; Slurm starts each when the one before it is done."""
    if not any(one.get_incomplete_ranks() for one in made):
        return True
    mark = folders.out / SUBMITTED
    if mark.exists():
        raise DataError(
            f"the jobs are submitted and not all done; look with squeue and in {folders.logs}. If some failed, delete"
            f" {mark} and run this again: what is done is not done again"
        )
    try:
        made[-1].run()
    except FileNotFoundError:
        raise DataError("this machine has no sbatch; run the command where jobs are submitted to Slurm") from None
    mark.touch()
    return False


def _need_datatrove() -> None:
    try:
        import datatrove  # noqa: F401
    except ImportError:
        raise MissingExtraError("cleaning a corpus", extra="data") from None


def _find_files(inputs: Sequence[str | Path], text_key: str) -> list[Path]:
    """List the files as `lathe data build` does; a parquet file without the column is refused now."""
    files, _ = find_inputs(inputs, Layout(text_key=text_key))
    for file in files:
        if file.name.endswith(".parquet"):
            next(file.read(), None)
    return [Path(file.name) for file in files]


def _open_folder(out: Path, request: dict[str, Any]) -> bool:
    """Take a folder for a request, or find it taken by the same; says whether its report is there.

    Raises DataError when it holds anything else.
    """
    path = out / REQUEST
    if path.is_file():
        if read_document(path) != json.loads(json.dumps(request)):
            raise DataError(
                f"{out} holds another cleaning, of other inputs, steps or tasks; give another --out, or remove it"
            )
        return (out / REPORT).is_file()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty; give a new folder as --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made: {error.strerror}; give another --out") from None
    write_atomic(path, json.dumps(request, indent=2) + "\n")
    return False


def _discard(folders: Folders) -> None:
    """Take away a folder in which no task was finished, so that the call may be made again with what was mended."""
    if not any(folders.logs.glob("*/completions/*")) and not (folders.out / SUBMITTED).exists():
        shutil.rmtree(folders.out, ignore_errors=True)


def _count(stages: Sequence[Stage], labels: Sequence[str], folders: Folders) -> CleanReport:
    """Add up the counts that all tasks of all passes left behind."""
    totals = [_add_tasks(stage, folders) for stage in stages]
    by_label = {
        label: totals[i][place] for i, stage in enumerate(stages) for place, label in stage.labels.items()
    }  # fmt: skip
    readers = [counts for counts in totals[0] if "input_files" in counts]
    last = totals[-1][-1]
    return CleanReport(
        documents=str(folders.documents),
        read=sum(counts["documents"] for counts in readers),
        kept=last["total"],
        bad_lines=sum(counts["bad_lines"] for counts in readers),
        without_text=sum(counts["without_text"] for counts in readers),
        steps=tuple(_report_step(label, by_label[label], folders.removed(label)) for label in labels),
    )


def _add_tasks(stage: Stage, folders: Folders) -> list[Counter[str]]:
    """Add up each step's counts over a pass's tasks."""
    sums: list[Counter[str]] = [Counter() for _ in stage.pipeline]
    for path in sorted((folders.logs / stage.name / "stats").glob("*.json")):
        for counts, step in zip(sums, json.loads(path.read_text()), strict=True):
            for name, value in step["stats"].items():
                counts[name] += int(value["total"] if isinstance(value, dict) else value)
    return sums


def _report_step(label: str, counts: Counter[str], removed: Path) -> StepReport:
    reasons = {n.removeprefix("dropped_"): c for n, c in sorted(counts.items()) if n.startswith("dropped_")}
    samples = [row for _, row in zip(range(SAMPLES), _read_removed(removed), strict=False)]
    return StepReport(
        label=label, seen=counts["total"], removed=counts["dropped"], reasons=reasons,
        samples=tuple(
            Sample(id=str(row["id"]), reason=row.get("filter_reason"), text=row["text"][:SAMPLE_CHARS])
            for row in samples
        ),
    )  # fmt: skip


def _read_removed(folder: Path) -> Iterator[dict[str, Any]]:
    openers = {**COMPRESSIONS, ".gz": gzip.open}
    for path in sorted(folder.glob("*.jsonl*")):
        with openers.get(path.suffix, io.FileIO)(path) as file:  # pyright: ignore[reportArgumentType]
            for line in file:
                yield json.loads(line)
