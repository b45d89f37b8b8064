"""The overlap of items with training data, against a slow count of the same and planted texts."""

import json
import random
import re
import string
import unicodedata
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import write_small_dataset

from lathe import codec
from lathe.data.build import build_dataset
from lathe.data.readers import Document, Input, Layout
from lathe.data.tokenizer import train_tokenizer
from lathe.errors import DataError, EvaluationError
from lathe.evals import grams, training_text
from lathe.evals.grams import normalise
from lathe.evals.items import Question
from lathe.evals.overlap import OverlapReport, join_text, measure_overlap, split_results, write_dirty
from lathe.evals.results import ItemResult

WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "klmnp"]


def ask(*texts: str) -> list[Question]:
    return [Question(number=i, pairs=((text, ""),), gold=0) for i, text in enumerate(texts, start=1)]


def documents(*texts: str, parts: int | None = None) -> Input:
    """Give documents as an input, each in parts of so many characters."""

    def read():
        for text in texts:
            cuts = range(0, max(1, len(text)), parts or max(1, len(text)))
            pieces = [text[at : at + (parts or len(text))] for at in cuts]
            yield from (Document(piece, "made up", continues=True) for piece in pieces[:-1])
            yield Document(pieces[-1], "made up")

    return Input(name="made up", fingerprint="", size_bytes=1, read=read)


def overlap(items, *texts, parts=None, **options):
    report = measure_overlap({"task": items}, [documents(*texts, parts=parts)], **options)
    return report.tasks[0]


def draw_words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def found_slowly(items, texts, *, n, least):
    """Count, by item's number, found grams, all grams, covered words and all words; without the wording's rule."""

    def words_of(text):
        folded = unicodedata.normalize("NFKC", text).casefold()
        return "".join(c for c in folded if unicodedata.category(c)[0] not in "PS").split()

    trained = {
        tuple(words[i : i + k])
        for words in map(words_of, texts)
        for k in range(least, n + 1)
        for i in range(len(words) - k + 1)
    }
    counts = {}
    for item in items:
        words = words_of(join_text(item))
        k = min(n, len(words))
        if k < least:
            continue
        hits = [i for i in range(len(words) - k + 1) if tuple(words[i : i + k]) in trained]
        covered = {j for i in hits for j in range(i, i + k)}
        counts[item.number] = len(hits), len(words) - k + 1, len(covered), len(words)
    return counts


def as_counts(task):
    return {i.number: (i.found, i.grams, i.covered, i.words) for i in task.touched}


TEXT = st.lists(st.sampled_from(["a", "B", "c.", "é", "e\u0301", "-", "d"]), max_size=30).map(" ".join)


@given(
    st.lists(TEXT, min_size=1, max_size=6),
    st.lists(TEXT, min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([None, 7, 40]),
)
def test_equals_a_slow_count(items, texts, n, least, parts):
    if not any(texts):
        return
    least = min(n, least)
    wanted = found_slowly(ask(*items), texts, n=n, least=least)
    if parts is not None:  # a cut between a letter and its accent makes another letter
        items, texts = ([unicodedata.normalize("NFC", text) for text in group] for group in (items, texts))
    task = overlap(ask(*items), *texts, parts=parts, n=n, least=least)
    assert as_counts(task) == {number: counts for number, counts in wanted.items() if counts[0]}
    assert set(task.undecided) == {item.number for item in ask(*items)} - wanted.keys()


@pytest.mark.parametrize("block", [64, 257, 2**17])
def test_planted_items_are_all_found_wherever_blocks_end(block, monkeypatch):
    monkeypatch.setattr(grams, "BLOCK_BYTES", block)
    grams._powers.cache_clear()
    items = [" ".join(draw_words(20 + i % 7, i)) for i in range(60)]
    filler = [" ".join(draw_words(200, 1000 + i)) for i in range(60)]
    texts = [f"{before} {item} {before[::-1]}" for item, before in zip(items, filler, strict=True)]
    task = overlap(ask(*items), *texts)
    grams._powers.cache_clear()
    assert [item.number for item in task.touched] == list(range(1, 61))
    assert all(item.found == item.grams and item.covered == item.words and item.dirty for item in task.touched)
    assert [item.places[0].document for item in task.touched] == list(range(60))
    assert overlap(ask(*items), *filler).touched == ()


def test_documents_are_not_joined_and_their_parts_are():
    words = draw_words(20, 1)
    halves = " ".join(words[:10]), " ".join(words[10:])
    assert overlap(ask(" ".join(words)), *halves).touched == ()
    task = overlap(ask(" ".join(words)), "x " + " ".join(words), parts=11)
    assert task.touched[0].found == task.touched[0].grams == 8


def test_case_punctuation_spaces_and_forms_do_not_count():
    item = "The naïve (quick) “brown” fox jumps over the ﬁrst lazy dog, isn't it? Straße!"
    text = "xyz THE NAI\u0308VE quick brown\u00a0fox -- jumps\n\nover the first\tlazy DOG isn’t it STRASSE abc"
    task = overlap(ask(item), text)
    assert task.touched[0].gram_share == task.touched[0].word_share == 1
    assert task.touched[0].places[0].sample.startswith("the naïve quick brown fox")


@given(st.text())
def test_normalised_text_holds_no_mark_of_the_scanner(text):
    words = normalise(text).split(b" ")
    assert not {b"~", b"\x7f"} & set(words)
    assert all(not re.search(rb"[\x00-\x20]", word) for word in words)
    assert normalise("a\ud800b\u200bc") == b"abc"
    assert not set(normalise(string.punctuation + "—«»„“”‘’…¿¡、。")) - {32}


def test_short_items_are_one_gram_and_shorter_ones_undecided():
    words = draw_words(40, 3)
    items = [" ".join(words[:k]) for k in (7, 8, 12, 13)]
    task = overlap(ask(*items, ""), "x " + " ".join(words))
    assert task.undecided == (1, 5)
    assert as_counts(task) == {2: (1, 1, 8, 8), 3: (1, 1, 12, 12), 4: (1, 1, 13, 13)}
    # the whole of a short item must be there
    assert overlap(ask(" ".join([*words[:11], "other"])), " ".join(words)).touched == ()


def test_touched_and_dirty():
    words, other = draw_words(60, 4), draw_words(60, 5)
    quoting = " ".join(words[:13] + other[:27])  # 13 of 40 words
    leaked = " ".join(words[20:40] + other[30:35])  # 20 of 25
    task = overlap(ask(quoting, leaked), " ".join(words))
    assert [(item.number, item.dirty) for item in task.touched] == [(1, False), (2, True)]
    assert task.touched[0].word_share == 13 / 40
    assert task.touched[1].gram_share == 8 / 13
    assert [item.number for item in task.dirty] == [2]
    strict = overlap(ask(quoting, leaked), " ".join(words), dirty_share=0.81)
    assert strict.dirty == ()


def test_the_right_option_is_looked_for():
    context, right = " ".join(draw_words(12, 6)), draw_words(6, 7)
    question = Question(number=9, pairs=((context, " no"), (context, " " + " ".join(right))), gold=1)
    assert overlap([question], f"{context} {' '.join(right)}").touched[0].found == 6
    assert overlap([question], f"{context} no").touched == ()


def test_the_wording_of_a_task_does_not_count():
    wording = " ".join(draw_words(16, 8))
    items = ask(*(f"{wording} {' '.join(draw_words(14, 100 + i))}" for i in range(30)))
    task = overlap(items, f"{wording} and more", join_text(items[4]))
    assert [item.number for item in task.touched] == [5]
    assert task.touched[0].words == 26  # of 30, those that stand in a gram of the item's own
    alone = overlap(ask(*[wording] * 30), wording)
    assert alone.touched == ()
    assert len(alone.undecided) == 30
    assert len(overlap(ask(*[wording] * 10), wording).touched) == 10


def test_first_documents_are_named(tmp_path):
    words = draw_words(45, 9)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"body": text}) + "\n" for text in ("nothing", " ".join(words[:20]), " ".join(words)))
    )
    (tmp_path / "b.txt").write_text(" ".join(draw_words(30, 10)))
    items = ask(" ".join(words), " ".join(draw_words(30, 10)))
    report = measure_overlap({"one": items[:1], "two": items[1:], "none": []}, tmp_path, layout=Layout(text_key="body"))
    one, two, none = report.tasks
    assert [(p.document, p.grams) for p in one.touched[0].places] == [(2, 25), (1, 8)]
    assert one.touched[0].places[0].source.endswith("a.jsonl")
    assert one.touched[0].places[0].sample == " ".join(words[8:21])
    assert (two.touched[0].places[0].document, two.touched[0].places[0].source[-5:]) == (3, "b.txt")
    assert (none.items, none.touched, none.undecided) == (0, (), ())
    assert report.documents == 4


def test_a_report_is_written_and_read(tmp_path):
    text = " ".join(draw_words(30, 11))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\nno json\n")
    report = measure_overlap({"task": ask("other", text)}, [tmp_path])
    assert (report.bad_lines, report.text_bytes) == (1, len(text))
    codec.save(report, tmp_path / "report.json", kind="overlap")
    assert codec.load(OverlapReport, tmp_path / "report.json", kind="overlap") == report
    assert write_dirty(report, tmp_path / "dirty.jsonl") == 1
    row = json.loads((tmp_path / "dirty.jsonl").read_text())
    assert (row["task"], row["number"], row["places"][0]["document"]) == ("task", 2, 0)


def test_results_are_split():
    text = " ".join(draw_words(30, 12))
    task = overlap(ask(text, *(" ".join(draw_words(20, 200 + i)) for i in range(4)), "short"), text)
    items = [ItemResult(number=i, gold=0, pick=0, correct=i in (1, 2, 6)) for i in range(1, 7)]
    split = split_results(items, task)
    assert split.clean is not None
    assert (split.clean.items, split.clean.accuracy) == (4, 0.25)
    assert split.clean.se == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)
    assert split.dirty is not None
    assert (split.dirty.items, split.dirty.accuracy, split.dirty.se) == (1, 1, None)
    assert split.undecided is not None
    assert split.undecided.accuracy == 1
    with pytest.raises(EvaluationError, match="5 results, and the overlap is of 6 items"):
        split_results(items[:5], task)


def test_bad_input(tmp_path):
    items, text = {"task": ask("some words")}, documents("text")
    assert measure_overlap(items, [text]).tasks[0].undecided == (1,)
    with pytest.raises(EvaluationError, match="least=14"):
        measure_overlap(items, [text], least=14)
    with pytest.raises(EvaluationError, match="no share"):
        measure_overlap(items, [text], dirty_share=0)
    with pytest.raises(EvaluationError, match="name a task"):
        measure_overlap({}, [text])
    with pytest.raises(EvaluationError, match="holds no text"):
        measure_overlap(items, [documents("")])
    with pytest.raises(DataError, match="no file or folder"):
        measure_overlap(items, tmp_path / "absent")
    write_small_dataset(tmp_path / "foreign", train=40)
    with pytest.raises(EvaluationError, match="no tokenizer"):
        measure_overlap(items, tmp_path / "foreign")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "text.txt").write_text(" ".join(WORDS) + " naïve 日本")
    train_tokenizer([path / "text.txt"], vocab_size=300, out=path / "tokenizer.json")
    return path / "tokenizer.json"


@pytest.mark.parametrize("piece", [64, 2**16])
def test_a_dataset_is_read_as_its_text(tokenizer, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(training_text, "PIECE_TOKENS", piece)
    monkeypatch.setattr(training_text, "OVERLAP_TOKENS", min(piece, 128))
    texts = [" ".join(["naïve 日本", *draw_words(150, i)]) for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_dataset([tmp_path / "a.jsonl"], tokenizer=tokenizer, out=tmp_path / "data", held_out=0.2, shard_tokens=1500)
    items = {"task": ask(*texts, " ".join(draw_words(60, 99)))}
    told = []
    report = measure_overlap(items, tmp_path / "data", progress=lambda name, share: told.append((name, share)))
    assert told[0] == ("train-00000", 0)
    assert 0 < told[-1][1] < 1
    trained = [item.number for item in report.tasks[0].touched]
    assert 0 < report.documents == len(trained) < 12
    assert all(item.found == item.grams for item in report.tasks[0].touched)
    assert [item.places[0].document for item in report.tasks[0].touched] == list(range(len(trained)))
    assert len({item.places[0].source for item in report.tasks[0].touched}) > 1
    (tmp_path / "data" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not the tokenizer"):
        measure_overlap(items, tmp_path / "data")


def test_pieces_of_a_long_document_make_no_words_or_runs_of_their_own(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training_text, "PIECE_TOKENS", 16)
    monkeypatch.setattr(training_text, "OVERLAP_TOKENS", 16)
    words = [a + b for a, b in zip(draw_words(60, 20), draw_words(60, 21), strict=True)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    build_dataset([tmp_path / "a.txt"], tokenizer=tokenizer, out=tmp_path / "data", held_out=0)
    runs = set(pairwise(words))
    for true, false in (
        (set(words), {word[:k] for word in words for k in range(1, len(word))} - set(words)),
        (set(map(" ".join, runs)), set(map(" ".join, set(product(words, words)) - runs))),
    ):
        items = {"true": ask(*sorted(true)), "false": ask(*sorted(false))}
        found = measure_overlap(items, tmp_path / "data", n=2, least=1).tasks
        assert [len(task.touched) for task in found] == [len(true), 0]


def test_real_items_in_a_real_text(shared_data, tmp_path):
    rows = [json.loads(line) for line in (shared_data / "eval/icl/arc_easy.jsonl").read_text().splitlines()]
    items = [
        Question(number=i, pairs=tuple((row["query"] + "\nAnswer:", " " + c) for c in row["choices"]), gold=row["gold"])
        for i, row in enumerate(rows, start=1)
    ]
    books = (shared_data / "text/books.jsonl").read_text().splitlines()[:40]
    leaked = range(100, 2300, 55)  # 40
    clean = measure_overlap({"arc_easy": items}, shared_data / "text/books.jsonl").tasks[0]
    assert (clean.items, clean.dirty) == (2376, ())
    with open(tmp_path / "train.jsonl", "w") as file:
        for i, book in enumerate(books):
            file.write(book + "\n")
            text = " ".join(
                rows[j]["query"].upper() + "\n" + rows[j]["choices"][rows[j]["gold"]] for j in leaked[i : i + 1]
            )
            file.write(json.dumps({"text": text}) + "\n")
    task = measure_overlap({"arc_easy": items}, tmp_path / "train.jsonl").tasks[0]
    planted = {j + 1 for j in leaked}
    longer = {number for number in planted if len(normalise(join_text(items[number - 1])).split()) > 30}
    assert longer
    assert longer <= {item.number for item in task.dirty}
    # a few more share a sentence with a planted one
    assert len({item.number for item in task.touched} - planted) < 10
