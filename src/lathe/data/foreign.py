"""Make datasets of tokens that others prepared, without tokenising again.

A format is a row of `FORMATS`. Its reader streams pieces in the original order; what follows is the same for all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lathe import codec
from lathe.data.foreign_bins import find_litgpt, find_nanogpt, read_litgpt, read_nanogpt
from lathe.data.foreign_pieces import BadRow, Marks, Piece
from lathe.data.foreign_rows import find_mobilellm, find_openlm, read_mobilellm, read_openlm
from lathe.data.foreign_vocabulary import Vocabulary, open_vocabulary
from lathe.data.journal import OURS, lock_folder
from lathe.data.store import (
    HELD_OUT,
    MANIFEST,
    SHARD_TOKENS,
    TOKENIZER,
    Manifest,
    Shard,
    check_split,
    dtype_of,
    write_whole,
)
from lathe.data.writer import Tokens, UnitWriter
from lathe.errors import DataError, nearest

ON_BAD_LINE = ("fail", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Say how a format is found (`find` lists the files, none where a path holds no such data) and read.

    `padding` fills rows up, whatever the tokenizer.
    """

    find: Callable[[Path], list[Path]]
    read: Callable[[Path, Marks], Iterator[Piece | BadRow]]
    padding: frozenset[int] = frozenset()


FORMATS: dict[str, Format] = {
    "openlm": Format(find=find_openlm, read=read_openlm, padding=frozenset({50256})),  # in NeoX's ids, 22 spaces
    "mobilellm": Format(find=find_mobilellm, read=read_mobilellm),
    "litgpt": Format(find=find_litgpt, read=read_litgpt),
    "nanogpt": Format(find=find_nanogpt, read=read_nanogpt),
}
"""Tokens of others by the name of what writes them so, in the order in which a path is tried."""


def convert_dataset(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    end_of_text: str | int | None = None,
    padding: int | None = None,
    held_out: float | None = None,
    shard_tokens: int = SHARD_TOKENS,
    on_bad_line: str = "fail",
    progress: Callable[[str, float], None] | None = None,
) -> Manifest:
    """Write a dataset of tokens that another trainer's tools prepared, in their order.

    A document ends with its end-of-text, with its file, and in OpenLM's and MobileLLM's rows with its row; one longer
    than a shard is cut.

    Args:
        source: a folder or a file.
        out: a folder for the dataset, new or empty.
        format: one of FORMATS; found from the files if not given.
        tokenizer: the one that made the ids, kept in the dataset, and used to count the text's bytes.
        vocab_size: how many ids there may be; the tokenizer's if not given, and needed without one.
        end_of_text: what follows every document: its id, or a token of the tokenizer; found there if not given. Without
            a tokenizer there is none if not given.
        padding: the id that fills rows up, beside those that the format and the tokenizer have for it. It is dropped
            at the end of a row, after an end-of-text.
        held_out: the share of documents to hold out, by a hash of their ids. If not given 0.005, but 0 where a
            file's name begins with "val": such a file is held out whole, when there are others.
        on_bad_line: fail at a row that is broken or not as long as others, or skip and count it.
        progress: called where a file begins, with its name and the share of all bytes before it.

    Raises:
        DataError: no known data, or cut short or broken; ids beyond the vocabulary; a folder that holds other things.
            Nothing is left then.
        MissingExtraError: a tokenizer without the package tokenizers.
    """
    source, out = Path(source), Path(out)
    _check_options(held_out, shard_tokens, on_bad_line)
    form, files = _find_format(source, format)
    vocabulary = open_vocabulary(tokenizer, vocab_size=vocab_size, end_of_text=end_of_text)
    extra = frozenset[int]() if padding is None else frozenset({padding})
    marks = Marks(vocabulary.end_of_text, form.padding | vocabulary.padding | extra)
    validation = _find_validation(files)
    share = held_out if held_out is not None else 0.0 if validation else HELD_OUT
    bad: Counter[str] = Counter()
    pieces = _report(_pass_bad(form.read(source, marks), on_bad_line, bad), files, progress)
    documents = split_documents(_check_ids(pieces, vocabulary.size), marks.end_of_text, longest=shard_tokens)
    with _new_folder(out, files):
        shards = tuple(_write_units(documents, out, vocabulary, shard_tokens, share, validation))
        if not any(shard.split == "train" for shard in shards):
            state = "all documents are held out" if shards else "there are no tokens"
            raise DataError(f"{source}: {state}, so there is nothing to train on")
        content = vocabulary.tokenizer_content
        tokenizer_sha256 = None if content is None else write_whole(out / TOKENIZER, content)
        manifest = Manifest(
            vocab_size=vocabulary.size, dtype=dtype_of(vocabulary.size), end_of_text=vocabulary.end_of_text,
            tokenizer_sha256=tokenizer_sha256, held_out=share, shards=shards, bad_lines=dict(bad),
        )  # fmt: skip
        text = json.dumps(codec.tag(codec.encode(manifest), kind="dataset"), indent=2, ensure_ascii=False) + "\n"
        write_whole(out / MANIFEST, text.encode())
    return manifest


def split_documents(
    pieces: Iterable[Piece], end_of_text: int | None, *, longest: int
) -> Iterator[tuple[NDArray[np.integer], Path]]:
    """Put pieces together and cut them after each end-of-text, or what is longer than `longest` there."""
    held: list[NDArray[np.integer]] = []
    room = longest
    for piece in pieces:
        after = np.flatnonzero(piece.ids == end_of_text) + 1 if end_of_text is not None else np.zeros(0, dtype=int)
        *whole, rest = np.split(piece.ids, after)
        for part, ends in [*((w, True) for w in whole), (rest, piece.ends)]:
            while len(part) > room:
                yield np.concatenate([*held, part[:room]]), piece.source
                held, room, part = [], longest, part[room:]
            held, room = [*held, part], room - len(part)
            if ends and room < longest:
                yield np.concatenate(held), piece.source
                held, room = [], longest
    assert room == longest, "a reader's last piece ends"


def _check_options(held_out: float | None, shard_tokens: int, on_bad_line: str) -> None:
    check_split(0.0 if held_out is None else held_out, shard_tokens)
    if on_bad_line not in ON_BAD_LINE:
        raise DataError(f"on_bad_line={on_bad_line!r}; wanted {' or '.join(ON_BAD_LINE)}")


def _find_format(source: Path, name: str | None) -> tuple[Format, list[Path]]:
    if name is not None and name not in FORMATS:
        raise DataError(f"no format is called {name!r}{nearest(name, FORMATS)}")
    if not source.exists():
        raise DataError(f"there is no file or folder {source}")
    for known in FORMATS if name is None else [name]:
        if files := FORMATS[known].find(source):
            return FORMATS[known], files
    raise DataError(f"{source} holds no tokens as {name or ', '.join(FORMATS)} write them; to tokenise text, build it")


def _find_validation(files: Sequence[Path]) -> frozenset[Path]:
    """Find the files to hold out whole: nanoGPT's val.bin, TinyLlama's validation chunks; never all."""
    found = frozenset(file for file in files if file.name.lower().startswith("val"))
    return found if len(found) < len(files) else frozenset()


@contextmanager
def _new_folder(out: Path, files: Sequence[Path]) -> Iterator[None]:
    """Make a folder of this process alone; when what is done in it fails, nothing is left.

    What an earlier, killed process left is taken away.
    """
    if out.resolve() in {file.resolve().parent for file in files}:
        raise DataError(f"{out} is where the tokens to convert are; choose another --out")
    made = not out.exists()
    with lock_folder(out):
        names = {path.name for path in out.iterdir()}
        left = {name for name in names if OURS.fullmatch(name)}
        if others := sorted(names - left - ({TOKENIZER} if left else set())):  # alone, a tokenizer is its owner's
            raise DataError(f"{out} holds other files ({others[0]}); choose a new folder as --out")
        _empty(out)
        try:
            yield
        except BaseException:
            _empty(out)
            if made:
                with suppress(OSError):
                    out.rmdir()
            raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) or path.name in (TOKENIZER, MANIFEST):
            path.unlink()


def _pass_bad(pieces: Iterable[Piece | BadRow], on_bad_line: str, bad: Counter[str]) -> Iterator[Piece]:
    for piece in pieces:
        if isinstance(piece, Piece):
            yield piece
        elif on_bad_line == "fail":
            raise DataError(f"{piece}; mend it, or pass over such rows with --on-bad-line skip")
        else:
            bad[piece.source.as_posix()] += 1


def _report(
    pieces: Iterable[Piece], files: Sequence[Path], progress: Callable[[str, float], None] | None
) -> Iterator[Piece]:
    waiting = {file: file.stat().st_size for file in files}
    total, done = max(1, sum(waiting.values())), 0
    for piece in pieces:
        if progress is not None and piece.source in waiting:
            progress(piece.source.name, done / total)
            done += waiting.pop(piece.source)
        yield piece


def _check_ids(pieces: Iterable[Piece], vocab_size: int) -> Iterator[Piece]:
    for piece in pieces:
        if len(piece.ids) and not 0 <= piece.ids.min() <= piece.ids.max() < vocab_size:
            at = int(np.argmax((piece.ids < 0) | (piece.ids >= vocab_size)))
            raise DataError(
                f"{piece.source}{piece.row and ', '}{piece.row}: id {piece.ids[at]} at position {piece.start + at} is "
                f"beyond the vocabulary of {vocab_size}; give the --tokenizer that made the ids, or its --vocab-size"
            )
        yield piece


def _is_held_out(ids: NDArray[np.integer], share: float) -> bool:
    digest = blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _write_units(
    documents: Iterable[tuple[NDArray[np.integer], Path]],
    folder: Path,
    vocabulary: Vocabulary,
    shard_tokens: int,
    held_out: float,
    validation: frozenset[Path],
) -> Iterator[Shard]:
    """Write the documents as a build does: a shard of each split, and the next ones when they are full."""
    begin = partial(UnitWriter, folder, vocab_size=vocabulary.size, end_of_text=None)
    unit = begin(0)
    try:
        for ids, file in documents:
            text_bytes = 0 if vocabulary.bytes_v is None else int(vocabulary.bytes_v[ids].sum())
            held = file in validation or _is_held_out(ids, held_out)
            unit.add(Tokens(ids=ids, source=file.as_posix(), text_bytes=text_bytes, held_out=held))
            if unit.tokens >= shard_tokens:
                yield from unit.finish()
                unit = begin(unit.number + 1)
        yield from unit.finish()
    finally:
        unit.discard()
