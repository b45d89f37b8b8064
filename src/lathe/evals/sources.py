"""Open what a loss is measured on: splits of datasets, the sources of mixtures, and files of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lathe.data import mixture
from lathe.data.readers import BadLine, Document, Entry, Layout, find_inputs
from lathe.data.store import MANIFEST, SPLITS, TOKENIZER, Dataset, Split, dtype_of
from lathe.data.tokenise import END_OF_TEXT
from lathe.errors import EvaluationError
from lathe.evals.token_bytes import TokenBytes, token_bytes

TEXT = "text"
"""What the split of a source of plain text is called."""
BATCH_CHARS = 2**20
PROBES = (
    "The year 1984, don't you know?  It's 3.14159 (or so)...",
    " leading  and trailing ",
    "def f(x):\n\treturn x ** 2\n\n",
    "naïve café — “Zürich” 日本語 Привет 🙂 e\u0301",
    "CamelCase snake_case 12345678 https://example.org/?a=b&c",
)
"""Texts that tokenizers split in different ways."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Hold a stream of tokens to evaluate on, read where asked: `read(start, count)`.

    Documents run from `begins_d` to before `ends_d`; none is empty. `end_of_text` ends each, None where nothing does.
    Ids should be below `vocab_size`. `text` counts the bytes that ids stand for, None where that is not known. `part`
    is a mixture's name for it.
    """

    name: str
    split: str
    part: str | None = None
    tokens: int
    read: Callable[[int, int], NDArray[np.unsignedinteger]]
    begins_d: Places
    ends_d: Places
    end_of_text: int | None
    vocab_size: int
    text: TokenBytes | None


def open_sources(
    names: Sequence[str | Path],
    tokenizer: Tokenizer | None,
    vocab_size: int | None = None,
    *,
    split: str = "held-out",
    text_key: str = "text",
) -> dict[str, Source]:
    """Open what names say: folders of datasets, mixtures' files (each source by itself), and files or folders of text.

    Args:
        tokenizer: the model's; datasets should have been made with it, and text is encoded with it.
        vocab_size: the model's.
        split: of datasets.
        text_key: of JSON lines and parquet files.

    Text becomes the tokens that a dataset built from it would hold: each document's own and one that ends it, if the
    tokenizer has one. The names of a mixture's sources follow the file's, as in `mixture.toml:wiki`.

    Raises:
        DataError: a file, dataset or mixture that is missing or broken.
        EvaluationError: text that is empty or not UTF-8, a split without tokens, and a dataset of another tokenizer.
    """
    found: dict[str, Source] = {}
    for name in map(str, names):
        path = Path(name)
        if path.suffix in (".toml", ".json") and path.is_file():
            datasets = mixture.open_sources(mixture.load_mixture(path))
            for part, dataset in datasets.items():
                opened = of_split(dataset.split(split), tokenizer, vocab_size, name=name, part=part)
                found[f"{name}:{part}"] = opened
        elif (path / MANIFEST).is_file():
            found[name] = of_split(Dataset(path).split(split), tokenizer, vocab_size)
        else:
            found[name] = read_texts(path, tokenizer, vocab_size, text_key=text_key)
    return found


def of_split(
    split: Split,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    *,
    name: str | None = None,
    part: str | None = None,
) -> Source:
    """Open a split of a dataset; the arguments are as in `open_sources`.

    Bytes of text are known where the dataset has its tokenizer. Raises EvaluationError.
    """
    folder, manifest = split.dataset.folder, split.dataset.manifest
    if split.tokens == 0:
        other = next(one for one in SPLITS if one != split.name)
        raise EvaluationError(f"{folder} has no tokens in its {split.name} split; evaluate on its {other} split")
    file = folder / TOKENIZER
    own = None if manifest.tokenizer_sha256 is None or not file.is_file() else Tokenizer.from_file(str(file))
    if own is not None and tokenizer is not None and (difference := find_difference(own, tokenizer)):
        raise EvaluationError(
            f"{folder} was made with another tokenizer than the model's: {difference}; build the text anew with the "
            "model's tokenizer, or evaluate on the text files themselves"
        )
    ends_d = np.unique(split.index_nc[:, 0].astype(np.int64))
    return Source(
        name=str(folder) if name is None else name, split=split.name, part=part, tokens=split.tokens, read=split.read,
        begins_d=_begins(ends_d), ends_d=ends_d, end_of_text=manifest.end_of_text,
        vocab_size=min(manifest.vocab_size, vocab_size or manifest.vocab_size),
        text=None if own is None else token_bytes(own, vocab_size=manifest.vocab_size),
    )  # fmt: skip


def read_texts(
    path: Path, tokenizer: Tokenizer | None, vocab_size: int | None = None, *, text_key: str = "text"
) -> Source:
    """Encode a file or folder of text, whose ids stay in memory; the arguments are as in `open_sources`.

    Raises DataError for a file that is missing or broken, and EvaluationError as `open_sources`.
    """
    inputs, _ = find_inputs([path], Layout(text_key=text_key))
    if tokenizer is None:
        raise EvaluationError(
            f"{path} is text, and the model has no tokenizer to read it with; give its tokenizer.json"
        )
    ids = 1 + max(tokenizer.get_vocab().values())
    end_of_text = next((i for token in END_OF_TEXT if (i := tokenizer.token_to_id(token)) is not None), None)
    entries = (entry for one in inputs for entry in one.read())
    tokens_n, ends_d = _join(_encode(entries, _plain(tokenizer)), dtype=dtype_of(ids), end_of_text=end_of_text)
    if not len(tokens_n):
        raise EvaluationError(f"{path} holds no text; give a file that does")
    return Source(
        name=str(path), split=TEXT, tokens=len(tokens_n), read=partial(_slice, tokens_n), begins_d=_begins(ends_d),
        ends_d=ends_d, end_of_text=end_of_text, vocab_size=min(ids, vocab_size or ids),
        text=token_bytes(tokenizer, vocab_size=ids),
    )  # fmt: skip


def find_difference(ours: Tokenizer, models: Tokenizer) -> str | None:
    """Say how two tokenizers give a text different ids, None where they do not.

    They agree when every token of both has one id, those of one alone were added to it, and a few texts are encoded
    alike: how their files are written does not matter.
    """
    vocab, model_vocab = ours.get_vocab(), models.get_vocab()
    for token in sorted(vocab.keys() & model_vocab.keys()):
        if vocab[token] != model_vocab[token]:
            return f"{token!r} has id {vocab[token]} there and {model_vocab[token]} here"
    for have, lack, where in ((ours, model_vocab, "the dataset's"), (models, vocab, "the model's")):
        alone = sorted(have.get_vocab(with_added_tokens=False).keys() - lack.keys() - _added(have))
        if alone:
            return f"only {where} has the token {alone[0]!r} (of {len(vocab):,} there and {len(model_vocab):,} here)"
    plain = _plain(ours), _plain(models)
    for text in PROBES:
        a, b = (one.encode(text, add_special_tokens=False).tokens for one in plain)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"it splits {text!r} into … {a[at : at + 3]} … there and … {b[at : at + 3]} … here"
    return None


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer to encode whole texts, in which special tokens are the characters that spell them."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _added(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def _encode(entries: Iterable[Entry], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """Encode documents, or parts of them: ids, and whether a document ends with them."""
    batch: list[Document] = []
    chars = 0
    for entry in entries:
        if isinstance(entry, BadLine):
            raise EvaluationError(f"{entry}; mend it, or leave the file out")
        batch.append(entry)
        chars += len(entry.text)
        if chars >= BATCH_CHARS:
            yield from _encode_batch(batch, tokenizer)
            batch, chars = [], 0
    yield from _encode_batch(batch, tokenizer)


def _encode_batch(batch: Sequence[Document], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    # what is only space is no document, as in building a dataset; the last part of a long one may be
    texts = ["" if document.text.isspace() and not document.continues else document.text for document in batch]
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for document, encoding in zip(batch, encodings, strict=True):
        yield encoding.ids, not document.continues


def _join(
    parts: Iterable[tuple[list[int], bool]], *, dtype: str, end_of_text: int | None
) -> tuple[NDArray[np.unsignedinteger], Places]:
    """Join documents into a stream and say where they end, empty ones left out."""
    arrays, ends, begin, tokens = [np.zeros(0, dtype=dtype)], [], 0, 0
    for ids, is_end in parts:
        arrays.append(np.array(ids, dtype=dtype))
        tokens += len(ids)
        if is_end and tokens > begin:
            arrays.append(np.array([] if end_of_text is None else [end_of_text], dtype=dtype))
            begin = tokens = tokens + len(arrays[-1])
            ends.append(tokens)
    return np.concatenate(arrays), np.array(ends, dtype=np.int64)


def _begins(ends_d: Places) -> Places:
    return np.concatenate([[0], ends_d[:-1]]).astype(np.int64)


def _slice(tokens_n: NDArray[np.unsignedinteger], start: int, count: int) -> NDArray[np.unsignedinteger]:
    return tokens_n[start : start + count]
