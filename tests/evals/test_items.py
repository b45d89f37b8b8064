"""Files of items: real ones, bad ones, and the questions that they become."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import EvaluationError
from lathe.evals.answers_text import extract_answer, score_text
from lathe.evals.items import Item, Kind, Question, ask, read_items
from lathe.evals.tasks import Task

CHOICE = {"query": "Is it?", "choices": ["yes", "no"], "gold": 1}
SCHEMA = {"context_options": ["The dog", "The cat"], "continuation": "barked.", "gold": 0}
MODELLING = {"context": "1 + 1 =", "continuation": "2"}
GENERATION = {"context": "How many?", "answer": "four", "aliases": ["4", "four", " "]}
ROWS: dict[Kind, dict[str, Any]] = {
    "multiple_choice": CHOICE,
    "schema": SCHEMA,
    "language_modelling": MODELLING,
    "generation": GENERATION,
}


def make_task(kind: Kind, **fields: Any) -> Task:
    return Task(**{"name": "t", "file": "t.jsonl", "kind": kind, "shots": 0, "chance": 0, "published": "here"} | fields)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestReading:
    def test_what_each_kind_holds(self, tmp_path: Path) -> None:
        found = {kind: read_items(write(tmp_path / f"{kind}.jsonl", [row]), kind)[0] for kind, row in ROWS.items()}
        assert found == {
            "multiple_choice": Item(number=1, contexts=("Is it?",), continuations=("yes", "no"), gold=1),
            "schema": Item(number=1, contexts=("The dog", "The cat"), continuations=("barked.",), gold=0),
            "language_modelling": Item(number=1, contexts=("1 + 1 =",), continuations=("2",)),
            "generation": Item(number=1, contexts=("How many?",), continuations=("",), answers=("four", "4")),
        }

    def test_numbers_are_lines_and_optional_keys_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        rows = [{**MODELLING, "category": "sums", "else": [1]}, {**MODELLING, "category": None}]
        path.write_bytes(b"\xef\xbb\xbf" + "\n\r\n".join(map(json.dumps, rows)).encode())
        assert [(i.number, i.category) for i in read_items(path, "language_modelling")] == [(1, "sums"), (3, None)]
        thought = {**GENERATION, "chain_of_thought": "2 + 2"}
        assert read_items(write(path, [thought]), "generation")[0].reasoning == "2 + 2"

    def test_a_line_ends_at_a_newline_only(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text('{"context": "one\u2028two\x85", "continuation": "3"}\n', encoding="utf-8")
        assert read_items(path, "language_modelling")[0].contexts == ("one\u2028two\x85",)

    @pytest.mark.parametrize(
        ("kind", "row", "error"),
        [
            ("multiple_choice", {**CHOICE, "gold": 2}, r"line 2: gold is 2; wanted the index of one of the 2 options"),
            ("multiple_choice", {**CHOICE, "gold": -1}, "gold is -1"),
            ("multiple_choice", {**CHOICE, "gold": 1.0}, r"gold is 1\.0"),
            ("multiple_choice", {**CHOICE, "gold": True}, "gold is true"),
            ("multiple_choice", {**CHOICE, "gold": "1"}, 'gold is "1"'),
            ("multiple_choice", {**CHOICE, "choices": []}, "choices has 0 texts to choose from; wanted 2 or more"),
            ("multiple_choice", {**CHOICE, "choices": ["yes"]}, "choices has 1 texts"),
            ("multiple_choice", {**CHOICE, "choices": "yes"}, 'choices is "yes"; wanted a list'),
            ("multiple_choice", {**CHOICE, "choices": ["yes", " "]}, r"choices\[1\] is empty, so there is nothing"),
            ("multiple_choice", {**CHOICE, "choices": ["yes", 2]}, r"choices\[1\] is 2; wanted a text"),
            ("multiple_choice", {**CHOICE, "query": None}, "query is null; wanted a text"),
            (
                "multiple_choice",
                {"query": "?", "choices": ["a", "b"], "golds": 0},
                "no key 'gold'; did you mean 'golds'",
            ),
            ("multiple_choice", SCHEMA, "the row is schema {context_options.*task's are multiple_choice {query"),
            ("multiple_choice", MODELLING, "the row is language_modelling .*keep one kind a file"),
            ("schema", {**SCHEMA, "gold": 2}, "gold is 2"),
            ("schema", {**SCHEMA, "continuation": ""}, "continuation is empty"),
            ("schema", {**SCHEMA, "context_options": []}, "context_options has 0 texts"),
            ("language_modelling", {**MODELLING, "continuation": " \n"}, "continuation is empty"),
            ("language_modelling", {"context": "x"}, "no key 'continuation'.*wanted language_modelling"),
            ("language_modelling", GENERATION, "the row is generation"),
            ("language_modelling", {**MODELLING, "category": 3}, "category is 3; wanted a text"),
            ("language_modelling", {**MODELLING, "context": "\ud800"}, "context holds half a surrogate pair"),
            ("generation", {**GENERATION, "answer": ""}, "answer is empty"),
            ("generation", {**GENERATION, "answer": 4}, "answer is 4; wanted a text"),
            ("generation", {**GENERATION, "aliases": "4"}, 'aliases is "4"; wanted a list'),
            ("generation", {**GENERATION, "chain_of_thought": ["a"]}, "chain_of_thought is a list of 1"),
            ("generation", MODELLING, "the row is language_modelling"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, kind: Kind, row: dict[str, Any], error: str) -> None:
        path = write(tmp_path / "items.jsonl", [ROWS[kind], row])
        with pytest.raises(EvaluationError, match=r"items\.jsonl, line 2: .*" + error.removeprefix("line 2: ")):
            read_items(path, kind)

    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b'{"context": "caf\xe9"}', "line 2: byte 16 of the line is not UTF-8; save the file as UTF-8"),
            (b'{"context": "a", ', "line 2: not JSON"),
            (b"[1, 2]", "line 2: holds a list of 2; wanted an object: language_modelling {context, continuation}"),
            (b"[" * 100_000, "line 2: not JSON"),
        ],
    )
    def test_bad_lines(self, tmp_path: Path, line: bytes, error: str) -> None:
        path = tmp_path / "t.jsonl"
        path.write_bytes(json.dumps(MODELLING).encode() + b"\n" + line + b"\n")
        with pytest.raises(EvaluationError, match=error):
            read_items(path, "language_modelling")

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty_file(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text(content)
        with pytest.raises(EvaluationError, match=r"t\.jsonl is empty; wanted one schema item a line"):
            read_items(path, "schema")

    def test_no_file_and_no_kind(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="cannot be read: No such file"):
            read_items(tmp_path / "t.jsonl", "schema")
        with pytest.raises(EvaluationError, match="unknown kind of items 'schemas'; did you mean 'schema'"):
            read_items(tmp_path / "t.jsonl", "schemas")  # pyright: ignore[reportArgumentType]

    def test_real_files(self, shared_data: Path) -> None:
        """Every file beside the checkout reads as one kind, with the rows that its list of sources counts."""
        rows = [[c.strip() for c in r.split("|")] for r in (shared_data / "SOURCES.md").read_text().splitlines()]
        counts = {Path(r[1]).name: int(r[3]) for r in rows if len(r) > 4 and r[1].startswith("eval/icl/")}
        found = {}
        for path in sorted((shared_data / "eval/icl").glob("*.jsonl")):
            first = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
            (kind,) = [kind for kind, row in ROWS.items() if row.keys() - {"aliases"} <= first.keys()]
            found[path.name] = len(read_items(path, kind))
        assert found == counts
        assert len(found) == 27


CHOICES = [
    Item(number=n, contexts=(f"Q{n}?",), continuations=(f"no{n}", f"yes{n} "), gold=n % 2, category="ab"[n % 2])
    for n in range(1, 9)
]
ANSWER = make_task("multiple_choice", delimiter="\nAnswer: ")


def examples_of(question: Question) -> list[int]:
    """Read the numbers of a question's examples, and of the item itself, off its context."""
    return [int(line.removeprefix("Q").removesuffix("?")) for line in question.pairs[0][0].split("\n")[::2]]


class TestAsking:
    def test_multiple_choice(self) -> None:
        (plain,) = ask(CHOICES[:1], make_task("multiple_choice"))
        assert plain == Question(number=1, pairs=(("Q1?", " no1"), ("Q1?", " yes1")), gold=1, category="b")
        (first, *_) = ask(CHOICES, ANSWER, shots=2)
        a, b, own = examples_of(first)
        assert own == 1
        assert len({a, b, own}) == 3
        before = "".join(f"Q{n}?\nAnswer: {('no', 'yes')[n % 2]}{n}\n" for n in (a, b)) + "Q1?\nAnswer:"
        assert first.pairs == ((before, " no1"), (before, " yes1"))

    def test_schema(self) -> None:
        items = [
            Item(number=n, contexts=(f"left {n}", f"right {n}"), continuations=("goes.",), gold=n - 1) for n in (1, 2)
        ]
        assert [q.pairs for q in ask(items, make_task("schema"))] == [
            (("left 1", " goes."), ("right 1", " goes.")),
            (("left 2", " goes."), ("right 2", " goes.")),
        ]
        assert [q.pairs[0] for q in ask(items, make_task("schema"), shots=1)] == [
            ("right 2 goes.\nleft 1", " goes."),
            ("left 1 goes.\nleft 2", " goes."),
        ]

    def test_language_modelling(self) -> None:
        items = [Item(number=n, contexts=(f"{n} + 1 =",), continuations=(f" {n + 1}\n",)) for n in (1, 2, 3)]
        task = make_task("language_modelling", preamble="Sums.\n", prelude="Q: ", example_delimiter="\n\n")
        assert [q.pairs for q in ask(items, task)] == [((f"Sums.\nQ: {n} + 1 =", f" {n + 1}"),) for n in (1, 2, 3)]
        ((asked,),) = [q.pairs for q in ask(items, task, shots=2)][:1]
        shown = {"Q: 2 + 1 = 3", "Q: 3 + 1 = 4"}
        assert set(asked[0].removeprefix("Sums.\n").split("\n\n")) == {*shown, "Q: 1 + 1 ="}
        assert asked[0].endswith("\n\nQ: 1 + 1 =")
        assert asked[1] == " 2"

    def test_generation_shows_the_reasoning(self) -> None:
        items = [
            Item(number=1, contexts=("A?",), continuations=("",), answers=("3", "three"), reasoning="1+2\n"),
            Item(number=2, contexts=("B?",), continuations=("",), answers=("7",)),
        ]
        task = make_task("generation", prelude="Q: ", delimiter="\nA: Think. ", answer_prefix=" #### ")
        assert ask(items, task)[0] == Question(
            number=1, pairs=(("Q: A?\nA: Think. ", ""),), gold=0, answers=("3", "three")
        )
        asked = [q.pairs[0][0] for q in ask(items, task, shots=1)]
        assert asked == ["Q: B?\nA: Think. 7\nQ: A?\nA: Think. ", "Q: A?\nA: Think. 1+2 #### 3\nQ: B?\nA: Think. "]

    @pytest.mark.parametrize(
        ("delimiter", "context", "continuation", "bare"),
        [
            (" ", "Q1?", " no1", ""),
            ("\nAnswer: ", "Q1?\nAnswer:", " no1", "Answer:"),
            ("Answer: ", "Q1?Answer:", " no1", "Answer:"),
            ("\n", "Q1?", "\nno1", ""),
            (" →", "Q1? →", "no1", "→"),
            ("", "Q1?", "no1", ""),
        ],
    )
    def test_delimiters(self, delimiter: str, context: str, continuation: str, bare: str) -> None:
        task = make_task("multiple_choice", delimiter=delimiter, normalisation="unconditional")
        (question,) = ask(CHOICES[:1], task)
        assert question.pairs[0] == (context, continuation)
        assert question.unconditional[0] == (bare, continuation)
        assert not ask(CHOICES[:1], replace(task, normalisation="sum"))[0].unconditional

    @given(order=st.permutations(range(8)), shots=st.integers(0, 7), seed=st.integers(0, 5))
    def test_examples_do_not_hang_on_the_order(self, order: list[int], shots: int, seed: int) -> None:
        expected = {q.number: q for q in ask(CHOICES, ANSWER, shots=shots, seed=seed)}
        for question in ask([CHOICES[i] for i in order], ANSWER, shots=shots, seed=seed):
            assert question == expected[question.number]
            *examples, own = examples_of(question)
            assert own == question.number
            assert len({*examples, own}) == shots + 1

    def test_examples_are_these(self) -> None:
        """A change here changes every published few-shot score."""
        drawn = [examples_of(q)[:3] for q in ask(CHOICES, ANSWER, shots=3, seed=7)]
        assert drawn == [[8, 2, 5], [8, 4, 5], [4, 2, 5], [3, 2, 8], [3, 7, 1], [1, 5, 7], [4, 6, 2], [7, 6, 4]]
        assert [examples_of(q)[:3] for q in ask(CHOICES, ANSWER, shots=3, seed=8)] != drawn

    def test_every_other_item_is_drawn_alike(self) -> None:
        counts = dict.fromkeys(range(2, 9), 0)
        for seed in range(2000):
            (number,) = examples_of(ask(CHOICES, ANSWER, shots=1, seed=seed)[0])[:1]
            counts[number] += 1
        expected = 2000 / 7
        assert sum((c - expected) ** 2 / expected for c in counts.values()) < 22.5  # chi-squared, 6 degrees, p = 0.001

    def test_examples_are_of_the_category_where_those_are_averaged(self) -> None:
        for question in ask(CHOICES, replace(ANSWER, average="categories"), shots=3):
            assert {n % 2 for n in examples_of(question)} == {question.number % 2}

    @pytest.mark.parametrize(
        ("fields", "shots", "error"),
        [
            ({}, 8, "t: 8 examples are to stand before each item, and an item has 7 others; ask for at most 7 shots"),
            ({"average": "categories"}, 4, "an item has 3 others of category 'b'; ask for at most 3 shots"),
            ({}, -1, "t: shots=-1; wanted 0 or more"),
        ],
    )
    def test_too_many_shots(self, fields: dict[str, Any], shots: int, error: str) -> None:
        with pytest.raises(EvaluationError, match=error):
            ask(CHOICES, replace(ANSWER, **fields), shots=shots)

    def test_missing_category(self) -> None:
        items = [replace(CHOICES[0], category=None)]
        with pytest.raises(EvaluationError, match="t, item 1: no category, and the task is averaged over categories"):
            ask(items, replace(ANSWER, average="categories"))


@pytest.mark.parametrize(
    ("text", "answers", "fields", "right"),
    [
        (" The Beatles!\nQ: next", ["beatles"], {}, True),
        (" the  beatles ", ["An Beatles"], {}, True),
        (" Beatles, too", ["beatles"], {}, False),
        (" four", ["4", "four"], {}, True),
        (" well-known_man", ["Well known man"], {}, True),
        ("", ["a"], {}, False),
        (" A", ["a"], {}, False),
        (" A", ["A"], {}, True),
        ("", ["..."], {}, False),
        (" 4\n", ["4"], {"match": "exact"}, True),
        (" Four", ["four"], {"match": "exact"}, False),
        (" -10", ["10"], {"match": "exact"}, False),
        ("2+2 #### 4", ["4"], {"answer_prefix": " #### "}, True),
        ("1 #### 3\n####4\n\nQ: #### 9", ["4"], {"answer_prefix": " #### ", "stop": ("Q:", "\n\n")}, True),
        ("4", ["4"], {"answer_prefix": " #### "}, True),
        ("2+2 is 4", ["4"], {"answer_prefix": " #### "}, False),
        ("x|y;z", ["x"], {"stop": (";", "|")}, True),
        ("x\ny", ["x y"], {"stop": ()}, True),
    ],
)
def test_generated_texts(text: str, answers: list[str], fields: dict[str, Any], right: bool) -> None:
    assert score_text(text, answers, make_task("generation", **fields)) is right


def test_extracted_answer() -> None:
    task = make_task("generation", answer_prefix=" #### ", stop=("\n\n",))
    assert extract_answer("2+2\n#### 4 \n\nmore", task) == " 4 "
