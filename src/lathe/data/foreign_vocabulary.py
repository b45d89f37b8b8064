"""Find out what the ids of others mean: how many there may be, which are no text, how many bytes each stands for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lathe.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = ("<|pad|>", "<|padding|>", "<pad>", "<PAD>", "[PAD]")
"""What tokenizers call the token that fills rows up."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Hold what ids mean, as far as known: `bytes_v` of text each, and the tokenizer's file."""

    size: int
    end_of_text: int | None
    padding: frozenset[int] = frozenset()
    bytes_v: NDArray[np.int64] | None = None
    tokenizer_content: bytes | None = None


def open_vocabulary(
    tokenizer: str | Path | None, *, vocab_size: int | None, end_of_text: str | int | None
) -> Vocabulary:
    """Take what is given from its user and the rest from the tokenizer. Raises DataError."""
    if tokenizer is None:
        if vocab_size is None:
            raise DataError("which ids there may be is not known; give the --tokenizer that made them, or --vocab-size")
        if isinstance(end_of_text, str):
            raise DataError(f"end_of_text={end_of_text!r} needs the tokenizer that made the ids; or give its id")
        if not 0 < vocab_size <= 2**32 or not (end_of_text is None or 0 <= end_of_text < vocab_size):
            raise DataError(f"vocab_size={vocab_size}, end_of_text={end_of_text}; wanted 1 to 2**32, and an id below")
        return Vocabulary(size=vocab_size, end_of_text=end_of_text)
    from lathe.data.tokenise import open_encoder

    encoder = open_encoder(tokenizer, end_of_text=end_of_text)
    size = encoder.vocab_size if vocab_size is None else vocab_size
    if size < encoder.vocab_size:
        raise DataError(f"vocab_size={size} is less than that of {tokenizer}: {encoder.vocab_size}")
    bytes_v = count_bytes(encoder.tokenizer)
    return Vocabulary(
        size=size, end_of_text=encoder.end_of_text, tokenizer_content=encoder.content,
        padding=frozenset(i for name in PADDING if (i := encoder.tokenizer.token_to_id(name)) is not None),
        bytes_v=None if bytes_v is None else np.pad(bytes_v, (0, size - len(bytes_v))),
    )  # fmt: skip


def count_bytes(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """Count the bytes of text that each id stands for, special ones none; None where a tokenizer's kind hides it.

    Byte-level tokens have a character a byte. SentencePiece's write a space as ▁, and a byte as <0x0A>; the space that
    they put before a text counts, though it is not the text's.
    """
    words = json.loads(tokenizer.to_str())
    decoder = json.dumps(words["decoder"], ensure_ascii=False)
    if '"ByteLevel"' not in decoder and "▁" not in decoder:
        return None
    added = {token["id"]: token for token in words["added_tokens"]}
    vocabulary = tokenizer.get_vocab()
    bytes_v = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for text, token in vocabulary.items():
        if token in added:
            bytes_v[token] = 0 if added[token]["special"] else len(text.encode())
        elif '"ByteLevel"' in decoder:
            bytes_v[token] = len(text)
        else:
            bytes_v[token] = 1 if BYTE_TOKEN.fullmatch(text) else len(text.replace("▁", " ").encode())
    return bytes_v
