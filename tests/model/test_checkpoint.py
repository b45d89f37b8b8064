"""Checkpoints: what comes back, and what a wrong, cut short or unwritable folder, device or dtype says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lathe import codec
from lathe.errors import CheckpointError, DeviceError, LatheError
from lathe.model import checkpoint
from lathe.model.checkpoint import (
    COMPANIONS,
    RECIPE,
    SHAPE,
    TOKENIZER,
    WEIGHTS,
    check_device,
    check_dtype,
    check_vocabulary,
    copy_companions,
    explain_memory,
    load_model,
    load_shape_of,
    load_stop_tokens,
    load_tokenizer,
    save_checkpoint,
)
from lathe.model.init import build
from lathe.recipe import Recipe
from lathe.shape import Shape

SMALL = Shape(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=40)
SHARED = replace(SMALL, tied=True, sharing="immediate", sharing_count=2, norm="layernorm", bias="all")


def weights_of(shape: Shape) -> dict[str, torch.Tensor]:
    return build(shape, scheme="openlm", seed=0).state_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", SMALL, weights_of(SMALL))
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shape", [SMALL, SHARED], ids=["plain", "shared"])
def test_round_trip(shape, tmp_path):
    weights = weights_of(shape)
    recipe = Recipe(shape=shape, tokens=1024, seq_len=16, batch_tokens=64, lr=1e-3)
    save_checkpoint(tmp_path / "new" / "model", shape, weights, recipe=recipe)
    model = load_model(tmp_path / "new" / "model")
    assert load_shape_of(tmp_path / "new" / "model") == model.shape == shape
    assert codec.load(Recipe, tmp_path / "new" / "model" / RECIPE, kind="recipe") == recipe
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {WEIGHTS, SHAPE, RECIPE}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_weights_need_not_lie_in_order(tmp_path):
    weights = weights_of(SMALL)
    weights["head.weight"] = weights["head.weight"].T.contiguous().T.requires_grad_()
    save_checkpoint(tmp_path, SMALL, weights)
    assert torch.equal(load_model(tmp_path).output_weight, weights["head.weight"])


def test_views_of_one_memory_are_saved_apart(tmp_path):
    weights = weights_of(SMALL)
    weights["head.weight"] = weights["embedding.weight"]
    save_checkpoint(tmp_path, SMALL, weights)
    assert torch.equal(load_model(tmp_path).output_weight, weights["embedding.weight"])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_weights(folder, dtype):
    model, exact = load_model(folder, dtype=dtype), load_model(folder)
    wanted = checkpoint.DTYPES[dtype]
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert torch.equal(model.embedding.weight, exact.embedding.weight.to(wanted))
    save_checkpoint(folder, SMALL, model.state_dict())
    assert load_file(folder / WEIGHTS)["embedding.weight"].dtype == wanted
    assert torch.equal(load_model(folder).embedding.weight, model.embedding.weight.float())


def test_first_differences_are_listed(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["norm.weight"]
    weights["head.weight"] = torch.zeros(41, 16)
    weights["blocks.1.mlp.up.bias"] = torch.zeros(24)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / WEIGHTS))
    assert "norm.weight is missing" in message
    assert "head.weight is 41×16, the shape wants 40×16" in message
    assert "blocks.1.mlp.up.bias is in no such decoder" in message


def test_many_differences_are_counted(tmp_path):
    save_checkpoint(tmp_path, SMALL, weights_of(SMALL))
    codec.save(replace(SMALL, d_model=32), tmp_path / SHAPE, kind="shape")
    with pytest.raises(CheckpointError, match=r"embedding.weight is 40×16, the shape wants 40×32; .*; and \d+ more$"):
        load_model(tmp_path)


def test_wrong_weights_are_not_saved(folder):
    before = contents(folder)
    weights = weights_of(SMALL)
    del weights["embedding.weight"]
    with pytest.raises(CheckpointError, match=r"the weights to save: .* embedding.weight is missing"):
        save_checkpoint(folder, SMALL, weights)
    assert contents(folder) == before


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_file(folder, kept):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is no whole safetensors file")):
        load_model(folder)


def test_a_pickle_is_not_opened(folder):
    torch.save(weights_of(SMALL), folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        load_model(folder)


def test_folders_that_are_no_checkpoints(folder, tmp_path):
    with pytest.raises(CheckpointError, match=f"there is no folder .*nowhere; a checkpoint is a folder with {WEIGHTS}"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_model(folder / WEIGHTS)
    (folder / SHAPE).rename(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"it has no shape.json. It holds config.json: run `lathe import`"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it has no shape.json.$"):
        load_model(folder)


def test_missing_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is missing; the checkpoint is not whole"):
        load_model(folder)


def test_a_wrong_shape_file(folder):
    (folder / SHAPE).write_text(json.dumps({"d_model": 16}))
    with pytest.raises(LatheError, match=re.escape(str(folder / SHAPE))):
        load_model(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float32"}, "unknown dtype 'float32' of weights; "),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"device": "gpu"}, "torch cannot use the device 'gpu' here"),
        ({"device": "cuda:77"}, "torch cannot use the device 'cuda:77' here"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(folder, given, message):
    with pytest.raises(DeviceError, match=message):
        load_model(folder, **given)


def test_devices_and_dtypes_that_are_there():
    assert check_device("cpu").type == "cpu"
    assert check_dtype("bf16", torch.device("cpu")) is torch.bfloat16


# Saving that fails: what stood there before must still be whole.


def test_a_file_where_the_folder_should_be(folder):
    path = folder / "file"
    path.write_text("no folder")
    for target in (path, path / "model"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_checkpoint(target, SMALL, weights_of(SMALL))
    assert path.read_text() == "no folder"


@pytest.mark.parametrize("failing", ["tensors", "shape", "companions"])
def test_nothing_is_lost_when_saving_fails(folder, tmp_path, monkeypatch, failing):
    """A disk that fills up: the older checkpoint still loads, and no half of the new one lies around."""
    before = contents(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / TOKENIZER).write_text("{}")

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    place = {
        "tensors": (checkpoint, "save_file"),
        "shape": (codec, "save"),
        "companions": (checkpoint.shutil, "copyfile"),
    }
    monkeypatch.setattr(*place[failing], full)
    newer = build(SMALL, scheme="openlm", seed=1).state_dict()
    with pytest.raises(CheckpointError, match=r"No space left on device"):
        save_checkpoint(folder, SMALL, newer, companions=other)
    monkeypatch.undo()
    assert contents(folder) == before
    assert torch.equal(load_model(folder).embedding.weight, weights_of(SMALL)["embedding.weight"])
    assert {path.name for path in folder.iterdir()} == set(before)


def test_a_checkpoint_is_replaced_whole(folder):
    newer = replace(SMALL, d_model=32, d_head=16)
    save_checkpoint(folder, newer, weights_of(newer))
    assert load_model(folder).shape == newer


# The tokenizer and its companions.


def write_tokenizer(folder: Path, *, size: int) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {f"w{i}": i for i in range(size)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / TOKENIZER))


def test_a_tokenizer_with_too_many_ids(folder):
    write_tokenizer(folder, size=SMALL.vocab_size)
    tokenizer = load_tokenizer(folder, SMALL)
    assert tokenizer.get_vocab_size() == SMALL.vocab_size
    write_tokenizer(folder, size=SMALL.vocab_size + 1)
    assert load_tokenizer(folder).get_vocab_size() == SMALL.vocab_size + 1
    with pytest.raises(CheckpointError, match="the tokenizer's largest id is 40, but the embedding has 40 rows"):
        load_tokenizer(folder, SMALL)
    tokenizer.add_special_tokens(["<pad>"])
    with pytest.raises(CheckpointError, match="the tokenizer's largest id is 40"):
        check_vocabulary(tokenizer, SMALL, source="here")


def test_no_tokenizer(folder):
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json; put the model's tokenizer there"):
        load_tokenizer(folder)
    (folder / TOKENIZER).write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        load_tokenizer(folder)


def test_companions_travel(folder, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*COMPANIONS, "optimizer.pt"):
        (source / name).write_text(name)
    save_checkpoint(folder, SMALL, weights_of(SMALL), companions=source)
    assert set(contents(folder)) == {WEIGHTS, SHAPE, *COMPANIONS}
    assert (folder / TOKENIZER).read_text() == TOKENIZER
    assert copy_companions(folder, folder) == list(COMPANIONS)
    assert copy_companions(tmp_path, folder) == []


@pytest.mark.parametrize(("written", "ids"), [(None, ()), ("{}", ()), ("2", (2,)), ("[2, 7]", (2, 7)), ("null", ())])
def test_stop_tokens(tmp_path, written, ids):
    if written is not None:
        text = written if written == "{}" else f'{{"eos_token_id": {written}}}'
        (tmp_path / checkpoint.GENERATION).write_text(text)
    assert load_stop_tokens(tmp_path) == ids


@pytest.mark.parametrize("written", ['"2"', "[true]", "2.0", '["a"]'])
def test_stop_tokens_that_are_no_ids(tmp_path, written):
    (tmp_path / checkpoint.GENERATION).write_text(f'{{"eos_token_id": {written}}}')
    with pytest.raises(CheckpointError, match="wanted an id or a list of ids"):
        load_stop_tokens(tmp_path)


# Running out of memory.


@pytest.fixture
def nine_gb_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda device: 9e9)


@pytest.mark.usefixtures("nine_gb_free")
@pytest.mark.parametrize(
    ("error", "more", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            0.0,
            "need at least 26.95 GB, and 9.00 GB are free; int8 weights would fit",
        ),
        (MemoryError(), 3e9, "need at least 29.95 GB, and 9.00 GB are free; int4 weights would fit"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 8e9, "take a smaller shape, batch or context"),
    ],
)
def test_out_of_memory_says_what_is_needed(error, more, message):
    llama = Shape.of(d_model=4096, n_layers=32, n_heads=32, d_ff=11008, vocab_size=32000)
    with (
        pytest.raises(DeviceError, match=f"cpu ran out of memory: weights in fp32 and caches .*{message}"),
        explain_memory(llama, dtype="fp32", device=torch.device("cpu"), more_bytes=more),
    ):
        raise error


def test_other_errors_pass():
    with (
        pytest.raises(RuntimeError, match="something else"),
        explain_memory(SMALL, dtype="fp32", device=torch.device("cpu")),
    ):
        raise RuntimeError("something else")


@pytest.mark.usefixtures("nine_gb_free")
def test_loading_explains_too(folder, monkeypatch):
    def exhausted(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", exhausted)
    with pytest.raises(DeviceError, match="cpu ran out of memory"):
        load_model(folder)


def test_free_memory_is_known():
    assert checkpoint.free_bytes(torch.device("cpu")) > 0
