"""The trained weights of shared/data: their loss and greedy text as SOURCES.md gives them, before and after export."""

from pathlib import Path

import pytest
import torch
from foreign_models import load_model
from torch import Tensor

from lathe.cli import main
from lathe.model import checkpoint
from lathe.model.checkpoint import load_tokenizer

TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
LOSS = 1.452


@pytest.fixture(scope="module")
def ours(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories") / "ours"
    main(["import", str(shared_data / "weights/stories260K_hf"), "--out", str(folder)])
    return folder


def read_text(shared_data: Path, folder: Path) -> Tensor:
    """Give the sample's first 9,472 tokens, without special ones, as 37 windows of 256."""
    text = (shared_data / "text/tinystories_sample.txt").read_text(encoding="utf-8")
    ids = load_tokenizer(folder).encode(text, add_special_tokens=False).ids[:9472]
    return torch.tensor(ids).view(37, 256)


def test_loss(ours: Path, shared_data: Path) -> None:
    model, tokens_bt = checkpoint.load_model(ours), read_text(shared_data, ours)
    losses = model.loss(tokens_bt[:, :-1], tokens_bt[:, 1:])
    assert float(losses.cross_entropy / losses.count) == pytest.approx(LOSS, abs=5e-4)


def test_greedy_text(ours: Path) -> None:
    model, tokenizer = checkpoint.load_model(ours), load_tokenizer(ours)
    ids = tokenizer.encode("Once upon a time").ids
    with torch.inference_mode():
        while len(tokenizer.decode(ids)) < len(TEXT):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids) == TEXT


def test_export(ours: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(ours), "--to", "hf", "--out", str(tmp_path / "theirs")])
    assert capsys.readouterr().out == f"LlamaForCausalLM: {tmp_path / 'theirs'}\n"
    tokens_bt = read_text(shared_data, ours)[:4]
    with torch.no_grad():
        original, exported = (load_model(f) for f in (shared_data / "weights/stories260K_hf", tmp_path / "theirs"))
        wanted = original(tokens_bt).logits
        assert torch.equal(exported(tokens_bt).logits, wanted)
        assert (checkpoint.load_model(ours)(tokens_bt) - wanted).abs().max() <= 1e-4
    generated = exported.generate(torch.tensor([[1]]), max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, original.generate(torch.tensor([[1]]), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", ["stories260K/stories260K.bin"])
def test_llama2c(name: str, ours: Path, shared_data: Path, tmp_path: Path) -> None:
    """The same model from its first home, with a tokenizer given beside it."""
    words = str(shared_data / "weights/stories260K/tokenizer.json")
    main(["import", str(shared_data / "weights" / name), "--out", str(tmp_path / "ours"), "--tokenizer", words])
    tokens_bt = read_text(shared_data, tmp_path / "ours")[:4]
    with torch.no_grad():
        found, wanted = (checkpoint.load_model(folder)(tokens_bt) for folder in (tmp_path / "ours", ours))
    assert (found - wanted).abs().max() <= 1e-4


def test_commands_refuse_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["import", "nowhere", "--out", str(tmp_path / "a")],
        ["export", str(tmp_path / "none"), "--to", "hf", "--out", str(tmp_path / "b")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
