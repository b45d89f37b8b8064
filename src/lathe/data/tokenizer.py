"""Train a tokenizer: byte-level byte-pair encoding, as GPT-2's, with a token that ends a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from lathe.data.readers import Document, Input, Layout, open_inputs
from lathe.data.store import write_whole
from lathe.errors import DataError, MissingExtraError

try:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError:
    raise MissingExtraError("training a tokenizer", extra="data") from None

END = "<|endoftext|>"
LEAST = 257
"""Every byte, and the end of a document."""


def train_tokenizer(
    inputs: Sequence[str | Path | Input],
    *,
    vocab_size: int,
    out: str | Path,
    text_key: str = "text",
    split_documents_on: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Tokenizer:
    """Train a byte-level BPE on texts and write its tokenizer.json; <|endoftext|> is id 0.

    The same texts give the same file, in whatever order they come. A text that is short for its vocabulary gives a
    smaller one. Raises DataError, for a line that holds no document too.
    """
    if vocab_size < LEAST:
        raise DataError(f"vocab_size={vocab_size} is too few; every byte and {END} take {LEAST}")
    out = Path(out)
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent} to write {out.name} in; make it first")
    if out.is_dir():
        raise DataError(f"{out} is a folder; name the file to write, such as {out / 'tokenizer.json'}")
    layout = Layout(text_key=text_key, split_documents_on=split_documents_on)
    files = open_inputs(inputs, layout)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    texts = (text for text in _read_texts(files, progress) if text)
    first = next(texts, None)
    if first is None:
        raise DataError("the inputs hold no text to train a tokenizer on")
    tokenizer.train_from_iterator(chain([first], texts), trainer=trainer)
    write_whole(out, tokenizer.to_str(pretty=True).encode())
    return tokenizer


def _read_texts(files: Sequence[Input], progress: Callable[[str, float], None] | None) -> Iterator[str]:
    total, done = sum(file.size_bytes for file in files), 0
    for file in files:
        if progress is not None:
            progress(file.name, done / max(1, total))
        for entry in file.read():
            if not isinstance(entry, Document):
                raise DataError(f"{entry}; mend it, or leave the file out")
            yield entry.text
        done += file.size_bytes
