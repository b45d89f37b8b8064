"""Datasets made of given tokens, and tiny ones in which every token says where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lathe import codec
from lathe.data.store import MANIFEST, Dataset, Manifest, Shard, dtype_of
from lathe.data.writer import ShardWriter, Tokens

VOCAB = 2**20


def write_dataset(
    folder: Path,
    shards: Sequence[Sequence[Sequence[int]]],
    *,
    split: str = "train",
    vocab_size: int = VOCAB,
    end_of_text: int | None = None,
    tokenizer_sha256: str | None = None,
) -> Dataset:
    """Write shards of documents of ids, each with its end-of-text where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        write_shard(folder, f"{split}-{number:05}", documents, split=split, vocab_size=vocab_size)
        for number, documents in enumerate(shards)
    ]
    manifest = Manifest(
        vocab_size=vocab_size, dtype=dtype_of(vocab_size), end_of_text=end_of_text, tokenizer_sha256=tokenizer_sha256,
        held_out=0.0, shards=tuple(written), bad_lines={},
    )  # fmt: skip
    codec.save(manifest, folder / MANIFEST, kind="dataset")
    return Dataset(folder)


def write_shard(
    folder: Path, name: str, documents: Sequence[Sequence[int]], *, split: str = "train", vocab_size: int = VOCAB
) -> Shard:
    """Write a shard of documents of ids, each said to have a byte of text a token; any ids that its dtype holds."""
    most = int(np.iinfo(dtype_of(vocab_size)).max) + 1
    writer = ShardWriter(folder, name, split=split, vocab_size=most, end_of_text=None)
    for ids in documents:
        writer.add(Tokens(ids=np.array(ids), source="made up", text_bytes=len(ids), held_out=False))
    return writer.finish()


def count_up(folder: Path, tokens: int, *, first: int = 0, document: int = 7, **about: int | str | None) -> Dataset:
    """Write one shard of first, first + 1, …, in documents of one length."""
    ids = list(range(first, first + tokens))
    return write_dataset(folder, [[ids[at : at + document] for at in range(0, tokens, document)]], **about)  # pyright: ignore[reportArgumentType]
