"""Look whether what a study names is there, before anything hangs on it: files, datasets, devices, launchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.data.builtin import builtin_documents
from lathe.data.readers import Layout, find_inputs
from lathe.data.store import MANIFEST, Dataset, file_sha256
from lathe.errors import DataError, EvaluationError, LatheError
from lathe.evals.evaluate import TaskPlan, read_tasks
from lathe.evals.tasks import Task, find_file, load_catalogue
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.model.checkpoint import check_device, load_shape_of
from lathe.recipe import Data
from lathe.sweep.grid_document import FILES, flatten
from lathe.sweep.launchers import check_launcher, make_launcher
from lathe.sweep.stages import check_target
from lathe.sweep.study import Questions, Study, Text
from lathe.train.content import hash_data
from lathe.train.text import open_mixture

Check = tuple[str, Callable[[], object]]
"""Where something is named, and what raises a LatheError unless it is there."""


def find_missing(study: Study) -> list[str]:
    """Say of each thing that a study names, and that is not there or is not what it should be, what is wrong with it.

    Nothing is made, and no more is read than shows that it is there.
    """
    found: dict[str, str] = {}
    for where, check in _list_checks(study):
        try:
            check()
        except LatheError as error:
            found.setdefault(str(error), where)  # a mixture's sources are held out from, too
    return [f"{where}: {error}" for error, where in found.items()]


def _list_checks(study: Study) -> Iterator[Check]:
    if study.text is not None:
        yield from _check_text(study.text)
    for name, folder in (study.mixture.sources if study.mixture else {}).items():
        yield f"[mixture] source {name}", partial(Dataset, folder)
    for table, settings in (("[grid.base]", (study.grid or {}).get("base", {})), ("[training]", study.training)):
        yield from _check_settings(table, settings)
    if study.law.runs is not None:
        law = study.law
        yield "[law] runs", lambda: read_runs(str(law.runs), where=law.where, validation=law.validation)
    if study.law.file is not None:
        yield "[law] file", partial(Law.load, study.law.file)
    yield "[device]", partial(check_target, study.device, study.workload)
    if study.device.here:
        yield "[device]", partial(check_device, study.device.device)
    if study.text or study.mixture:
        yield "[evaluate]", partial(check_questions, study.evaluate)
        for name in study.evaluate.losses:
            yield "[evaluate] losses", partial(_hash_text, name)
        yield "[launch]", partial(make_launcher, study.launch.launcher, study.launch.settings)
        yield "[launch]", partial(check_launcher, study.launch.launcher)


def _check_text(text: Text) -> Iterator[Check]:
    if text.dataset is not None:
        yield "[text] dataset", partial(Dataset, text.dataset)
    for path in text.inputs:
        yield "[text] inputs", partial(find_inputs, [path], Layout(text_key=text.text_key))
    if text.builtin:
        yield "[text] builtin", lambda: next(builtin_documents())
    if text.tokenizer is not None:
        yield "[text] tokenizer", partial(_check_file, text.tokenizer)


def _check_settings(table: str, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Look at the datasets and checkpoints that settings of trainings name; several may be given of each."""
    checks = {"data.validation": Dataset, "init.checkpoint": load_shape_of, "distil.teacher": load_shape_of}
    for key, value in flatten(settings):
        for path in _list_texts(value) if key in checks else ():
            yield f"{table} {key}", partial(checks[key], path)


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _list_texts(one)


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise DataError(f"there is no file {path}")


def check_questions(asked: Questions) -> None:
    """Refuse tasks that there are not, or whose items are not where the study says.

    Of a suite some members may be missing. Raises EvaluationError, and CodecError for a catalogue.
    """
    if asked.tasks:
        plan = TaskPlan(names=asked.tasks, folder=asked.folder, shots=asked.shots, limit=asked.limit)
        read_tasks(plan, load_catalogue(asked.catalogue))


def questions_content(asked: Questions) -> list[Any]:
    """Say what is asked, wherever it lies: tasks by what they are and hold, texts by what is in them.

    Raises EvaluationError for a task that there is not, DataError for text.
    """
    tasks, _ = load_catalogue(asked.catalogue).select(asked.tasks)
    return [
        codec.encode(replace(asked, folder="", catalogue=None, losses=())),
        [[codec.encode(task), _hash_items(task, asked.folder)] for task in tasks],
        [_hash_text(name) for name in asked.losses],
    ]


def _hash_items(task: Task, folder: str) -> str | None:
    """Hash a task's items; None of a suite's member whose items are missing."""
    try:
        return file_sha256(find_file(folder, task))
    except EvaluationError:
        return None


def _hash_text(name: str) -> Any:
    """Hash what a dataset or a mixture holds out; of files of text, tell when they changed. Raises DataError."""
    path = Path(name)
    if (path.suffix in FILES and path.is_file()) or (path / MANIFEST).is_file():
        return hash_data(Data(train=name), open_mixture(Data(train=name)))
    return [one.fingerprint for one in find_inputs([name], Layout())[0]]
