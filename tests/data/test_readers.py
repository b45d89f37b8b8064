"""Readers: what each kind of file gives, what is wrong in them, and where text may be cut."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from corpus import make_texts, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from lathe.data import readers
from lathe.data.readers import BadLine, Document, Entry, Layout, find_cut, find_inputs
from lathe.errors import DataError


def read(*paths: Path, **layout: str) -> list[Entry]:
    files, _ = find_inputs(paths, Layout(**layout))
    return [entry for file in files for entry in file.read()]


def texts(*paths: Path, **layout: str) -> list[str]:
    found = read(*paths, **layout)
    assert all(isinstance(entry, Document) for entry in found), found
    return [entry.text for entry in found if isinstance(entry, Document)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", make_texts(30))


class TestKinds:
    def test_jsonl(self, lines: Path) -> None:
        assert texts(lines) == make_texts(30)
        assert {entry.source for entry in read(lines)} == {lines.as_posix()}

    @pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
    def test_compressed(self, lines: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
        path = lines.with_name(lines.name + suffix)
        content = lines.read_bytes()
        path.write_bytes(compress(content[:500]) + compress(content[500:]))  # two frames, one after the other
        assert texts(path) == make_texts(30)

    def test_parquet(self, tmp_path: Path) -> None:
        for kind in (pa.string(), pa.large_string()):
            table = pa.table({"n": list(range(30)), "body": pa.array(make_texts(30), kind)})
            pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
            assert texts(tmp_path / "a.parquet", text_key="body") == make_texts(30)

    def test_a_text_file_is_one_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
        assert texts(tmp_path / "a.txt") == ["one\r\n\r\ntwo\n"]

    def test_documents_between_separators(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\nlines<|endoftext|><|endoftext|>\n", encoding="utf-8")
        for block in (2**20, 3):
            monkeypatch.setattr(readers, "BLOCK_BYTES", block)
            assert texts(tmp_path / "a.txt", split_documents_on="<|endoftext|>") == ["one", "two\nlines", "", ""]

    def test_paragraphs(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\nmore\n\n\n\ntwo\n", encoding="utf-8")
        assert [text for text in texts(tmp_path / "a.txt", split_documents_on="\n\n") if text] == ["one\nmore", "two"]

    def test_folders_are_searched_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "b/c").mkdir(parents=True)
        (tmp_path / ".hidden").mkdir()
        for name in ("z.txt", "b/a.txt", "b/c/d.txt", "a.txt", ".hidden/a.txt", ".a.txt", "b/notes.md", "b/x.txt.bz2"):
            (tmp_path / name).write_text(name, encoding="utf-8")
        files, ignored = find_inputs([tmp_path], Layout())
        assert [Path(file.name).relative_to(tmp_path).as_posix() for file in files] == [
            "a.txt", "b/a.txt", "b/c/d.txt", "z.txt",
        ]  # fmt: skip
        assert ignored == 2

    def test_the_kit(self, shared_data: Path) -> None:
        folder = shared_data / "formats/jsonl"
        plain = texts(folder / "mixed.jsonl")
        assert len(plain) > 10
        assert texts(folder / "mixed.jsonl.gz") == texts(folder / "mixed.jsonl.zst") == plain


class TestParts:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readers, "LONGEST_CHARS", 64)
        monkeypatch.setattr(readers, "BLOCK_BYTES", 7)

    def test_a_long_text_comes_in_parts(self, tmp_path: Path) -> None:
        text = "".join(make_texts(20))
        (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
        parts = [entry for entry in read(tmp_path / "a.txt") if isinstance(entry, Document)]
        assert "".join(part.text for part in parts) == text
        assert [part.continues for part in parts] == [True] * (len(parts) - 1) + [False]
        assert max(len(part.text) for part in parts) <= 64
        assert min(len(part.text) for part in parts[:-1]) >= 32

    def test_bytes_that_are_no_text_deep_inside(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"fine\n" * 50 + b"\xff")
        with pytest.raises(DataError, match=r"a.txt, line 51: not UTF-8 \(byte 0xff"):
            read(tmp_path / "a.txt")

    @given(text=st.text(alphabet="ab \n\u00a0", max_size=200), chars=st.integers(1, 64))
    def test_cuts_are_at_line_starts_or_far(self, text: str, chars: int) -> None:
        at = find_cut(text, chars)
        if at < min(64, len(text)):
            assert at >= chars
            assert text[at - 1] == "\n"
            assert not text[max(at - 3, 0) : at - 1].isspace()  # no empty line, and at most one space on a side
            assert not text[at : at + 2].isspace()


class TestBad:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"text": "cut', "not JSON: Unterminated string"),
            (b"[1]", "not a JSON object"),
            (b'{"body": "x"}', "has no key 'text'; it has body"),
            (b'{"text": 5}', "'text' holds int, not text"),
            (b'{"text": null}', "'text' holds nothing, not text"),
            (b'{"text": "\xff"}', "not UTF-8 (byte 0xff; iconv can convert it)"),
            (b'{"text": "\\ud800"}', "holds half a surrogate pair"),
            (b"[" * 200_000, "not JSON"),
        ],
    )
    def test_lines(self, tmp_path: Path, line: bytes, reason: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}')
        one, bad, two = read(path)
        assert (one, two) == (Document("one", path.as_posix()), Document("two", path.as_posix()))
        assert isinstance(bad, BadLine)
        assert bad.line == 3
        assert str(bad).startswith(f"{path.as_posix()}, line 3: {reason}")

    def test_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\n")
        assert [str(entry) for entry in read(tmp_path / "a.txt")] == [
            f"{tmp_path.as_posix()}/a.txt, line 2: not UTF-8 (byte 0xe9; iconv can convert it)"
        ]
        (tmp_path / "a.txt").write_bytes(b"one\n##two\n\xe9\n##three")
        one, bad, three = read(tmp_path / "a.txt", split_documents_on="##")
        assert (one, three) == (Document("one", bad.source), Document("three", bad.source))
        assert isinstance(bad, BadLine)
        assert bad.line == 3

    def test_half_a_character_at_the_end(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes("é".encode()[:1])
        assert [type(entry) for entry in read(tmp_path / "a.txt")] == [BadLine]

    @pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
    @pytest.mark.parametrize("cut", [3, 400, -1])
    def test_compressed_files_that_are_cut_short(
        self, lines: Path, suffix: str, compress: Callable[[bytes], bytes], cut: int
    ) -> None:
        path = lines.with_name(lines.name + suffix)
        path.write_bytes(compress(lines.read_bytes())[:cut])
        with pytest.raises(DataError, match=f"a.jsonl{suffix} is cut short or broken: .*; copy it again"):
            read(path)

    @pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
    def test_files_that_are_not_what_they_say(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"a{suffix}").write_bytes(b'{"text": "not compressed at all, nor a table"}\n')
        with pytest.raises(DataError, match="is cut short or broken"):
            read(tmp_path / f"a{suffix}")

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
        _, bad, _ = read(path)
        assert str(bad).endswith("a.parquet, line 2: 'text' holds nothing, not text")
        with pytest.raises(DataError, match=r"has no column 'body'; it has text, n: give --text-key"):
            read(path, text_key="body")
        with pytest.raises(DataError, match="the column 'n' holds int64, not text"):
            read(path, text_key="n")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match="cut short or broken"):
            read(path)

    def test_empty_files(self, tmp_path: Path) -> None:
        for suffix in (".txt", ".jsonl"):
            (tmp_path / f"a{suffix}").touch()
        assert read(tmp_path / "a.txt") == [Document("", (tmp_path / "a.txt").as_posix())]
        assert read(tmp_path / "a.jsonl") == []
        (tmp_path / "b.jsonl.gz").touch()
        assert read(tmp_path / "b.jsonl.gz") == []

    def test_paths(self, tmp_path: Path) -> None:
        (tmp_path / "a.doc").touch()
        (tmp_path / "a.parquet.gz").touch()
        with pytest.raises(DataError, match="there is no file or folder"):
            read(tmp_path / "absent")
        for name in ("a.doc", "a.parquet.gz"):
            with pytest.raises(DataError, match=rf"{name} is of no known kind; its name should end in .txt, .jsonl"):
                read(tmp_path / name)
        with pytest.raises(DataError, match="nothing to read in"):
            read(tmp_path)
        with pytest.raises(DataError, match="cannot be split on nothing"):
            read(tmp_path, split_documents_on="")

    def test_a_key_of_a_different_name(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", ["x"], key="content")
        assert texts(path, text_key="content") == ["x"]
        assert json.loads(path.read_text(encoding="utf-8")) == {"content": "x"}
