"""Lay out datasets for the terminal: what the splits hold, how long documents are, where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lathe.report.tables import make_table, titled

if TYPE_CHECKING:
    from rich.console import Group

    from lathe.data.inspect import Info

MOST_SOURCES = 10
BAR = 40


def splits_table(info: Info) -> Group:
    """Lay out the splits, one row each."""
    table = make_table("split", "documents", "tokens", "text bytes", "bytes/token", "shards")
    for split in info.splits:
        known = split.bytes_per_token
        table.add_row(
            split.name, f"{split.documents:,}", f"{split.tokens:,}", f"{split.text_bytes:,}" if known else "–",
            f"{known:.3f}" if known else "–", f"{split.shards:,}",
        )  # fmt: skip
    manifest = info.manifest
    end = "none" if manifest.end_of_text is None else f"id {manifest.end_of_text}"
    notes = [f"vocabulary {manifest.vocab_size:,}, stored as {manifest.dtype}; end of text: {end}"]
    if manifest.empty_documents:
        notes.append(f"{manifest.empty_documents:,} empty documents were skipped")
    notes += [f"{count:,} bad lines of {name} were skipped" for name, count in manifest.bad_lines.items()]
    return titled("Dataset", table, *notes)


def lengths_table(info: Info) -> Group:
    """Lay out how many documents there are of each length, both splits together."""
    rows = max((len(split.lengths) for split in info.splits), default=0)
    counts = [sum(split.lengths[i] for split in info.splits if i < len(split.lengths)) for i in range(rows)]
    table = make_table("tokens", "", "documents", text=2)
    first = next((i for i, count in enumerate(counts) if count), 0)
    for i in range(first, rows):
        bar = "▇" * round(BAR * counts[i] / max(counts))
        table.add_row(f"{2**i:,}–{2 ** (i + 1) - 1:,}", bar, f"{counts[i]:,}")
    return titled("Lengths, ends of text included", table)


def sources_text(info: Info) -> str:
    """Name the sources, the first of them where they are many."""
    more = len(info.sources) - MOST_SOURCES
    shown = [*info.sources[:MOST_SOURCES], *([f"… and {more:,} more"] if more > 0 else [])]
    return "sources: " + "\n         ".join(shown)
