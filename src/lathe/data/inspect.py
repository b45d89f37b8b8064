"""Look into a dataset: what it holds, and whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lathe import codec
from lathe.data.store import MANIFEST, SPLITS, TOKENIZER, Dataset, Manifest, Shard, file_sha256, read_index
from lathe.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES, SAMPLE_TOKENS = 3, 80
BLOCK_TOKENS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """Count what a split holds. `lengths` counts documents by tokens: its row i those of 2^i to 2^(i+1) - 1."""

    name: str
    shards: int
    documents: int
    tokens: int
    text_bytes: int
    lengths: tuple[int, ...]

    @property
    def bytes_per_token(self) -> float | None:
        """Give the bytes of text that a token stands for, None where the text is not known."""
        return self.text_bytes / self.tokens if self.text_bytes and self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Show a document: its number in the split, its tokens, and its beginning as text (ids without a tokenizer)."""

    document: int
    tokens: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Say what a dataset holds."""

    manifest: Manifest
    splits: tuple[SplitInfo, ...]
    sources: tuple[str, ...]
    samples: tuple[Sample, ...]


def describe_dataset(folder: str | Path, *, samples: int = SAMPLES, seed: int = 0) -> Info:
    """Count what a dataset holds, and decode the beginnings of a few documents drawn from its train split.

    Raises DataError.
    """
    if samples < 0 or seed < 0:
        raise DataError(f"samples={samples}, seed={seed}; wanted numbers of 0 or more")
    dataset = Dataset(folder)
    manifest = dataset.manifest
    splits = tuple(_count_split(dataset, name) for name in SPLITS)
    sources = tuple(dict.fromkeys(source for shard in manifest.shards for source in shard.sources))
    drawn = tuple(_draw(dataset, samples, seed))
    return Info(manifest=manifest, splits=splits, sources=sources, samples=drawn)


def verify_dataset(folder: str | Path, *, progress: Callable[[str, float], None] | None = None) -> int:
    """Check every file of a dataset against its manifest, and return how many there are.

    Raises DataError that names all files that are missing or altered, and those whose content cannot be.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        Dataset(folder)  # raises the error that says so
    manifest = codec.load(Manifest, folder / MANIFEST, kind="dataset")
    wrong: list[str] = []
    files = 0
    if manifest.tokenizer_sha256 is not None:
        files += 1
        wrong += _check_file(folder / TOKENIZER, manifest.tokenizer_sha256)
    for number, shard in enumerate(manifest.shards):
        if progress is not None:
            progress(shard.name, number / len(manifest.shards))
        files += 2
        altered = _check_file(folder / f"{shard.name}.bin", shard.sha256)
        altered += _check_file(folder / f"{shard.name}.idx", shard.index_sha256)
        wrong += altered or _check_content(folder, shard, manifest)
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}; copy the dataset again, or build it anew")
    return files


def _check_file(path: Path, sha256: str) -> list[str]:
    try:
        return [] if file_sha256(path) == sha256 else [f"{path.name} is altered: its checksum is not the manifest's"]
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except OSError as error:
        return [f"{path.name} cannot be read: {error.strerror}"]


def _check_content(folder: Path, shard: Shard, manifest: Manifest) -> list[str]:
    """Check that a whole shard makes sense: what a faulty writer would have got wrong."""
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    found = []
    ends_n = read_index(folder, shard)[:, 0]
    tokens = (folder / f"{shard.name}.bin").stat().st_size // dtype.itemsize
    last = int(ends_n[-1]) if len(ends_n) else 0
    if (len(ends_n), tokens, last) != (shard.documents, shard.tokens, shard.tokens) or (
        np.diff(ends_n.astype("i8")) < 0
    ).any():
        found.append(f"{shard.name}.idx does not index its tokens")
    most = 0
    if tokens:
        ids = np.memmap(folder / f"{shard.name}.bin", dtype=dtype, mode="r")
        most = max(int(ids[start : start + BLOCK_TOKENS].max()) for start in range(0, tokens, BLOCK_TOKENS))
    if most >= manifest.vocab_size:
        found.append(f"{shard.name}.bin holds the id {most}, beyond its vocabulary of {manifest.vocab_size}")
    return found


def _count_split(dataset: Dataset, name: str) -> SplitInfo:
    shards = [shard for shard in dataset.manifest.shards if shard.split == name]
    counts = np.zeros(64, dtype=np.int64)
    for shard in shards:  # one at a time: an index of a large corpus is large too
        lengths_n = np.diff(read_index(dataset.folder, shard)[:, 0], prepend=np.uint64(0))
        powers = np.frexp(lengths_n.astype(np.float64))[1] - 1
        counts += np.bincount(np.maximum(powers, 0), minlength=64)
    return SplitInfo(
        name=name, shards=len(shards), documents=sum(s.documents for s in shards), tokens=sum(s.tokens for s in shards),
        text_bytes=sum(s.text_bytes for s in shards), lengths=tuple(np.trim_zeros(counts, "b").tolist()),
    )  # fmt: skip


def _draw(dataset: Dataset, samples: int, seed: int) -> Iterator[Sample]:
    split, tokenizer = dataset.split("train"), open_tokenizer(dataset)
    firsts_s = np.cumsum([0, *(shard.documents for shard in split.shards)])
    chosen = np.random.default_rng(seed).choice(firsts_s[-1], min(samples, int(firsts_s[-1])), replace=False)
    for document in sorted(chosen.tolist()):
        at = int(np.searchsorted(firsts_s, document, side="right")) - 1
        ends_n, row = read_index(dataset.folder, split.shards[at])[:, 0], document - int(firsts_s[at])
        start, end = int(ends_n[row - 1]) if row else 0, int(ends_n[row])
        ids = split.read(int(split.starts_s[at]) + start, min(end - start, SAMPLE_TOKENS)).tolist()
        text = json.dumps(ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)
        yield Sample(document=document, tokens=end - start, text=text)


def open_tokenizer(dataset: Dataset) -> Tokenizer | None:
    """Open the tokenizer of a dataset, None where it has none. Raises DataError for one that did not make the ids."""
    wanted, path = dataset.manifest.tokenizer_sha256, dataset.folder / TOKENIZER
    if wanted is None or not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted:
        raise DataError(f"{path} is not the tokenizer that made these ids; copy the dataset again")
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content.decode())
