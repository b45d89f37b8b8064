"""Measure how much of a task's items stands in training data: runs of 13 words in common.

An item's text is its zero-shot question with the right option: context and gold continuation as the model scores them,
without few-shot examples; of generation the question alone. Its grams are its runs of `n` words, whatever their case
and punctuation, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C: 13 words at most and 8 at least). An item
of fewer words is one gram, and of fewer than `least` undecided: so short a text stands anywhere by chance. Grams that
very many items of a task share are the task's own wording, and count for none.

Two verdicts, since the field has two. An item is *touched* if any gram of it is found: GPT-3's "dirty". It is *dirty*
here if its found grams cover half of its words, a share as Llama 2 takes it (Touvron et al. 2023, arXiv:2307.09288,
appendix A.6, over tokens and with .8), with the threshold of Cosmopedia's decontamination (Hugging Face 2024): a
question found without its answer or the task's wording counts, a common quotation within a longer one does not.

Words are apart by spaces: of a language written without them, most items are undecided.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lathe import codec
from lathe.data.readers import Layout
from lathe.documents import write_atomic
from lathe.errors import EvaluationError
from lathe.evals.estimate import estimate
from lathe.evals.grams import END, END_HASH, GramTable, hash_runs, hash_text, normalise, scan, sort_distinct
from lathe.evals.items import Question
from lathe.evals.results import CategoryResult, ItemResult
from lathe.evals.training_text import Progress, Source, TrainingText, open_training_text

GRAM_WORDS, LEAST_WORDS, DIRTY_SHARE = 13, 8, 0.5
WORDING_SHARE, WORDING_ITEMS = 0.1, 10
"""A gram in more than this share of a task's items, and in more than so many, is the task's wording."""
SHOWN_PLACES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Say where grams of an item were first found: how many in which document (from 0) of a file, and one of them."""

    source: str
    document: int
    grams: int
    sample: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOverlap:
    """Hold what was found of one item: so many of its grams, which cover so many of its words."""

    number: int
    words: int
    covered: int
    grams: int
    found: int
    dirty: bool
    places: tuple[Place, ...]

    @property
    def gram_share(self) -> float:
        """Give the share of its grams that were found."""
        return self.found / self.grams

    @property
    def word_share(self) -> float:
        """Give the share of its words that found grams cover."""
        return self.covered / self.words


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOverlap:
    """Hold the items of a task that have a gram in the training data, and the numbers of those left undecided."""

    task: str
    items: int
    undecided: tuple[int, ...]
    touched: tuple[ItemOverlap, ...]

    @property
    def dirty(self) -> tuple[ItemOverlap, ...]:
        """List the items most of whose words were found."""
        return tuple(item for item in self.touched if item.dirty)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapReport:
    """Hold the overlap of tasks with training data, and how it was measured.

    `text_bytes` are 0 where they are not known; `bad_lines` of the data held no document, and were not read.
    """

    data: str
    n: int
    least: int
    dirty_share: float
    documents: int
    text_bytes: int
    bad_lines: int
    tasks: tuple[TaskOverlap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitAccuracy:
    """Hold a task's accuracy apart for clean, dirty and undecided items; None where there are none.

    Clean here is what is not dirty, so it may be touched.
    """

    task: str
    clean: CategoryResult | None
    dirty: CategoryResult | None
    undecided: CategoryResult | None


def measure_overlap(
    questions: Mapping[str, Sequence[Question]],
    source: Source,
    *,
    n: int = GRAM_WORDS,
    least: int = LEAST_WORDS,
    dirty_share: float = DIRTY_SHARE,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> OverlapReport:
    """Look for the items of tasks in training data: a dataset (its train split), or files of text. It is read once.

    Args:
        questions: of each task, zero-shot.
        n: words of a gram.
        least: an item of fewer words is undecided.
        dirty_share: of an item's words, from which on it is dirty.
        layout: of text files.
        progress: is told a name and the share that is done.

    Raises EvaluationError, and DataError for data that cannot be read.
    """
    if not 1 <= least <= n:
        raise EvaluationError(f"n={n}, least={least}: wanted 1 ≤ least ≤ n, such as 8 and 13")
    if not 0 < dirty_share <= 1:
        raise EvaluationError(f"dirty_share={dirty_share} is no share of an item's words; give one above 0, up to 1")
    if not questions:
        raise EvaluationError("there are no items to look for; name a task")
    text = open_training_text(source, layout=layout, progress=progress)
    grams = {task: _take_grams(items, n=n, least=least) for task, items in questions.items()}
    lengths = {int(length) for found in grams.values() for length in np.unique(found.length_o)}
    tables = {
        length: GramTable(np.concatenate([g.hash_o[g.length_o == length] for g in grams.values()]))
        for length in lengths
    }
    scan(text, tables, longest=n)
    tasks = tuple(
        _judge(task, questions[task], found, tables, text, dirty_share=dirty_share) for task, found in grams.items()
    )
    return OverlapReport(
        data=text.name, n=n, least=least, dirty_share=dirty_share, documents=text.documents,
        text_bytes=text.text_bytes, bad_lines=text.bad_lines, tasks=tasks,
    )  # fmt: skip


def split_results(items: Sequence[ItemResult], overlap: TaskOverlap) -> SplitAccuracy:
    """Average the results of one task's items apart, by what was found of them.

    Raises EvaluationError when they are not the items that were looked for.
    """
    if len(items) != overlap.items:
        raise EvaluationError(
            f"{overlap.task}: {len(items)} results, and the overlap is of {overlap.items} items; measure both on the "
            "same file of items"
        )
    dirty, undecided = {item.number for item in overlap.dirty}, set(overlap.undecided)
    groups: dict[str, list[float]] = {"clean": [], "dirty": [], "undecided": []}
    for item in items:
        group = "dirty" if item.number in dirty else "undecided" if item.number in undecided else "clean"
        groups[group].append(float(item.correct))
    clean, dirty, undecided = (_average(groups[name]) for name in groups)
    return SplitAccuracy(task=overlap.task, clean=clean, dirty=dirty, undecided=undecided)


def write_dirty(report: OverlapReport, path: str | Path) -> int:
    """Write one JSON line for each dirty item, with its task and where it was found; return how many."""
    rows = [{"task": task.task, **codec.encode(item)} for task in report.tasks for item in task.dirty]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def join_text(question: Question) -> str:
    """Give the text of a question that is looked for: its context with the right continuation."""
    return "".join(question.pairs[question.gold])


@dataclass(frozen=True, slots=True)
class _Grams:
    """Hold the grams of a task's items, o occurrences: hash, length, first word and item; and the items' w words.

    Words count from the first item's first; `item_w` has each one's item.
    """

    hash_o: NDArray[np.uint64]
    length_o: NDArray[np.int64]
    start_o: NDArray[np.int64]
    item_o: NDArray[np.int64]
    item_w: NDArray[np.int64]


def _take_grams(questions: Sequence[Question], *, n: int, least: int) -> _Grams:
    """Take the grams of items, without the task's wording."""
    hashes_w = hash_text(normalise(join_text(question)) + END for question in questions)
    # ENDs count as words of their item, which no gram holds
    item_w = np.cumsum(hashes_w == END_HASH) - (hashes_w == END_HASH)
    words_i = np.bincount(item_w, minlength=len(questions)) - 1
    left_w = np.flatnonzero(hashes_w == END_HASH)[item_w] - np.arange(len(hashes_w))
    length_w = np.minimum(words_i, n)[item_w]
    starts = np.flatnonzero((length_w >= least) & (left_w >= length_w))
    padded_w, hash_w = np.concatenate([hashes_w, np.zeros(n - 1, dtype=np.uint64)]), np.zeros_like(hashes_w)
    lengths = set(length_w.tolist())
    for length, runs_w in hash_runs(padded_w, n):
        if length in lengths:
            hash_w[length_w == length] = runs_w[length_w == length]
    hash_o, item_o = hash_w[starts], item_w[starts]
    kept = ~_find_wording(hash_o, item_o, items=len(questions))
    starts = starts[kept]
    return _Grams(hash_o[kept], length_w[starts], starts, item_o[kept], item_w)


def _find_wording(hash_o: NDArray[np.uint64], item_o: NDArray[np.int64], *, items: int) -> NDArray[np.bool_]:
    """Mark the grams that many items share."""
    gram_o = np.searchsorted(sort_distinct(hash_o), hash_o)
    pairs = sort_distinct(gram_o * np.int64(max(1, items)) + item_o)  # an item counts once, however often it has a gram
    sharing_g = np.bincount(pairs // max(1, items))
    return (sharing_g > max(WORDING_ITEMS, WORDING_SHARE * items))[gram_o]


def _judge(
    task: str,
    questions: Sequence[Question],
    grams: _Grams,
    tables: Mapping[int, GramTable],
    text: TrainingText,
    *,
    dirty_share: float,
) -> TaskOverlap:
    """Sum up what was found of each item."""
    document_o = np.full(len(grams.hash_o), -1, dtype=np.int64)
    for length, table in tables.items():
        of_length = grams.length_o == length
        document_o[of_length] = table.document_g[np.searchsorted(table.keys_g, grams.hash_o[of_length])]
    hit_o, items = document_o >= 0, len(questions)
    grams_i = np.bincount(grams.item_o, minlength=items)
    found_i = np.bincount(grams.item_o[hit_o], minlength=items)
    words_i = _count_covered(grams, np.ones_like(hit_o), items=items)
    covered_i = _count_covered(grams, hit_o, items=items)
    touched = tuple(
        ItemOverlap(
            number=questions[i].number, words=int(words_i[i]), covered=int(covered_i[i]), grams=int(grams_i[i]),
            found=int(found_i[i]), dirty=bool(covered_i[i] >= dirty_share * words_i[i]),
            places=_show_places(questions[i], i, grams, document_o, text),
        )
        for i in np.flatnonzero(found_i).tolist()
    )  # fmt: skip
    undecided = tuple(questions[i].number for i in np.flatnonzero(grams_i == 0).tolist())
    return TaskOverlap(task=task, items=items, undecided=undecided, touched=touched)


def _count_covered(grams: _Grams, chosen_o: NDArray[np.bool_], *, items: int) -> NDArray[np.intp]:
    """Count the words of each item that chosen grams cover."""
    starts, size = grams.start_o[chosen_o], len(grams.item_w) + 1
    steps_w = np.bincount(starts, minlength=size) - np.bincount(starts + grams.length_o[chosen_o], minlength=size)
    return np.bincount(grams.item_w[np.cumsum(steps_w)[:-1] > 0], minlength=items)


def _show_places(
    question: Question, item: int, grams: _Grams, document_o: NDArray[np.int64], text: TrainingText
) -> tuple[Place, ...]:
    """Show the documents that the most of an item's grams were first found in."""
    first, last = np.searchsorted(grams.item_o, [item, item + 1])
    words = normalise(join_text(question)).split()
    begin = int(np.searchsorted(grams.item_w, item))
    documents = document_o[first:last]
    places = []
    for document, count in Counter(documents[documents >= 0].tolist()).most_common(SHOWN_PLACES):
        gram = int(first + np.flatnonzero(documents == document)[0])
        start = int(grams.start_o[gram]) - begin
        sample = b" ".join(words[start : start + int(grams.length_o[gram])]).decode()
        places.append(Place(source=text.place(document), document=document, grams=count, sample=sample))
    return tuple(places)


def _average(correct: Sequence[float]) -> CategoryResult | None:
    if not correct:
        return None
    accuracy, se = estimate(correct)
    return CategoryResult(items=len(correct), accuracy=accuracy, se=se)
