"""Commands under `lathe data`: from text to batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lathe.cli.clean import Inputs, clean
from lathe.cli.mix import mix
from lathe.cli.terminal import Progress, Words, need, open_console

if TYPE_CHECKING:
    from lathe.data.readers import Input
    from lathe.data.store import Manifest

OnBadLine = Literal["fail", "skip"]
Separator = Annotated[
    str | None, arg(help="what stands between documents of a .txt file, such as '<|endoftext|>' or '\\n\\n'")
]


def build(
    inputs: Positional[Inputs],
    tokenizer: str,
    out: Path,
    builtin: bool = False,
    text_key: str = "text",
    split_documents_on: Separator = None,
    held_out: float = 0.005,
    shard_tokens: int = 2**26,
    on_bad_line: OnBadLine = "fail",
    end_of_text: str | None = None,
) -> None:
    """Tokenise text into a dataset to train on. A build that was killed goes on when it is run again.

    A special token spelt in the text, such as <|endoftext|>, stays text.

    Example: lathe data build texts/ --tokenizer tokenizer.json --out datasets/mine

    Args:
        tokenizer: a tokenizer.json, a folder that has one, or the id of a Hugging Face repository.
        out: a new folder, or that of a build to go on with.
        builtin: add the text that is on every machine: the sources of Python's standard library.
        text_key: key or column of the text, in .jsonl and .parquet files.
        held_out: share of the documents to hold out for validation; by a hash of their text, so always the same ones.
        shard_tokens: to begin a new shard after; a kill loses no more than these.
        on_bad_line: what to do at a line that holds no document.
        end_of_text: the token, or its id, to put after each document; the tokenizer's own if not given.
    """
    from lathe.data.build import build_dataset

    with Progress("Tokenising") as tick:
        found = build_dataset(
            _gather(inputs, builtin), tokenizer=tokenizer, out=out, text_key=text_key, held_out=held_out,
            split_documents_on=_unescape(split_documents_on), shard_tokens=shard_tokens, on_bad_line=on_bad_line,
            end_of_text=_number(end_of_text), progress=tick, report=_note,
        )  # fmt: skip
    _print_dataset(found, out)
    if held_out and all(shard.split == "train" for shard in found.shards):
        _note("no document was held out: too few for this --held-out")


def convert(
    source: Positional[Path],
    out: Path,
    format: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    end_of_text: str | None = None,
    padding: int | None = None,
    held_out: float | None = None,
    on_bad_line: OnBadLine = "fail",
) -> None:
    """Make a dataset of tokens that OpenLM's, MobileLLM's, nanoGPT's or litgpt's tools prepared, as they are.

    Example: lathe data convert openlm-shards/ --tokenizer tokenizer.json --out datasets/theirs

    Args:
        source: a folder or a file.
        out: a new folder.
        format: openlm, mobilellm, litgpt or nanogpt; found from the files if not given.
        tokenizer: the one that made the ids: a tokenizer.json, or a folder that has one.
        vocab_size: how many ids there may be, where no tokenizer is given.
        end_of_text: what follows every document: its id, or a token of the tokenizer.
        padding: the id that fills rows up, beside those that are known.
        held_out: share of the documents to hold out; 0.005 if not given, and 0 where a file is named val….
        on_bad_line: what to do at a row that is broken.
    """
    from lathe.data.foreign import convert_dataset

    with Progress("Converting") as tick:
        found = convert_dataset(
            source, out, format=format, tokenizer=tokenizer, vocab_size=vocab_size, end_of_text=_number(end_of_text),
            padding=padding, held_out=held_out, on_bad_line=on_bad_line, progress=tick,
        )  # fmt: skip
    _print_dataset(found, out)


def train_tokenizer(
    inputs: Positional[Inputs],
    vocab_size: int,
    out: Path,
    builtin: bool = False,
    text_key: str = "text",
    split_documents_on: Separator = None,
) -> None:
    """Train a byte-level BPE tokenizer on text.

    Example: lathe data tokenizer texts/ --vocab-size 8192 --out tokenizer.json

    Args:
        vocab_size: tokens, <|endoftext|> among them.
        out: the file to write.
        builtin: add the text that is on every machine: the sources of Python's standard library.
        text_key: key or column of the text, in .jsonl and .parquet files.
    """
    from lathe.data.tokenizer import train_tokenizer as train

    with Progress("Reading") as tick:
        found = train(
            _gather(inputs, builtin), vocab_size=vocab_size, out=out, text_key=text_key,
            split_documents_on=_unescape(split_documents_on), progress=tick,
        )  # fmt: skip
    if found.get_vocab_size() < vocab_size:
        _note(f"the text gives {found.get_vocab_size():,} tokens only")
    print(f"tokenizer: {out}")


def info(dataset: Positional[Path], samples: int = 3, seed: int = 0) -> None:
    """Show what a dataset holds: documents, tokens, lengths, sources, and the beginnings of a few documents.

    Example: lathe data info datasets/mine

    Args:
        dataset: its folder.
        samples: documents to show.
        seed: of their choice.
    """
    from lathe.data.inspect import describe_dataset
    from lathe.report.data_tables import lengths_table, sources_text, splits_table

    found = describe_dataset(dataset, samples=samples, seed=seed)
    console = open_console()
    console.print(splits_table(found))
    console.print(lengths_table(found))
    console.print(sources_text(found), markup=False)
    for sample in found.samples:
        console.print(f"\ndocument {sample.document:,}, {sample.tokens:,} tokens:", markup=False)
        console.print("".join(c if c.isprintable() or c in "\n\t" else "�" for c in sample.text), markup=False)


def verify(dataset: Positional[Path]) -> None:
    """Check every file of a dataset against its checksum.

    Example: lathe data verify datasets/mine

    Args:
        dataset: its folder.
    """
    from lathe.data.inspect import verify_dataset

    with Progress("Verifying") as tick:
        files = verify_dataset(dataset, progress=tick)
    print(f"{dataset}: {files} files are as they were written")


DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "build": build,
    "convert": convert,
    "tokenizer": train_tokenizer,
    "info": info,
    "verify": verify,
    "clean": clean,
    "mix": mix,
}


def data() -> None:
    """Make datasets of text, and look into them.

    Each command says more: lathe data build --help
    """


def _gather(inputs: Words, builtin: bool) -> list[str | Path | Input]:
    """Put the inputs together."""
    if not builtin:
        need(inputs, "INPUTS", "files or folders of text, or --builtin")
        return [*inputs]
    from lathe.data.builtin import builtin_input

    return [*inputs, builtin_input()]


def _print_dataset(manifest: Manifest, out: Path) -> None:
    for split in ("train", "held-out"):
        shards = [shard for shard in manifest.shards if shard.split == split]
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        counts = _count(documents, "document"), _count(tokens, "token"), _count(len(shards), "shard")
        print(f"{split}: {', '.join(counts)}")
    if manifest.empty_documents:
        print(f"skipped: {_count(manifest.empty_documents, 'empty document')}")
    for name, count in manifest.bad_lines.items():
        print(f"skipped: {_count(count, 'bad line')} of {name}")
    print(f"dataset: {out}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(token: str | None) -> str | int | None:
    return int(token) if token is not None and token.isdecimal() else token


def _note(text: str) -> None:
    import sys

    print(f"note: {text}", file=sys.stderr)


def _unescape(text: str | None) -> str | None:
    """Let a shell's user write line ends and tabs."""
    return text if text is None else text.replace("\\n", "\n").replace("\\t", "\t")
