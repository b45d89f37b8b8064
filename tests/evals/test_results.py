"""What evaluations hold: sums of items by hand, suites with gaps, round trips, and what cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import codec
from lathe.errors import CodecError, EvaluationError
from lathe.evals.answers import Answers, load_answers, save_answers
from lathe.evals.estimate import estimate, se_of_mean
from lathe.evals.results import Aggregate, CategoryResult, Evaluation, ItemResult, LossResult, TaskResult, centre
from lathe.evals.summary import aggregate, summarise
from lathe.evals.tasks import Task
from lathe.shape import Shape

QUIZ = Task(name="quiz", file="quiz.jsonl", kind="multiple_choice", shots=0, chance=0.25, published="made up here")
CLOZE = dataclasses.replace(QUIZ, name="cloze", kind="language_modelling", chance=0.0)
WRITE = dataclasses.replace(QUIZ, name="write", kind="generation", chance=0.0)


def item(number: int, *, right: bool, log_prob: float = -1.0, category: str | None = None) -> ItemResult:
    """Make an item of two options, the first of them right, whose other option is a nat better or worse."""
    other = log_prob - 1 if right else log_prob + 0.5
    return ItemResult(
        number=number,
        gold=0,
        pick=0 if right else 1,
        correct=right,
        log_probs=(log_prob, other),
        tokens=(2, 3),
        scores=(log_prob, other),
        category=category,
    )


def loss_result(**given: Any) -> LossResult:
    values = {"loss": 2.0, "se": 0.01, "bits_per_byte": 0.9, "tokens": 1000, "sequences": 10, "seq_len": 100}
    values |= {"interval_sequences": (1.98, 2.02), "interval_tokens": (1.99, 2.01)} | given
    perplexity = values.pop("perplexity", math.exp(values["loss"]))
    return LossResult(dataset="wiki", split="held-out", perplexity=perplexity, **values)


def evaluation(*tasks: TaskResult, **given: Any) -> Evaluation:
    values = {"checkpoint": "a", "dtype": "fp32", "device": "cpu", "backend": "lathe", "created": "2026-01-02T03:04:05"}
    return Evaluation(**values | {"tasks": tasks} | given)


def test_a_task_by_hand() -> None:
    rights, golds = (True, True, True, False), (-1.0, -2.0, -3.0, -6.0)
    items = [item(i + 1, right=r, log_prob=g) for i, (r, g) in enumerate(zip(rights, golds, strict=True))]
    found = summarise(QUIZ, items, content="c0ffee", seed=7, shots=3)
    assert (found.items, found.shots, found.seed, found.accuracy) == (4, 3, 7, 0.75)
    assert found.se == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert found.centred == pytest.approx((0.75 - 0.25) / 0.75)
    assert found.centred_se == pytest.approx(found.se / 0.75)
    assert found.log_prob == -3.0
    assert found.log_prob_se == pytest.approx(statistics.stdev(golds) / 2)
    assert (found.content, found.categories, found.cut, found.normalisation) == ("c0ffee", {}, 0, "sum")


def test_categories_count_alike_where_the_task_says_so() -> None:
    """Four of four and one of two: 5/6 over items, 3/4 over categories, of variances 0 and 1/4."""
    answers = [("history", True)] * 4 + [("law", True), ("law", False)]
    items = [item(i, right=r, category=c) for i, (c, r) in enumerate(answers, start=1)]
    plain = summarise(QUIZ, items, content="x")
    parted = summarise(dataclasses.replace(QUIZ, average="categories"), items, content="x")
    assert (plain.accuracy, plain.average) == (pytest.approx(5 / 6), "items")
    assert plain.se == pytest.approx(math.sqrt(5 / 36 / 5))
    assert (parted.accuracy, parted.average) == (0.75, "categories")
    assert parted.se == pytest.approx(0.5 / 2)
    assert parted.centred == pytest.approx(2 / 3)
    law = CategoryResult(items=2, accuracy=0.5, se=0.5)
    assert (
        plain.categories == parted.categories == {"history": CategoryResult(items=4, accuracy=1.0, se=0.0), "law": law}
    )


def test_one_value_has_no_standard_error() -> None:
    found = summarise(QUIZ, [item(1, right=True)], content="x")
    assert (found.accuracy, found.se, found.centred_se, found.log_prob_se) == (1.0, None, None, None)
    labelled = [item(i, right=True, category=c) for i, c in enumerate("aab", start=1)]
    assert summarise(dataclasses.replace(QUIZ, average="categories"), labelled, content="x").se is None


def test_continuations_and_texts_are_right_or_wrong_without_a_choice() -> None:
    cloze = [
        ItemResult(
            number=i, gold=0, pick=0, correct=i > 1, log_probs=(-i,), tokens=(1,), scores=(-i,), cut=3 * (i == 2)
        )
        for i in (1, 2, 3)
    ]
    found = summarise(CLOZE, cloze, content="x")
    assert (found.accuracy, found.centred, found.log_prob, found.cut) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        -2,
        1,
    )
    texts = [ItemResult(number=i, gold=0, pick=0, correct=i == 1, text="four") for i in (1, 2)]
    found = summarise(WRITE, texts, content="x")
    assert (found.accuracy, found.log_prob, found.log_prob_se) == (0.5, None, None)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30))
def test_the_standard_error_is_the_samples(values: list[float]) -> None:
    mean, se = estimate(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert se == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-9, abs=1e-9)


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.integers(2, 4))
def test_strata_that_are_copies_only_shrink_the_error(rights: list[bool], copies: int) -> None:
    values, n = [float(r) for r in rights], len(rights)
    mean, se = estimate(values)
    parted, se_parted = estimate(values * copies, strata=[str(i // n) for i in range(n * copies)])
    assert parted == pytest.approx(mean)
    assert se_parted == pytest.approx(se / math.sqrt(copies))


def test_a_mean_of_independent_values() -> None:
    assert se_of_mean([0.03, 0.04]) == pytest.approx(0.025)
    assert se_of_mean([0.03, None]) is None


def test_centred_accuracy_is_zero_at_chance_and_one_at_the_top() -> None:
    assert [centre(a, 0.25) for a in (0.25, 1.0, 0.0)] == [0.0, 1.0, pytest.approx(-1 / 3)]
    for chance in (1.0, -0.1, float("nan")):
        with pytest.raises(EvaluationError, match="at least 0 and below 1"):
            centre(0.5, chance)


def results() -> dict[str, TaskResult]:
    half = summarise(QUIZ, [item(i, right=i % 2 == 0) for i in range(1, 5)], content="x")
    return {"quiz": half, "cloze": dataclasses.replace(half, task="cloze", chance=0.0, centred=0.5, centred_se=half.se)}


def test_a_suite_by_hand() -> None:
    found = aggregate(results(), name="both", members=("quiz", "cloze"), score="centred")
    se = math.sqrt(1 / 12)
    assert (found.value, found.missing) == (pytest.approx((1 / 3 + 1 / 2) / 2), ())
    assert found.se == pytest.approx(math.hypot(se / 0.75, se) / 2)
    assert aggregate(results(), name="both", members=("quiz", "cloze")).value == 0.5


def test_a_suite_may_have_a_chance_of_its_own() -> None:
    given = {"score": "centred", "members": ("quiz", "cloze"), "chance": {"quiz": 0.4}}
    found = aggregate(results(), name="both", **given)
    se = math.sqrt(1 / 12)
    assert found.value == pytest.approx((0.1 / 0.6 + 1 / 2) / 2)
    assert found.se == pytest.approx(math.hypot(se / 0.6, se) / 2)
    assert found.chance == {"quiz": 0.4}
    with pytest.raises(EvaluationError, match="chance of 'gone', which is no member"):
        aggregate(results(), name="both", **given | {"chance": {"gone": 0.4}})


def test_a_suite_with_a_gap_has_no_value_and_names_it() -> None:
    found = aggregate(results(), name="three", members=("quiz", "gone", "cloze"))
    assert (found.value, found.se, found.missing) == (None, None, ("gone",))
    assert found.members == ("quiz", "gone", "cloze")


@pytest.mark.parametrize("members", [(), ("quiz", "quiz")])
def test_a_suite_has_members_each_once(members: tuple[str, ...]) -> None:
    with pytest.raises(EvaluationError, match="name its members, each once"):
        aggregate(results(), name="odd", members=members)


def test_an_unknown_score_of_a_suite() -> None:
    with pytest.raises(EvaluationError, match="did you mean 'centred'"):
        aggregate(results(), name="odd", members=("quiz",), score="centered")  # pyright: ignore[reportArgumentType]


def test_items_that_cannot_be_summed_up() -> None:
    with pytest.raises(EvaluationError, match="no item to sum up"):
        summarise(QUIZ, [], content="x")
    with pytest.raises(EvaluationError, match="two results of item 2"):
        summarise(QUIZ, [item(i, right=True) for i in (1, 2, 2)], content="x")
    mixed = [item(1, right=True, category="law"), item(2, right=True)]
    with pytest.raises(EvaluationError, match="averaged over categories, and item 2 has none"):
        summarise(dataclasses.replace(QUIZ, average="categories"), mixed, content="x")
    assert summarise(QUIZ, mixed, content="x").categories.keys() == {"law"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"log_probs": (-1.0, float("nan"))}, "item 9 has a log-probability or score of nan"),
        ({"scores": (-1.0, float("-inf"))}, "score of -inf; look for NaN"),
        ({"log_probs": (-1.0, 0.5)}, "of 0.5; none is above 0"),
        ({"gold": 2}, "2 options, and gold=2"),
        ({"gold": -1}, "gold=-1 should be a whole number"),
        ({"pick": 1}, "do not follow"),
        ({"correct": False}, "do not follow"),
        ({"tokens": (1,)}, "1 counts of tokens"),
        ({"number": 0}, "numbered from 1"),
    ],
)
def test_an_item_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    good = dataclasses.replace(item(1, right=True), number=9)
    with pytest.raises(EvaluationError, match=message):
        dataclasses.replace(good, **wrong)


def test_of_equal_scores_the_first_is_picked() -> None:
    tied = {"number": 1, "gold": 1, "log_probs": (-1.0, -1.0), "tokens": (1, 1), "scores": (-1.0, -1.0)}
    assert not ItemResult(pick=0, correct=False, **tied).correct
    with pytest.raises(EvaluationError, match="do not follow"):
        ItemResult(pick=1, correct=True, **tied)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accuracy": 1.5}, "accuracy=1.5 should be from 0 to 1"),
        ({"centred": 0.5}, "centred=0.5 is not"),
        ({"items": 0}, "has no items"),
        ({"se": -0.1}, "se=-0.1 should be finite"),
        ({"cut": 5}, "than its 4"),
        ({"categories": {"law": CategoryResult(items=5, accuracy=0.5, se=None)}}, "than its 4"),
    ],
)
def test_a_result_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        dataclasses.replace(results()["quiz"], **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"perplexity": 8.0}, "perplexity=8 is not exp"),
        ({"interval_tokens": (2.1, 1.9)}, "runs backwards"),
        ({"se": float("inf")}, "se=inf"),
        ({"tokens": 1.5}, "tokens=1.5"),
    ],
)
def test_a_loss_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        loss_result(**wrong)


def test_an_aggregate_has_a_value_just_when_nothing_is_missing() -> None:
    with pytest.raises(EvaluationError, match="1 members missing"):
        Aggregate(name="x", score="accuracy", value=0.5, se=None, members=("a", "b"), missing=("b",))
    with pytest.raises(EvaluationError, match="0 members missing"):
        Aggregate(name="x", score="accuracy", value=None, se=None, members=("a", "b"))


def test_an_evaluation_holds_a_task_once() -> None:
    task = results()["quiz"]
    with pytest.raises(EvaluationError, match="has the task 'quiz' twice"):
        evaluation(task, task)
    assert evaluation(task).accuracies == {"quiz": 0.5}


def full() -> Evaluation:
    labelled = [item(i, right=i > 2, category="ab"[i % 2]) for i in range(1, 5)]
    tasks = summarise(QUIZ, labelled, content="0" * 64), results()["cloze"]
    suites = [
        aggregate({"quiz": tasks[0], "cloze": tasks[1]}, name=name, members=members)
        for name, members in (("two", ("quiz", "cloze")), ("three", ("quiz", "cloze", "gone")))
    ]
    shape = Shape.of(d_model=8, n_layers=1, n_heads=1, vocab_size=11)
    losses = (
        loss_result(),
        loss_result(source="books", se=None, interval_sequences=None, bits_per_byte=None, stride=7),
    )
    return evaluation(
        *tasks, shape=shape, losses=losses, aggregates=tuple(suites), versions={"lathe": "0.1.0"}, recipe_id="r"
    )


def test_every_word_survives_json(tmp_path: Path) -> None:
    whole = full()
    words = [whole, *whole.losses, *whole.tasks, *whole.aggregates, item(1, right=False, category="π")]
    for word in words:
        assert codec.decode(type(word), json.loads(codec.dumps(word))) == word
    codec.save(whole, tmp_path / "a.json", kind="evaluation")
    assert codec.load(Evaluation, tmp_path / "a.json", kind="evaluation") == whole


numbers = st.floats(-100, 0, allow_nan=False)


@given(st.lists(numbers, min_size=1, max_size=5), st.data())
def test_any_item_survives_json(log_probs: list[float], data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(log_probs) - 1))
    pick = log_probs.index(max(log_probs))
    made = ItemResult(
        number=data.draw(st.integers(1, 10**6)),
        gold=gold,
        pick=pick,
        correct=pick == gold,
        log_probs=tuple(log_probs),
        tokens=(1,) * len(log_probs),
        scores=tuple(log_probs),
        text=data.draw(st.none() | st.text(st.characters(codec="utf-8"))),
    )
    assert codec.decode(ItemResult, json.loads(codec.canonical_json(made))) == made


def answers() -> Answers:
    odd = ItemResult(number=1, gold=0, pick=0, correct=True, text="a\u2028b\x85c\nd\r")
    written = summarise(WRITE, [odd], content="x")
    items = tuple(item(i, right=i > 2, category="ab"[i % 2]) for i in range(1, 5))
    whole = full()
    tasks = (*whole.tasks, written)
    return Answers(evaluation=dataclasses.replace(whole, tasks=tasks), items={"quiz": items, "write": (odd,)})


def test_items_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    save_answers(answers(), path)
    assert load_answers(path) == answers()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert (rows[0]["lathe"], [row["task"] for row in rows[1:]]) == ("evaluation-items", ["quiz"] * 4 + ["write"])


def test_items_belong_to_a_task_and_are_all_there() -> None:
    whole = answers()
    with pytest.raises(EvaluationError, match="no such task"):
        Answers(evaluation=whole.evaluation, items={"gone": whole.items["quiz"]})
    with pytest.raises(EvaluationError, match="of 4 items, and 3 are given"):
        Answers(evaluation=whole.evaluation, items={"quiz": whole.items["quiz"][1:]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.rsplit("\n", 2)[0] + "\n", "'write' is of 1 items, and 0 are given.*seems cut short"),
        (lambda text: text[:-9], "line 6.*not JSON"),
        (lambda text: text.replace('"pick": 1', '"pick": 0', 1), "line 2: item 1: pick=0"),
        (
            lambda text: text.replace('\n{"task": "quiz"', '\n{"task": "quit"'),
            "line 2: task='quit' is none.*did you mean 'quiz'",
        ),
        (lambda text: text.replace('\n{"task": "write", ', "\n{"), "line 6: task=None is none of the first line's"),
        (lambda text: text.replace('"gold"', '"gould"', 1), "line 2: unknown key 'gould'; did you mean 'gold'"),
        (lambda text: text.split("\n", 1)[1], 'no "lathe": "evaluation-items" key'),
        (lambda text: "", "line 1.*`lathe eval --items` wrote was wanted"),
        (lambda text: '{"lathe": "evaluation", "version": 1}\n', "holds a evaluation"),
    ],
)
def test_a_file_of_items_that_is_none(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "items.jsonl"
    save_answers(answers(), path)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CodecError, match=message):
        load_answers(path)


def test_a_file_of_items_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="cannot be read"):
        load_answers(tmp_path / "gone.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(CodecError, match="not UTF-8"):
        load_answers(tmp_path / "x.jsonl")
    with pytest.raises(CodecError, match=r"should end in \.jsonl"):
        save_answers(answers(), tmp_path / "x.csv")
