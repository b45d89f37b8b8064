"""Build a dataset: read documents, tokenise them, write shards; what is done stays done when the build is killed.

The unit of work is a stretch of documents, cut at the first document's end at or beyond `shard_tokens`: where it is cut
hangs on the documents alone, so a build that was killed and run again writes the same bytes as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

from lathe import codec
from lathe.data.journal import Journal, Request, drop_journal, lock_folder, open_journal, save_journal
from lathe.data.readers import BadLine, Entry, Input, Layout, open_inputs
from lathe.data.store import (
    HELD_OUT,
    JOURNAL,
    MANIFEST,
    SHARD_TOKENS,
    TOKENIZER,
    Manifest,
    Shard,
    check_split,
    write_whole,
)
from lathe.data.tokenise import Encoder, open_encoder, tokenise
from lathe.data.writer import UnitWriter
from lathe.errors import DataError

OnBadLine = Literal["fail", "skip"]
Progress = Callable[[str, float], None]
Report = Callable[[str], None]
NAMED_LINES = 5
"""So many bad lines are reported one by one; all are counted."""
TICK_S = 0.2


def build_dataset(
    inputs: Sequence[str | Path | Input],
    *,
    tokenizer: str | Path,
    out: str | Path,
    text_key: str = "text",
    split_documents_on: str | None = None,
    held_out: float = HELD_OUT,
    shard_tokens: int = SHARD_TOKENS,
    on_bad_line: OnBadLine = "fail",
    end_of_text: str | int | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Manifest:
    """Build a dataset from files, folders and other inputs, in that order, or go on with a build that was killed.

    Documents are held out by a hash of their text, so the same ones in every build. `report` is told what a user should
    know. Raises DataError, and then leaves the shards that are done, to go on with, or nothing.
    """
    check_split(held_out, shard_tokens)
    report = report or (lambda _: None)
    layout, folder = Layout(text_key=text_key, split_documents_on=split_documents_on), Path(out)
    found = open_inputs(inputs, layout, report=report)
    encoder = open_encoder(tokenizer, end_of_text=end_of_text)
    request = Request(
        inputs=len(found), inputs_sha256=_hash_inputs(found), end_of_text=encoder.end_of_text, text_key=text_key,
        tokenizer_sha256=hashlib.sha256(encoder.content).hexdigest(), split_documents_on=split_documents_on,
        held_out=float(held_out), shard_tokens=shard_tokens,
    )  # fmt: skip
    made = not folder.exists()
    with lock_folder(folder):
        journal = open_journal(folder, request)
        if isinstance(journal, Manifest):
            report(f"{folder} is built already: nothing to do")
            return journal
        if journal.units:
            report(f"going on after {len(journal.shards)} shards that are done")
        try:
            write_whole(folder / TOKENIZER, encoder.content)
            for reached in _write_units(journal, folder, found, encoder, on_bad_line, progress, report):
                save_journal(folder, reached)
                journal = reached
            return _conclude(journal, folder, encoder)
        except BaseException as error:
            if not _trains(journal):
                drop_journal(folder, made=made)
            elif isinstance(error, DataError):
                raise DataError(f"{error} ({len(journal.shards)} shards are done; the same command goes on)") from None
            raise


def _hash_inputs(inputs: Sequence[Input]) -> str:
    return hashlib.sha256(json.dumps([(i.name, i.fingerprint) for i in inputs]).encode()).hexdigest()


def _write_units(
    journal: Journal,
    folder: Path,
    inputs: Sequence[Input],
    encoder: Encoder,
    on_bad_line: OnBadLine,
    progress: Progress | None,
    report: Report,
) -> Iterator[Journal]:
    """Write unit after unit; give the journal after each."""
    state = _State(journal, on_bad_line, report)
    meter = _Meter(inputs, journal, progress)
    begin = partial(UnitWriter, folder, vocab_size=encoder.vocab_size, end_of_text=encoder.end_of_text)
    unit = begin(journal.units)
    placed = _read_from(inputs, journal.file, journal.documents)
    try:
        with closing(tokenise(placed, encoder, held_out=journal.request.held_out)) as found:
            for number, tokens in found:
                if isinstance(tokens, BadLine):
                    state.pass_bad(number, tokens)
                    continue
                kept = unit.add(tokens)
                meter.count(number, tokens.text_bytes, len(tokens.ids))
                if tokens.continues:
                    continue
                state.pass_document(number, empty=not kept)
                if unit.tokens >= journal.request.shard_tokens:
                    yield state.close(unit.finish())
                    unit = begin(unit.number + 1)
        yield state.close(unit.finish())
    finally:
        unit.discard()


def _read_from(inputs: Sequence[Input], file: int, documents: int) -> Iterator[tuple[int, Entry]]:
    """Read all documents after so many (or bad lines) of a file."""
    for number in range(file, len(inputs)):
        passed = documents if number == file else 0
        for entry in inputs[number].read():
            if passed <= 0:
                yield number, entry
            elif isinstance(entry, BadLine) or not entry.continues:
                passed -= 1


def _conclude(journal: Journal, folder: Path, encoder: Encoder) -> Manifest:
    """Write the manifest, which makes the folder a dataset."""
    request, documents = journal.request, sum(shard.documents for shard in journal.shards)
    if not _trains(journal):
        state = f"all {documents} documents are held out" if documents else "the inputs hold no document with text"
        raise DataError(f"{state}: there is nothing to train on")
    manifest = Manifest(
        vocab_size=encoder.vocab_size, dtype=encoder.dtype.name, end_of_text=encoder.end_of_text,
        tokenizer_sha256=request.tokenizer_sha256, held_out=request.held_out, shards=journal.shards,
        bad_lines=journal.bad_lines, empty_documents=journal.empty_documents, request=request.id,
    )  # fmt: skip
    content = json.dumps(codec.tag(codec.encode(manifest), kind="dataset"), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, content.encode())
    (folder / JOURNAL).unlink(missing_ok=True)
    return manifest


def _trains(journal: Journal) -> bool:
    return any(shard.split == "train" for shard in journal.shards)


class _State:
    """Keep count of what has passed, for the journal."""

    def __init__(self, journal: Journal, on_bad_line: OnBadLine, report: Report) -> None:
        self.journal, self.on_bad_line, self.report = journal, on_bad_line, report
        self.file, self.documents = journal.file, journal.documents
        self.bad_lines, self.empty_documents = dict(journal.bad_lines), journal.empty_documents
        if self.bad_lines and on_bad_line == "fail":
            name, count = next(iter(self.bad_lines.items()))
            raise DataError(f"{count} bad lines of {name} have been skipped already; go on with --on-bad-line skip")

    def pass_bad(self, file: int, bad: BadLine) -> None:
        """Count a bad line, or raise DataError as asked."""
        if self.on_bad_line == "fail":
            raise DataError(f"{bad}; mend it, or pass over such lines with --on-bad-line skip")
        self._pass(file)
        self.bad_lines[bad.source] = self.bad_lines.get(bad.source, 0) + 1
        if sum(self.bad_lines.values()) <= NAMED_LINES:
            self.report(f"skipped: {bad}")

    def pass_document(self, file: int, *, empty: bool) -> None:
        """Count a document."""
        self._pass(file)
        self.empty_documents += empty

    def close(self, shards: Sequence[Shard]) -> Journal:
        """Make the journal after a unit."""
        before = self.journal
        self.journal = dataclasses.replace(
            before, file=self.file, documents=self.documents, units=before.units + bool(shards),
            shards=(*before.shards, *shards), bad_lines=dict(self.bad_lines), empty_documents=self.empty_documents,
        )  # fmt: skip
        return self.journal

    def _pass(self, file: int) -> None:
        self.documents = self.documents + 1 if file == self.file else 1
        self.file = file


class _Meter:
    """Tell how much of the inputs' bytes is done, a few times a second."""

    def __init__(self, inputs: Sequence[Input], journal: Journal, progress: Progress | None) -> None:
        self.sizes, self.progress = [i.size_bytes for i in inputs], progress
        self.starts = [0, *accumulate(self.sizes)]
        self.tokens = sum(shard.tokens for shard in journal.shards)
        self.file, self.within, self.told_s = journal.file, 0, 0.0

    def count(self, file: int, text_bytes: int, tokens: int) -> None:
        """Count what has passed."""
        self.within = self.within + text_bytes if file == self.file else text_bytes
        self.file, self.tokens = file, self.tokens + tokens
        now = time.monotonic()
        if self.progress is not None and now - self.told_s >= TICK_S:
            done = self.starts[file] + min(self.within, self.sizes[file])  # compressed files hold more than their size
            self.progress(f"{self.tokens:,} tokens", done / max(1, self.starts[-1]))
            self.told_s = now
