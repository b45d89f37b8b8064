"""Looking into datasets: counts, samples, and every kind of damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from corpus import make_texts, write_jsonl
from made_datasets import write_shard
from tokenizers import Tokenizer

from lathe import codec
from lathe.cli import main
from lathe.data.build import build_dataset
from lathe.data.inspect import describe_dataset, verify_dataset
from lathe.data.store import Dataset, Manifest, file_sha256
from lathe.data.tokenizer import train_tokenizer
from lathe.errors import DataError

TEXTS = make_texts(100)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    lines = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    train_tokenizer([lines], vocab_size=300, out=tmp_path / "tokenizer.json")
    build_dataset([lines], tokenizer=tmp_path / "tokenizer.json", out=tmp_path / "set", held_out=0.1, shard_tokens=3000)
    return tmp_path / "set"


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


class TestInfo:
    def test_counts(self, dataset: Path) -> None:
        info = describe_dataset(dataset)
        train, held = info.splits
        assert (train.name, held.name) == ("train", "held-out")
        assert train.documents + held.documents == 100
        assert train.text_bytes + held.text_bytes == sum(len(text.encode()) for text in TEXTS)
        assert train.bytes_per_token == train.text_bytes / train.tokens
        ends = Dataset(dataset).split("train").index_nc[:, 0].astype(int)
        lengths = np.diff(ends, prepend=0)
        wanted = [int(((lengths >= 2**i) & (lengths < 2 ** (i + 1))).sum()) for i in range(len(train.lengths))]
        assert list(train.lengths) == wanted
        assert sum(train.lengths) == train.documents
        assert info.sources == ((dataset.parent / "a.jsonl").as_posix(),)

    def test_samples(self, dataset: Path) -> None:
        info = describe_dataset(dataset, samples=1000)
        assert [sample.document for sample in info.samples] == list(range(info.splits[0].documents))
        beginnings = {text[:20] for text in TEXTS}
        assert all(sample.text[:20] in beginnings for sample in info.samples if sample.tokens > 60)
        assert describe_dataset(dataset, samples=2) == describe_dataset(dataset, samples=2)
        assert describe_dataset(dataset, samples=5, seed=1).samples != describe_dataset(dataset, samples=5).samples

    def test_without_a_tokenizer_ids_are_shown(self, tmp_path: Path) -> None:
        shard = dataclasses.replace(
            write_shard(tmp_path, "train-00000", [[0, 1], [2, 3, 4]], vocab_size=5), text_bytes=0
        )
        manifest = Manifest(
            vocab_size=5, dtype="uint16", end_of_text=None, tokenizer_sha256=None, held_out=0.0, shards=(shard,),
            bad_lines={"x": 2}, empty_documents=1,
        )  # fmt: skip
        codec.save(manifest, tmp_path / "dataset.json", kind="dataset")
        info = describe_dataset(tmp_path)
        assert [sample.text for sample in info.samples] == ["[0, 1]", "[2, 3, 4]"]
        assert info.splits[0].bytes_per_token is None
        assert info.splits[1].documents == 0
        assert verify_dataset(tmp_path) == 2

    @pytest.mark.parametrize("option", [{"samples": -1}, {"seed": -1}])
    def test_numbers_that_cannot_be(self, dataset: Path, option: dict[str, int]) -> None:
        with pytest.raises(DataError, match=r"=-1.*; wanted numbers of 0 or more"):
            describe_dataset(dataset, **option)

    def test_a_tokenizer_that_differs(self, dataset: Path) -> None:
        path = dataset / "tokenizer.json"
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(DataError, match="is not the tokenizer that made these ids"):
            describe_dataset(dataset)


class TestVerify:
    @pytest.mark.parametrize("name", ["train-00001.bin", "train-00000.idx", "held-out-00000.bin", "tokenizer.json"])
    def test_one_changed_byte(self, dataset: Path, name: str) -> None:
        content = bytearray((dataset / name).read_bytes())
        content[len(content) // 2] ^= 1
        (dataset / name).write_bytes(content)
        with pytest.raises(
            DataError, match=rf"{name} is altered: its checksum is not the manifest's; copy the dataset"
        ):
            verify_dataset(dataset)

    def test_all_damage_is_named(self, dataset: Path) -> None:
        (dataset / "train-00000.bin").unlink()
        (dataset / "train-00001.idx").write_bytes(b"")
        (dataset / "tokenizer.json").unlink()
        wanted = r"tokenizer.json is missing; train-00000.bin is missing; train-00001.idx is altered"
        with pytest.raises(DataError, match=wanted):
            verify_dataset(dataset)

    def test_ids_beyond_the_vocabulary(self, dataset: Path) -> None:
        most = max(int(Dataset(dataset).split(s).read(0, Dataset(dataset).split(s).tokens).max()) for s in ("train",))
        rewrite(dataset, vocab_size=most)
        with pytest.raises(DataError, match=rf"holds the id {most}, beyond its vocabulary of {most}"):
            verify_dataset(dataset)

    def test_an_index_that_does_not_fit(self, dataset: Path) -> None:
        path = dataset / "train-00000.idx"
        rows = np.fromfile(path, dtype="<u8")
        rows[0], rows[2] = rows[2], rows[0]
        rows.tofile(path)
        shards = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["shards"]
        shards[0]["index_sha256"] = file_sha256(path)
        rewrite(dataset, shards=shards)
        with pytest.raises(DataError, match=r"train-00000.idx does not index its tokens"):
            verify_dataset(dataset)

    def test_no_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is no dataset: it has no dataset.json"):
            verify_dataset(tmp_path)


class TestCommands:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
        given = [str(argument) for argument in arguments]
        if code or "--help" in given:
            with pytest.raises(SystemExit) as stopped:
                main(given)
            assert stopped.value.code == code
        else:
            main(given)
        printed = capsys.readouterr()
        return printed.out, printed.err

    def test_from_text_to_a_dataset(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.txt").write_text("one\n---\n\n---\n".join(TEXTS), encoding="utf-8")
        (tmp_path / "in/notes.md").touch()
        split = ("--split-documents-on", r"\n---\n")
        tokenizer, out = tmp_path / "t.json", tmp_path / "set"
        said, _ = self.run(
            capsys, "data", "tokenizer", tmp_path / "in", "--vocab-size", 290, "--out", tokenizer, *split
        )
        assert said == f"tokenizer: {tokenizer}\n"
        assert Tokenizer.from_file(str(tokenizer)).get_vocab_size() == 290
        command = ("data", "build", tmp_path / "in", "--tokenizer", tokenizer, "--out", out, *split)
        said, noted = self.run(capsys, *command, "--held-out", 0.1)
        assert "skipped: 99 empty documents" in said
        assert said.endswith(f"dataset: {out}\n")
        assert "1 files of other kinds are left out" in noted
        said, _ = self.run(capsys, "data", "verify", out)
        assert said == f"{out}: 5 files are as they were written\n"
        said, _ = self.run(capsys, "data", "info", out, "--samples", 2)
        assert "99 empty documents were skipped" in said
        assert "a.txt" in said
        assert said.count("tokens:") == 2
        (out / "train-00000.bin").write_bytes(b"")
        _, told = self.run(capsys, "data", "verify", out, code=2)
        assert told.startswith(f"lathe: {out}: train-00000.bin is altered")

    def test_notes(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        lines = write_jsonl(tmp_path / "a.jsonl", ["aa"])
        with lines.open("a", encoding="utf-8") as file:
            file.write("broken\n")
        tokenizer, options = tmp_path / "t.json", ("--out", tmp_path / "set", "--on-bad-line", "skip")
        _, told = self.run(capsys, "data", "tokenizer", lines, "--vocab-size", 300, "--out", tokenizer, code=2)
        assert "line 2: not JSON" in told
        write_jsonl(tmp_path / "b.jsonl", ["aa"])
        command = ("data", "tokenizer", tmp_path / "b.jsonl", "--vocab-size", 300, "--out", tokenizer)
        assert "note: the text gives 258 tokens only" in self.run(capsys, *command)[1]
        said, noted = self.run(capsys, "data", "build", lines, "--tokenizer", tokenizer, *options)
        assert f"skipped: 1 bad line of {lines}" in said
        assert f"note: skipped: {lines}, line 2: not JSON" in noted
        assert "note: no document was held out" in noted

    def test_tokens_of_others(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "train.bin").write_bytes(np.array([5, 6, 1, 7, 1], dtype="<u2").tobytes())
        options = ("--vocab-size", 8, "--end-of-text", 1, "--held-out", 0, "--out", tmp_path / "set")
        said, _ = self.run(capsys, "data", "convert", tmp_path / "train.bin", "--format", "nanogpt", *options)
        assert said.startswith("train: 2 documents, 5 tokens, 1 shard\n")
        assert verify_dataset(tmp_path / "set") == 2

    def test_nothing_given(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        _, told = self.run(capsys, "data", "build", "--tokenizer", "x", "--out", tmp_path / "set", code=2)
        assert told == "lathe: INPUTS was given nothing; wanted files or folders of text, or --builtin\n"

    @pytest.mark.parametrize(
        "command", [("data",), ("data", "convert"), ("data", "build"), ("data", "tokenizer"), ("data", "info")]
    )
    def test_help(self, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
        said, _ = self.run(capsys, *command, "--help")
        assert said.startswith(f"usage: lathe {' '.join(command)}")
        assert "xample: lathe data" in said or "lathe data build --help" in said

    def test_the_group_is_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "Make datasets of text" in self.run(capsys, "--help")[0]
