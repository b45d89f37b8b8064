"""What a loss can be measured on: datasets, mixtures and texts, the same tokens from each, and what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from small_datasets import write_small_dataset
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from lathe.data.build import build_dataset
from lathe.data.store import TOKENIZER, Dataset
from lathe.data.tokenizer import train_tokenizer
from lathe.errors import DataError, EvaluationError
from lathe.evals.loss import evaluate_loss
from lathe.evals.sources import Source, find_difference, of_split, open_sources, read_texts
from lathe.evals.spans import WAYS

TEXTS = [
    "The cat sat on the mat.\nIt was a naïve café cat.\n", "   ", "Another one, 12 words <|endoftext|> long; <b>x</b>",
    "日本語 and\n\n\ttabs", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write texts as JSON lines, a tokenizer trained on them, and the dataset that they build."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), "utf-8")
    train_tokenizer([folder / "texts.jsonl"], vocab_size=300, out=folder / TOKENIZER)
    build_dataset([folder / "texts.jsonl"], tokenizer=folder / TOKENIZER, out=folder / "data", held_out=0)
    return folder


@pytest.fixture
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.from_file(str(corpus / TOKENIZER))


def flat(tokens_bt, targets_bt, documents_bt):
    return (targets_bt >= 0) * 2.0


def ids_of(source: Source) -> list[int]:
    return source.read(0, source.tokens).tolist()


def test_text_has_the_tokens_of_the_dataset_built_from_it(corpus: Path, tokenizer: Tokenizer) -> None:
    names = [str(corpus / "texts.jsonl"), str(corpus / "data")]
    text, dataset = open_sources(names, tokenizer, 300, split="train").values()
    assert ids_of(text) == ids_of(dataset)
    assert text.ends_d.tolist() == dataset.ends_d.tolist()
    assert text.begins_d.tolist() == dataset.begins_d.tolist()
    assert len(text.ends_d) == 3
    assert (text.end_of_text, text.split, dataset.end_of_text, dataset.split) == (0, "text", 0, "train")
    for way in WAYS:
        a, b = (evaluate_loss(flat, one, way=way, seq_len=8) for one in (text, dataset))
        assert (a.bits_per_byte, a.tokens, a.sequences) == (b.bits_per_byte, b.tokens, b.sequences)
    written = sum(len(t.encode()) for t in TEXTS if t.strip())
    found = evaluate_loss(flat, text, way="documents", seq_len=8)
    assert found.bits_per_byte == pytest.approx(2 * found.tokens / np.log(2) / written)


def test_every_kind_of_file_and_a_folder_of_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0], "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": TEXTS[2]}).encode()))
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": TEXTS[2]}), "utf-8")
    names = [tmp_path / "a.txt", tmp_path / "b.jsonl.gz"]
    a, b = open_sources(names, tokenizer).values()
    assert ids_of(a) == [*tokenizer.encode(TEXTS[0]).ids, 0]
    (body,) = open_sources([tmp_path / "c.jsonl"], tokenizer, text_key="body").values()
    assert ids_of(body) == ids_of(b)
    assert ids_of(b).count(0) == 1  # a special token that the text spells is characters
    (tmp_path / "c.jsonl").unlink()
    assert ids_of(read_texts(tmp_path, tokenizer)) == ids_of(a) + ids_of(b)
    assert tokenizer.encode_special_tokens is False


def test_a_long_text_is_one_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "long.txt").write_text("The cat sat on a mat.\n" * 60_000, "utf-8")
    (source,) = open_sources([tmp_path / "long.txt"], tokenizer).values()
    assert source.ends_d.tolist() == [source.tokens]
    assert ids_of(source).count(0) == 1


def test_a_tokenizer_without_a_token_that_ends_documents(tmp_path: Path) -> None:
    from tokenizers import models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n{"text": "b"}\n{"text": "b a b"}\n')
    (source,) = open_sources([tmp_path / "a.jsonl"], tokenizer).values()
    assert (ids_of(source), source.end_of_text, source.text) == ([0, 1, 1, 1, 0, 1], None, None)
    found = evaluate_loss(flat, source, way="documents", seq_len=8)
    assert (found.tokens, found.sequences, found.cut, found.bits_per_byte) == (3, 2, 3, None)
    assert evaluate_loss(flat, source, way="documents", seq_len=8, prefix=2).tokens == 6


def test_a_mixture_is_its_sources(tmp_path: Path) -> None:
    for name, seed in (("wiki", 0), ("code", 1)):
        write_small_dataset(tmp_path / name, held_out=50, train=20, seed=seed)
    (tmp_path / "mix.toml").write_text('[sources]\nwiki = "wiki"\ncode = "code"\n[weights]\nwiki = 1\ncode = 3\n')
    name = str(tmp_path / "mix.toml")
    found = open_sources([name], None)
    assert list(found) == [f"{name}:code", f"{name}:wiki"]
    assert [ids_of(one) for one in found.values()] == [
        Dataset(tmp_path / part).split("held-out").read(0, 50).tolist() for part in ("code", "wiki")
    ]
    result = evaluate_loss(flat, found[f"{name}:wiki"], seq_len=8)
    assert (result.dataset, result.source, result.split) == (name, "wiki", "held-out")


def test_tokenizers_that_agree(tokenizer: Tokenizer, corpus: Path) -> None:
    more = Tokenizer.from_file(str(corpus / TOKENIZER))
    more.add_special_tokens([AddedToken("<|pad|>", special=True)])
    more.enable_truncation(9)
    assert find_difference(tokenizer, more) is None
    assert find_difference(more, tokenizer) is None
    assert of_split(Dataset(corpus / "data").split("train"), more).text is not None


def test_tokenizers_that_differ(tokenizer: Tokenizer, corpus: Path, tmp_path: Path) -> None:
    moved = json.loads(tokenizer.to_str())
    vocab = moved["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    lower = Tokenizer.from_file(str(corpus / TOKENIZER))
    lower.normalizer = normalizers.Lowercase()
    smaller = train_tokenizer([corpus / "texts.jsonl"], vocab_size=270, out=tmp_path / TOKENIZER)
    split = Dataset(corpus / "data").split("train")
    for other, reason in (
        (Tokenizer.from_str(json.dumps(moved)), rf"'a' has id {vocab['b']} there and {vocab['a']} here"),
        (smaller, r"only the dataset's has the token '.*' \(of 300 there and 270 here\)"),
        (lower, r"it splits \"The year .* into … \['The', 'Ġ', 'y'\] … there and … \['the', 'Ġ', 'y'\] … here"),
    ):
        with pytest.raises(EvaluationError, match=rf"made with another tokenizer than the model's: {reason}"):
            of_split(split, other)


def test_texts_that_are_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n \n")
    (tmp_path / "latin.txt").write_bytes("\ncafé".encode("latin-1"))
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:-4])
    for name, error, message in (
        ("empty.txt", EvaluationError, "holds no text"),
        ("blank.txt", EvaluationError, "holds no text"),
        ("latin.txt", EvaluationError, "line 2: not UTF-8"),
        ("lines.jsonl", EvaluationError, "line 2: has no key 'text'"),
        ("cut.jsonl.gz", DataError, "cut short or broken"),
        ("missing.txt", DataError, "there is no file or folder"),
    ):
        with pytest.raises(error, match=message):
            open_sources([tmp_path / name], tokenizer)
    with pytest.raises(EvaluationError, match="has no tokenizer to read it with"):
        open_sources([tmp_path / "lines.jsonl"], None)


def test_datasets_that_hold_nothing_or_too_large_ids(tmp_path: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(EvaluationError, match="no tokens in its held-out split; evaluate on its train split"):
        open_sources([corpus / "data"], tokenizer)
    with pytest.raises(DataError, match="no split 'test'"):
        open_sources([corpus / "data"], tokenizer, split="test")
    write_small_dataset(tmp_path, held_out=60)
    (source,) = open_sources([tmp_path], tokenizer, 40).values()
    with pytest.raises(EvaluationError, match=r"token id 4\d, and the vocabulary ends at 39"):
        evaluate_loss(flat, source, seq_len=8)


def test_the_stories_model_s_tokenizer(shared_data: Path) -> None:
    """The text's bytes are those of its file, but for the spaces that this tokenizer drops."""
    tokenizer = Tokenizer.from_file(str(shared_data / "weights/stories260K/tokenizer.json"))
    (source,) = open_sources([shared_data / "text/tinystories_sample.txt"], tokenizer, 512).values()
    found = evaluate_loss(flat, source, way="documents", seq_len=512, stride=256, batch_tokens=65_536)
    assert found.tokens == source.tokens
    assert found.bits_per_byte is not None
    written = (shared_data / "text/tinystories_sample.txt").stat().st_size
    assert 2 * found.tokens / np.log(2) / found.bits_per_byte == pytest.approx(written, rel=0.002)
