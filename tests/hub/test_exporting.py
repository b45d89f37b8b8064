"""Exports: what is written beside the weights, shared layers written out, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from foreign_models import load_model, random_tokens, random_weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from lathe.errors import CheckpointError, ShapeError
from lathe.hub.exporting import choose_family, export_checkpoint
from lathe.hub.importing import import_checkpoint
from lathe.hub.sharing import unroll
from lathe.model import checkpoint
from lathe.model.checkpoint import empty_model, save_checkpoint
from lathe.presets.shapes import load_shape
from lathe.shape import Shape

SMALL = Shape(d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_ff=40, vocab_size=61, max_seq_len=48)


def save(folder: Path, shape: Shape = SMALL) -> Path:
    save_checkpoint(folder, shape, random_weights(shape))
    return folder


def save_tokenizer(path: Path, *, words: int = 61) -> Tokenizer:
    vocabulary = {f"w{i}": i for i in range(words - 2)} | {"<s>": words - 2, "</s>": words - 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path))
    return tokenizer


@pytest.mark.parametrize(("sharing", "count"), [("immediate", 2), ("all-over", 2), ("reverse", 3)])
def test_shared_layers_are_written_out(sharing: str, count: int, tmp_path: Path) -> None:
    shape = dataclasses.replace(SMALL, n_layers=2 * count, sharing=sharing, sharing_count=count, tied=True)
    folder = save(tmp_path / "ours", shape)
    done = export_checkpoint(folder, tmp_path / "theirs")
    assert re.search(rf"shared layers \({sharing}, {count} visits a block\) were written out", done.notes[0])
    tokens_bt = random_tokens()
    with torch.no_grad():
        wanted = checkpoint.load_model(folder)(tokens_bt)
        assert (load_model(tmp_path / "theirs")(tokens_bt).logits - wanted).abs().max() <= 1e-4
    flat = import_checkpoint(tmp_path / "theirs", tmp_path / "again")
    assert flat == dataclasses.replace(shape, sharing="none", sharing_count=1)
    with torch.no_grad():
        assert torch.equal(checkpoint.load_model(tmp_path / "again")(tokens_bt), wanted)


def test_norms_without_biases_get_zero_ones(tmp_path: Path) -> None:
    """OpenLM's and Morph's shapes: no family has such norms, and a bias of zero changes nothing."""
    shape = dataclasses.replace(SMALL, norm="layernorm-gain")
    folder = save(tmp_path / "ours", shape)
    done = export_checkpoint(folder, tmp_path / "theirs")
    assert done.architecture == "StableLmForCausalLM"
    assert "biases of zero" in done.notes[0]
    tokens_bt = random_tokens()
    with torch.no_grad():
        wanted = checkpoint.load_model(folder)(tokens_bt)
        assert (load_model(tmp_path / "theirs")(tokens_bt).logits - wanted).abs().max() <= 1e-4
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "again") == dataclasses.replace(shape, norm="layernorm")


def test_unroll_leaves_the_unshared_alone() -> None:
    weights = empty_model(SMALL).state_dict()
    assert unroll(SMALL, weights) == (SMALL, dict(weights))


def test_tokenizer_and_generation_settings_travel(tmp_path: Path) -> None:
    folder = save(tmp_path / "ours")
    mine = save_tokenizer(folder / "tokenizer.json")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 59, "eos_token_id": 60}))
    export_checkpoint(folder, tmp_path / "theirs")
    model, tokenizer = load_model(tmp_path / "theirs"), AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert tokenizer("w3 w4").input_ids == mine.encode("w3 w4").ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (59, 60)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (59, 60, None)
    import_checkpoint(tmp_path / "theirs", tmp_path / "again")
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_says_which_dtype_to_load(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ours", SMALL, random_weights(SMALL, dtype=torch.bfloat16))
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    assert load_model(tmp_path / "theirs").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mobilellm-125m", "llama"),
        ("mobilellm-125m-ls", "llama"),
        ("open_lm_1b", "stablelm"),
        ("scale_open_lm_1b_v8", "stablelm"),
        ("gpt2-medium", "gpt2"),
        ("pythia-1.4b", "neox"),
        ("opt-1.3b", "opt"),
        ("llama-2-7b", "llama"),
    ],
)
def test_presets_find_their_family(name: str, family: str) -> None:
    found, _ = choose_family(load_shape(name))
    assert found.name == family


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": "full"}, "nearest, llama, cannot hold qk_norm='full' (it has 'none')"),
        ({"position": "none"}, "nearest, llama, cannot hold position='none' (it has 'rotary')"),
        ({"parallel_residual": True}, "cannot hold parallel_residual=True (it has False)"),
        ({"norm": "layernorm-gain", "qk_norm": "full"}, "nearest, stablelm, cannot hold qk_norm='full'"),
        ({"mlp": "gelu"}, "cannot hold mlp='gelu' (it has 'swiglu')"),
        ({"d_model": 26, "bias": "all"}, "cannot hold d_model=26 (it has a multiple of n_heads=4)"),
    ],
)
def test_refuses_shapes_with_the_reason(changes: dict, words: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "ours", dataclasses.replace(SMALL, **changes))
    with pytest.raises(ShapeError, match=re.escape(words)):
        export_checkpoint(folder, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_refuses_the_wrong_family(tmp_path: Path) -> None:
    folder = save(tmp_path / "ours")
    with pytest.raises(ShapeError, match=r"gpt2 cannot hold .*norm='rmsnorm' \(it has 'layernorm'\).*n_kv_heads=2"):
        export_checkpoint(folder, tmp_path / "theirs", family="gpt2")
    with pytest.raises(CheckpointError, match="no family to export as is called 'lama'; did you mean 'llama'"):
        export_checkpoint(folder, tmp_path / "theirs", family="lama")
    with pytest.raises(CheckpointError, match="'mobilellm'"):  # transformers has no code for it
        export_checkpoint(folder, tmp_path / "theirs", family="mobilellm")


def test_refuses_bad_places(tmp_path: Path) -> None:
    folder = save(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is the model itself"):
        export_checkpoint(folder, folder / ".." / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        export_checkpoint(folder, tmp_path / "full")
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_checkpoint(folder, tmp_path / "full" / "notes.txt" / "theirs")
    with pytest.raises(CheckpointError, match="there is no folder"):
        export_checkpoint(tmp_path / "none", tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="unknown format 'onnx'; known: gguf, hf"):
        export_checkpoint(folder, tmp_path / "theirs", to="onnx")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="a family is chosen for hf only"):
        export_checkpoint(folder, tmp_path / "m.gguf", to="gguf", family="llama")


def test_leaves_nothing_behind_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    folder = save(tmp_path / "ours")
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_checkpoint(folder, tmp_path / "theirs")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_gguf(tmp_path: Path) -> None:
    done = export_checkpoint(save(tmp_path / "ours"), tmp_path / "model.gguf", to="gguf")
    assert done.path.read_bytes().startswith(b"GGUF")
