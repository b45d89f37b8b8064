"""`lathe analyse` as a user runs it: what it prints and writes, and one clear line for bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lathe import codec
from lathe.cli import main
from lathe.data.build import build_dataset
from lathe.data.tokenizer import train_tokenizer
from lathe.evals.analysis import Analysis
from lathe.model import init
from lathe.model.checkpoint import save_checkpoint
from lathe.shape import Shape
from tests.small_datasets import write_small_dataset

SHAPE = Shape.of(d_model=16, n_layers=3, n_heads=2, vocab_size=300, max_seq_len=48)
FEW = ("--sequences", "6", "--seq-len", "24")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with a text, its tokenizer, a dataset of it, and a model with first weights."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Path("text.txt").write_text("".join(f"The cat saw {i} dogs and ran home.\n\n" for i in range(300)))
    Path("words").mkdir()
    train_tokenizer(["text.txt"], vocab_size=300, out="words/tokenizer.json")
    save_checkpoint("model", SHAPE, init.build(SHAPE, scheme="llama", seed=0).state_dict(), companions="words")
    save_checkpoint("mute", SHAPE, init.build(SHAPE, scheme="llama", seed=0).state_dict())
    yield tmp_path
    torch.set_num_threads(threads)


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run what should be refused, and give the one line it says."""
    with pytest.raises(SystemExit) as ended:
        main(["analyse", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["analyse", "model", "--file", "text.txt", *FEW, "--out", "found.json", "--html", "page.html"])
    said = capsys.readouterr().out
    assert said.startswith("Layers of model\n")
    assert "6 sequences of 24 tokens of text.txt" in said
    found = codec.load(Analysis, "found.json", kind="analysis")
    assert (found.name, found.shape, found.sequences, found.seq_len) == ("model", SHAPE, 6, 24)
    assert len(found.lens_losses) == 4
    assert "Layers: model" in Path("page.html").read_text()


def test_a_dataset_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_dataset(["text.txt"], tokenizer="words/tokenizer.json", out="data", held_out=0.0)
    main(["analyse", "model", "--data", "data", "--split", "train", *FEW, "--share", "0.5", "--no-lens", "--json"])
    found = codec.decode(Analysis, json.loads(capsys.readouterr().out))
    assert (found.dataset, found.share, found.lens_losses) == ("data", 0.5, ())


def test_a_dataset_needs_no_tokenizer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_dataset(Path("ids"), held_out=500)
    main(["analyse", "mute", "--data", "ids", *FEW])
    assert "of ids" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_sequences(here: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        main(["analyse", "model", "--file", "text.txt", *FEW, "--seed", str(seed), "--out", "found.json"])
        found.append(codec.load(Analysis, "found.json", kind="analysis"))
    assert found[0] == found[1]
    assert dataclasses.replace(found[2]) != found[0]


class TestBadInput:
    def test_a_checkpoint_without_a_tokenizer(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refuse(capsys, "mute", "--file", "text.txt")
        assert said == "lathe: mute has no tokenizer.json; put the model's tokenizer there\n"

    def test_a_text_that_is_too_short(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("short.txt").write_text("The cat saw 3 dogs.")
        said = refuse(capsys, "model", "--file", "short.txt", "--seq-len", "40")
        assert "0 sequences of 40, and 100 were asked for; take a longer text than" in said

    def test_an_unknown_dataset(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nowhere is no dataset: it has no dataset.json" in refuse(capsys, "model", "--data", "nowhere")
        assert "nowhere.txt" in refuse(capsys, "model", "--file", "nowhere.txt")

    def test_a_dataset_of_another_vocabulary(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_small_dataset(Path("ids"), held_out=500, vocab_size=5000)
        assert "the model has 300; it was made with another tokenizer" in refuse(capsys, "mute", "--data", "ids", *FEW)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("model",), "nothing says what to read; give --data, a dataset's folder, or --file, a text"),
            (("model", "--data", "a", "--file", "b"), "--data and --file are both given; give --data"),
            (("none", "--file", "text.txt"), "there is no folder none; a checkpoint is a folder with"),
            (("words", "--file", "text.txt"), "words is no Lathe checkpoint: it has no shape.json"),
            (("model", "--file", "text.txt", *FEW, "--share", "0"), "share=0.0; wanted a share above 0, up to 1"),
            (("model", "--file", "text.txt", "--sequences", "0"), "sequences=0 of seq_len=100; wanted 1 or more"),
            (("model", "--file", "text.txt", "--out", "found.txt"), "found.txt: the name should end in .json"),
            (("model", "--file", "text.txt", "--html", "no/page.html"), "there is no folder no to write page.html in"),
            (("model", "--file", "text.txt", *FEW, "--device", "abacus"), "torch cannot use the device 'abacus' here"),
        ],
    )
    def test_words_that_make_no_analysis(
        self, here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
    ) -> None:
        assert said in refuse(capsys, *words)

    def test_more_tokens_than_learned_positions(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shape = dataclasses.replace(SHAPE, position="learned")
        save_checkpoint("learned", shape, init.build(shape, scheme="llama", seed=0).state_dict(), companions="words")
        said = refuse(capsys, "learned", "--file", "text.txt", "--sequences", "5")
        assert "seq_len=100 is more than the model's 48 learned positions; take seq_len=48 or less" in said
