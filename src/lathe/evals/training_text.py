"""Read what a model was trained on as one stream of normalised text: a built dataset, or files of text.

A dataset is decoded with its own tokenizer, so what is compared is what the model saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lathe.data.inspect import open_tokenizer
from lathe.data.readers import BadLine, Input, Layout, open_inputs
from lathe.data.store import MANIFEST, Dataset, Shard, Split, read_index
from lathe.errors import EvaluationError, MissingExtraError
from lathe.evals.grams import BREAK, END, normalise

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_TOKENS = 2**18
"""What is decoded at a time, so that all cores have work."""
PIECE_TOKENS = 2**16
"""A longer document is decoded in pieces of so much."""
OVERLAP_TOKENS = 2**9
"""By so much pieces overlap, so that a run of words over their border is whole in one."""

Progress = Callable[[str, float], None]
Source = str | Path | Dataset | Sequence[str | Path | Input]


@dataclass(slots=True)
class TrainingText:
    """Stream training data once, as normalised text whose documents end in END, and count what was read.

    Documents are numbered from 0 over all files or shards; `places` says of each, in order, which is its first.
    `text_bytes` are UTF-8's, 0 for a dataset whose text is not known.
    """

    name: str
    read: Callable[[TrainingText], Iterator[bytes]] = field(repr=False)
    documents: int = 0
    text_bytes: int = 0
    bad_lines: int = 0
    places: list[tuple[int, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[bytes]:
        return self.read(self)

    def place(self, document: int) -> str:
        """Name the file or shard that holds a document."""
        firsts = [first for first, _ in self.places]
        return self.places[int(np.searchsorted(firsts, document, side="right")) - 1][1]


def open_training_text(
    source: Source, *, layout: Layout | None = None, progress: Progress | None = None
) -> TrainingText:
    """Open a dataset, by its folder too, or files and folders of text.

    `layout` is of text files only; `progress` is told a name and the share that is done. Raises DataError, and
    EvaluationError for a dataset whose tokens cannot be turned into text.
    """
    tell = progress or (lambda name, share: None)
    if isinstance(source, str | Path) and (Path(source) / MANIFEST).is_file():
        source = Dataset(source)
    if isinstance(source, Dataset):
        tokenizer, split = _open_tokenizer(source), source.split("train")
        return TrainingText(source.folder.as_posix(), lambda text: _read_dataset(text, split, tokenizer, tell))
    paths = [source] if isinstance(source, str | Path) else list(source)
    inputs = open_inputs(paths, layout or Layout())
    name = ", ".join(path.name if isinstance(path, Input) else Path(path).as_posix() for path in paths)
    return TrainingText(name, lambda text: _read_inputs(text, inputs, tell))


def _read_inputs(text: TrainingText, inputs: Sequence[Input], tell: Progress) -> Iterator[bytes]:
    total, done = max(1, sum(file.size_bytes for file in inputs)), 0
    for file in inputs:
        tell(file.name, done / total)
        text.places.append((text.documents, file.name))
        for entry in file.read():
            if isinstance(entry, BadLine):
                text.bad_lines += 1
                continue
            text.text_bytes += len(entry.text.encode())
            yield normalise(entry.text)
            if not entry.continues:
                text.documents += 1
                yield END
        done += file.size_bytes
    if not text.text_bytes:
        raise EvaluationError(f"{text.name} holds no text to compare with")


def _read_dataset(text: TrainingText, split: Split, tokenizer: Tokenizer, tell: Progress) -> Iterator[bytes]:
    if not split.tokens:
        raise EvaluationError(f"{text.name} has nothing in its train split to compare with")
    # in a thread of its own, tokens become text while the text before them is searched
    from lathe.data.tokenise import ahead

    for shard, start in zip(split.shards, split.starts_s.tolist(), strict=False):
        text.places.append((text.documents, shard.name))
        text.text_bytes += shard.text_bytes
        with closing(ahead(_decode(split, shard, start, tokenizer), depth=2)) as batches:
            for pieces, texts in batches:
                tell(shard.name, (start + pieces[0].start) / split.tokens)
                for piece, decoded in zip(pieces, texts, strict=True):
                    yield _trim(normalise(decoded), piece)
                    text.documents += piece.ends
                    yield END if piece.ends else BREAK


def _decode(split: Split, shard: Shard, start: int, tokenizer: Tokenizer) -> Iterator[tuple[list[_Piece], list[str]]]:
    for pieces in _batch(_cut_shard(split.dataset.folder, shard)):
        first, last = pieces[0].start, pieces[-1].end
        ids = split.read(start + first, last - first).tolist()
        yield pieces, tokenizer.decode_batch([ids[p.start - first : p.end - first] for p in pieces])


@dataclass(frozen=True, slots=True)
class _Piece:
    """Name tokens of a shard to decode, and whether a document begins or ends with them."""

    start: int
    end: int
    begins: bool
    ends: bool


def _cut_shard(folder: Path, shard: Shard) -> Iterator[_Piece]:
    for start, end in pairwise([0, *read_index(folder, shard)[:, 0].tolist()]):
        for at in range(start, max(end, start + 1), PIECE_TOKENS):
            stop, begin = min(at + PIECE_TOKENS, end), max(start, at - OVERLAP_TOKENS)
            yield _Piece(begin, stop, begins=begin == start, ends=stop == end)


def _batch(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    for piece in pieces:
        batch.append(piece)
        if piece.end - batch[0].start >= BATCH_TOKENS:
            yield batch
            batch = []
    if batch:
        yield batch


def _trim(text: bytes, piece: _Piece) -> bytes:
    """Take off a word that may be cut in two, where a piece does not begin or end its document."""
    start = 0 if piece.begins else text.find(b" ") + 1
    return text[start:] if piece.ends else text[start : max(start, text.rfind(b" "))]


def _open_tokenizer(dataset: Dataset) -> Tokenizer:
    try:
        tokenizer = open_tokenizer(dataset)
    except ImportError:
        raise MissingExtraError("reading a dataset's text", extra="eval") from None
    if tokenizer is None:
        raise EvaluationError(
            f"{dataset.folder} has no tokenizer to turn its tokens into text; give the files that it was made from"
        )
    return tokenizer
