"""Look up evaluation tasks, and the suites that papers report, in a catalogue.

The facts are in `catalogue.toml`. A user's own file has the same form: `defaults` for its tasks, `tasks` by name, where
`like` takes what a row does not say from another task, and `suites`.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lathe import codec, documents
from lathe.errors import CodecError, EvaluationError, nearest
from lathe.evals.items import KINDS, Kind
from lathe.laws.testbed import TASK_SETS, find_tasks

Normalisation = Literal["sum", "token", "byte", "unconditional"]
Average = Literal["items", "categories"]
Match = Literal["exact", "normalised"]
SuiteScore = Literal["accuracy", "centred"]
Rows = dict[str, dict[str, Any]]

_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "normalisation": get_args(Normalisation),
    "average": get_args(Average),
    "match": get_args(Match),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Say which file of items a task is, and how its items are asked and judged.

    A prompt is `preamble`, the examples, and the item, each as `prelude` + context + `delimiter` + continuation,
    with `example_delimiter` between them. `normalisation` divides an option's summed log-probability by its tokens or
    its bytes, or takes off that of the continuation without its context. `average` forms the accuracy over all items,
    or as the plain mean over categories, whose examples then come from the same category. `chance` is the accuracy of
    guessing. For generation: `answer_prefix` stands between reasoning and answer, generation ends at any `stop` or
    after `max_new_tokens`, and `match` compares texts as they are or without case, punctuation and articles. `file` is
    a path within what is `published`.

    Raises EvaluationError.
    """

    name: str
    file: str
    kind: Kind
    shots: int
    chance: float
    published: str
    delimiter: str = " "
    example_delimiter: str = "\n"
    preamble: str = ""
    prelude: str = ""
    normalisation: Normalisation = "sum"
    category: str | None = None
    average: Average = "items"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 64
    answer_prefix: str = ""
    match: Match = "normalised"

    def __post_init__(self) -> None:
        for name, values in _CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                raise EvaluationError(f"task {self.name!r}: unknown {name} {value!r}{nearest(str(value), values)}")
        if self.shots < 0 or self.max_new_tokens < 1:
            raise EvaluationError(
                f"task {self.name!r}: shots={self.shots}, max_new_tokens={self.max_new_tokens}; wanted 0 or more shots "
                "and 1 or more new tokens"
            )
        if not 0 <= self.chance < 1:
            raise EvaluationError(f"task {self.name!r}: chance={self.chance:g}; wanted at least 0, and below 1")
        if not (self.name and self.file) or "" in self.stop:
            raise EvaluationError(f"task {self.name!r}: its name, its file and what stops it may not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Name the tasks whose mean accuracy, or mean centred accuracy, is reported as one number.

    `chance` holds the accuracies of guessing that the suite's authors centre on, where not the tasks' own.
    """

    members: tuple[str, ...]
    source: str
    score: SuiteScore = "accuracy"
    chance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise EvaluationError("a suite should name its members, each once")
        if others := set(self.chance) - set(self.members):
            raise EvaluationError(f"chance is given for {min(others)!r}, which is no member of the suite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Hold tasks and suites by name. Raises EvaluationError for a suite with a member that is no task."""

    tasks: dict[str, Task]
    suites: dict[str, Suite] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, suite in self.suites.items():
            for member in suite.members:
                if member not in self.tasks:
                    raise EvaluationError(f"suite {name!r} has a member {member!r}{nearest(member, self.tasks)}")

    def select(self, names: Iterable[str]) -> tuple[list[Task], dict[str, Suite]]:
        """Give the tasks, each once, and the suites that names of either stand for. Raises EvaluationError."""
        tasks: dict[str, Task] = {}
        suites: dict[str, Suite] = {}
        for name in names:
            members = find_tasks([name], known=list(self.tasks))
            if name in self.suites:
                suites[name] = self.suites[name]
                members = suites[name].members
            elif members[0] not in self.tasks:
                raise EvaluationError(f"unknown task or suite {name!r}{nearest(name, [*self.suites, *self.tasks])}")
            tasks |= {member: self.tasks[member] for member in members}
        return list(tasks.values()), suites


def load_catalogue(path: str | Path | None = None) -> Catalogue:
    """Read Lathe's catalogue; tasks and suites of the file at `path` are added to it, or take the place of its own.

    Raises CodecError, with the key and the nearest known one.
    """
    tasks, suites = _built_in()
    source = "catalogue.toml"
    if path is not None:
        source = str(path)
        own = codec.untag(documents.read_document(path), kind="catalogue", source=source, required=False)
        tasks, suites = _merge(own, source=source, tasks=tasks, suites=suites)
    return codec.decode(Catalogue, {"tasks": tasks, "suites": suites}, source=source)


@functools.cache
def _built_in() -> tuple[Rows, Rows]:
    file = Path(__file__).with_name("catalogue.toml")
    document = documents.parse_toml(file.read_text(encoding="utf-8"), source=file.name)
    for size, members in TASK_SETS.items():
        document["suites"][f"testbed-{size}"]["members"] = list(members)
    return _merge(document, source=file.name, tasks={}, suites={})


def _merge(document: Mapping[str, Any], *, source: str, tasks: Rows, suites: Rows) -> tuple[Rows, Rows]:
    """Add a document's rows to those known, each with what it takes from its file's defaults or from another row."""
    if unknown := document.keys() - {"defaults", "tasks", "suites"}:
        raise CodecError(
            f"{source}: unknown key {min(unknown)!r}{nearest(min(unknown), ('defaults', 'tasks', 'suites'))}"
        )
    defaults, rows, own_suites = (
        _table(document.get(part, {}), part, source=source) for part in ("defaults", "tasks", "suites")
    )
    known = [f.name for f in fields(Task) if f.name != "name"]
    for key in defaults:
        if key not in known:
            raise CodecError(f"{source}: unknown key 'defaults.{key}'{nearest(key, known)}")
    merged = dict(tasks)
    for name, row in rows.items():
        row = _table(row, f"tasks.{name}", source=source)
        merged[name] = _complete(name, row, defaults=defaults, known=merged, source=source)
    return merged, {**suites, **own_suites}


def _table(value: Any, key: str, *, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CodecError(f"{source}: {key} is {documents.name_value(value)}; it should be a table")
    return value


def _complete(
    name: str, row: Mapping[str, Any], *, defaults: Mapping[str, Any], known: Rows, source: str
) -> dict[str, Any]:
    row = dict(row)
    if "name" in row:
        raise CodecError(f"{source}: unknown key 'tasks.{name}.name'; a task's name is its table's")
    if "like" not in row:
        return {**_folder_category(row), **defaults, **row, "name": name}
    like = row.pop("like")
    if not isinstance(like, str) or like not in known:
        raise CodecError(f"{source}: tasks.{name}.like is {like!r}, no task above it{nearest(str(like), known)}")
    return {**known[like], **row, "name": name}


def _folder_category(row: Mapping[str, Any]) -> dict[str, str]:
    """Name a task's category after its file's folder, as llm-foundry's folders are named."""
    folder = Path(str(row.get("file", ""))).parent.name
    return {"category": folder.replace("_", " ")} if folder else {}


def find_file(folder: str | Path, task: Task, *, files: Mapping[str, str | Path] | None = None) -> Path:
    """Find a task's items: the one file of its name in a folder or the folders below it.

    `files` gives other files by the task's name, or by that of its file without the suffix, which many tasks may share.

    Raises EvaluationError that says where the file comes from.
    """
    folder, name = Path(folder), Path(task.file).name
    for key in (task.name, Path(name).stem):
        if files and key in files:
            if not Path(files[key]).is_file():
                raise EvaluationError(f"{files[key]}, given for {key!r}, is no file")
            return Path(files[key])
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder} of items; give the folder that has {name}")
    for path in (folder / task.file, folder / name):
        if path.is_file():
            return path
    found = sorted(path for path in folder.rglob(glob.escape(name)) if path.is_file())
    advice = f"give the file as {task.name}=PATH"
    if not found:
        raise EvaluationError(
            f"task {task.name!r} needs {name}, and {folder} has no such file; it comes from {task.published} "
            f"({task.file}): put it into the folder, or {advice}"
        )
    if len(found) > 1:
        raise EvaluationError(f"{folder} has {len(found)} files {name}: {', '.join(map(str, found))}; {advice}")
    return found[0]
