import math
import random

import pytest
from bigrams import END, make_scorer

from lathe.errors import EvaluationError
from lathe.evals.icl import answer_questions
from lathe.evals.items import Question
from lathe.evals.tasks import Task

TABLE = {
    "a": {"long": 0.5, "b": 0.25, "cc": 0.125},
    "long": {"tail": 0.5},
    "b": {"b": 0.75},
    "cc": {END: 0.5},
    ":": {"b": 0.25, "cc": 0.0625, "long": 0.5},
    "q": {"a": 0.9},
}


def make_task(kind: str = "multiple_choice", **changes) -> Task:
    return Task(name="t", file="t.jsonl", kind=kind, shots=0, chance=0.25, published="nowhere", **changes)


def choose(normalisation: str, choices: tuple[str, ...], **changes) -> tuple[int, tuple[float, ...]]:
    question = Question(number=1, pairs=tuple(("q a", f" {c}") for c in choices), gold=0, **changes)
    (found,) = answer_questions(make_scorer(TABLE), make_task(normalisation=normalisation), [question])
    return found.pick, found.scores


class TestNormalisations:
    def test_sum(self) -> None:
        pick, scores = choose("sum", ("long tail", "b", "cc"))
        assert scores == pytest.approx([math.log(0.25), math.log(0.25), math.log(0.125)], abs=1e-3)
        assert pick in (0, 1)

    def test_token(self) -> None:
        pick, scores = choose("token", ("b", "long tail"))
        assert (pick, scores) == (1, pytest.approx([math.log(0.25), math.log(0.25) / 2], abs=1e-3))

    def test_byte(self) -> None:
        pick, scores = choose("byte", ("b", "cc"))
        assert (pick, scores) == (1, pytest.approx([math.log(0.25), math.log(0.125) / 2], abs=1e-3))

    def test_unconditional(self) -> None:
        bare = ((":", " b"), (":", " cc"), (":", " long"))
        pick, scores = choose("unconditional", ("b", "cc", "long"), unconditional=bare)
        assert (pick, scores) == (1, pytest.approx([0, math.log(2), 0], abs=1e-3))


class TestKinds:
    def test_schema(self) -> None:
        question = Question(number=3, pairs=(("q b", " b"), ("q a", " b")), gold=0, category="x")
        (found,) = answer_questions(make_scorer(TABLE), make_task("schema"), [question])
        assert (found.number, found.pick, found.correct, found.category) == (3, 0, True, "x")
        assert found.log_probs == pytest.approx((math.log(0.75), math.log(0.25)), abs=1e-3)

    @pytest.mark.parametrize(("text", "right"), [(" long tail", True), (" long b", False), (" b", False)])
    def test_language_modelling(self, text: str, right: bool) -> None:
        question = Question(number=1, pairs=(("q a", text),), gold=0)
        (found,) = answer_questions(make_scorer(TABLE), make_task("language_modelling"), [question])
        assert found.correct is right

    @pytest.mark.parametrize(("answer", "right"), [("long tail", True), ("tail", False)])
    def test_generation(self, answer: str, right: bool) -> None:
        question = Question(number=1, pairs=(("q a", ""),), gold=0, answers=(answer,))
        table = {**TABLE, "tail": {END: 0.9}}
        task = make_task("generation", max_new_tokens=5)
        (found,) = answer_questions(make_scorer(table), task, [question])
        assert (found.text, found.correct) == ("long tail", right)

    def test_generation_from_a_prompt_that_is_too_long(self) -> None:
        question = Question(number=1, pairs=(("q " * 70 + "a", ""),), gold=0, answers=("x",))
        (found,) = answer_questions(make_scorer(TABLE), make_task("generation", max_new_tokens=4), [question])
        assert found.cut == 71 - 60
        with pytest.raises(EvaluationError, match="t generates 64 tokens, and the model reads 64"):
            answer_questions(make_scorer(TABLE), make_task("generation"), [question])


def test_equal_options_go_to_the_first_whatever_the_batch() -> None:
    draw = random.Random(0)
    scorer = make_scorer(TABLE)
    questions = [
        Question(
            number=i, pairs=tuple((f"{'q ' * draw.randint(1, 9)}a", f" {c}") for c in ("b", "cc", "b", "b")), gold=0
        )
        for i in range(1, 40)
    ]
    picks = []
    for budget in (1, 50, 4096):
        shuffled = draw.sample(questions, len(questions))
        found = answer_questions(scorer, make_task(), shuffled, batch_tokens=budget)
        picks.append({item.number: (item.pick, item.scores) for item in found})
    assert all(pick == 0 for pick, _ in picks[0].values())
    assert picks[0] == picks[1] == picks[2]  # each is close, so each was scored by itself


def test_too_long_is_counted() -> None:
    question = Question(number=1, pairs=(("q " * 100 + "a", " b"), ("a", " cc")), gold=0)
    (found,) = answer_questions(make_scorer(TABLE), make_task(), [question])
    assert found.cut == 101 + 1 - 1 - 64


def test_an_empty_answer_names_the_item() -> None:
    question = Question(number=9, pairs=(("a", " "), ("a", " b")), gold=0)
    with pytest.raises(EvaluationError, match="t, item 9: the answer"):
        answer_questions(make_scorer(TABLE), make_task(), [question])
