"""Count the bytes of text that tokens stand for, so that losses of different tokenizers can be compared.

Bytes are UTF-8's, of the text as the tokenizer normalises it: one that composes letters (NFC) or drops spaces counts
what is left. The exceptions to "the ids of a text stand for its bytes":

- Llama's kind puts a space before every text. `lead` is what it adds, to be taken off at a text's first token.
- A special token, and one that stands for characters unknown, counts 0, also where a text spelt it out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True, slots=True, eq=False)
class TokenBytes:
    """Hold the bytes of each id, and those that the tokenizer itself puts before a text."""

    bytes_v: NDArray[np.int64]
    lead: int

    def count(self, ids_n: NDArray[np.integer], firsts: NDArray[np.int64]) -> int:
        """Count the bytes of some ids, those at the places `firsts` being the first of their texts."""
        bytes_n = self.bytes_v[ids_n]
        return int(bytes_n.sum() - np.minimum(bytes_n[firsts], self.lead).sum())


def token_bytes(tokenizer: Tokenizer, *, vocab_size: int = 0) -> TokenBytes | None:
    """Count the bytes of every id, 0 for special tokens; None where ids do not stand for bytes of text (WordPiece).

    Byte-level tokenizers (GPT-2's kind) and those of SentencePiece's kind, with ▁ and byte fallback, are known by their
    decoder. There is a row for at least `vocab_size` ids.
    """
    settings: dict[str, Any] = json.loads(tokenizer.to_str())
    decoder = list(_walk(settings["decoder"]))
    byte_level = any(part["type"] == "ByteLevel" for part in decoder)
    if not byte_level and not any(_restores_spaces(part) for part in decoder):
        return None
    measure, unknown = len if byte_level else _piece_bytes, settings["model"].get("unk_token")
    sizes = {i: 0 if token == unknown else measure(token) for token, i in _model_vocab(settings)}
    for token in settings["added_tokens"]:
        sizes[token["id"]] = 0 if token["special"] else len(token["content"].replace(SPACE, " ").encode())
    bytes_v = np.zeros(max(vocab_size, 1 + max(sizes, default=0)), dtype=np.int64)
    bytes_v[list(sizes)] = list(sizes.values())
    ids = tokenizer.encode("a", add_special_tokens=False).ids
    return TokenBytes(bytes_v, max(0, int(bytes_v[ids].sum()) - 1))


def bits_per_byte(nats: float, text_bytes: int) -> float | None:
    """Turn summed nats into bits per byte of text, None where there is none."""
    return nats / math.log(2) / text_bytes if text_bytes else None


def _walk(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Give a decoder's parts, also those inside a sequence."""
    if part is not None:
        yield part
        for inner in part.get("decoders", ()):
            yield from _walk(inner)


def _restores_spaces(part: dict[str, Any]) -> bool:
    return part["type"] == "Metaspace" or (part["type"] == "Replace" and part["pattern"] == {"String": SPACE})


def _model_vocab(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Give a model's tokens and ids: a table, or a list of pairs (Unigram) where places are ids."""
    vocab = settings["model"]["vocab"]
    return iter(vocab.items()) if isinstance(vocab, dict) else ((token, i) for i, (token, _) in enumerate(vocab))


def _piece_bytes(token: str) -> int:
    return 1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())
