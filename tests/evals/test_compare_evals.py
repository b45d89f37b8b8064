"""Paired comparisons: by hand, against SciPy's tests, and what may not be compared."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lathe import codec
from lathe.errors import EvaluationError
from lathe.evals.answers import Answers
from lathe.evals.compare import Comparison, compare
from lathe.evals.estimate import Z_95, holm, mcnemar
from lathe.evals.results import Evaluation, ItemResult, LossResult
from lathe.evals.summary import aggregate, summarise
from lathe.evals.tasks import Task

QUIZ = Task(name="quiz", file="quiz.jsonl", kind="multiple_choice", shots=0, chance=0.5, published="made up here")
A = (1, 1, 1, 1, 0, 0, 0, 1, 0, 0)
B = (1, 1, 1, 0, 1, 1, 1, 1, 1, 0)


def item(number: int, right: int, *, gold: float = -2.0, category: str | None = None) -> ItemResult:
    log_probs = (gold, gold - 1 if right else gold + 1)
    picked = {"gold": 0, "pick": 1 - right, "correct": bool(right)}
    return ItemResult(number=number, **picked, log_probs=log_probs, tokens=(1, 1), scores=log_probs, category=category)


def items_of(rights: Sequence[int], **given: Any) -> tuple[ItemResult, ...]:
    return tuple(item(i, right, **given) for i, right in enumerate(rights, start=1))


def answers(
    *,
    task: Task = QUIZ,
    suites: Sequence[tuple[str, Sequence[str], Any]] = (),
    losses: Sequence[LossResult] = (),
    checkpoint: str = "a",
    asked: dict[str, Any] | None = None,
    **items: tuple[ItemResult, ...],
) -> Answers:
    """Make the answers to tasks that differ in name only."""
    asked = {"content": "c0ffee"} | (asked or {})
    tasks = [summarise(dataclasses.replace(task, name=name), found, **asked) for name, found in items.items()]
    by_name = {task.task: task for task in tasks}
    evaluation = Evaluation(
        checkpoint=checkpoint,
        dtype="fp32",
        device="cpu",
        backend="lathe",
        tasks=tuple(tasks),
        losses=tuple(losses),
        aggregates=tuple(aggregate(by_name, name=n, members=m, score=s) for n, m, s in suites),
        created="2026-01-02T03:04:05",
    )
    return Answers(evaluation=evaluation, items=items)


def loss(value: float, *, se: float | None = 0.03, tokens: int = 1000, **given: Any) -> LossResult:
    values = {"dataset": "wiki", "split": "test", "sequences": 10, "seq_len": 128, "perplexity": math.exp(value)}
    return LossResult(**values | {"loss": value, "se": se, "tokens": tokens} | given)


def test_a_task_by_hand() -> None:
    """Of ten items B gains four and loses one, so that the differences' mean is 0.3 and their variance 0.41·10/9."""
    found = compare(answers(quiz=items_of(A, gold=-2.0)), answers(quiz=items_of(B, gold=-1.5), checkpoint="b"))
    task = found.tasks[0]
    assert (found.a, found.b, task.task, task.items) == ("a", "b", "quiz", 10)
    assert (task.gained, task.lost) == (4, 1)
    assert (task.accuracy.a, task.accuracy.b, task.accuracy.difference) == (0.5, 0.8, pytest.approx(0.3))
    se = math.sqrt(0.41 * 10 / 9 / 10)
    assert task.accuracy.se == pytest.approx(se)
    assert task.accuracy.interval == pytest.approx((0.3 - 1.96 * se, 0.3 + 1.96 * se), abs=1e-4)
    assert task.p == task.p_holm == pytest.approx(2 * (1 + 5) / 32)
    assert (task.log_prob.a, task.log_prob.b, task.log_prob.difference) == (-2.0, -1.5, 0.5)
    assert (task.log_prob.se, task.log_prob.interval) == (0.0, (0.5, 0.5))
    assert found.notes == ()


def test_items_are_paired_by_number_whatever_their_order() -> None:
    forward = compare(answers(quiz=items_of(A)), answers(quiz=items_of(B)))
    assert compare(answers(quiz=items_of(A)), answers(quiz=items_of(B)[::-1])) == forward


def test_log_probabilities_are_paired_too() -> None:
    golds_a, golds_b = (-1.0, -2.0, -4.0), (-1.5, -1.0, -3.0)
    a, b = (tuple(item(i + 1, 1, gold=g) for i, g in enumerate(golds)) for golds in (golds_a, golds_b))
    found = compare(answers(quiz=a), answers(quiz=b)).tasks[0]
    assert found.log_prob.difference == pytest.approx(0.5)
    assert found.log_prob.se == pytest.approx(statistics.stdev([-0.5, 1.0, 1.0]) / math.sqrt(3))
    assert (found.p, found.accuracy.difference, found.accuracy.se) == (1.0, 0.0, 0.0)


def test_categories_are_compared_as_the_task_averages_them() -> None:
    """B gains one of history's two items and none of law's three: 1/4 over categories, with the error 1/2 by 1/2."""
    task = dataclasses.replace(QUIZ, average="categories")
    names = ("history", "history", "law", "law", "law")
    a, b = (
        tuple(item(i + 1, r, category=c) for i, (r, c) in enumerate(zip(rights, names, strict=True)))
        for rights in ((0, 1, 1, 1, 0), (1, 1, 1, 1, 0))
    )
    found = compare(answers(task=task, quiz=a), answers(task=task, quiz=b)).tasks[0].accuracy
    assert (found.a, found.b) == (pytest.approx(7 / 12), pytest.approx(5 / 6))
    assert (found.difference, found.se) == (pytest.approx(0.25), pytest.approx(0.25))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_test_is_the_exact_binomial_one(gained: int, lost: int) -> None:
    exact = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_holms_adjustment_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_adjusting_keeps_the_order_and_only_raises(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(ps) * min(ps)))


def test_tasks_are_adjusted_together() -> None:
    a = answers(one=items_of((0,) * 6), two=items_of(A), three=items_of(A))
    b = answers(one=items_of((1,) * 6), two=items_of(B), three=items_of(A))
    found = compare(a, b)
    assert [t.p for t in found.tasks] == pytest.approx([2 / 64, 12 / 32, 1.0])
    assert [t.p_holm for t in found.tasks] == pytest.approx([6 / 64, 24 / 32, 1.0])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_the_other_way_round_only_signs_change(pairs: list[tuple[int, int]]) -> None:
    a, b = (answers(quiz=items_of(rights)) for rights in zip(*pairs, strict=True))
    there, back = compare(a, b).tasks[0], compare(b, a).tasks[0]
    assert there.accuracy.difference == -back.accuracy.difference
    assert there.accuracy.se == pytest.approx(back.accuracy.se)
    assert (there.p, there.gained, there.lost) == (back.p, back.lost, back.gained)
    same = compare(a, a).tasks[0]
    assert (same.accuracy.difference, same.accuracy.se, same.p) == (0.0, 0.0, 1.0)


def test_suites_by_hand() -> None:
    suites = [("mean", ("one", "two"), "accuracy"), ("centred mean", ("one", "two"), "centred")]
    a = answers(suites=suites, one=items_of(A), two=items_of(A))
    b = answers(suites=suites, one=items_of(B), two=items_of(A))
    mean, centred = compare(a, b).aggregates
    se = math.sqrt(0.41 * 10 / 9 / 10)
    assert (mean.name, mean.score) == ("mean", "accuracy")
    assert (mean.difference.a, mean.difference.b) == (0.5, pytest.approx(0.65))
    assert mean.difference.se == pytest.approx(se / 2)
    assert (centred.difference.a, centred.difference.b) == (0.0, pytest.approx(0.3))
    assert centred.difference.se == pytest.approx(se)
    assert centred.difference.interval == pytest.approx((0.3 - Z_95 * se, 0.3 + Z_95 * se))


def test_a_suite_may_be_centred_on_a_chance_of_its_own() -> None:
    def make(rights: Sequence[int], chance: float) -> Answers:
        made = answers(quiz=items_of(rights))
        results = {task.task: task for task in made.evaluation.tasks}
        suite = aggregate(results, name="own", members=("quiz",), score="centred", chance={"quiz": chance})
        return dataclasses.replace(made, evaluation=dataclasses.replace(made.evaluation, aggregates=(suite,)))

    (found,) = compare(make(A, 0.25), make(B, 0.25)).aggregates
    assert (found.difference.a, found.difference.b) == (pytest.approx(1 / 3), pytest.approx(0.55 / 0.75))
    assert found.difference.se == pytest.approx(math.sqrt(0.41 / 9) / 0.75)
    assert compare(make(A, 0.25), make(B, 0.5)).aggregates == ()


def test_a_suite_is_not_compared_over_the_rest() -> None:
    suites = [("both", ("one", "two"), "accuracy")]
    a = answers(suites=suites, one=items_of(A), two=items_of(A))
    found = compare(a, answers(suites=suites, one=items_of(B)))
    assert found.aggregates == ()
    assert "both: N/A, as the items of two are not in both" in found.notes
    assert "only the first has the items of two" in found.notes
    other = answers(suites=[("both", ("two", "one"), "accuracy")], one=items_of(B), two=items_of(B))
    assert compare(a, other).notes == (
        "both: not compared, as the second has none of this name, score, members and chance",
    )


def test_losses_with_the_same_tokens_are_compared_in_nats() -> None:
    found = compare(answers(losses=[loss(3.0)]), answers(losses=[loss(2.9, se=0.04)])).losses[0]
    assert (found.dataset, found.split, found.source, found.unit) == ("wiki", "test", None, "nats per token")
    assert found.difference.difference == pytest.approx(-0.1)
    assert found.difference.se == pytest.approx(0.05)


def test_losses_of_other_tokens_are_compared_in_bits_per_byte() -> None:
    """A loss of 3 nats with the error 0.03 that is 1.2 bits a byte has the error 0.012 in them."""
    a, b = loss(3.0, bits_per_byte=1.2), loss(2.0, se=0.02, tokens=1500, bits_per_byte=1.1)
    found = compare(answers(losses=[a]), answers(losses=[b])).losses[0]
    assert (found.unit, found.difference.a, found.difference.b) == ("bits per byte", 1.2, 1.1)
    assert found.difference.se == pytest.approx(math.hypot(0.012, 0.011))
    found = compare(answers(losses=[a]), answers(losses=[dataclasses.replace(b, se=None)])).losses[0]
    assert (found.difference.se, found.difference.interval) == (None, None)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (loss(2.0, tokens=1500), "1,000 and 1,500 tokens were scored, and bits per byte are not known"),
        (loss(2.0, seq_len=256), "no loss on it taken the same way"),
        (loss(2.0, source="books"), "no loss on it taken the same way"),
    ],
)
def test_losses_that_are_not_comparable_are_named(other: LossResult, note: str) -> None:
    a, b = answers(quiz=items_of(A), losses=[loss(3.0)]), answers(quiz=items_of(B), losses=[other])
    found = compare(a, b)
    assert found.losses == ()
    assert "wiki (test): not compared" in found.notes[0]
    assert note in found.notes[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"content": "0ther"}, "content c0ffee and 0ther"),
        ({"shots": 5}, "shots 0 and 5"),
        ({"shots": 5, "seed": 3}, "shots 0 and 5; seed 0 and 3"),
    ],
)
def test_a_task_asked_in_another_way_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=f"'quiz' was not asked alike.*{message}"):
        compare(answers(quiz=items_of(A)), answers(quiz=items_of(B), asked=asked))


def test_the_seed_matters_where_it_drew_examples() -> None:
    def make(seed: int, shots: int) -> Answers:
        return answers(quiz=items_of(A), asked={"seed": seed, "shots": shots})

    compare(make(0, 0), make(1, 0))
    with pytest.raises(EvaluationError, match="seed 0 and 1"):
        compare(make(0, 2), make(1, 2))


def test_other_items_are_refused() -> None:
    with pytest.raises(EvaluationError, match="only the first has item 9 and 1 more"):
        compare(answers(quiz=items_of(A)), answers(quiz=items_of(B[:8])))
    with pytest.raises(EvaluationError, match="only the second has item 10;"):
        compare(answers(quiz=items_of(A[:9])), answers(quiz=items_of(B)))
    with pytest.raises(EvaluationError, match="item 1 is another question in each"):
        compare(answers(quiz=items_of(A)), answers(quiz=items_of(B, category="law")))


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no task's items and no loss in common"):
        compare(answers(one=items_of(A)), answers(two=items_of(A)))


def test_what_was_not_the_same_is_noted() -> None:
    a, b = (
        answers(quiz=items_of(A)),
        answers(
            quiz=items_of(
                B,
            )
        ),
    )
    rough = dataclasses.replace(b, evaluation=dataclasses.replace(b.evaluation, dtype="bf16"))
    assert compare(a, rough).notes == ("the first was evaluated with dtype fp32, the second with bf16",)
    cut = answers(quiz=(dataclasses.replace(b.items["quiz"][0], cut=9), *b.items["quiz"][1:]))
    assert "quiz: 0 items were cut for the first and 1 for the second" in compare(a, cut).notes[0]


def test_a_comparison_survives_json() -> None:
    suites = [("both", ("quiz",), "centred")]
    a, b = (answers(quiz=items_of(r), losses=[loss(3.0)], suites=suites) for r in (A, B))
    found = compare(a, b)
    assert codec.decode(Comparison, json.loads(codec.dumps(found))) == found
