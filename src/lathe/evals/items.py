"""Read files of evaluation items, and put each as the question that a model is asked.

The rows are those of llm-foundry's evaluation data, one JSON object a line; keys beyond a kind's own are left alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.documents import name_value
from lathe.errors import EvaluationError, nearest

if TYPE_CHECKING:
    from lathe.evals.tasks import Task

Kind = Literal["multiple_choice", "schema", "language_modelling", "generation"]
KINDS: tuple[Kind, ...] = ("multiple_choice", "schema", "language_modelling", "generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Hold one row of a file of items.

    `contexts` and `continuations` pair up into the options; where one of them has a single member, every option
    shares it. Generation has an empty continuation and `answers`, any of which is right, and may have the `reasoning`
    that leads to the first. `number` is the line in the file, from 1.
    """

    number: int
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0
    category: str | None = None
    answers: tuple[str, ...] = ()
    reasoning: str | None = None

    @property
    def options(self) -> list[tuple[str, str]]:
        """List the (context, continuation) of each option."""
        return _pair(self.contexts, self.continuations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Hold an item as the model is asked it, after few-shot examples and delimiters.

    `pairs` has the (context, continuation) of each option: one for language_modelling, one with an empty
    continuation for generation. `unconditional`, which only that normalisation needs, has the same continuations
    after nothing but the delimiter. `number` is the line in the file, from 1; `gold` the index of the right option.
    """

    number: int
    pairs: tuple[tuple[str, str], ...]
    gold: int
    category: str | None = None
    answers: tuple[str, ...] = ()
    unconditional: tuple[tuple[str, str], ...] = ()


def read_items(path: str | Path, kind: Kind) -> list[Item]:
    """Read a `.jsonl` file of items of one kind; empty lines are skipped.

    Raises EvaluationError, with the line: no such file, no item, bytes that are not UTF-8, broken JSON, a row of
    another kind, a key that is missing or of the wrong type, an empty text, a gold index without its option.
    """
    if kind not in KINDS:
        raise EvaluationError(f"unknown kind of items {kind!r}{nearest(str(kind), KINDS)}")
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise EvaluationError(f"{path}: the items cannot be read: {error.strerror}") from None
    items = [
        _parse(line, number, kind, where=f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not items:
        raise EvaluationError(f"{path} is empty; wanted one {kind} item a line: {_describe(kind)}")
    return items


def _parse(line: bytes, number: int, kind: Kind, *, where: str) -> Item:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{where}: byte {error.start} of the line is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: not JSON ({error}); wanted one object a line: get the file anew") from None
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: holds {name_value(row)}; wanted an object: {_describe(kind)}")
    _check_kind(row, kind, where=where)
    category = None if row.get("category") is None else _text(row, "category", where=where)
    return Item(number=number, category=category, **_ROWS[kind].parse(row, where))


def _check_kind(row: Mapping[str, Any], kind: Kind, *, where: str) -> None:
    missing = [key for key in _ROWS[kind].keys if key not in row]
    if not missing:
        return
    for other, form in _ROWS.items():
        if all(key in row for key in form.keys):
            raise EvaluationError(
                f"{where}: the row is {_describe(other)}, and the task's are {_describe(kind)}; keep one kind a file, "
                "or correct the kind in the task's catalogue"
            )
    raise EvaluationError(f"{where}: no key {missing[0]!r}{nearest(missing[0], row)}; wanted {_describe(kind)}")


def _describe(kind: Kind) -> str:
    return f"{kind} {{{', '.join(_ROWS[kind].keys)}}}"


def _text(row: Mapping[str, Any], key: str, *, where: str, empty: bool = False) -> str:
    return _check_text(row[key], key, where=where, empty=empty)


def _check_text(text: Any, key: str, *, where: str, empty: bool = False) -> str:
    if not isinstance(text, str):
        raise EvaluationError(f"{where}: {key} is {name_value(text)}; wanted a text")
    if not (empty or text.strip()):
        raise EvaluationError(f"{where}: {key} is empty, so there is nothing to score; mend the row or leave it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EvaluationError(f"{where}: {key} holds half a surrogate pair, which is no text; mend the row") from None
    return text


def _texts(row: Mapping[str, Any], key: str, *, where: str, least: int = 2, empty: bool = False) -> tuple[str, ...]:
    texts = row[key]
    if not isinstance(texts, list):
        raise EvaluationError(f"{where}: {key} is {name_value(texts)}; wanted a list of texts")
    if len(texts) < least:
        raise EvaluationError(f"{where}: {key} has {len(texts)} texts to choose from; wanted {least} or more")
    return tuple(_check_text(text, f"{key}[{i}]", where=where, empty=empty) for i, text in enumerate(texts))


def _gold(row: Mapping[str, Any], options: Sequence[str], *, where: str) -> int:
    gold = row["gold"]
    if type(gold) is not int or not 0 <= gold < len(options):
        raise EvaluationError(
            f"{where}: gold is {name_value(gold)}; wanted the index of one of the {len(options)} options, "
            f"0 to {len(options) - 1}"
        )
    return gold


def _parse_choice(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    choices = _texts(row, "choices", where=where)
    query = _text(row, "query", where=where, empty=True)
    return {"contexts": (query,), "continuations": choices, "gold": _gold(row, choices, where=where)}


def _parse_schema(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    contexts = _texts(row, "context_options", where=where, empty=True)
    continuation = _text(row, "continuation", where=where)
    return {"contexts": contexts, "continuations": (continuation,), "gold": _gold(row, contexts, where=where)}


def _parse_modelling(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    context = _text(row, "context", where=where, empty=True)
    return {"contexts": (context,), "continuations": (_text(row, "continuation", where=where),)}


def _parse_generation(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    aliases = () if row.get("aliases") is None else _texts(row, "aliases", where=where, least=0, empty=True)
    answers = (_text(row, "answer", where=where), *(a for a in aliases if a.strip()))
    thought = "chain_of_thought"
    return {
        "contexts": (_text(row, "context", where=where, empty=True),),
        "continuations": ("",),
        "answers": tuple(dict.fromkeys(answers)),
        "reasoning": None if row.get(thought) is None else _text(row, thought, where=where, empty=True),
    }


@dataclass(frozen=True, slots=True)
class _Row:
    keys: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], dict[str, Any]]


_ROWS: dict[Kind, _Row] = {
    "multiple_choice": _Row(("query", "choices", "gold"), _parse_choice),
    "schema": _Row(("context_options", "continuation", "gold"), _parse_schema),
    "language_modelling": _Row(("context", "continuation"), _parse_modelling),
    "generation": _Row(("context", "answer"), _parse_generation),
}
"""What a row of each kind must hold, and how it becomes an item's fields."""


def ask(items: Sequence[Item], task: Task, *, shots: int | None = None, seed: int = 0) -> list[Question]:
    """Put a file's items as questions, each after `shots` examples (the task's own number if not given).

    An item's examples are drawn from the others, of its category where the task averages over categories; which, and
    in what order, follows from `seed` and the item's number alone, so give all the file's items and keep of the
    questions what you want. White space around a continuation is left out: the delimiter says what stands before it.

    Raises EvaluationError when there are not as many other items, or when a category is missing.
    """
    shots = task.shots if shots is None else shots
    if shots < 0:
        raise EvaluationError(f"{task.name}: shots={shots}; wanted 0 or more")
    pools: dict[str | None, list[Item]] = {}
    for item in sorted(items, key=lambda i: i.number):
        pools.setdefault(_pool_of(item, task), []).append(item)
    _check_pools(pools, task, shots)
    places = {item.number: place for pool in pools.values() for place, item in enumerate(pool)}
    questions = []
    for item in items:
        pool = pools[_pool_of(item, task)]
        drawn = _draw(shots, len(pool) - 1, seed=seed, number=item.number)
        examples = [pool[place + (place >= places[item.number])] for place in drawn]
        questions.append(_put(item, [_show(example, task) for example in examples], task))
    return questions


def _pool_of(item: Item, task: Task) -> str | None:
    if task.average == "items":
        return None
    if item.category is None:
        raise EvaluationError(
            f"{task.name}, item {item.number}: no category, and the task is averaged over categories; give every row "
            'one, or set average = "items"'
        )
    return item.category


def _check_pools(pools: Mapping[str | None, Sequence[Item]], task: Task, shots: int) -> None:
    for category, pool in pools.items():
        if shots > len(pool) - 1:
            where = f" of category {category!r}" if category is not None else ""
            most = min(len(p) for p in pools.values()) - 1
            raise EvaluationError(
                f"{task.name}: {shots} examples are to stand before each item, and an item has {len(pool) - 1} "
                f"others{where}; ask for at most {most} shots"
            )


def _draw(count: int, others: int, *, seed: int, number: int) -> list[int]:
    """Draw `count` different numbers below `others`."""
    drawn: dict[int, None] = {}
    if count:
        rng = random.Random(f"{seed} {number}")
        while len(drawn) < count:  # Python promises to keep what random() gives, not what sample() does
            drawn[int(rng.random() * others)] = None
    return list(drawn)


def _show(item: Item, task: Task) -> str:
    """Write an example: the right option, or the first answer after its reasoning."""
    context, continuation = item.options[item.gold]
    if item.answers:
        reasoning = item.reasoning.strip() + task.answer_prefix if item.reasoning else ""
        continuation = reasoning + item.answers[0].strip()
    head, tail = _split_delimiter(task)
    return task.prelude + context + head + _trim(continuation, tail)


def _put(item: Item, examples: Sequence[str], task: Task) -> Question:
    """Write the question: the delimiter's text goes to the context, its last white space to the continuation."""
    head, tail = _split_delimiter(task)
    head = task.delimiter if item.answers else head
    fronts = [
        task.preamble + task.example_delimiter.join([*examples, task.prelude + context]) + head
        for context in item.contexts
    ]
    ends = [_trim(continuation, tail) if continuation else "" for continuation in item.continuations]
    pairs = tuple(_pair(fronts, ends))
    bare = task.normalisation == "unconditional" and not item.answers
    return Question(
        number=item.number,
        pairs=pairs,
        gold=item.gold,
        category=item.category,
        answers=item.answers,
        unconditional=tuple((head.strip(), end) for _, end in pairs) if bare else (),
    )


def _pair(contexts: Sequence[str], continuations: Sequence[str]) -> list[tuple[str, str]]:
    """Pair contexts with continuations; where there is one of either, it goes with all of the others."""
    count = max(len(contexts), len(continuations))
    lists = ([*texts] * count if len(texts) == 1 else texts for texts in (contexts, continuations))
    return list(zip(*lists, strict=True))


def _split_delimiter(task: Task) -> tuple[str, str]:
    head = task.delimiter.rstrip()
    return head, task.delimiter[len(head) :]


def _trim(continuation: str, tail: str) -> str:
    return tail + continuation.strip() if tail else continuation.rstrip()
