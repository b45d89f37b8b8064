"""Keep an evaluation together with what was found of every item, in a file of a line an item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe import codec
from lathe.documents import parse_json, write_atomic
from lathe.errors import CodecError, EvaluationError, nearest
from lathe.evals.results import Evaluation, ItemResult

KIND = "evaluation-items"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Hold an evaluation, and the results of the items of its tasks, which may be of some tasks only."""

    evaluation: Evaluation
    items: dict[str, tuple[ItemResult, ...]]

    def __post_init__(self) -> None:
        tasks = {task.task: task for task in self.evaluation.tasks}
        for name, items in self.items.items():
            if name not in tasks:
                raise EvaluationError(f"there are items of {name!r}, and the evaluation has no such task")
            if len(items) != tasks[name].items or len({item.number for item in items}) != len(items):
                raise EvaluationError(
                    f"task {name!r} is of {tasks[name].items} items, and {len(items)} are given; wanted each, once"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """Hold a file's first line: the evaluation, and the tasks whose items follow."""

    tasks: tuple[str, ...]
    evaluation: Evaluation


def save_answers(answers: Answers, path: str | Path) -> None:
    """Write a `.jsonl` file: the evaluation on the first line, then an item a line with its task. Raises CodecError."""
    if Path(path).suffix != ".jsonl":
        raise CodecError(f"{path}: the name should end in .jsonl")
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(answers)))


def _rows(answers: Answers) -> Iterator[dict[str, Any]]:
    head = _Head(tasks=tuple(answers.items), evaluation=answers.evaluation)
    yield codec.tag(codec.encode(head), kind=KIND)
    for task, items in answers.items.items():
        for item in items:
            yield {"task": task, **codec.encode(item)}


def load_answers(path: str | Path) -> Answers:
    """Read what `save_answers` wrote. Raises CodecError with the line of a fault."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise CodecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CodecError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    first, *lines = text.split("\n")  # a text within JSON may hold what else ends a line
    head = _read_head(first, source=str(path))
    items: dict[str, list[ItemResult]] = {task: [] for task in head.tasks}
    for number, line in enumerate(lines, start=2):
        if line:
            source = f"{path}: line {number}"
            row = parse_json(line, source=source)
            task = row.pop("task", None)
            if task not in head.tasks:
                raise CodecError(f"{source}: task={task!r} is none of the first line's{nearest(str(task), head.tasks)}")
            items[task].append(codec.decode(ItemResult, row, source=source))
    try:
        return Answers(evaluation=head.evaluation, items={task: tuple(found) for task, found in items.items()})
    except EvaluationError as error:
        raise CodecError(f"{path}: {error}; the file seems cut short or put together by hand") from error


def _read_head(line: str, *, source: str) -> _Head:
    try:
        head = parse_json(line, source=f"{source}: line 1")
    except CodecError as error:
        raise CodecError(f"{error}; a file that `lathe eval --items` wrote was wanted") from None
    return codec.decode(_Head, codec.untag(head, kind=KIND, source=source), source=f"{source}: line 1")
