"""Some layers of a reference: which they are, that all of them are the reference itself, and that each is counted."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import RecipeError, ShapeError
from lathe.evals.analysis import Analysis
from lathe.hub.importing import import_checkpoint
from lathe.inherit.layers import By, Part, choose_layers, count_layers, inherit_layers, parse_layers
from lathe.inherit.start import Inheritance, inherit
from lathe.model import checkpoint
from lathe.model.checkpoint import empty_model, read_tensors
from lathe.shape import Shape
from tests.hub.foreign_models import MODELS, random_tokens, random_weights, save_model
from tests.inherit.small_references import GPT2, SHAPES, SMALL, logits

ANALYSIS = Analysis(
    name="large", shape=SMALL, dataset="text", seq_len=10, sequences=2,
    rank=((1.0, 5.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0), (9.0, 1.0, 1.0, 1.0), (1.0, 1.0, 2.5, 1.0)),
    mass=((1.0, 1.0, 1.0, 1.0), (1.0, 7.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0), (6.0, 1.0, 1.0, 1.0)),
    influence=(0.9, 0.2, 0.1, 0.3), flops=1.0,
)  # fmt: skip


class TestNaming:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("0:13", tuple(range(13))), ("0,2,4:8", (0, 2, 4, 5, 6, 7)), (":2", (0, 1)), ("22:", (22, 23)),
            ("0:24:8", (0, 8, 16)), ("3", (3,)), (" 1, 0 ", (1, 0)), ("0:2,0:2", (0, 1, 0, 1)), ("23", (23,)),
        ],
    )  # fmt: skip
    def test_words(self, text: str, wanted: tuple[int, ...]) -> None:
        assert parse_layers(text, 24) == wanted

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("0:25", "no layer 24 in a reference of 24"), ("24", "no layer 24"), ("0:9999999999999", "no layer"),
            ("5:5", "holds no layer"), ("8:4", "holds no layer"), ("30:", "holds no layer"), ("", "names no layers"),
            ("0:4:0", "names no layers"), ("-1", "names no layers"), ("first", "names no layers"),
        ],
    )  # fmt: skip
    def test_others_are_refused(self, text: str, why: str) -> None:
        with pytest.raises(ShapeError, match=why):
            parse_layers(text, 24)

    def test_shares(self) -> None:
        assert [count_layers(24, ratio) for ratio in (0.5, 1.0, 0.001, 0.55)] == [12, 24, 1, 13]
        for ratio in (0.0, 1.01, float("nan")):
            with pytest.raises(ShapeError, match="no share of the layers"):
                count_layers(24, ratio)


class TestChoosing:
    @pytest.mark.parametrize(
        ("by", "wanted"),
        [("first", (0, 1)), ("uniform", (0, 3)), ("rank", (0, 2)), ("mass", (1, 3)), ("similarity", (0, 3))],
    )
    def test_two_of_four(self, by: By, wanted: tuple[int, ...]) -> None:
        assert choose_layers(4, 2, by=by, analysis=ANALYSIS) == wanted

    @given(n_layers=st.integers(1, 60), data=st.data())
    def test_uniform_goes_from_end_to_end(self, n_layers: int, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, n_layers))
        found = choose_layers(n_layers, count, by="uniform")
        assert found[0] == 0
        assert found[-1] == (n_layers - 1 if count > 1 else 0)
        gaps = [b - a for a, b in itertools.pairwise(found)]
        assert len(found) == count
        assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)

    def test_equals_go_to_the_earlier(self) -> None:
        flat = dataclasses.replace(ANALYSIS, influence=(0.5, 0.5, 0.5, 0.5))
        assert choose_layers(4, 3, by="similarity", analysis=flat) == (0, 1, 2)

    def test_what_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="did you mean 'rank'"):
            choose_layers(4, 2, by="ranks")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ShapeError, match="from 1 to 4"):
            choose_layers(4, 5, by="first")
        with pytest.raises(ShapeError, match="must read a text: give --data"):
            choose_layers(4, 2, by="mass")
        with pytest.raises(ShapeError, match="of 4 layers, the reference has 6"):
            choose_layers(6, 2, by="rank", analysis=ANALYSIS)


@pytest.mark.parametrize("name", MODELS)
def test_all_layers_are_the_reference(name: str, tmp_path: Path) -> None:
    """Whatever the family, by the names of its models in transformers: the same logits, to the bit."""
    save_model(name, tmp_path / "theirs")
    shape = import_checkpoint(tmp_path / "theirs", tmp_path / "large")
    found = inherit(tmp_path / "large", tmp_path / "small", Inheritance(layers="0:2", tokenizer=False))
    assert (found.shape, found.params_inherited, found.params_drawn) == (shape, shape.params, 0)
    large, small = (checkpoint.load_model(tmp_path / which) for which in ("large", "small"))
    tokens_bt = random_tokens()
    with torch.no_grad():
        wanted = large(tokens_bt)
        assert wanted.std() > 0.5, "a model whose logits are all alike proves nothing"
        assert torch.equal(small(tokens_bt), wanted)


@pytest.mark.parametrize("name", SHAPES)
def test_all_layers_of_every_kind_of_shape(name: str) -> None:
    """Sharing too: a model that is inherited whole goes on sharing."""
    shape, weights = SHAPES[name], random_weights(SHAPES[name])
    small, found = inherit_layers(shape, weights, range(4))
    assert small == shape
    assert found.keys() == weights.keys()
    assert torch.equal(logits(small, found), logits(shape, weights))


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].sharing == "none"])
def test_every_tensor_is_counted(name: str) -> None:
    """Each weight of the small model is just the one of the reference that it should be, and none is missing."""
    shape, weights = SHAPES[name], random_weights(SHAPES[name])
    layers = (3, 1, 1)
    small, found = inherit_layers(shape, weights, layers)
    assert small == dataclasses.replace(shape, n_layers=3)
    assert found.keys() == empty_model(small).state_dict().keys()
    whole = [name for name in weights if not name.startswith("blocks.")]
    of_block = [name.removeprefix("blocks.0.") for name in weights if name.startswith("blocks.0.")]
    pairs = [(name, name) for name in whole]
    pairs += [(f"blocks.{at}.{name}", f"blocks.{layer}.{name}") for at, layer in enumerate(layers) for name in of_block]
    assert len(pairs) == len(found)
    assert [ours for ours, theirs in pairs if found[ours] is not weights[theirs]] == []


@pytest.mark.parametrize("name", ["immediate", "all-over", "reverse"])
def test_some_visits_of_shared_layers_get_blocks_of_their_own(name: str) -> None:
    shape, weights = SHAPES[name], random_weights(SHAPES[name])
    small, found = inherit_layers(shape, weights, (1, 2, 3))
    assert (small.sharing, small.n_layers, small.stored_layers) == ("none", 3, 3)
    for place, visit in enumerate((1, 2, 3)):
        ours, theirs = (f"blocks.{i}.mlp.up.weight" for i in (place, shape.visits[visit]))
        assert torch.equal(found[ours], weights[theirs])
    assert logits(small, found).isfinite().all()


class TestParts:
    @pytest.mark.parametrize("part", ["attention", "mlp"])
    @pytest.mark.parametrize("shape", [SMALL, GPT2])
    def test_the_rest_is_drawn(self, shape: Shape, part: Part) -> None:
        weights = random_weights(shape)
        small, found = inherit_layers(shape, weights, (0, 2), part=part, seed=3)
        _, again = inherit_layers(shape, weights, (0, 2), part=part, seed=3)
        _, other = inherit_layers(shape, weights, (0, 2), part=part, seed=4)
        assert found.keys() == empty_model(small).state_dict().keys()
        for name, w in found.items():
            theirs = name.replace("blocks.1.", "blocks.2.")
            inherited = not name.startswith("blocks.") or name.split(".")[2].startswith(part)
            assert torch.equal(w, weights[theirs]) is inherited, name
            assert torch.equal(w, again[name])
            if not inherited and w.dim() > 1:
                assert not torch.equal(w, other[name]), name

    def test_in_the_references_dtype_and_sharing(self) -> None:
        shape = SHAPES["immediate"]
        weights = random_weights(shape, dtype=torch.bfloat16)
        small, found = inherit_layers(shape, weights, range(4), part="attention")
        assert small == shape
        assert {w.dtype for w in found.values()} == {torch.bfloat16}

    def test_unknown_names_are_refused(self) -> None:
        weights = random_weights(SMALL)
        with pytest.raises(ShapeError, match="did you mean 'attention'"):
            inherit_layers(SMALL, weights, (0,), part="attn")  # pyright: ignore[reportArgumentType]
        with pytest.raises(RecipeError, match="unknown init scheme"):
            inherit_layers(SMALL, weights, (0,), part="mlp", scheme="nothing")
        with pytest.raises(ShapeError, match="one at least"):
            inherit_layers(SMALL, weights, ())
        with pytest.raises(ShapeError, match="no layer 4 in a reference of 4"):
            inherit_layers(SMALL, weights, (0, 4))


def test_a_file_holds_what_stands_twice(tmp_path: Path) -> None:
    shape, weights = SMALL, random_weights(SMALL)
    small, found = inherit_layers(shape, weights, (0, 0))
    checkpoint.save_checkpoint(tmp_path, small, found)
    saved = read_tensors(tmp_path / checkpoint.WEIGHTS)
    assert torch.equal(saved["blocks.1.mlp.up.weight"], weights["blocks.0.mlp.up.weight"])
