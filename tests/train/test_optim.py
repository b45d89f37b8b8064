"""Who steps which weight, how fast and how it decays; moving averages by hand."""

from typing import Any

import pytest
import torch

from lathe.errors import RecipeError
from lathe.model.init import build
from lathe.recipe import Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train.optim import Ema, build_optimisers, set_lr

SHAPE = Shape.of(d_model=32, n_layers=2, n_heads=2, vocab_size=64, norm="layernorm", bias="all", position="learned")
BASE = Shape.of(d_model=16, n_layers=2, n_heads=1, vocab_size=64, norm="layernorm", bias="all", position="learned")


def make(init: Init | None = None, **optimiser: Any) -> Recipe:
    return Recipe(
        shape=SHAPE, tokens=640, seq_len=16, batch_tokens=64, lr=1e-3, optimiser=Optimiser(**optimiser),
        schedule=Schedule(name="constant", warmup_steps=4), init=init or Init(),
    )  # fmt: skip


def settings(recipe: Recipe) -> dict[str, tuple[str, float, float]]:
    model = build(SHAPE, scheme="openlm", seed=0)
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (type(optimiser).__name__, group["peak"], group["weight_decay"])
        for optimiser in build_optimisers(model, recipe)
        for group in optimiser.param_groups
        for p in group["params"]
    }


def test_every_weight_is_stepped_once() -> None:
    model = build(SHAPE, scheme="openlm", seed=0)
    for name in ("adamw", "muon"):
        stepped = [p for o in build_optimisers(model, make(name=name)) for g in o.param_groups for p in g["params"]]
        assert len(stepped) == len(set(stepped)) == len(list(model.parameters()))


def test_decay_groups() -> None:
    assert {row[2] for row in settings(make()).values()} == {0.1}
    found = settings(make(decay="matrices", weight_decay=0.3))
    assert found["blocks.0.mlp.up.weight"][2] == found["embedding.weight"][2] == 0.3
    assert found["blocks.0.mlp.up.bias"][2] == found["norm.weight"][2] == 0.0


def test_embeddings_may_have_a_rate_of_their_own() -> None:
    found = settings(make(embedding_lr=0.02))
    assert {name for name, row in found.items() if row[1] == 0.02} == {"embedding.weight", "positions.weight"}
    assert {row[1] for row in found.values()} == {0.02, 1e-3}


def test_mup_slows_wide_matrices_and_decays_all_alike() -> None:
    found = settings(make(Init(scheme="mup", base=BASE)))
    assert found["blocks.0.mlp.up.weight"] == ("AdamW", 5e-4, 0.2)
    assert found["head.weight"] == ("AdamW", 5e-4, 0.2)
    assert found["embedding.weight"] == found["norm.weight"] == ("AdamW", 1e-3, 0.1)


def test_muon_takes_the_blocks_matrices() -> None:
    found = settings(make(name="muon"))
    taken = {name for name, row in found.items() if row[0] == "Muon"}
    assert taken == {name for name in found if name.startswith("blocks.") and name.endswith(("qkv.weight", "out.weight",
                     "gate.weight", "up.weight", "down.weight"))}  # fmt: skip


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RecipeError, match=r"torch 2\.9"):
        build_optimisers(build(SHAPE, scheme="openlm", seed=0), make(name="muon"))


def test_rates_are_shares_of_each_peak() -> None:
    recipe = make(embedding_lr=0.02)
    made = build_optimisers(build(SHAPE, scheme="openlm", seed=0), recipe)
    assert set_lr(made, recipe, 1) == pytest.approx(5e-4)
    assert sorted({group["lr"] for group in made[0].param_groups}) == pytest.approx([5e-4, 0.01])


def test_the_average_is_as_worked_out_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = Ema(module, 0.5)
    memories = [1 / 10, 2 / 11, 3 / 12]
    wanted = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0)):
        with torch.no_grad():
            module.weight.fill_(value)
        ema.update(step)
        wanted = memories[step] * wanted + (1 - memories[step]) * value
    with ema.applied():
        assert module.weight.item() == pytest.approx(wanted, rel=1e-6)
    assert module.weight.item() == 8.0
    for step in range(3, 60):
        ema.update(step)
    assert ema.weights["weight"].item() == pytest.approx(8.0)
