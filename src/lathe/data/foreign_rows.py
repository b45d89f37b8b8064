"""Read rows of ids that others prepared: OpenLM's tars and MobileLLM's JSON lines.

A row is a sample of its own: rows are shuffled, so where the text of one goes on is not known.
"""

from __future__ import annotations

import ast
import gzip
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lathe.data.foreign_pieces import BadRow, Marks, Piece, drop_padding
from lathe.errors import DataError

SAMPLED_ROWS = 32
"""So many rows at the beginning say how long a row is."""
OPENLM_MANIFEST = "manifest.jsonl"
END_OF_TEXT = "<|endoftext|>"
"""What OpenLM's first writer left among the ids where a document ends."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Hold a row as it is stored, and how to read it."""

    source: Path
    name: str
    content: bytes
    parse: Callable[[bytes], Any]


def _take_rows(rows: Iterable[_Row], marks: Marks) -> Iterator[Piece | BadRow]:
    """Turn rows into pieces, where a row is a sample: shuffled with others, its text goes on in no known place."""
    parsed = ((row, _parse_row(row, marks)) for row in rows)
    first = list(islice(parsed, SAMPLED_ROWS))
    lengths = Counter(len(ids) for _, ids in first if not isinstance(ids, str))
    if first and not lengths:
        row, reason = first[0]
        raise DataError(f"{row.source}: none of the first {len(first)} rows holds ids; {row.name}: {reason}")
    wanted = lengths.most_common(1)[0][0] if lengths else 0
    for row, ids in chain(first, parsed):
        if isinstance(ids, str):
            yield BadRow(row.source, row.name, ids)
        elif len(ids) != wanted:
            yield BadRow(row.source, row.name, f"{len(ids)} ids where other rows have {wanted}")
        else:
            yield Piece(drop_padding(ids, marks), row.source, row.name, 0, ends=True)


def _parse_row(row: _Row, marks: Marks) -> NDArray[np.integer] | str:
    """Read a row's ids, or say why there are none."""
    try:
        value = row.parse(row.content)
        ids = np.array(value)
        if ids.dtype.kind == "U" and END_OF_TEXT in value:
            if marks.end_of_text is None:
                raise DataError(f"{row.source}, {row.name} holds {END_OF_TEXT!r}; say which id it has: --end-of-text")
            ids = np.array([marks.end_of_text if item == END_OF_TEXT else item for item in value])
    except DataError:
        raise
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, EOFError, zlib.error, OSError) as error:
        return f"not a list of ids: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'broken'}"
    return ids if ids.ndim == 1 and ids.dtype.kind in "iu" else "not a list of ids: not all whole numbers"


def find_openlm(path: Path) -> list[Path]:
    """Find tars: those of a manifest, which no other may lie beside, or a single one."""
    if path.suffix == ".tar":
        return [path]
    folder = path.parent if path.name == OPENLM_MANIFEST else path
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not (folder / OPENLM_MANIFEST).is_file():
        if tars:
            raise DataError(f"{folder} has no {OPENLM_MANIFEST}, so nothing tells whether its tars are all there")
        return []
    listed = _read_manifest(folder / OPENLM_MANIFEST)
    for tar in chain(listed, tars):
        if tar not in listed or not tar.is_file():
            state = "is missing, and in" if tar in listed else "is not in"
            raise DataError(f"{tar} {state} its folder's {OPENLM_MANIFEST}; copy the folder again")
    return list(listed)


def _read_manifest(path: Path) -> dict[Path, int]:
    """Give each tar's number of sequences. Some writers put each value in a list of its own."""
    counts: dict[Path, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, count = (v[0] if isinstance(v, list) else v for v in (row["shard"], row["num_sequences"]))
            tar = path.parent / f"{name}.tar"
            if not isinstance(count, int) or count < 0 or tar in counts:
                raise ValueError(f"shard {name!r} twice, or with {count!r} sequences")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f'{path}, line {number}: wanted {{"shard": …, "num_sequences": …}}; {error!r}') from None
        counts[tar] = count
    return counts


def _parse_python_list(content: bytes) -> Any:
    text = content.decode()
    return ast.literal_eval(text.strip()) if "'" in text else json.loads(text)


OPENLM_MEMBERS: dict[str, Callable[[bytes], Any]] = {
    ".json.gz": lambda content: json.loads(gzip.decompress(content)),
    ".json": json.loads,
    ".txt": _parse_python_list,
}
"""How a tar's members are read, by the end of their names."""


def read_openlm(path: Path, marks: Marks) -> Iterator[Piece | BadRow]:
    """Read tars in their manifest's order. Raises DataError."""
    tars = find_openlm(path)
    manifest = (path.parent if path.is_file() else path) / OPENLM_MANIFEST
    counts = _read_manifest(manifest) if manifest.is_file() else {}
    return _take_rows(chain.from_iterable(_read_tar(tar, counts.get(tar)) for tar in tars), marks)


def _read_tar(path: Path, wanted: int | None) -> Iterator[_Row]:
    found = 0
    try:
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 2 * tarfile.BLOCKSIZE), 2)
            if file.read().strip(b"\0"):  # tarfile takes a tar that is cut between members for a whole one
                raise DataError(f"{path} is cut short: it does not end as a tar does; copy it again")
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    continue
                found += 1
                parse = next((p for end, p in OPENLM_MEMBERS.items() if member.name.endswith(end)), None)
                if parse is None:
                    raise DataError(f"{path} holds {member.name}; wanted names ending in {', '.join(OPENLM_MEMBERS)}")
                yield _Row(path, f"member {member.name}", file.read(), parse)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is no whole tar: {error}; copy it again") from None
    if wanted is not None and found != wanted:
        raise DataError(f"{path} holds {found} sequences, and its {OPENLM_MANIFEST} says {wanted}; copy it again")


def find_mobilellm(path: Path) -> list[Path]:
    """Find JSON lines of token_ids: a file, a folder's, or those in its folders 1 to N."""
    files = [file for node in _find_nodes(path) for file in node]
    for file in files:
        with file.open("rb") as lines:
            if first := next((line for line in lines if line.strip()), b""):
                return files if b'"token_ids"' in first else []
    return []


def _find_nodes(path: Path) -> list[list[Path]]:
    """List the files of each node, in order; without folders for nodes there is one."""
    if not path.is_dir():
        return [[path]] if path.suffix == ".jsonl" else []
    folders = {int(p.name): p for p in path.iterdir() if p.is_dir() and p.name.isdecimal()}
    if missing := set(range(1, len(folders) + 1)) - set(folders):
        raise DataError(f"{path} has folders of {len(folders)} nodes, but none named {min(missing)}; wanted 1 to N")
    return [sorted(folders[n].glob("*.jsonl")) for n in sorted(folders)] or [sorted(path.glob("*.jsonl"))]


def read_mobilellm(path: Path, marks: Marks) -> Iterator[Piece | BadRow]:
    """Take a row of each node in turn, the order in which rows were dealt out. Raises DataError."""
    nodes = (chain.from_iterable(map(_read_lines, files)) for files in _find_nodes(path))
    turns = chain.from_iterable(zip_longest(*nodes))
    return _take_rows((row for row in turns if row is not None), marks)


def _read_lines(path: Path) -> Iterator[_Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield _Row(path, f"line {number}", line, lambda content: json.loads(content)["token_ids"])
