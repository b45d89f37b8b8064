import json
from pathlib import Path

import pytest

from lathe.data.build import build_dataset
from lathe.data.tokenizer import train_tokenizer
from lathe.errors import EvaluationError
from lathe.evals.continuation import ANSWER_CHARS, CONTEXT_CHARS, CONTINUATION, read_documents, write_continuations
from lathe.evals.items import ask, read_items

TEXT = [" ".join(f"word{(i * j) % 97} goes on" for i in range(60)) for j in range(1, 13)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    train_tokenizer([tmp_path / "a.jsonl"], vocab_size=300, out=tmp_path / "tokenizer.json")
    build_dataset([tmp_path / "a.jsonl"], tokenizer=tmp_path / "tokenizer.json", out=tmp_path / "data", held_out=0.5)
    return tmp_path / "data"


def test_documents_are_as_they_were(dataset: Path) -> None:
    found = read_documents(dataset)
    assert found
    assert set(found) < set(TEXT)


def test_the_right_passage_follows_and_the_others_do_not(dataset: Path) -> None:
    out = dataset.parent / "continuation.jsonl"
    assert write_continuations(dataset, out, count=25, seed=3) == 25
    texts = read_documents(dataset)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert len(row["query"]) == CONTEXT_CHARS
        assert {len(choice) for choice in row["choices"]} == {ANSWER_CHARS}
        assert any(row["query"] + row["choices"][row["gold"]] in text for text in texts)
    golds = {item.gold for item in read_items(out, CONTINUATION.kind)}
    assert len(golds) == 4
    assert len(ask(read_items(out, CONTINUATION.kind), CONTINUATION)) == 25


def test_the_same_seed_gives_the_same_items(dataset: Path) -> None:
    files = [dataset.parent / f"{name}.jsonl" for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        write_continuations(dataset, file, count=9, seed=seed)
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


def test_text_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"short {i}"}) + "\n" for i in range(20)))
    train_tokenizer([tmp_path / "a.jsonl"], vocab_size=270, out=tmp_path / "tokenizer.json")
    build_dataset([tmp_path / "a.jsonl"], tokenizer=tmp_path / "tokenizer.json", out=tmp_path / "d", held_out=0.5)
    with pytest.raises(EvaluationError, match="no held-out document has 300 characters"):
        write_continuations(tmp_path / "d", tmp_path / "x.jsonl", count=1)
