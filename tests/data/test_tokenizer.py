"""Training tokenizers: the same file from the same text, and every text comes back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from corpus import make_texts, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lathe.data.tokenise import open_encoder
from lathe.data.tokenizer import END, train_tokenizer
from lathe.errors import DataError

TEXTS = make_texts(150)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([write_jsonl(folder / "a.jsonl", TEXTS)], vocab_size=420, out=folder / "tokenizer.json")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_same_text_in_any_order_gives_the_same_file(tmp_path: Path) -> None:
    for name, texts in (("a", TEXTS), ("b", TEXTS), ("c", random.Random(0).sample(TEXTS, len(TEXTS)))):
        lines = write_jsonl(tmp_path / f"{name}.jsonl", texts)
        train_tokenizer([lines], vocab_size=400, out=tmp_path / f"{name}.json")
    a, b, c = ((tmp_path / f"{name}.json").read_bytes() for name in "abc")
    assert a == b == c


def test_it_serves_to_build(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "tokenizer.json"))
    encoder = open_encoder(tmp_path)
    assert (encoder.vocab_size, encoder.end_of_text, encoder.cuts) == (420, 0, True)
    assert trained.token_to_id(END) == 0


@given(text=st.text())
def test_every_text_comes_back(trained: Tokenizer, text: str) -> None:
    if END not in text:
        assert trained.decode(trained.encode(text).ids) == text


def test_it_shortens_its_own_text(trained: Tokenizer) -> None:
    tokens = sum(len(trained.encode(text).ids) for text in TEXTS)
    assert tokens < 0.6 * sum(len(text.encode()) for text in TEXTS)


def test_what_cannot_be(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"vocab_size=256 is too few; every byte and .* take 257"):
        train_tokenizer([lines], vocab_size=256, out=tmp_path / "t.json")
    with pytest.raises(DataError, match="there is no folder"):
        train_tokenizer([lines], vocab_size=300, out=tmp_path / "absent/t.json")
    with pytest.raises(DataError, match="line 1: has no key 'body'"):
        train_tokenizer([lines], vocab_size=300, out=tmp_path / "t.json", text_key="body")
    assert not (tmp_path / "t.json").exists()


def test_no_text(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(DataError, match="the inputs hold no text to train a tokenizer on"):
        train_tokenizer([lines], vocab_size=300, out=tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; name the file to write, such as .*tokenizer.json"):
        train_tokenizer([write_jsonl(tmp_path / "a.jsonl", ["one"])], vocab_size=300, out=tmp_path)
