"""Turn documents into ids, in parallel and in order, with little in memory at a time.

Three steps overlap: one thread reads, another encodes batches (on all cores, by tokenizers' own threads), and the
caller takes ids. A text that spells a special token, such as <|endoftext|>, is encoded as the characters it is: the
special id stands only where Lathe puts it, after each document.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from lathe.data.readers import LINE_START, LONGEST_CHARS, BadLine, Entry, find_cut
from lathe.data.store import TOKENIZER, dtype_of
from lathe.data.writer import Tokens
from lathe.errors import DataError, MissingExtraError

try:
    from tokenizers import Encoding, Tokenizer
except ImportError:
    raise MissingExtraError("reading text", extra="data") from None

END_OF_TEXT = (
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>",
    "<end_of_text>", "[EOS]", "[EOT]",
)  # fmt: skip
"""What tokenizers call the token that ends a document, the commonest first."""

BATCH_CHARS = 2**16 * max(4, os.cpu_count() or 1)
PIECE_CHARS = 2**14
BATCH_PIECES = 2**12
HASHED_CHARS = LONGEST_CHARS // 2
"""A document's split hangs on so much of its beginning, which even one that comes in parts holds in its first."""
TOKENIZERS = "give a tokenizer.json, the id of a Hugging Face repository, or train one: lathe data tokenizer"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Hold a tokenizer with the bytes of its file, its vocabulary's size and the id that ends a document."""

    tokenizer: Tokenizer
    content: bytes
    vocab_size: int
    end_of_text: int
    cuts: bool
    """Whether cutting a text at line starts leaves its ids as they are."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Give the type that ids are stored as."""
        return np.dtype(dtype_of(self.vocab_size))


def open_encoder(name: str | Path, *, end_of_text: str | int | None = None) -> Encoder:
    """Open a tokenizer: a tokenizer.json, a folder that has one, or the id of a Hugging Face repository.

    Raises DataError when there is none, or it has no token that ends a document.
    """
    content = _read_tokenizer(name)
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises no narrower type
        reason = str(error) or type(error).__name__
        raise DataError(f"{name} is no tokenizer.json of Hugging Face's tokenizers: {reason}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    vocab_size = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps, so their count is too few
    return Encoder(
        tokenizer=tokenizer, content=content, vocab_size=vocab_size, cuts=_can_cut(tokenizer),
        end_of_text=_find_end(tokenizer, vocab_size, end_of_text, name),
    )  # fmt: skip


def tokenise(
    entries: Iterable[tuple[int, Entry]], encoder: Encoder, *, held_out: float
) -> Generator[tuple[int, Tokens | BadLine], None, None]:
    """Encode numbered documents, in order; bad lines pass as they are.

    `held_out` is the share of documents to hold out. Raises DataError for a text that the tokenizer cannot encode.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="encode") as pool,
        closing(ahead(_prepare(entries, held_out=held_out, cuts=encoder.cuts), depth=2)) as batches,
    ):
        waiting: tuple[list[_Piece], Future[list[Encoding]]] | None = None
        for batch in batches:
            coming = batch, pool.submit(_encode, batch, encoder)
            if waiting is not None:
                yield from _gather(waiting[0], waiting[1].result(), encoder)
            waiting = coming
        if waiting is not None:
            yield from _gather(waiting[0], waiting[1].result(), encoder)


def is_held_out(text: str, share: float) -> bool:
    """Say whether a document is held out: by its text alone, so the same in every build and order."""
    digest = blake2b(text[:HASHED_CHARS].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def ahead(items: Iterable[T], *, depth: int) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, up to so many items ahead; its error comes where it stopped."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(is_item: bool, value: T | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((is_item, value), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
            put(False, None)
        except BaseException as error:  # it is raised again where the items are taken
            put(False, error)

    thread = threading.Thread(target=work, name="read", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if is_item:
                yield value  # pyright: ignore[reportReturnType]
            elif value is None:
                return
            else:
                raise value  # pyright: ignore[reportGeneralTypeIssues]
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Hold a text to encode in one go and what else is stored of it; `entry` is what it is from."""

    number: int
    entry: Entry
    text: str
    text_bytes: int
    held_out: bool
    continues: bool


def _prepare(entries: Iterable[tuple[int, Entry]], *, held_out: float, cuts: bool) -> Iterator[list[_Piece]]:
    """Gather pieces of documents into batches of bounded size; all that Python does to a text happens here."""
    batch: list[_Piece] = []
    chars = 0
    for piece in _cut_entries(entries, held_out=held_out, chars=PIECE_CHARS if cuts else LONGEST_CHARS // 2):
        batch.append(piece)
        chars += len(piece.text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    yield batch


def _cut_entries(entries: Iterable[tuple[int, Entry]], *, held_out: float, chars: int) -> Iterator[_Piece]:
    held = within = False
    for number, entry in entries:
        if isinstance(entry, BadLine):
            yield _Piece(number, entry, "", 0, False, False)
            continue
        text = "" if entry.text.isspace() and not within and not entry.continues else entry.text
        held = held if within else is_held_out(text, held_out)
        within = entry.continues
        start = 0
        while len(text) - start > 2 * chars:
            end = find_cut(text, chars, start=start)
            yield _Piece(number, entry, text[start:end], _utf8_bytes(text[start:end]), held, True)
            start = end
        text = text[start:] if start else text
        yield _Piece(number, entry, text, _utf8_bytes(text), held, within)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _encode(pieces: Sequence[_Piece], encoder: Encoder) -> list[Encoding]:
    try:
        return encoder.tokenizer.encode_batch_fast([piece.text for piece in pieces], add_special_tokens=False)
    except Exception as error:  # tokenizers raises no narrower type
        sources = sorted({piece.entry.source for piece in pieces})
        raise DataError(f"the tokenizer cannot encode a text of {', '.join(sources[:3])}: {error}") from None


def _gather(
    pieces: Sequence[_Piece], encodings: Sequence[Encoding], encoder: Encoder
) -> Iterator[tuple[int, Tokens | BadLine]]:
    dtype = encoder.dtype
    for piece, encoding in zip(pieces, encodings, strict=True):
        if isinstance(piece.entry, BadLine):
            yield piece.number, piece.entry
        else:
            yield (
                piece.number,
                Tokens(
                    ids=np.array(encoding.ids, dtype=dtype), source=piece.entry.source, text_bytes=piece.text_bytes,
                    held_out=piece.held_out, continues=piece.continues,
                ),
            )  # fmt: skip


def _read_tokenizer(name: str | Path) -> bytes:
    """Give the bytes of a tokenizer.json, fetched from Hugging Face if no file or folder has this name."""
    path = Path(name) / TOKENIZER if Path(name).is_dir() else Path(name)
    try:
        if path.is_file():
            return path.read_bytes()
        if path.suffix == ".json" or Path(name).is_dir() or not HUB_ID.fullmatch(str(name)):
            raise DataError(f"there is no tokenizer {path}; {TOKENIZERS}")
        from huggingface_hub import hf_hub_download  # tokenizers brings it

        return Path(hf_hub_download(str(name), TOKENIZER)).read_bytes()
    except DataError:
        raise
    except Exception as error:  # the network's and the hub's errors have no common type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the tokenizer {name} cannot be read: {reason}; {TOKENIZERS}") from None


def _find_end(tokenizer: Tokenizer, vocab_size: int, given: str | int | None, name: str | Path) -> int:
    """Find the id that ends a document."""
    if isinstance(given, int):
        if not 0 <= given < vocab_size:
            raise DataError(f"end_of_text={given} is beyond the vocabulary of {name}: 0 to {vocab_size - 1}")
        return given
    wanted = END_OF_TEXT if given is None else (given,)
    found = [i for token in wanted if (i := tokenizer.token_to_id(token)) is not None]
    if not found:
        tried = "it has none of " + ", ".join(wanted) if given is None else f"it has no token {given!r}"
        raise DataError(f"{name}: no token ends a document ({tried}); give --end-of-text, a token or its id")
    return found[0]


def _can_cut(tokenizer: Tokenizer) -> bool:
    """Tell whether a byte-level tokenizer encodes lines one by one as it does together, by trying many pairs."""
    if '"ByteLevel"' not in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"]):
        return False
    ends = ("word", "word ", "Word.", ". ", "12", "don't", "(a)", "é", "};", "“", "日本", "<|", "\\")
    starts = (
        "word", " word", " =", " 12", "Word", "12", "'s", "'re it", ".", "(", "é", "日本", "|>", "\\n", "_", "\u0301",
    )  # fmt: skip
    lines = ((f"{end}\n", start) for end, start in product(ends, starts))
    pairs = [(a, b) for a, b in lines if LINE_START.match(a + b, len(a))]

    def encode(texts: Iterable[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    apart = zip(encode(a for a, _ in pairs), encode(b for _, b in pairs), strict=True)
    return encode(a + b for a, b in pairs) == [a + b for a, b in apart]
