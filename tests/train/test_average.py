"""Tests of averages of a run's states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.checkpoint import WEIGHTS, empty_model, load_model, read_tensors
from lathe.recipe import Recipe
from lathe.shape import Shape
from lathe.train.average import average_checkpoints
from lathe.train.folder import prepare
from lathe.train.snapshots import step_folder
from lathe.train.state import Saver

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, vocab_size=64)
RECIPE = Recipe(shape=SHAPE, tokens=4096, seq_len=32, batch_tokens=256, lr=1e-3)


def draw(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(step)
    return {name: torch.randn(p.shape).to(dtype) for name, p in empty_model(SHAPE).state_dict().items()}


def make_run(folder: Path, *steps: int, dtype: torch.dtype = torch.float32) -> None:
    prepare(folder, RECIPE)
    saver = Saver(folder, keep_last=len(steps))
    for step in steps:
        weights = draw(step, dtype)
        others = {f"ema.{name}": w * 0 for name, w in weights.items()}
        saver.save(step, {**{f"model.{name}": w for name, w in weights.items()}, **others}, {})
    saver.close()


def test_the_mean_of_states_is_a_checkpoint(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    make_run(run, 1, 2, 3)
    (run / "tokenizer.json").write_text("{}")
    assert average_checkpoints(run, out, last=2) == [2, 3]
    found = read_tensors(out / WEIGHTS)
    for name, w in draw(2).items():
        assert torch.equal(found[name], (w + draw(3)[name]) / 2)
    assert load_model(out).shape == SHAPE
    assert (out / "tokenizer.json").exists()
    assert average_checkpoints(run, out) == [1, 2, 3]
    assert average_checkpoints(run, out, steps=[3, 1, 3]) == [1, 3]
    assert average_checkpoints(run, out, steps=[2]) == [2]
    assert all(torch.equal(w, draw(2)[name]) for name, w in read_tensors(out / WEIGHTS).items())


def test_sums_of_bf16_are_fp32(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 1, 2, 3, dtype=torch.bfloat16)
    average_checkpoints(tmp_path / "run", tmp_path / "out")
    found = read_tensors(tmp_path / "out" / WEIGHTS)
    all_three = [draw(step, torch.bfloat16) for step in (1, 2, 3)]
    for name, w in found.items():
        wanted = torch.stack([one[name].double() for one in all_three]).mean(0).float().bfloat16()
        assert w.dtype == torch.bfloat16
        torch.testing.assert_close(w, wanted, rtol=2**-7, atol=1e-7)


def test_what_cannot_be_averaged_says_why(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(CheckpointError, match="is no run's folder"):
        average_checkpoints(run, out)
    prepare(run, RECIPE)
    with pytest.raises(CheckpointError, match="keeps no states; train with save_every"):
        average_checkpoints(run, out)
    make_run(run, 1, 2)
    for options, word in [
        ({"last": 3}, "last=3; .* keeps 2 states, of steps 1, 2"),
        ({"last": 0}, "last=0"),
        ({"steps": [1, 7]}, "no state of step 7; it keeps: 1, 2"),
        ({"steps": []}, "no steps were named"),
        ({"steps": [1], "last": 1}, "not both"),
    ]:
        with pytest.raises(CheckpointError, match=word):
            average_checkpoints(run, out, **options)
    with pytest.raises(CheckpointError, match="would replace the run's own weights"):
        average_checkpoints(run, run)
    (step_folder(run, 1) / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing"):
        average_checkpoints(run, out)
    assert not out.exists()
    assert average_checkpoints(run, out, last=1) == [2]
