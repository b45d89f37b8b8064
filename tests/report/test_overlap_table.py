"""The table behind `lathe eval --overlap`."""

import io
import re

from rich.console import Console

from lathe.evals.overlap import ItemOverlap, OverlapReport, Place, SplitAccuracy, TaskOverlap
from lathe.evals.results import CategoryResult
from lathe.report.overlap_table import overlap_table


def item(number: int, *, covered: int, sample: str = "a run of words") -> ItemOverlap:
    place = Place(source="books.jsonl", document=1234, grams=2, sample=sample)
    return ItemOverlap(
        number=number, words=40, covered=covered, grams=28, found=covered - 12, dirty=covered >= 20, places=(place,)
    )


def report(**changes) -> OverlapReport:
    touched = item(20, covered=14), item(30, covered=30)
    tasks = (
        TaskOverlap(task="arc_easy", items=1010, undecided=tuple(range(1, 11)), touched=touched),
        TaskOverlap(task="sums", items=5, undecided=(1, 2, 3, 4, 5), touched=()),
    )
    fields = {
        "data": "books", "n": 13, "least": 8, "dirty_share": 0.5, "documents": 5000, "text_bytes": 2_500_000,
        "bad_lines": 0, "tasks": tasks,
    }  # fmt: skip
    return OverlapReport(**{**fields, **changes})


def printed(renderable) -> str:
    page = io.StringIO()
    Console(file=page, width=200).print(renderable)
    return page.getvalue()


def row(text: str, name: str) -> list[str]:
    return next(re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith(f"{name}  "))


def test_one_task_a_row_with_shares_of_decided_items():
    text = printed(overlap_table(report()))
    assert row(text, "arc_easy") == ["arc_easy", "1,010", "10", "2", "0.20%", "1", "0.10%"]
    assert row(text, "sums") == ["sums", "5", "5", "0", "–", "0", "–"]
    assert "Overlap with books: 5,000 documents, 2.5MB of text" in text
    assert "accuracy" not in text
    assert "lines of the data" not in text


def test_the_worst_items_are_shown_first_with_their_places():
    text = printed(overlap_table(report()))
    assert "arc_easy 30 (75% of 40 words) in books.jsonl, document 1,234: a run of words" in text
    assert text.index("arc_easy 30 (") < text.index("arc_easy 20 (")


def test_long_samples_unknown_sizes_and_bad_lines():
    tasks = (TaskOverlap(task="t", items=1, undecided=(), touched=(item(1, covered=40, sample="word " * 60),)),)
    text = printed(overlap_table(report(tasks=tasks, text_bytes=0, bad_lines=3)))
    assert "5,000 documents\n" in text
    assert "! 3 lines of the data hold no document" in text
    assert "…" in text


def test_accuracy_of_clean_and_dirty_items():
    split = SplitAccuracy(
        task="arc_easy", clean=CategoryResult(items=999, accuracy=0.5, se=0.0158),
        dirty=CategoryResult(items=1, accuracy=1.0, se=None), undecided=None,
    )  # fmt: skip
    text = printed(overlap_table(report(), splits={"arc_easy": split}))
    assert row(text, "arc_easy")[-2:] == ["50.00% ± 1.58%", "100.00%"]
    assert row(text, "sums")[-2:] == ["–", "–"]
