"""Each arm is what it says: which weights are the reference's, which are drawn, and of what shape."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lathe.errors import ShapeError
from lathe.inherit.arms import ARMS, Source, stack
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from tests.hub.foreign_models import random_weights
from tests.inherit.small_references import SHAPES, SMALL, decoder, logits

LAYERS = (0, 1)


def make_source(shape: Shape = SMALL, **given) -> Source:
    return Source(**{"shape": shape, "weights": random_weights(shape), "layers": LAYERS, **given})


def start(name: str, source: Source, blocks: int | None = None, seed: int = 0):
    arm = ARMS[name]
    assert arm.start is not None
    shape, weights = arm.start(source, blocks, seed)
    assert shape == arm.shape(source, blocks)
    decoder(shape, dict(weights))  # names and sizes are the shape's
    return weights


def inherited(weights, source: Source) -> set[str]:
    """Name the weights that are the reference's of the same name."""
    return {name for name, w in weights.items() if torch.equal(w, source.weights.get(name, torch.zeros(0)))}


def blocks_of(names) -> set[str]:
    return {name.split(".")[2] for name in names if name.startswith("blocks.")}


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_decoder_of_its_shape(name, family):
    source = make_source(SHAPES[family], influential=(0, 3), width=12)
    for blocks in (None, 1, 3) if ARMS[name].most else (None,):
        shape = ARMS[name].shape(source, blocks)
        Decoder(shape)
        assert blocks is None or shape.stored_layers == blocks
        if ARMS[name].start is not None:
            start(name, source, blocks)


def test_the_inherited_arm_is_the_references_layers():
    source = make_source()
    weights = start("inherited", source)
    assert inherited(weights, source) == weights.keys()
    assert ARMS["random"].shape(source, None) == source.small == dataclasses.replace(SMALL, n_layers=2)


def test_inheriting_all_layers_is_the_reference():
    source = make_source(layers=(0, 1, 2, 3))
    assert torch.equal(logits(source.small, dict(start("inherited", source))), logits(SMALL, dict(source.weights)))


@pytest.mark.parametrize(("name", "kept"), [("attention-only", "attention"), ("mlp-only", "mlp")])
def test_a_part_is_inherited_with_its_norm_and_the_rest_is_drawn_by_the_seed(name, kept):
    source = make_source()
    once, again, other = (start(name, source, seed=seed) for seed in (0, 0, 1))
    matrices = {key for key, w in once.items() if w.ndim == 2}
    drawn = matrices - inherited(once, source)
    assert blocks_of(drawn) == {"attention", "mlp"} - {kept}
    assert f"{kept}_norm" in blocks_of(inherited(once, source))
    assert all(torch.equal(w, again[key]) for key, w in once.items())
    assert not any(torch.equal(once[key], other[key]) for key in drawn)


def test_pruning_leaves_out_what_was_said_to_matter_least():
    source = make_source(influential=(0, 3))
    weights = start("pruned", source)
    for name, w in weights.items():
        wanted = name.replace("blocks.1.", "blocks.3.")
        assert torch.equal(w, source.weights[wanted])


def test_shared_layers_are_the_inherited_ones_visited_twice():
    source = make_source()
    shape = ARMS["shared"].shape(source, None)
    assert shape.visits == (0, 0, 1, 1)
    assert shape.params == source.small.params
    flat = dataclasses.replace(SMALL, n_layers=4)
    doubled = {name: w for name, w in source.weights.items() if not name.startswith("blocks.")}
    for visit, layer in enumerate((0, 0, 1, 1)):
        prefix = f"blocks.{layer}."
        block = {n.removeprefix(prefix): w for n, w in source.weights.items() if n.startswith(prefix)}
        doubled |= {f"blocks.{visit}.{n}": w for n, w in block.items()}
    torch.testing.assert_close(logits(shape, dict(start("shared", source))), logits(flat, doubled))


def test_more_shared_layers_than_were_chosen_are_the_next_of_the_reference():
    source = make_source(layers=(2, 3))
    weights = start("shared", source, blocks=3)
    for place, layer in enumerate((0, 2, 3)):
        gain = "attention.qkv.weight"
        assert torch.equal(weights[f"blocks.{place}.{gain}"], source.weights[f"blocks.{layer}.{gain}"])


def test_half_the_width_keeps_heads_and_depth():
    shape = ARMS["half-width"].shape(make_source(), None)
    assert (shape.d_model, shape.n_layers, shape.n_heads, shape.n_kv_heads) == (12, 4, 2, 1)
    assert (shape.d_head, shape.d_ff) == (SMALL.d_head, SMALL.d_ff // 2)
    assert ARMS["narrowed"].shape(make_source(), None) == shape


def test_svd_unties_the_head():
    source = make_source(dataclasses.replace(SMALL, tied=True), width_by="svd")
    assert not ARMS["narrowed"].shape(source, None).tied
    start("narrowed", source)


def test_a_width_that_leaves_no_whole_heads_is_refused():
    with pytest.raises(ShapeError, match="widths that work"):
        ARMS["narrowed"].shape(make_source(width=10), None)


def test_stacking_sets_layers_on_top_of_themselves():
    half = dataclasses.replace(SMALL, n_layers=2)
    weights = random_weights(half)
    shape, stacked = stack(half, weights, 3)
    assert shape.n_layers == 3
    for place, layer in enumerate((0, 1, 0)):
        name = "mlp.down.weight"
        assert torch.equal(stacked[f"blocks.{place}.{name}"], weights[f"blocks.{layer}.{name}"])
    decoder(shape, dict(stacked))


def test_only_arms_that_owe_the_reference_something_are_charged_for_it():
    free = {name for name, arm in ARMS.items() if not arm.reference}
    assert free == {"random", "half-width", "stacked", "shared-random"}
    assert all(arm.reference for arm in ARMS.values() if arm.start is not None or arm.taught)
