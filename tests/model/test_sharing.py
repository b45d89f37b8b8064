"""Shared layers from training to export: each pattern trains, decodes from its cache, and goes out written out."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lathe.hub.exporting import export_checkpoint
from lathe.hub.importing import import_checkpoint
from lathe.hub.sharing import unroll
from lathe.model.cache import KVCache
from lathe.model.checkpoint import load_model
from lathe.model.decoder import Decoder
from lathe.model.generate import generate
from lathe.model.init import build
from lathe.recipe import Data, Recipe
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import train
from tests.small_datasets import VOCAB, write_small_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = Shape.of(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, vocab_size=VOCAB, max_seq_len=32)
PATTERNS = {
    "immediate": replace(PLAIN, n_layers=4, sharing="immediate", sharing_count=2),
    "all-over": replace(PLAIN, n_layers=4, sharing="all-over", sharing_count=2),
    "reverse": replace(PLAIN, n_layers=6, sharing="reverse", sharing_count=3),
}
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_dataset(folder, train=2000, held_out=200, vocab_size=2)
    return folder


@pytest.fixture(scope="module", params=PATTERNS)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Train a moment; give the run's folder, which is a checkpoint, and the run."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    recipe = Recipe(
        shape=PATTERNS[request.param], data=Data(train=str(data)), tokens=STEPS * 64, seq_len=16, batch_tokens=64,
        lr=3e-2,
    )  # fmt: skip
    return out, train(recipe, Execution(out=str(out), threads=1), report=lambda _: None)


def some_tokens(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, size, generator=torch.Generator().manual_seed(seed))


def test_it_trains(trained: tuple[Path, Any]) -> None:
    """Of 50 tokens the data has two, which every pattern learns in a few steps."""
    out, run = trained
    model = load_model(out)
    assert len(model.blocks) == 2
    assert sum(p.numel() for p in model.parameters()) == run.shape.params == PLAIN.params
    assert run.flops == pytest.approx(run.shape.train_flops(run.tokens, 16))
    assert run.loss < 0.5 * math.log(VOCAB)


def test_cached_decoding_is_the_full_forward(trained: tuple[Path, Any]) -> None:
    model = load_model(trained[0]).eval().double()
    tokens = some_tokens(2, 12)
    with torch.no_grad():
        cache = KVCache.allocate(model.shape, batch=2, slots=12, dtype=torch.float64, device="cpu")
        assert len(cache.keys) == model.shape.n_layers
        parts = [model.logits(model.extend(part, cache)) for part in tokens.split([5, *([1] * 7)], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-9, rtol=1e-9)
        prompts = [[1, 2, 3], [4]]
        for prompt, new in zip(prompts, generate(model, prompts, max_new_tokens=8), strict=True):
            for length, token in enumerate(new):
                full = model(torch.tensor([prompt + new[:length]]))
                assert full[0, -1].argmax() == token


def test_it_goes_out_written_out(trained: tuple[Path, Any], tmp_path: Path) -> None:
    out, run = trained
    tokens = some_tokens(2, 16)
    done = export_checkpoint(out, tmp_path / "hf")
    assert "were written out" in done.notes[0]
    import_checkpoint(tmp_path / "hf", tmp_path / "again")
    with torch.no_grad():
        wanted, again = load_model(out)(tokens), load_model(tmp_path / "again")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        assert torch.equal(again(tokens), wanted)
        assert (theirs(tokens).logits - wanted).abs().max() <= 1e-4
    assert len(again.blocks) == theirs.config.num_hidden_layers == run.shape.n_layers


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_shared_blocks_gradient_is_the_sum_of_its_visits(pattern: str) -> None:
    """Known answer: the same loss through a copy of the block for every visit, whose gradients add up."""
    shape = PATTERNS[pattern]
    shared = build(shape, scheme="openlm", seed=0).double()
    flat_shape, weights = unroll(shape, shared.state_dict())
    flat = Decoder(flat_shape).double()
    flat.load_state_dict(weights)
    tokens = some_tokens(2, 13)
    losses = [model.loss(tokens[:, :-1], tokens[:, 1:]).total for model in (shared, flat)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    for name, parameter in shared.named_parameters():
        if not name.startswith("blocks."):
            assert parameter.grad is not None
            continue
        _, stored, rest = name.split(".", 2)
        visits = [i for i, block in enumerate(shape.visits) if block == int(stored)]
        grads = [grad for i in visits if (grad := flat.get_parameter(f"blocks.{i}.{rest}").grad) is not None]
        assert len(grads) == shape.sharing_count
        torch.testing.assert_close(parameter.grad, torch.stack(grads).sum(dim=0), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_recomputing_visits_changes_no_gradient(pattern: str) -> None:
    grads = []
    for every in (None, 1, 2):
        model = build(PATTERNS[pattern], scheme="openlm", seed=0).double()
        model.recompute_every = every
        tokens = some_tokens(2, 9)
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for found in grads[1:]:
        for name, grad in found.items():
            torch.testing.assert_close(grad, grads[0][name])
