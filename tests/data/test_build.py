"""Building datasets: the right ids, the same bytes whatever happens, and nothing that only looks whole."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from corpus import (
    all_documents,
    count_ids,
    make_llama_like,
    make_texts,
    make_words,
    read_all,
    read_documents,
    write_jsonl,
)
from tokenizers import Encoding, Tokenizer

from lathe.data import build, journal, readers, tokenise
from lathe.data.build import build_dataset
from lathe.data.inspect import verify_dataset
from lathe.data.readers import Document, Input
from lathe.data.store import Dataset, Manifest
from lathe.data.tokenise import ahead, is_held_out, open_encoder
from lathe.data.tokenizer import train_tokenizer
from lathe.data.writer import MOST_SOURCES, Tokens, UnitWriter, shorten
from lathe.errors import DataError

TEXTS = make_texts(200)
Build = Callable[..., Manifest]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([write_jsonl(folder / "a.jsonl", TEXTS)], vocab_size=400, out=folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", TEXTS)


@pytest.fixture
def make(bpe: Path, lines: Path, tmp_path: Path) -> Build:
    """Build from TEXTS into `out`, unless told otherwise."""

    def run(*inputs: Path | Input, out: str = "out", **options: object) -> Manifest:
        given = {"tokenizer": bpe, "held_out": 0.1, "shard_tokens": 1000, **options}
        return build_dataset(inputs or [lines], out=tmp_path / out, **given)  # pyright: ignore[reportArgumentType]

    return run


def as_input(*texts: str, name: str = "made") -> Input:
    return Input(
        name=name, fingerprint=str(texts), size_bytes=1, read=lambda: iter([Document(text, name) for text in texts])
    )


class TestIds:
    def test_every_document_with_its_end(self, make: Build, bpe: Path, tmp_path: Path) -> None:
        manifest = make()
        tokenizer = Tokenizer.from_file(str(bpe))
        wanted = [[*tokenizer.encode(text).ids, 0] for text in TEXTS]
        held = [is_held_out(text, 0.1) for text in TEXTS]
        assert 5 < sum(held) < 40
        out = tmp_path / "out"
        assert read_documents(out, "train") == [ids for ids, h in zip(wanted, held, strict=True) if not h]
        assert read_documents(out, "held-out") == [ids for ids, h in zip(wanted, held, strict=True) if h]
        assert sum(s.text_bytes for s in manifest.shards) == sum(len(text.encode()) for text in TEXTS)
        assert manifest.end_of_text == 0
        assert Dataset(out).split("train").index_nc[0, 1] == len(TEXTS[held.index(False)].encode())
        assert len(manifest.shards) > 6
        assert verify_dataset(out) == 2 * len(manifest.shards) + 1
        assert not {"build.json"} & read_all(out).keys()

    def test_real_tokenizers_agree_with_themselves(self, make: Build, shared_data: Path, tmp_path: Path) -> None:
        text = (shared_data / "text/tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000]
        for name in ("gpt_neox_20b", "gpt2", "llama_openllama"):
            path = shared_data / f"tokenizers/{name}.json"
            encoder = open_encoder(path)
            assert encoder.cuts == (name != "llama_openllama")
            make(as_input(text), tokenizer=path, out=name, held_out=0.0)
            (ids,) = read_documents(tmp_path / name, "train")
            assert ids == [
                *Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids,
                encoder.end_of_text,
            ]

    def test_pieces_change_nothing(self, make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        long = ["".join(make_texts(50, seed=seed)) for seed in range(4)]
        make(as_input(*long), out="whole")
        monkeypatch.setattr(tokenise, "PIECE_CHARS", 50)
        monkeypatch.setattr(tokenise, "BATCH_CHARS", 300)
        make(as_input(*long), out="pieces")
        assert read_all(tmp_path / "whole") == read_all(tmp_path / "pieces")

    @pytest.mark.parametrize("line_end", ["\n", " \n"])
    def test_lines_that_begin_with_a_space_are_cut_apart(
        self, make: Build, bpe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line_end: str
    ) -> None:
        """As WikiText's do: such a text must not stay in one piece, nor its pieces give other ids."""
        text = line_end.join(f" = Title {i} = " * (i % 7 == 0) + f" word {i} , and @-@ more ." for i in range(200))
        texts: list[str] = []
        encode = tokenise._encode

        def listen(pieces: Sequence[tokenise._Piece], encoder: tokenise.Encoder) -> list[Encoding]:
            texts.extend(piece.text for piece in pieces)
            return encode(pieces, encoder)

        monkeypatch.setattr(tokenise, "_encode", listen)
        monkeypatch.setattr(tokenise, "PIECE_CHARS", 100)
        make(as_input(text), held_out=0.0)
        assert "".join(texts) == text
        assert len(texts) > 20
        assert all(piece.startswith(" ") for piece in texts)
        assert all_documents(tmp_path / "out") == [[*Tokenizer.from_file(str(bpe)).encode(text).ids, 0]]

    def test_a_file_in_parts_is_one_document(
        self, make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "a.txt").write_text("".join(TEXTS), encoding="utf-8", newline="")
        monkeypatch.setattr(tokenise, "HASHED_CHARS", 1024)
        whole = make(tmp_path / "a.txt", out="whole")
        for module in (readers, tokenise):
            monkeypatch.setattr(module, "LONGEST_CHARS", 2048)
        monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
        parts = make(tmp_path / "a.txt", out="parts")
        assert [shard.documents for shard in parts.shards] == [1]
        assert parts.shards == whole.shards

    def test_a_special_token_in_the_text_is_text(self, make: Build, bpe: Path, tmp_path: Path) -> None:
        text = "before <|endoftext|> after <unk> </s>"
        make(as_input(text), held_out=0.0)
        assert count_ids(tmp_path / "out", 0) == 1
        (ids,) = all_documents(tmp_path / "out")
        assert Tokenizer.from_file(str(bpe)).decode(ids[:-1]) == text
        llama = make_llama_like(tmp_path / "llama.json")
        manifest = make(as_input(text), held_out=0.0, tokenizer=llama, out="llama")
        (ids,) = all_documents(tmp_path / "llama")
        assert manifest.end_of_text == 2
        assert ids.count(2) == 1
        assert 0 not in ids
        assert 1 not in ids
        assert Tokenizer.from_file(str(llama)).decode(ids[:-1]) == " " + text

    def test_padding_truncation_and_templates_of_the_tokenizer_do_nothing(
        self, make: Build, bpe: Path, tmp_path: Path
    ) -> None:
        from tokenizers.processors import TemplateProcessing

        tokenizer = Tokenizer.from_file(str(bpe))
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=64)
        tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        tokenizer.save(str(tmp_path / "other.json"))
        make(out="plain")
        make(tokenizer=tmp_path / "other.json")
        assert all_documents(tmp_path / "out") == all_documents(tmp_path / "plain")

    def test_large_vocabularies_take_four_bytes(self, make: Build, tmp_path: Path) -> None:
        path = make_words(tmp_path / "words.json", {"?": 0, "</s>": 1, "word": 2**16})  # few words, but a large id
        manifest = make(as_input("word word other"), tokenizer=path, held_out=0.0)
        assert (manifest.vocab_size, manifest.dtype) == (2**16 + 1, "uint32")
        assert all_documents(tmp_path / "out") == [[2**16, 2**16, 0, 1]]

    def test_end_of_text_can_be_given(self, make: Build, tmp_path: Path) -> None:
        path = make_words(tmp_path / "words.json", {"?": 0, "stop": 1})
        with pytest.raises(DataError, match=r"no token ends a document \(it has none of <\|endoftext\|>"):
            make(as_input("x"), tokenizer=path)
        with pytest.raises(DataError, match="it has no token 'halt'"):
            make(as_input("x"), tokenizer=path, end_of_text="halt")
        with pytest.raises(DataError, match="end_of_text=2 is beyond the vocabulary"):
            make(as_input("x"), tokenizer=path, end_of_text=2)
        assert make(as_input("x"), tokenizer=path, end_of_text="stop", held_out=0.0).end_of_text == 1
        assert make(as_input("x"), tokenizer=path, end_of_text=0, held_out=0.0, out="b").end_of_text == 0


class TestSplits:
    def test_order_and_company_change_nothing(self, make: Build, tmp_path: Path) -> None:
        shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
        make()
        make(as_input(*shuffled, *make_texts(50, seed=9)), out="other", shard_tokens=317)
        held = {tuple(ids) for ids in read_documents(tmp_path / "out", "held-out")}
        assert held <= {tuple(ids) for ids in read_documents(tmp_path / "other", "held-out")}
        assert not held & {tuple(ids) for ids in read_documents(tmp_path / "other", "train")}

    def test_a_larger_share_holds_the_smaller(self) -> None:
        small, large = ({t for t in TEXTS if is_held_out(t, share)} for share in (0.05, 0.2))
        assert small < large

    def test_the_share_is_kept(self) -> None:
        assert sum(is_held_out(str(i), 0.1) for i in range(10_000)) == pytest.approx(1000, abs=4 * 30)

    @pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
    def test_shares_that_cannot_be(self, make: Build, share: float) -> None:
        with pytest.raises(DataError, match="is no share of the documents"):
            make(held_out=share)

    def test_shards_end_with_documents(self, make: Build) -> None:
        manifest = make()
        units = {shard.name.rpartition("-")[2] for shard in manifest.shards}
        sizes = [sum(s.tokens for s in manifest.shards if s.name.endswith(unit)) for unit in sorted(units)]
        longest = 1 + max(len(text.encode()) for text in TEXTS)
        assert all(1000 <= size < 1000 + longest for size in sizes[:-1])
        with pytest.raises(DataError, match="shard_tokens=0 makes no shard"):
            make(shard_tokens=0, out="none")


SCRIPT = """
import sys
from lathe.data.build import build_dataset
lines, tokenizer, out = sys.argv[1:]
build_dataset([lines], tokenizer=tokenizer, out=out, held_out=0.1, shard_tokens=1500, on_bad_line="skip")
"""


class TestKilled:
    def test_killed_builds_end_as_others_do(self, bpe: Path, tmp_path: Path) -> None:
        """Kill at random moments of the writing, the more files there are the later."""
        lines = write_jsonl(tmp_path / "a.jsonl", make_texts(1200, seed=3))
        with lines.open("a", encoding="utf-8") as file:
            file.write("not JSON\n" + '{"text": ""}\n' * 3)
        command = [sys.executable, "-c", SCRIPT, str(lines), str(bpe)]
        subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=60)
        whole, out, rng = read_all(tmp_path / "whole"), tmp_path / "killed", random.Random(0)
        assert len(whole) > 40
        kills = 0
        for wait_for in (1, 12, 25, 38):
            process = subprocess.Popen([*command, str(out)])
            try:
                while process.poll() is None and (not out.is_dir() or len(list(out.iterdir())) < wait_for):
                    time.sleep(0.001)
                time.sleep(rng.random() * 0.01)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
            kills += process.returncode == -signal.SIGKILL
            if process.returncode:
                with pytest.raises(DataError, match="not finished: run it again"):
                    Dataset(out)
        assert kills >= 2
        subprocess.run([*command, str(out)], check=True, timeout=60)
        assert read_all(out) == whole
        assert Dataset(out).manifest.bad_lines == {lines.as_posix(): 1}
        assert Dataset(out).manifest.empty_documents == 3

    @pytest.mark.parametrize("name", ["write_whole", "save_journal", "_conclude"])
    def test_stopped_at_any_step(self, make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
        """Stop at the step's first call, then at its second, and so on until the build ends."""
        make(out="whole")
        real, calls = getattr(build, name), 0

        class Stopped(BaseException):
            pass

        def stop(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == attempt:
                raise Stopped
            return real(*arguments)

        monkeypatch.setattr(build, name, stop)
        for attempt in range(1, 20):
            calls = 0
            try:
                make()
            except Stopped:
                assert not (tmp_path / "out/dataset.json").exists()
                continue
            assert attempt > 1
            break
        assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")

    def test_an_error_keeps_what_is_done(self, make: Build, lines: Path, tmp_path: Path) -> None:
        make(out="whole")
        content = lines.read_bytes()
        lines.write_bytes(content + b"broken\n")
        with pytest.raises(DataError, match=r"line 201: not JSON.*--on-bad-line skip \(\d+ shards are done; the same"):
            make()
        manifest = make(on_bad_line="skip")
        assert manifest.bad_lines == {lines.as_posix(): 1}
        assert manifest.shards == Dataset(tmp_path / "whole").manifest.shards

    def test_skipped_lines_are_not_forgotten(self, make: Build, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines.write_bytes(b"broken\n" + lines.read_bytes())
        monkeypatch.setattr(build, "_conclude", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(on_bad_line="skip")
        with pytest.raises(DataError, match=r"1 bad lines of .* have been skipped already; go on with --on-bad"):
            make()


class TestAgain:
    def test_a_finished_build_does_nothing(self, make: Build, tmp_path: Path) -> None:
        first = make()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        said: list[str] = []
        assert make(report=said.append) == first
        assert said == [f"{tmp_path / 'out'} is built already: nothing to do"]
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before

    def test_another_request_is_refused(self, make: Build, lines: Path) -> None:
        make()
        with pytest.raises(DataError, match="holds a dataset of other inputs or options"):
            make(held_out=0.2)
        os.utime(lines, (1, 1))
        with pytest.raises(DataError, match="holds a dataset of other inputs or options"):
            make()

    def test_another_request_for_an_unfinished_build_is_refused(
        self, make: Build, monkeypatch: pytest.MonkeyPatch, bpe: Path, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(build, "_conclude", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make()
        with pytest.raises(DataError, match=r"unfinished build of another request \(inputs_sha256, held_out differ\)"):
            make(as_input("x"), held_out=0.2)
        (tmp_path / "out/train-00001.idx").unlink()
        with pytest.raises(DataError, match=r"train-00001.idx is gone, so this build cannot go on"):
            make()

    def test_a_folder_of_other_things_is_refused(self, make: Build, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.md").touch()
        with pytest.raises(DataError, match=r"holds other files \(notes.md\); choose a new folder"):
            make()
        assert list(read_all(tmp_path / "out")) == ["notes.md"]

    def test_two_at_once(self, make: Build, tmp_path: Path) -> None:
        def read() -> Iterator[Document]:
            with pytest.raises(DataError, match="another build is writing"):
                make()
            yield Document("x", "x")

        make(Input(name="x", fingerprint="", size_bytes=1, read=read), held_out=0.0)
        assert verify_dataset(tmp_path / "out") == 3


class TestBad:
    def test_nothing_is_left_of_a_build_that_did_nothing(self, make: Build, tmp_path: Path) -> None:
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"text": "one"}\n{"body": "two"}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"bad.jsonl, line 2: has no key 'text'; it has body; mend it"):
            make(bad)
        assert not (tmp_path / "out").exists()

    def test_bad_lines_are_counted_and_named(self, make: Build, tmp_path: Path) -> None:
        bad, said = tmp_path / "bad.jsonl", []
        bad.write_text('{"text": "one"}\n' + "{\n" * 9 + '{"text": "two"}\n', encoding="utf-8")
        manifest = make(bad, on_bad_line="skip", held_out=0.0, report=said.append)
        assert manifest.bad_lines == {bad.as_posix(): 9}
        assert sum(shard.documents for shard in manifest.shards) == 2
        assert len(said) == build.NAMED_LINES
        assert said[0].startswith(f"skipped: {bad.as_posix()}, line 2: not JSON")

    def test_empty_documents_are_counted(self, make: Build, tmp_path: Path) -> None:
        manifest = make(as_input("", "one", " \n", "two", ""), held_out=0.0)
        assert manifest.empty_documents == 3
        assert len(all_documents(tmp_path / "out")) == 2

    def test_nothing_but_emptiness(self, make: Build, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the inputs hold no document with text: there is nothing to train on"):
            make(as_input("", " "))
        held = next(text for text in TEXTS if is_held_out(text, 0.1))
        with pytest.raises(DataError, match="all 1 documents are held out"):
            make(as_input(held))
        with pytest.raises(DataError, match="there is nothing to read"):
            build_dataset([], tokenizer="x", out=tmp_path / "out")

    def test_a_file_that_is_cut_short(self, make: Build, lines: Path, tmp_path: Path) -> None:
        import gzip

        path = tmp_path / "cut.jsonl.gz"
        path.write_bytes(gzip.compress(lines.read_bytes())[:-300])
        for _ in range(2):
            with pytest.raises(DataError, match=r"cut.jsonl.gz is cut short or broken"):
                make(path, on_bad_line="skip")
            assert not (tmp_path / "out/dataset.json").exists()

    def test_tokenizers_that_are_none(self, make: Build, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        with pytest.raises(DataError, match=r"is no tokenizer.json of Hugging Face's tokenizers"):
            make(tokenizer=lines)
        with pytest.raises(DataError, match=r"there is no tokenizer absent.json; give a tokenizer.json"):
            make(tokenizer="absent.json")
        with pytest.raises(DataError, match="there is no tokenizer"):
            make(tokenizer=lines.parent)

        def refuse(*_: object) -> str:
            raise OSError("no network in tests")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(DataError, match="the tokenizer some/model cannot be read: no network in tests"):
            make(tokenizer="some/model")

    def test_a_text_that_the_tokenizer_cannot_encode(self, make: Build, tmp_path: Path) -> None:
        path = make_words(tmp_path / "words.json", {"</s>": 0, "word": 1})  # without its unknown token
        with pytest.raises(DataError, match="the tokenizer cannot encode a text of made"):
            make(as_input("word other"), tokenizer=path)

    def test_ids_beyond_the_vocabulary(self, bpe: Path, tmp_path: Path) -> None:
        encoder = open_encoder(bpe)
        unit = UnitWriter(tmp_path, 0, vocab_size=encoder.vocab_size, end_of_text=encoder.end_of_text)
        ids = np.array([encoder.vocab_size], dtype=encoder.dtype)
        unit.add(Tokens(ids=ids, source="x", text_bytes=1, held_out=False, continues=False))
        with pytest.raises(DataError, match="the id 400 is beyond the tokenizer's vocabulary of 400"):
            unit.finish()
        unit.discard()
        assert not list(tmp_path.iterdir())

    def test_a_full_disk(self, make: Build, tmp_path: Path) -> None:
        """A limit on the size of files stands in: writes fail half-way as on a full disk."""
        make(out="whole", shard_tokens=4000)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = (tmp_path / "whole/tokenizer.json").stat().st_size - 1
        for size, left in ((limit, False), (6000, False)):
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
                with pytest.raises(DataError, match="cannot be written: File too large; free some space"):
                    make(shard_tokens=4000)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert (tmp_path / "out").exists() == left
        make(shard_tokens=4000)
        assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")

    def test_a_disk_that_fills_later(self, make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        make(out="whole")
        real, left = os.fsync, iter(range(100))

        def fail(descriptor: int) -> None:
            if next(left) >= 12:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DataError, match=r"No space left on device; free some space .*shards are done"):
            make()
        names = read_all(tmp_path / "out").keys()
        assert "build.json" in names
        assert not [name for name in names if name.endswith(".part") or name == "dataset.json"]
        monkeypatch.undo()
        make()
        assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")

    def test_a_folder_that_cannot_be_written(
        self, make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file is a file; name a new folder as --out"):
            make(out="file")
        with pytest.raises(DataError, match="cannot be written: Not a directory"):
            make(out="file/out")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(DataError, match="out: cannot be written: Permission denied"):
            make()

    def test_a_file_that_cannot_be_read(self, make: Build, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines.chmod(0)
        if os.access(lines, os.R_OK):
            lines.unlink()
            lines.mkdir()  # root may read anything but a folder
            monkeypatch.setattr(build, "open_inputs", lambda *_, **__: (readers._open_input(lines, readers.Layout()),))
        with pytest.raises(DataError, match=r"a.jsonl is cut short or broken: .*(Permission denied|Is a directory)"):
            make()


class TestAhead:
    def test_items_in_order_and_errors_where_they_are(self) -> None:
        def items() -> Iterator[int]:
            yield from range(50)
            raise ValueError("after fifty")

        taken = []
        with pytest.raises(ValueError, match="after fifty"):
            taken.extend(ahead(items(), depth=3))
        assert taken == list(range(50))

    def test_it_stops_with_its_taker(self) -> None:
        closed = []

        def items() -> Iterator[int]:
            try:
                yield from range(10**9)
            finally:
                closed.append(True)

        found = ahead(items(), depth=1)
        assert next(found) == 0
        found.close()
        assert closed == [True]


def test_many_sources_become_folders() -> None:
    few = [f"a/{i}.txt" for i in range(MOST_SOURCES)]
    assert shorten(few) == tuple(few)
    assert shorten([*few, "b/c/x.txt"]) == ("a/", "b/c/")


def test_progress_reaches_its_end(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TICK_S", 0.0)
    told: list[tuple[str, float]] = []
    make(progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1


def test_requests_are_told_apart(make: Build, tmp_path: Path) -> None:
    found = make()
    assert found.request is not None
    assert len(found.request) == 64
    fields = {f.name for f in dataclasses.fields(journal.Request)}
    assert fields >= {"inputs_sha256", "tokenizer_sha256", "held_out", "shard_tokens", "end_of_text"}
    shutil.rmtree(tmp_path / "out")
    assert make().request == found.request
