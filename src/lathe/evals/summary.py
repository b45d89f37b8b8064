"""Sum up items into a task's result, and tasks into a suite's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, get_args

from lathe.errors import EvaluationError, nearest
from lathe.evals.estimate import estimate, se_of_mean
from lathe.evals.results import Aggregate, CategoryResult, ItemResult, ScoreName, TaskResult, centre

if TYPE_CHECKING:
    from lathe.evals.tasks import Task


def summarise(
    task: Task, items: Sequence[ItemResult], *, content: str, seed: int = 0, shots: int | None = None
) -> TaskResult:
    """Sum up a task's items.

    Args:
        content: the SHA-256 of the questions as they are asked.
        seed: drew the examples.
        shots: the examples before each item, where not the task's own number.

    Raises EvaluationError: no items, two of one number, or none of a category where the task averages over categories.
    """
    if not items:
        raise EvaluationError(f"task {task.name!r} has no item to sum up")
    numbers = [item.number for item in items]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise EvaluationError(f"task {task.name!r} has two results of item {twice}")
    correct = [float(item.correct) for item in items]
    accuracy, se = estimate(correct, strata=strata_of(items, task.average, task=task.name))
    chance = task.chance
    golds = [item.gold_log_prob for item in items]
    known = [gold for gold in golds if gold is not None]
    log_prob, log_prob_se = estimate(known) if len(known) == len(golds) else (None, None)
    return TaskResult(
        task=task.name,
        kind=task.kind,
        items=len(items),
        shots=task.shots if shots is None else shots,
        seed=seed,
        normalisation=task.normalisation,
        chance=chance,
        accuracy=accuracy,
        se=se,
        centred=centre(accuracy, chance),
        centred_se=None if se is None else se / (1 - chance),
        log_prob=log_prob,
        log_prob_se=log_prob_se,
        categories=_categories(items),
        cut=sum(item.cut > 0 for item in items),
        content=content,
        average=task.average,
    )


def _categories(items: Sequence[ItemResult]) -> dict[str, CategoryResult]:
    groups: dict[str, list[float]] = {}
    for item in items:
        if item.category is not None:
            groups.setdefault(item.category, []).append(float(item.correct))
    return {name: _categorise(values) for name, values in groups.items()}


def _categorise(correct: Sequence[float]) -> CategoryResult:
    accuracy, se = estimate(correct)
    return CategoryResult(items=len(correct), accuracy=accuracy, se=se)


def aggregate(
    results: Mapping[str, TaskResult],
    *,
    name: str,
    members: Sequence[str],
    score: ScoreName = "accuracy",
    chance: Mapping[str, float] | None = None,
) -> Aggregate:
    """Average a suite's tasks, each as `results` knows it; without a value if any is missing, never over the rest.

    Its standard error takes the tasks' items for independent.

    Args:
        chance: the accuracies of guessing to centre on, where not the tasks' own.

    Raises EvaluationError.
    """
    given, value, se = dict(chance or {}), None, None
    missing = tuple(member for member in members if member not in results)
    if members and not missing:
        found = [results[member] for member in members]
        own = {member: results[member].chance for member in members}
        floors = list_floors(score, members, own | given)
        value = mean_above([task.accuracy for task in found], floors)
        se = se_above([task.se for task in found], floors)
    return Aggregate(name=name, score=score, value=value, se=se, members=tuple(members), missing=missing, chance=given)


def list_floors(score: str, members: Sequence[str], chance: Mapping[str, float]) -> list[float]:
    """List the accuracies that count as nothing: guessing's for a centred score, else 0. Raises EvaluationError."""
    if score not in get_args(ScoreName):
        raise EvaluationError(f"a suite has no score {score!r}{nearest(score, get_args(ScoreName))}")
    return [chance[member] if score == "centred" else 0.0 for member in members]


def mean_above(accuracies: Sequence[float], floors: Sequence[float]) -> float:
    """Average accuracies, each on the scale from its floor to 1. Raises EvaluationError."""
    return fmean(centre(accuracy, floor) for accuracy, floor in zip(accuracies, floors, strict=True))


def se_above(ses: Sequence[float | None], floors: Sequence[float]) -> float | None:
    """Give the standard error of `mean_above` from those of independent accuracies; None if one is unknown."""
    return se_of_mean([None if se is None else se / (1 - floor) for se, floor in zip(ses, floors, strict=True)])


def strata_of(items: Sequence[ItemResult], average: str, *, task: str) -> list[str] | None:
    """List the categories that a task's items are averaged over, or None. Raises EvaluationError."""
    if average == "items":
        return None
    if missing := [item.number for item in items if item.category is None]:
        raise EvaluationError(
            f"task {task!r} is averaged over categories, and item {missing[0]} has none; give every item one, or "
            "average over items"
        )
    return [str(item.category) for item in items]
