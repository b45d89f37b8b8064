"""Tokens of others: the same streams as their text tokenised afresh, and files that are cut, mixed up or broken."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lathe.data import foreign
from lathe.data.foreign import FORMATS, convert_dataset, split_documents
from lathe.data.foreign_pieces import Marks, Piece, drop_padding
from lathe.data.foreign_vocabulary import count_bytes
from lathe.data.store import Dataset, Manifest
from lathe.errors import DataError, LatheError

tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers, of the extra `data`")

END, PAD, VOCAB = 0, 1, 100
ROWS = [[5, 6, 0, 7, 8], [9, 0, 10, 11, 12], [13, 14, 15, 16, 0], [17, 18, 0, 1, 1]]
TEXT = [5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 13, 14, 15, 16, 0, 17, 18, 0]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_openlm(folder: Path, *, per_tar: int = 2, rows: Sequence[Any] = ROWS, wrapped: bool = False) -> Path:
    folder.mkdir()
    lines = []
    for first in range(0, len(rows), per_tar):
        shard = f"{first // per_tar + 1:08d}"
        members = {f"{i}.json.gz": gzip.compress(json.dumps(rows[i]).encode()) for i in range(first, len(rows))}
        write_tar(folder / f"{shard}.tar", dict(list(members.items())[:per_tar]))
        line: dict[str, Any] = {"shard": shard, "num_sequences": min(per_tar, len(rows) - first)}
        lines.append(json.dumps({key: [value] for key, value in line.items()} if wrapped else line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_mobilellm(folder: Path, *, nodes: int = 2, rows: Sequence[Any] = ROWS) -> Path:
    for node in range(nodes):
        (folder / str(node + 1)).mkdir(parents=True)
        lines = [json.dumps({"token_ids": row}) for row in rows[node::nodes]]
        (folder / str(node + 1) / "x.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_nanogpt(folder: Path, ids: Sequence[int] = TEXT) -> Path:
    folder.mkdir()
    np.array(ids, dtype="<u2").tofile(folder / "train.bin")
    return folder


def write_litgpt(folder: Path, *, ids: Sequence[int] = TEXT, size: int = 5, prefix: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    filled = [*ids, *[END] * (-len(ids) % size)]
    for first in range(0, len(filled), size):
        header = struct.pack("<7sQBQ", b"LITPKDS", 1, 8, size)
        content = np.array(filled[first : first + size], dtype="<u2").tobytes()
        (folder / f"{prefix}_{first // size:010d}.bin").write_bytes(header + content)
    return folder


WRITERS = {"openlm": write_openlm, "mobilellm": write_mobilellm, "nanogpt": write_nanogpt, "litgpt": write_litgpt}


def convert(source: Path, out: Path, **options: Any) -> Manifest:
    given = {"vocab_size": VOCAB, "end_of_text": END, "padding": PAD, "held_out": 0.0}
    return convert_dataset(source, out, **(given | options))


def train_ids(folder: Path) -> list[int]:
    split = Dataset(folder).split("train")
    return split.read(0, split.tokens).tolist()


def assert_refused(source: Path, out: Path, match: str, **options: Any) -> None:
    """Check the error, and that nothing is left."""
    with pytest.raises(DataError, match=match):
        convert(source, out, **options)
    assert not out.exists()


class TestSamples:
    """Each real sample against its source text, jsonl/mixed.jsonl, tokenised afresh."""

    SOURCE, ROW = "formats/jsonl/mixed.jsonl", 257

    def fresh(self, shared_data: Path, name: str) -> tuple[list[int], list[str]]:
        tokenizer = tokenizers.Tokenizer.from_file(str(shared_data / f"tokenizers/{name}.json"))
        texts = [json.loads(line)["text"] for line in (shared_data / self.SOURCE).read_text("utf-8").splitlines()]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return list(chain.from_iterable([*e.ids, END] for e in encoded)), texts

    def converted(self, shared_data: Path, out: Path, sample: str, name: str) -> Dataset:
        tokenizer = shared_data / f"tokenizers/{name}.json"
        convert_dataset(shared_data / "formats" / sample, out, tokenizer=tokenizer, held_out=0.0)
        return Dataset(out)

    def test_litgpt_is_the_whole_stream(self, shared_data: Path, tmp_path: Path) -> None:
        dataset = self.converted(shared_data, tmp_path / "out", "litgpt_packed", "bpe2048")
        ids, texts = self.fresh(shared_data, "bpe2048")
        assert train_ids(dataset.folder) == ids
        sizes = dataset.split("train").index_nc[:, 1].tolist()
        assert sizes == [len(text.encode()) for text in texts]
        assert (dataset.folder / "tokenizer.json").read_bytes() == (
            shared_data / "tokenizers/bpe2048.json"
        ).read_bytes()

    def test_nanogpt_holds_the_first_documents_out(self, shared_data: Path, tmp_path: Path) -> None:
        dataset = self.converted(shared_data, tmp_path / "out", "nanogpt", "bpe2048")
        held_out = dataset.split("held-out")
        assert len(held_out.index_nc) == 10
        ids, _ = self.fresh(shared_data, "bpe2048")
        assert held_out.read(0, held_out.tokens).tolist() + train_ids(dataset.folder) == ids

    def test_mobilellm_takes_rows_of_nodes_in_turn(self, shared_data: Path, tmp_path: Path) -> None:
        """The sample's writer left out what did not fill a row: 696 ids."""
        dataset = self.converted(shared_data, tmp_path / "out", "mobilellm", "bpe2048")
        ids, _ = self.fresh(shared_data, "bpe2048")
        assert train_ids(dataset.folder) == ids[: 142 * 2049]
        assert len(ids) - 142 * 2049 == 696

    @pytest.mark.parametrize(
        ("sample", "name", "documents"),
        [("openlm_neox_seq256", "gpt_neox_20b", 109), ("openlm_bpe2048_seq256", "bpe2048", 109),
         ("openlm_txt_legacy", "bpe2048", 20)],
    )  # fmt: skip
    def test_openlm_holds_every_row_once(
        self, shared_data: Path, tmp_path: Path, sample: str, name: str, documents: int
    ) -> None:
        """OpenLM shuffles rows, so their order cannot be that of the text; the rows are the same, none left over."""
        dataset = self.converted(shared_data, tmp_path / "out", sample, name)
        ids, _ = self.fresh(shared_data, name)
        found = train_ids(dataset.folder)
        ids = ids[: [at for at, i in enumerate(ids) if i == END][documents - 1] + 1]  # the legacy one has the first 20
        assert found.count(END) == documents
        fresh = Counter(tuple(ids[at : at + self.ROW]) for at in range(0, len(ids), self.ROW))
        at, rows = 0, Counter[tuple[int, ...]]()
        tail = tuple(ids[len(ids) // self.ROW * self.ROW :])
        while at < len(found):  # only the input's last row is short
            short = tuple(found[at : at + len(tail)]) == tail
            row = tuple(found[at : at + (len(tail) if short else self.ROW)])
            rows[row] += 1
            at += len(row)
        assert rows == fresh

    def test_amber_has_a_broken_line_and_a_long_one(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "formats/mobilellm"
        options = {"tokenizer": shared_data / "tokenizers/llama_openllama.json", "held_out": 0.0}
        good = convert_dataset(folder / "amber_good_sample.jsonl", tmp_path / "good", **options)
        assert good.shards[0].tokens == 9 * 2049
        bad = folder / "amber_bad_sample.jsonl"
        with pytest.raises(DataError, match=r"amber_bad_sample.jsonl, line 4: not a list of ids"):
            convert_dataset(bad, tmp_path / "bad", **options)
        manifest = convert_dataset(bad, tmp_path / "bad", on_bad_line="skip", **options)
        assert manifest.bad_lines == {bad.as_posix(): 3}
        assert manifest.shards[0].tokens == 7 * 2049


@pytest.mark.parametrize(("name", "before"), [("gpt2", 0), ("gpt_neox_20b", 0), ("llama_openllama", 1)])
def test_bytes_of_ids_are_those_of_their_text(shared_data: Path, name: str, before: int) -> None:
    """SentencePiece's kind puts a space before a text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(shared_data / f"tokenizers/{name}.json"))
    text = "Shelves of oak,\n\tturned  by hand: 樫, ½ €, \U0001f332.                       End"
    bytes_v = count_bytes(tokenizer)
    assert bytes_v is not None
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert bytes_v[ids].sum() == len(text.encode()) + before


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_is_found_and_gives_the_text_in_order(self, tmp_path: Path, name: str) -> None:
        source = WRITERS[name](tmp_path / "source")
        manifest = convert(source, tmp_path / "out")
        assert train_ids(tmp_path / "out") == TEXT
        assert convert(source, tmp_path / "named", format=name) == manifest
        assert manifest.end_of_text == END
        assert manifest.tokenizer_sha256 is None
        ends = Dataset(tmp_path / "out").split("train").index_nc[:, 0].tolist()
        cut = {"openlm": [5, 10], "mobilellm": [5, 10]}.get(name, [])  # where a row ends within a document
        assert ends == sorted([*(at for at, i in enumerate(TEXT, start=1) if i == END), *cut])

    def test_only_one_reads_each(self, tmp_path: Path) -> None:
        for name, write in WRITERS.items():
            source = write(tmp_path / name)
            assert [n for n, form in FORMATS.items() if form.find(source)] == [name]

    def test_openlm_manifest_may_wrap_its_values(self, tmp_path: Path) -> None:
        source = write_openlm(tmp_path / "source", wrapped=True, per_tar=3)
        convert(source / "manifest.jsonl", tmp_path / "out")
        assert train_ids(tmp_path / "out") == TEXT

    def test_openlm_names_the_end_of_text_in_its_first_form(self, tmp_path: Path) -> None:
        members = {"a.txt": b"[5, 6, '<|endoftext|>', 7]", "b.txt": b"[8, 9, 10, 11]", "c.json": b"[1, 2, 3, 0]"}
        write_tar(tmp_path / "x.tar", members)
        convert(tmp_path / "x.tar", tmp_path / "out")
        assert train_ids(tmp_path / "out") == [5, 6, 0, 7, 8, 9, 10, 11, 1, 2, 3, 0]
        assert_refused(tmp_path / "x.tar", tmp_path / "not", r"member a.txt holds '<\|endoftext", end_of_text=None)

    def test_members_are_read_not_run(self, tmp_path: Path) -> None:
        members = {"a.txt": b"[5, 6]", "b.txt": b"[7, __import__('os').getpid()]"}
        write_tar(tmp_path / "x.tar", members)
        assert_refused(tmp_path / "x.tar", tmp_path / "out", "member b.txt: not a list of ids")

    def test_nodes_of_unequal_length_and_a_broken_line_keep_their_turns(self, tmp_path: Path) -> None:
        source = write_mobilellm(tmp_path / "source", nodes=3, rows=[[10 + i] * 3 for i in range(7)])
        (source / "1" / "a.jsonl").write_text("")
        file = source / "2" / "x.jsonl"
        file.write_text(file.read_text().replace("[11,", "[11 "))
        manifest = convert(source, tmp_path / "out", on_bad_line="skip", end_of_text=None)
        assert train_ids(tmp_path / "out")[::3] == [10, 12, 13, 14, 15, 16]
        assert manifest.bad_lines == {file.as_posix(): 1}

    def test_each_litgpt_writer_fills_up_its_last_chunk(self, tmp_path: Path) -> None:
        source = write_litgpt(tmp_path / "source", prefix="train_0", ids=[5, 6, 0, 7, 8, 9, 0])
        write_litgpt(source, prefix="train_1", ids=[10, 11, 12, 13, 0, *[END] * 5])  # its last chunk holds nothing
        write_litgpt(source, prefix="train_2", ids=[14, 15, 16, 17])
        convert(source, tmp_path / "out")
        assert train_ids(tmp_path / "out") == [5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 13, 0, 14, 15, 16, 17, 0]

    @pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (3, "<i2"), (4, "<i4"), (5, "<i8")])
    def test_litgpt_writes_other_dtypes(self, tmp_path: Path, code: int, dtype: str) -> None:
        content = struct.pack("<7sQBQ", b"LITPKDS", 1, code, len(TEXT)) + np.array(TEXT, dtype=dtype).tobytes()
        (tmp_path / "x.bin").write_bytes(content)
        convert(tmp_path / "x.bin", tmp_path / "out")
        assert train_ids(tmp_path / "out") == TEXT


class TestPadding:
    @pytest.mark.parametrize(
        ("ids", "kept"),
        [([5, 0, 1, 1], 2), ([5, 1, 1], 3), ([5, 1, 0], 3), ([5, 1, 0, 1], 3), ([5, 0, 0, 0], 2), ([0, 1], 1),
         ([1, 1], 2), ([5, 0, 1, 6], 4), ([], 0)],
    )  # fmt: skip
    def test_goes_after_an_end_of_text_only(self, ids: list[int], kept: int) -> None:
        marks = Marks(END, frozenset({PAD}))
        assert drop_padding(np.array(ids, dtype=int), marks).tolist() == ids[:kept]

    def test_stays_where_no_id_ends_a_text(self) -> None:
        ids = np.array([5, 0, 1, 1])
        assert drop_padding(ids, Marks(None, frozenset({PAD}))) is ids


class TestDocuments:
    @given(
        ids=st.lists(st.integers(0, 3), max_size=60), sizes=st.lists(st.integers(0, 7), max_size=8),
        longest=st.integers(1, 9),
    )  # fmt: skip
    def test_do_not_depend_on_pieces(self, ids: list[int], sizes: list[int], longest: int) -> None:
        def split(cuts: list[int]) -> list[NDArray[np.integer]]:
            parts = np.split(np.array(ids, dtype=np.uint16), cuts)
            pieces = [Piece(p, Path("x"), "", 0, ends=i == len(parts) - 1) for i, p in enumerate(parts)]
            return [d for d, _ in split_documents(pieces, END, longest=longest)]

        documents = [d.tolist() for d in split(np.cumsum(sizes).tolist())]
        assert documents == [d.tolist() for d in split([])]
        assert [i for d in documents for i in d] == ids
        assert all(0 < len(d) <= longest and END not in d[:-1] for d in documents)
        assert all(d[-1] == END or len(d) == longest for d in documents[:-1])

    def test_are_held_out_by_their_ids_alone(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        documents = [[*rng.integers(2, VOCAB, 8).tolist(), END] for _ in range(600)]
        kept = []
        for name, order in (("there", documents), ("back", documents[::-1])):
            source = write_nanogpt(tmp_path / name, list(chain.from_iterable(order)))
            convert(source, tmp_path / f"{name}-out", held_out=0.3)
            split = Dataset(tmp_path / f"{name}-out").split("held-out")
            kept.append(sorted(map(tuple, split.read(0, split.tokens).reshape(-1, 9).tolist())))
        assert kept[0] == kept[1]
        assert len(kept[0]) / 600 == pytest.approx(0.3, abs=0.06)

    def test_shards_hold_whole_documents_and_cut_long_ones(self, tmp_path: Path) -> None:
        source = write_nanogpt(tmp_path / "source", [5, 6, 0, 7, 0, *range(10, 22), 0, 8, 0])
        manifest = convert(source, tmp_path / "out", shard_tokens=5)
        assert [(s.tokens, s.documents) for s in manifest.shards] == [(5, 2), (5, 1), (5, 1), (5, 2)]
        assert train_ids(tmp_path / "out") == [5, 6, 0, 7, 0, *range(10, 22), 0, 8, 0]

    def test_files_without_end_of_text_are_one_each(self, tmp_path: Path) -> None:
        source = write_nanogpt(tmp_path / "source", [5, 6, 0, 7])
        np.array([8, 9], dtype="<u2").tofile(source / "train2.bin")
        manifest = convert(source, tmp_path / "out", end_of_text=None)
        assert manifest.end_of_text is None
        assert Dataset(tmp_path / "out").split("train").index_nc[:, 0].tolist() == [4, 6]

    def test_wide_vocabularies_are_stored_wide(self, tmp_path: Path) -> None:
        rows = [[70_000, 5, 0], [6, 7, 8]]
        manifest = convert(
            write_mobilellm(tmp_path / "source", nodes=1, rows=rows), tmp_path / "out", vocab_size=80_000
        )
        assert manifest.dtype == "uint32"
        assert train_ids(tmp_path / "out") == [70_000, 5, 0, 6, 7, 8]

    def test_same_again_after_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a killed conversion leaves is no dataset; the next takes it away."""
        source = write_nanogpt(tmp_path / "source")
        with monkeypatch.context() as killed:
            killed.setattr(foreign, "_empty", lambda folder: None)
            killed.setattr(foreign.codec, "encode", lambda value: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                convert(source, tmp_path / "out", shard_tokens=4)
        with pytest.raises(DataError, match="is no dataset"):
            Dataset(tmp_path / "out")
        convert(source, tmp_path / "out")
        convert(source, tmp_path / "fresh")
        contents = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("out", "fresh")]
        assert contents[0] == contents[1]

    def test_progress_is_told_a_file_at_a_time(self, tmp_path: Path) -> None:
        told: list[tuple[str, float]] = []
        convert(
            write_litgpt(tmp_path / "source"), tmp_path / "out", progress=lambda what, share: told.append((what, share))
        )
        assert [share for _, share in told] == [0.0, 0.25, 0.5, 0.75]
        assert told[1][0] == "train_0000000001.bin"


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "match"),
        [("openlm", r"00000002.tar, member 3.json.gz: id 18 at position 1 is beyond the vocabulary of 18"),
         ("mobilellm", r"2/x.jsonl, line 2: id 18 at position 1 is"), ("nanogpt", r"train.bin: id 18 at position 16 "),
         ("litgpt", r"train_0000000003.bin: id 18 at position 1 is")],
    )  # fmt: skip
    def test_id_beyond_the_vocabulary(self, tmp_path: Path, name: str, match: str) -> None:
        assert_refused(WRITERS[name](tmp_path / "source"), tmp_path / "out", match, vocab_size=18)

    def test_id_below_zero(self, tmp_path: Path) -> None:
        source = write_mobilellm(tmp_path / "source", nodes=1, rows=[[5, -1, 6]])
        assert_refused(source, tmp_path / "out", "id -1 at position 1")

    @pytest.mark.parametrize("keep", [100, 512, 1200, 2048, -512])
    def test_cut_tar(self, tmp_path: Path, keep: int) -> None:
        source = write_openlm(tmp_path / "source")
        tar = source / "00000002.tar"
        content = tar.read_bytes()
        tar.write_bytes(content[:keep] if keep > 0 else content.rstrip(b"\0")[:keep])
        assert_refused(source, tmp_path / "out", r"00000002.tar is (cut short|no whole tar).*copy it again")

    def test_tar_of_less_than_the_manifest_says(self, tmp_path: Path) -> None:
        source = write_openlm(tmp_path / "source")
        write_tar(source / "00000001.tar", {"a.json": b"[1, 2, 3, 4, 5]"})
        assert_refused(source, tmp_path / "out", "00000001.tar holds 1 sequences, and its manifest.jsonl says 2")

    @pytest.mark.parametrize(
        ("lines", "match"),
        [('{"shard": "00000001", "num_sequences": 2}', "00000002.tar is not in its folder's manifest"),
         ('{"shard": "00000009", "num_sequences": 2}', "00000009.tar is missing, and in its folder's manifest"),
         ('{"shard": "00000001"}', "line 1: wanted"), ("nothing", "line 1: wanted"),
         ('{"shard": "00000001", "num_sequences": []}', "line 1: wanted"),
         ('{"shard": "1", "num_sequences": 2}\n\n{"shard": "1", "num_sequences": 2}', "line 3: wanted.*twice")],
    )  # fmt: skip
    def test_manifest_of_other_tars(self, tmp_path: Path, lines: str, match: str) -> None:
        source = write_openlm(tmp_path / "source")
        (source / "manifest.jsonl").write_text(lines)
        assert_refused(source, tmp_path / "out", match)

    def test_tars_without_a_manifest(self, tmp_path: Path) -> None:
        source = write_openlm(tmp_path / "source")
        (source / "manifest.jsonl").unlink()
        assert_refused(source, tmp_path / "out", "nothing tells whether its tars are all there")

    @pytest.mark.parametrize(
        ("member", "content", "match"),
        [("b.json.gz", gzip.compress(b"[1, 2, 3]")[:-6], "not a list of ids: EOFError"), ("b.json", b"[1, 2", "JSON"),
         ("b.json", b"[1, 2.5, 3]", "not all whole numbers"), ("b.json", b"[1, [2], 3]", "ValueError"),
         ("b.json", b'{"text": 3}', "not all whole numbers"), ("b.json", b"[1, 2, 3, 4]", "4 ids where other"),
         ("b.json", b"[]", "not all whole"), ("b.txt", b"[1, 'x', 3]", "not all whole"), ("b.txt", b"\xff", "Unicode"),
         ("b.json", b"[true, false, true]", "not all whole")],
    )  # fmt: skip
    def test_broken_member(self, tmp_path: Path, member: str, content: bytes, match: str) -> None:
        good = {f"{name}.json": b"[5, 6, 0]" for name in "acd"}
        write_tar(tmp_path / "x.tar", dict(sorted({**good, member: content}.items())))
        assert_refused(tmp_path / "x.tar", tmp_path / "out", match)
        manifest = convert(tmp_path / "x.tar", tmp_path / "out", on_bad_line="skip")
        assert train_ids(tmp_path / "out") == [5, 6, 0] * 3
        assert manifest.bad_lines == {(tmp_path / "x.tar").as_posix(): 1}

    def test_first_row_may_be_the_bad_one(self, tmp_path: Path) -> None:
        source = write_mobilellm(tmp_path / "source", nodes=1, rows=[[1, 2, 3, 4], *[[5, 6, 0]] * 3])
        convert(source, tmp_path / "out", on_bad_line="skip")
        assert train_ids(tmp_path / "out") == [5, 6, 0] * 3

    def test_rows_that_are_all_bad_are_not_skipped(self, tmp_path: Path) -> None:
        source = write_mobilellm(tmp_path / "source", nodes=1, rows=["no"] * 3)
        assert_refused(source, tmp_path / "out", "none of the first 3 rows holds ids", on_bad_line="skip")

    def test_members_of_another_kind(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "x.tar", {"a.json": b"[1, 2]", "a.png": b"?"})
        assert_refused(
            tmp_path / "x.tar", tmp_path / "out", r"holds a.png; wanted names ending in .json.gz, .json, .txt"
        )

    def test_missing_node(self, tmp_path: Path) -> None:
        source = write_mobilellm(tmp_path / "source", nodes=3)
        (source / "2").rename(source / "other")
        assert_refused(source, tmp_path / "out", "folders of 2 nodes, but none named 2")

    @pytest.mark.parametrize("keep", [35, 0])
    def test_nanogpt_of_odd_or_no_size(self, tmp_path: Path, keep: int) -> None:
        source = write_nanogpt(tmp_path / "source")
        (source / "train.bin").write_bytes((source / "train.bin").read_bytes()[:keep])
        assert_refused(source, tmp_path / "out", f"train.bin has {keep} bytes, wanted two for each")

    @pytest.mark.parametrize(
        ("at", "content", "match"),
        [(0, b"X", r"_0000000001.bin begins with b'XITPKDS'"), (7, b"\2", "a chunk of version 2"),
         (15, b"\6", "dtype code 6"), (16, b"\7", "has 34 bytes; its header promises 7 ids of 2"),
         (33, b"12", "has 35 bytes; its header promises 5")],
    )  # fmt: skip
    def test_litgpt_chunk_of_another_header(self, tmp_path: Path, at: int, content: bytes, match: str) -> None:
        chunk = write_litgpt(tmp_path / "source") / "train_0000000001.bin"
        old = chunk.read_bytes()
        chunk.write_bytes(old[:at] + content + old[at + len(content) :])
        assert_refused(tmp_path / "source", tmp_path / "out", match)

    def test_litgpt_chunk_cut_within_its_header(self, tmp_path: Path) -> None:
        chunk = write_litgpt(tmp_path / "source") / "train_0000000001.bin"
        chunk.write_bytes(chunk.read_bytes()[:20])
        assert_refused(tmp_path / "source", tmp_path / "out", "cut short within its header")

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert_refused(tmp_path / "gone", tmp_path / "out", "there is no file or folder")
        (tmp_path / "empty").mkdir()
        assert_refused(
            tmp_path / "empty", tmp_path / "out", "holds no tokens as openlm, mobilellm, litgpt, nanogpt write"
        )
        (tmp_path / "text.jsonl").write_text('{"text": "prose"}\n')
        assert_refused(tmp_path / "text.jsonl", tmp_path / "out", "to tokenise text, build it")
        source = write_nanogpt(tmp_path / "bins")
        assert_refused(source, tmp_path / "out", "holds no tokens as litgpt write", format="litgpt")
        assert_refused(write_openlm(tmp_path / "tars", rows=[]), tmp_path / "out", "holds no tokens")
        write_tar(tmp_path / "x.tar", {})
        assert_refused(tmp_path / "x.tar", tmp_path / "out", "there are no tokens")

    @pytest.mark.parametrize(
        ("options", "match"),
        [({"format": "openml"}, "no format is called 'openml'; did you mean 'openlm'"),
         ({"vocab_size": None}, "give the --tokenizer that made them"), ({"held_out": 1.0}, "held_out=1.0"),
         ({"vocab_size": 0}, "vocab_size=0"), ({"end_of_text": 100}, "end_of_text=100"),
         ({"end_of_text": "</s>"}, "needs the tokenizer"), ({"shard_tokens": 0}, "shard_tokens=0"),
         ({"on_bad_line": "ask"}, "wanted fail or skip"), ({"held_out": 0.9999999}, "all documents are held out")],
    )  # fmt: skip
    def test_options_that_cannot_be(self, tmp_path: Path, options: dict[str, Any], match: str) -> None:
        assert_refused(write_nanogpt(tmp_path / "source"), tmp_path / "out", match, **options)

    def test_vocabulary_smaller_than_the_tokenizers(self, shared_data: Path, tmp_path: Path) -> None:
        tokenizer = shared_data / "tokenizers/bpe2048.json"
        source = write_nanogpt(tmp_path / "source")
        assert_refused(source, tmp_path / "out", "less than that of .*: 2048", tokenizer=tokenizer, vocab_size=100)
        assert convert(source, tmp_path / "out", tokenizer=tokenizer, vocab_size=2304).vocab_size == 2304

    def test_folder_that_holds_other_things(self, tmp_path: Path) -> None:
        source, out = write_nanogpt(tmp_path / "source"), tmp_path / "out"
        out.mkdir()
        for name in ("notes.txt", "tokenizer.json", "dataset.json"):
            (out / name).write_text("mine")
            with pytest.raises(DataError, match=f"out holds other files .{name}"):
                convert(source, out)
            assert (out / name).read_text() == "mine"
            (out / name).unlink()
        (source / "train.bin").rename(source / "train-00000.bin")
        with pytest.raises(DataError, match="is where the tokens to convert are"):
            convert(source, source)
        assert (source / "train-00000.bin").exists()

    def test_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real, left = os.fsync, iter(range(9))

        def fail(descriptor: int) -> None:
            if next(left) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        assert_refused(
            write_nanogpt(tmp_path / "source"), tmp_path / "out", "No space left .*free some", shard_tokens=4
        )
        assert next(left) == 4

    def test_output_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(LatheError, match="cannot be written"):
            convert(write_nanogpt(tmp_path / "source"), tmp_path / "file" / "out")
