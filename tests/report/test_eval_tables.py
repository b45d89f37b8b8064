"""What the tables of evaluations say."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console, RenderableType
from small_evaluations import A, B, answers_of, loss_of

from lathe.evals.compare import compare
from lathe.evals.results import Aggregate
from lathe.report.eval_tables import (
    aggregate_table,
    comparison_table,
    evaluation_table,
    format_interval,
    format_p,
    format_score,
    loss_table,
    name_missing,
    name_way,
    task_table,
)


@pytest.fixture(scope="module")
def first():
    return answers_of(A, checkpoint="runs/a")


@pytest.fixture(scope="module")
def second():
    return answers_of(B, checkpoint="runs/b", loss=2.9)


def show(table: RenderableType) -> str:
    console = Console(width=200, file=io.StringIO(), highlight=False)
    console.print(table)
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(name))


def test_tasks_stand_beside_chance(first) -> None:
    text = show(task_table(first.evaluation.tasks))
    assert row(text, "quiz") == "quiz 10 0 0.500 ± 0.167 0.25 0.333 ± 0.222 -2.000 ± 0.000"
    assert row(text, "parted").startswith("parted 10 5 ")
    assert row(text, "cloze").split()[6:10] == ["0", "0.500", "±", "0.167"]
    assert "! quiz: 1 of 10 items were longer than the context, and cut" in text
    assert "mean over categories: parted" in text


def test_a_task_without_options_has_no_log_probability(first) -> None:
    task = dataclasses.replace(first.evaluation.tasks[0], log_prob=None, log_prob_se=None, se=None)
    assert row(show(task_table([task])), "quiz") == "quiz 10 0 0.500 ± – 0.25 0.333 ± 0.222 –"


def test_losses_with_what_is_known_of_them(first) -> None:
    text = show(loss_table(first.evaluation.losses))
    assert row(text, "wiki (test) ") == "wiki (test) 3.0000 ± 0.0300 2.9400–3.0600 – 20.09 1.2500"
    assert row(text, "wiki (test): books ") == "wiki (test): books 3.5000 ± – – – 33.12 –"
    assert "wiki (test): 1,000 tokens in 10 sequences, windows of 128 tokens\n" in text
    assert "wiki (test): books: 1,000 tokens in 10 sequences, windows of 128 tokens, 64 apart\n" in text
    assert "! wiki (test): books: 12 tokens were left out" in text
    assert name_way(loss_of(3.0, way="documents", seq_len=2048)) == "documents, of up to 2,048 tokens"


def test_a_suite_with_a_gap_is_not_a_number(first) -> None:
    text = show(aggregate_table(first.evaluation.aggregates))
    assert row(text, "all-three") == "all-three accuracy 0.500 ± 0.097 3 of 3"
    assert row(text, "core ") == "core centred N/A 1 of 3"
    assert "core lacks squad, coqa" in text


def test_many_missing_members_are_counted() -> None:
    members = tuple("abcdefgh")
    suite = Aggregate(name="x", score="accuracy", value=None, se=None, members=members, missing=members)
    assert name_missing(suite) == "a, b, c, d, e, f and 2 more"


def test_an_evaluation_shows_all_and_categories_if_asked(first) -> None:
    plain, full = (show(evaluation_table(first.evaluation, categories=c)) for c in (False, True))
    heads = ("Loss in nats per token", "Accuracy", "Suites")
    assert [plain.index(head) for head in heads] == sorted(plain.index(head) for head in heads)
    assert "per category" not in plain
    assert row(full[full.index("per category of quiz") :], "x ") == "x 5 0.400 ± 0.245"
    bare = dataclasses.replace(first.evaluation, losses=(), aggregates=())
    assert "Loss" not in show(evaluation_table(bare))


def test_a_comparison_says_which_is_which_and_by_how_much(first, second) -> None:
    text = show(comparison_table(compare(first, second)))
    assert "A: runs/a\nB: runs/b\n" in text
    assert row(text, "quiz") == "quiz 0.5000 0.8000 +0.3000 ± 0.2134 -0.1183 to +0.7183 1 4 0.375 1.000"
    suite = row(text[text.index("Suites") :], "all-three").split()
    assert suite[:5] == ["all-three", "accuracy", "0.5000", "0.6000", "+0.1000"]
    losses = text[text.index("Loss\n") :]
    assert row(losses, "wiki (test) ") == "wiki (test) nats per token 3.0000 2.9000 -0.1000 ± 0.0424 -0.1832 to -0.0168"
    assert "their ± takes the two as independent" in losses
    assert "! core: N/A in both" in text


def test_how_numbers_are_written() -> None:
    assert format_score(0.56, 0.0101) == "0.560 ± 0.010"
    assert format_score(0.02, None, digits=2, sign="+") == "+0.02 ± –"
    assert format_interval((0.1, 0.2), digits=1) == "0.1–0.2"
    assert format_interval((-0.1, 0.2), digits=1, sign="+") == "-0.1 to +0.2"
    assert (format_p(0.0009), format_p(0.0494)) == ("< 0.001", "0.049")
