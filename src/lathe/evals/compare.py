"""Compare two evaluations item by item: what differs, by how much, and whether chance alone explains it.

Differences are of the second evaluation less the first. Intervals hold the true one 95 % of the time, by the normal
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lathe.errors import EvaluationError
from lathe.evals.answers import Answers
from lathe.evals.estimate import Z_95, estimate, holm, mcnemar
from lathe.evals.results import Aggregate, Interval, ItemResult, LossResult, ScoreName, TaskResult
from lathe.evals.summary import list_floors, mean_above, se_above, strata_of

ASKED = ("kind", "shots", "normalisation", "average", "chance", "content")
"""What must be alike for two results of a task to be comparable; the seed too, where it drew examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Hold two values and b − a with its standard error and 95 % interval, None where they are unknown."""

    a: float
    b: float
    difference: float
    se: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDifference:
    """Hold the paired comparison of a task.

    `gained` items only b has right, `lost` only a; `p` is the exact two-sided McNemar test's that neither is likelier
    (McNemar 1947, Psychometrika 12:153), `p_holm` the same adjusted for the number of tasks (Holm 1979). `log_prob` is
    of the right answers, None for a task without options.
    """

    task: str
    items: int
    accuracy: Difference
    gained: int
    lost: int
    p: float
    p_holm: float
    log_prob: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateDifference:
    """Hold the paired comparison of a suite, its tasks' items taken for independent."""

    name: str
    score: ScoreName
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDifference:
    """Hold the comparison of two losses, in nats per token or, where the tokens differ, in bits per byte.

    Losses are not kept per sequence, so the standard error takes the two as independent. On the same text they rise and
    fall together, and the true one is smaller.
    """

    dataset: str
    split: str
    source: str | None
    unit: str
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Hold how evaluation `b` differs from `a`, both by their checkpoints; `notes` say what was left out or to heed."""

    a: str
    b: str
    tasks: tuple[TaskDifference, ...]
    aggregates: tuple[AggregateDifference, ...]
    losses: tuple[LossDifference, ...]
    notes: tuple[str, ...]


def compare(a: Answers, b: Answers) -> Comparison:
    """Compare the tasks, suites and losses that two evaluations share.

    Raises EvaluationError: they share none, or a task was not asked alike: other items, another file, other shots.
    """
    notes = _note_differences(a, b)
    tasks = _compare_tasks(a, b)
    aggregates = _compare_aggregates(a, b, tasks, notes)
    losses = _compare_losses(a.evaluation.losses, b.evaluation.losses, notes)
    if not tasks and not losses:
        raise EvaluationError(
            f"{a.evaluation.checkpoint} and {b.evaluation.checkpoint} have no task's items and no loss in common; "
            "evaluate both on the same --tasks or --loss, with --items"
        )
    return Comparison(
        a=a.evaluation.checkpoint,
        b=b.evaluation.checkpoint,
        tasks=tasks,
        aggregates=aggregates,
        losses=losses,
        notes=tuple(notes),
    )


def _note_differences(a: Answers, b: Answers) -> list[str]:
    """Note which tasks only one has, and what was not the same for both though it may be compared."""
    notes = []
    for one, other, which in ((a, b, "first"), (b, a, "second")):
        if alone := [task for task in one.items if task not in other.items]:
            notes.append(f"only the {which} has the items of {', '.join(alone)}")
    for name in ("dtype", "backend"):
        values = getattr(a.evaluation, name), getattr(b.evaluation, name)
        if values[0] != values[1]:
            notes.append(f"the first was evaluated with {name} {values[0]}, the second with {values[1]}")
    tasks_a, tasks_b = _tasks(a), _tasks(b)
    for task in a.items:
        if task in b.items and tasks_a[task].cut != tasks_b[task].cut:
            cut = f"{tasks_a[task].cut} items were cut for the first and {tasks_b[task].cut} for the second"
            notes.append(f"{task}: {cut}, which did not read the same text")
    return notes


def _compare_tasks(a: Answers, b: Answers) -> tuple[TaskDifference, ...]:
    results_a, results_b = _tasks(a), _tasks(b)
    found: list[TaskDifference] = []
    for name in a.items:
        if name in b.items:
            _check_alike(results_a[name], results_b[name])
            found.append(_compare_items(results_a[name], a.items[name], b.items[name]))
    adjusted = holm([task.p for task in found])
    return tuple(replace(task, p_holm=p) for task, p in zip(found, adjusted, strict=True))


def _tasks(answers: Answers) -> dict[str, TaskResult]:
    return {task.task: task for task in answers.evaluation.tasks}


def _check_alike(a: TaskResult, b: TaskResult) -> None:
    """Refuse two results of a task that were not asked alike."""
    names = [*ASKED, "seed"] if a.shots or b.shots else ASKED
    unlike = [f"{n} {getattr(a, n)} and {getattr(b, n)}" for n in names if getattr(a, n) != getattr(b, n)]
    if unlike:
        raise EvaluationError(
            f"task {a.task!r} was not asked alike, so its items cannot be paired: {'; '.join(unlike)}; evaluate both "
            "on the same file with the same options"
        )


def _compare_items(task: TaskResult, a: Sequence[ItemResult], b: Sequence[ItemResult]) -> TaskDifference:
    pairs = _pair(a, b, task=task.task)
    strata = strata_of(a, task.average, task=task.task)
    correct = [(float(x.correct), float(y.correct)) for x, y in pairs]
    golds = [(x.gold_log_prob, y.gold_log_prob) for x, y in pairs]
    known = [(x, y) for x, y in golds if x is not None and y is not None]
    gained, lost = correct.count((0.0, 1.0)), correct.count((1.0, 0.0))
    p = mcnemar(gained, lost)
    return TaskDifference(
        task=task.task,
        items=len(pairs),
        accuracy=_paired(correct, strata=strata),
        gained=gained,
        lost=lost,
        p=p,
        p_holm=p,
        log_prob=_paired(known) if len(known) == len(pairs) else None,
    )


def _pair(a: Sequence[ItemResult], b: Sequence[ItemResult], *, task: str) -> list[tuple[ItemResult, ItemResult]]:
    """Match items by number, in the first's order. Raises EvaluationError."""
    other = {item.number: item for item in b}
    only_a = sorted({item.number for item in a} - other.keys())
    only_b = sorted(other.keys() - {item.number for item in a})
    for which, numbers in (("first", only_a), ("second", only_b)):
        if numbers:
            raise EvaluationError(
                f"task {task!r}: only the {which} has item {numbers[0]}"
                + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
                + "; evaluate both on the same items"
            )
    pairs = [(item, other[item.number]) for item in a]
    for x, y in pairs:
        if (x.gold, x.category, len(x.log_probs)) != (y.gold, y.category, len(y.log_probs)):
            raise EvaluationError(f"task {task!r}: item {x.number} is another question in each; evaluate both again")
    return pairs


def _paired(pairs: Sequence[tuple[float, float]], *, strata: Sequence[str] | None = None) -> Difference:
    """Compare means over the same items, by the standard error of the items' differences."""
    a, b = (estimate(values, strata=strata)[0] for values in zip(*pairs, strict=True))
    _, se = estimate([y - x for x, y in pairs], strata=strata)
    return _differ(a, b, se)


def _differ(a: float, b: float, se: float | None) -> Difference:
    difference = b - a
    interval = None if se is None else (difference - Z_95 * se, difference + Z_95 * se)
    return Difference(a=a, b=b, difference=difference, se=se, interval=interval)


def _compare_aggregates(
    a: Answers, b: Answers, tasks: Sequence[TaskDifference], notes: list[str]
) -> tuple[AggregateDifference, ...]:
    paired = {task.task: task for task in tasks}
    chances = {name: task.chance for name, task in _tasks(a).items()}
    others = {aggregate.name: aggregate for aggregate in b.evaluation.aggregates}
    found = []
    for one in a.evaluation.aggregates:
        other = others.get(one.name)
        if other is None or _measure_of(one) != _measure_of(other):
            notes.append(f"{one.name}: not compared, as the second has none of this name, score, members and chance")
        elif one.missing and other.missing:
            notes.append(f"{one.name}: N/A in both, as it lacks tasks")
        elif missing := [member for member in one.members if member not in paired]:
            notes.append(f"{one.name}: N/A, as the items of {', '.join(missing)} are not in both")
        else:
            found.append(_compare_aggregate(one, [paired[m] for m in one.members], chances))
    return tuple(found)


def _measure_of(suite: Aggregate) -> tuple[Any, ...]:
    return suite.members, suite.score, suite.chance


def _compare_aggregate(
    suite: Aggregate, tasks: Sequence[TaskDifference], chance: Mapping[str, float]
) -> AggregateDifference:
    floors = list_floors(suite.score, suite.members, {**chance, **suite.chance})
    a = mean_above([task.accuracy.a for task in tasks], floors)
    b = mean_above([task.accuracy.b for task in tasks], floors)
    difference = _differ(a, b, se_above([task.accuracy.se for task in tasks], floors))
    return AggregateDifference(name=suite.name, score=suite.score, difference=difference)


def _compare_losses(a: Sequence[LossResult], b: Sequence[LossResult], notes: list[str]) -> tuple[LossDifference, ...]:
    """Compare losses on the same text, taken the same way."""
    others = {_text_of(loss): loss for loss in b}
    found = []
    for one in a:
        other, where = others.get(_text_of(one)), f"{one.dataset} ({one.split})"
        if other is None:
            notes.append(f"{where}: not compared, as the second has no loss on it taken the same way")
        elif (difference := _compare_loss(one, other)) is None:
            notes.append(
                f"{where}: not compared, as {one.tokens:,} and {other.tokens:,} tokens were scored, and bits per byte "
                "are not known for both"
            )
        else:
            found.append(difference)
    return tuple(found)


def _text_of(loss: LossResult) -> tuple[str | int | None, ...]:
    return loss.dataset, loss.split, loss.source, loss.way, loss.seq_len, loss.stride


def _compare_loss(a: LossResult, b: LossResult) -> LossDifference | None:
    if a.tokens == b.tokens:
        unit, values, scales = "nats per token", (a.loss, b.loss), (1.0, 1.0)
    elif a.bits_per_byte is not None and b.bits_per_byte is not None:
        unit, values = "bits per byte", (a.bits_per_byte, b.bits_per_byte)
        scales = tuple(value / loss.loss if loss.loss else 0.0 for value, loss in zip(values, (a, b), strict=True))
    else:
        return None
    ses = [None if x.se is None else x.se * scale for x, scale in zip((a, b), scales, strict=True)]
    se = None if ses[0] is None or ses[1] is None else math.hypot(ses[0], ses[1])
    place = {"dataset": a.dataset, "split": a.split, "source": a.source, "unit": unit}
    return LossDifference(**place, difference=_differ(*values, se))
