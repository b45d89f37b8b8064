"""Tiny datasets as they lie on disk, written file by file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lathe import codec
from lathe.data.store import MANIFEST, Dataset, Manifest, Shard, dtype_of

VOCAB = 50


def write_small_dataset(
    folder: Path,
    *,
    train: int = 0,
    held_out: int = 0,
    document: int = 9,
    vocab_size: int = VOCAB,
    seed: int = 0,
    tokenizer_sha256: str | None = None,
    period: int | None = None,
) -> Dataset:
    """Write so many random ids to train on and to hold out, in documents of one length; the same ids every `period`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    again = random.integers(0, vocab_size, period or 1)
    shards = [
        _write_shard(folder, split, ids, document, dtype_of(vocab_size))
        for split, tokens in (("train", train), ("held-out", held_out))
        if tokens
        for ids in [np.resize(again, tokens) if period else random.integers(0, vocab_size, tokens)]
    ]
    manifest = Manifest(
        vocab_size=vocab_size, dtype=dtype_of(vocab_size), end_of_text=None, tokenizer_sha256=tokenizer_sha256,
        held_out=0.1, shards=tuple(shards), bad_lines={},
    )  # fmt: skip
    codec.save(manifest, folder / MANIFEST, kind="dataset")
    return Dataset(folder)


def _write_shard(folder: Path, split: str, ids: np.ndarray, document: int, dtype: str) -> Shard:
    tokens = len(ids)
    ends = np.array([*range(document, tokens, document), tokens], dtype="<u8")
    lengths = np.diff(ends, prepend=np.uint64(0))
    content = ids.astype(dtype).tobytes(), np.stack([ends, lengths], axis=1).tobytes()
    name = f"{split}-00000"
    for suffix, part in zip((".bin", ".idx"), content, strict=True):
        (folder / f"{name}{suffix}").write_bytes(part)
    sums = [hashlib.sha256(part).hexdigest() for part in content]
    return Shard(
        name=name, split=split, tokens=tokens, documents=len(ends), text_bytes=tokens, sources=("made up",),
        sha256=sums[0], index_sha256=sums[1],
    )  # fmt: skip
