"""Texts to build datasets from, and small tokenizers, made afresh: no file of these tests is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lathe.data.store import Dataset

SYLLABLES = (
    "ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sha", "té", "ウ", "'ll", "12", "3", ",", ".", "(", ")",
    "é", "—", "\u00a0",
)  # fmt: skip


def make_texts(count: int, *, seed: int = 0, words: int = 60) -> list[str]:
    """Make documents of random words in lines, some blank, some with trailing spaces."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) + rng.choice([" ", " ", " ", "\n", "\n\n", "  "])

    return [f"{i}: " + "".join(word() for _ in range(rng.randint(1, words))) for i in range(count)]


def write_jsonl(path: Path, texts: Iterable[str], *, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_llama_like(path: Path) -> Path:
    """Write a tokenizer of SentencePiece's kind: a space before the text, bytes for what it does not know."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(path))
    return path


def make_words(path: Path, vocab: dict[str, int]) -> Path:
    """Write a tokenizer of whole words between spaces."""
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def read_documents(folder: Path, split: str) -> list[list[int]]:
    """Give every document's ids, its end included."""
    found = Dataset(folder).split(split)
    ends = found.index_nc[:, 0].astype(int).tolist()
    return [found.read(start, end - start).tolist() for start, end in zip([0, *ends], ends, strict=False)]


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def all_documents(folder: Path) -> list[list[int]]:
    return read_documents(folder, "train") + read_documents(folder, "held-out")


def count_ids(folder: Path, token: int) -> int:
    return sum(int(np.count_nonzero(np.array(ids) == token)) for ids in all_documents(folder))
