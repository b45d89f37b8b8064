"""Evaluate a checkpoint: its loss on held-out text, and its answers to tasks."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lathe import codec
from lathe.errors import EvaluationError
from lathe.evals.answers import Answers
from lathe.evals.icl import answer_questions
from lathe.evals.items import Question, ask, read_items
from lathe.evals.loss import evaluate_loss
from lathe.evals.results import Aggregate, Evaluation, ItemResult, LossResult, TaskResult, Way
from lathe.evals.scorer import DecoderScorer, Scorer, open_scorer
from lathe.evals.sources import open_sources
from lathe.evals.summary import aggregate, summarise
from lathe.evals.tasks import Catalogue, Task, find_file, load_catalogue
from lathe.model.checkpoint import RECIPE
from lathe.recipe import Recipe
from lathe.version import VERSION

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan:
    """Say on which text to measure the loss, and how; see `lathe.evals.loss.evaluate_loss`.

    What is None is as in the checkpoint's training, where that is known: else as long as the model reads, with all
    tokens as targets, and without masks.
    """

    sources: tuple[str, ...] = ()
    way: Way = "windows"
    seq_len: int | None = None
    stride: int | None = None
    most_tokens: int | None = None
    across_documents: bool | None = None
    mask_documents: bool | None = None
    split: str = "held-out"
    text_key: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """Say which tasks and suites to ask, and how.

    `folder` has the files of items, `files` gives others by task. `shots` are each task's own if None, `limit` takes so
    many items of each task, at even distances.
    """

    names: tuple[str, ...] = ()
    folder: str | Path = "."
    catalogue: str | Path | None = None
    files: Mapping[str, str | Path] = field(default_factory=dict)
    shots: int | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise EvaluationError(f"limit={self.limit}; wanted 1 item or more of each task")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Hold a task's questions, and the SHA-256 of them as they are asked."""

    task: Task
    questions: tuple[Question, ...]
    content: str


def evaluate(
    checkpoint: str | Path,
    *,
    text: TextPlan | None = None,
    tasks: TaskPlan | None = None,
    batch_tokens: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    backend: str = "auto",
    tokenizer: str | Path | None = None,
    max_tokens: int | None = None,
    report: Report | None = None,
) -> Answers:
    """Measure a checkpoint's losses and answer tasks; gives the evaluation with the result of every item.

    A member of a suite whose items are not there is left out, and the suite then has no value; `Aggregate.missing`
    names it. The checkpoint may be any that `lathe.evals.scorer.open_scorer` opens.

    Args:
        batch_tokens: tokens of a batch, padding included; no score depends on it.
        max_tokens: the most the model reads at once, if not what it was made for.
        report: called with what is being done and the share of it that is.

    Raises:
        EvaluationError: items, text or a model that cannot be evaluated, and scores that are no numbers.
        CheckpointError, DataError, DeviceError: of the model, the text or the device.
    """
    text, tasks = text or TextPlan(), tasks or TaskPlan()
    if not (text.sources or tasks.names):
        raise EvaluationError("nothing to evaluate on; name text for the loss, tasks, or both")
    catalogue = load_catalogue(tasks.catalogue)
    asked = read_tasks(tasks, catalogue)
    scorer = open_scorer(
        checkpoint, dtype=dtype, device=device, backend=backend, tokenizer=tokenizer, max_tokens=max_tokens
    )
    recipe = _read_recipe(checkpoint)
    losses = measure_losses(scorer, _follow(recipe, text), batch_tokens=batch_tokens, seed=tasks.seed, report=report)
    items = {one.task.name: _answer(scorer, one, batch_tokens=batch_tokens, report=report) for one in asked}
    results = {
        one.task.name: summarise(
            one.task, items[one.task.name], content=one.content, seed=tasks.seed, shots=tasks.shots
        )
        for one in asked
    }
    evaluation = Evaluation(
        checkpoint=str(checkpoint), shape=scorer.shape, recipe_id=None if recipe is None else recipe.id, dtype=dtype,
        device=str(scorer.device), backend="lathe" if isinstance(scorer, DecoderScorer) else "transformers",
        losses=losses, tasks=tuple(results.values()), aggregates=_aggregate(tasks, catalogue, results),
        versions={"lathe": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return Answers(evaluation=evaluation, items={name: tuple(found) for name, found in items.items()})


def read_tasks(plan: TaskPlan, catalogue: Catalogue) -> list[Asked]:
    """Read the items of the tasks that are asked for.

    What only a suite asks for may be missing, but not all of it. Raises EvaluationError.
    """
    chosen, suites = catalogue.select(plan.names)
    members = {member for suite in suites.values() for member in suite.members}
    named = {task.name for task in catalogue.select([name for name in plan.names if name not in suites])[0]}
    found, missing = [], []
    for task in chosen:
        try:
            path = find_file(plan.folder, task, files=plan.files)
        except EvaluationError as error:
            if task.name in named or task.name not in members or not Path(plan.folder).is_dir():
                raise
            missing.append(error)
            continue
        found.append(_read(task, path, plan))
    if missing and not found:
        raise missing[0]
    return found


def _read(task: Task, path: Path, plan: TaskPlan) -> Asked:
    questions = ask(read_items(path, task.kind), task, shots=plan.shots, seed=plan.seed)
    if plan.limit is not None and plan.limit < len(questions):
        questions = [questions[i * len(questions) // plan.limit] for i in range(plan.limit)]
    asked = json.dumps([[q.number, q.pairs, q.gold, q.answers, q.unconditional] for q in questions])
    return Asked(task=task, questions=tuple(questions), content=hashlib.sha256(asked.encode()).hexdigest())


def measure_losses(
    scorer: Scorer, plan: TextPlan, *, batch_tokens: int | None = None, seed: int = 0, report: Report | None = None
) -> tuple[LossResult, ...]:
    """Measure the loss on each source of a plan. Raises EvaluationError and DataError."""
    if not plan.sources:
        return ()
    seq_len = scorer.max_tokens if plan.seq_len is None else plan.seq_len
    if seq_len is None:
        raise EvaluationError("this model does not say how many tokens it reads; give seq_len")
    if scorer.max_tokens is not None and seq_len > scorer.max_tokens:
        raise EvaluationError(f"seq_len={seq_len} is more than the {scorer.max_tokens} tokens that the model reads")
    sources = open_sources(
        plan.sources, scorer.words.tokenizer, scorer.vocab_size, split=plan.split, text_key=plan.text_key
    )
    return tuple(
        evaluate_loss(
            scorer.losses, source, way=plan.way, seq_len=seq_len, stride=plan.stride,
            batch_tokens=scorer.batch_tokens if batch_tokens is None else batch_tokens,
            most_tokens=plan.most_tokens, prefix=scorer.words.prefix if plan.way == "documents" else None,
            across_documents=plan.across_documents is not False, mask_documents=bool(plan.mask_documents),
            seed=seed, device=scorer.device, progress=report,
        )
        for source in sources.values()
    )  # fmt: skip


def _answer(scorer: Scorer, asked: Asked, *, batch_tokens: int | None, report: Report | None) -> list[ItemResult]:
    def tell(done: int, total: int) -> None:
        if report is not None:
            report(asked.task.name, done / total)

    return answer_questions(scorer, asked.task, asked.questions, batch_tokens=batch_tokens, progress=tell)


def _aggregate(plan: TaskPlan, catalogue: Catalogue, results: Mapping[str, TaskResult]) -> tuple[Aggregate, ...]:
    _, suites = catalogue.select(plan.names)
    return tuple(
        aggregate(results, name=name, members=suite.members, score=suite.score, chance=suite.chance)
        for name, suite in suites.items()
    )


def _read_recipe(checkpoint: str | Path) -> Recipe | None:
    path = Path(checkpoint) / RECIPE
    return codec.load(Recipe, path, kind="recipe") if path.is_file() else None


def _follow(recipe: Recipe | None, plan: TextPlan) -> TextPlan:
    """Fill in what a plan leaves to the training."""
    known: dict[str, Any] = {"across_documents": True, "mask_documents": False}
    if recipe is not None:
        known["seq_len"] = recipe.seq_len
        if recipe.data is not None:
            known |= {"across_documents": recipe.data.across_documents, "mask_documents": recipe.data.mask_documents}
    return replace(plan, **{name: value for name, value in known.items() if getattr(plan, name) is None})


def list_missing(aggregates: Sequence[Aggregate], catalogue: Catalogue) -> list[str]:
    """Say for each missing member of a suite which file it needs, and where that is published."""
    names = dict.fromkeys(name for one in aggregates for name in one.missing)
    tasks = [catalogue.tasks[name] for name in names]
    return [
        f"{task.name}: no {Path(task.file).name}, which comes from {task.published} ({task.file})" for task in tasks
    ]
