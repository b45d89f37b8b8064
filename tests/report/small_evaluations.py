"""Small evaluations that tests of tables and pages share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lathe.evals.answers import Answers
from lathe.evals.results import Evaluation, ItemResult, LossResult
from lathe.evals.summary import aggregate, summarise
from lathe.evals.tasks import Task

QUIZ = Task(name="quiz", file="quiz.jsonl", kind="multiple_choice", shots=0, chance=0.25, published="made up here")
A = (1, 1, 1, 1, 0, 0, 0, 1, 0, 0)
B = (1, 1, 1, 0, 1, 1, 1, 1, 1, 0)


def items_of(rights: Sequence[int]) -> tuple[ItemResult, ...]:
    """Make items of two options, of the categories x and y by turns."""
    scores = [(-2.0, -3.0 if right else -1.0) for right in rights]
    return tuple(
        ItemResult(
            number=i + 1,
            gold=0,
            pick=1 - right,
            correct=bool(right),
            log_probs=scores[i],
            tokens=(1, 1),
            scores=scores[i],
            category="xy"[i % 2],
        )
        for i, right in enumerate(rights)
    )


def loss_of(value: float, **given: Any) -> LossResult:
    values = {"dataset": "wiki", "split": "test", "se": 0.03, "tokens": 1000, "sequences": 10, "seq_len": 128}
    return LossResult(**values | {"loss": value, "perplexity": math.exp(value)} | given)


def answers_of(rights: Sequence[int], *, checkpoint: str, loss: float = 3.0) -> Answers:
    """Make the answers to three tasks: one by the item, one by the category, one that guesses."""
    tasks = {
        "quiz": (QUIZ, items_of(rights)),
        "parted": (dataclasses.replace(QUIZ, name="parted", average="categories", shots=5), items_of(rights[::-1])),
        "cloze": (dataclasses.replace(QUIZ, name="cloze", chance=0.0), items_of([1 - right for right in rights])),
    }
    cut = {"quiz": [dataclasses.replace(tasks["quiz"][1][0], cut=7), *tasks["quiz"][1][1:]]}
    items = {name: tuple(cut.get(name, found)) for name, (_, found) in tasks.items()}
    results = {name: summarise(task, items[name], content="c0ffee") for name, (task, _) in tasks.items()}
    whole = aggregate(results, name="all-three", members=tuple(results))
    gap = aggregate(results, name="core", members=("quiz", "squad", "coqa"), score="centred")
    evaluation = Evaluation(
        checkpoint=checkpoint,
        dtype="fp32",
        device="cpu",
        backend="lathe",
        tasks=tuple(results.values()),
        losses=(
            loss_of(loss, bits_per_byte=1.25, interval_sequences=(loss - 0.06, loss + 0.06)),
            loss_of(loss + 0.5, source="books", way="strided", stride=64, cut=12, se=None),
        ),
        aggregates=(whole, gap),
        versions={"lathe": "0.1.0"},
        created="2026-01-02T03:04:05",
    )
    return Answers(evaluation=evaluation, items=items)
