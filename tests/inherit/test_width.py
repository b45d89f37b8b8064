"""Narrower models: the full width is the identity, planted small models come back, and moments are what they should."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.errors import ShapeError
from lathe.inherit.width import (
    AXES,
    measure_moments,
    moments_flops,
    narrow,
    narrow_shape,
    write_moments,
)
from lathe.model.attention import Window, rotary_tables
from lathe.model.checkpoint import empty_model
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from tests.hub.foreign_models import random_tokens, random_weights
from tests.inherit.small_references import GPT2, SHAPES, SMALL, decoder, logits

RMS = [name for name, shape in SHAPES.items() if shape.norm == "rmsnorm"]


@pytest.mark.parametrize("name", SHAPES)
def test_slicing_to_the_full_width_changes_no_bit(name: str) -> None:
    shape, weights = SHAPES[name], random_weights(SHAPES[name])
    small, found = narrow(shape, weights, shape.d_model)
    assert small == shape
    assert found.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []


@pytest.mark.parametrize("name", RMS)
def test_svd_to_the_full_width_computes_the_same(name: str) -> None:
    """Gains move into matrices, the stream is turned, a tied head gets weights of its own: the logits stay."""
    shape, weights = SHAPES[name], random_weights(SHAPES[name])
    small, found = narrow(shape, weights, shape.d_model, by="svd")
    assert small == dataclasses.replace(shape, tied=False)
    wanted = logits(shape, weights)
    assert wanted.std() > 0.5
    assert (logits(small, found) - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_the_width_is_a_model(name: str, dtype: torch.dtype) -> None:
    shape, weights = SHAPES[name], random_weights(SHAPES[name], dtype=dtype)
    for by in ("slice", "svd") if name in RMS else ("slice",):
        small, found = narrow(shape, weights, 12, by=by)
        assert (small.d_model, small.n_heads, small.d_head, small.d_ff) == (12, 2, shape.d_head, 20)
        assert {name: w.shape for name, w in found.items()} == {
            name: w.shape for name, w in empty_model(small).state_dict().items()
        }
        assert {w.dtype for w in found.values()} == {dtype}
        assert logits(small, found).isfinite().all()


class TestPlanted:
    """A small model hidden in a larger one that computes the same: half of its entries, heads and units are idle."""

    small = dataclasses.replace(
        SMALL, d_model=12, n_heads=2, n_kv_heads=1, d_ff=20, norm_eps=1e-12, qk_norm="head", bias="all"
    )
    large = dataclasses.replace(small, d_model=24, n_heads=4, n_kv_heads=2, d_ff=40)

    @pytest.fixture
    def hidden(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the small model's weights, and those of the large one that it is in; what it does not use is noise."""
        generator = torch.Generator().manual_seed(5)
        r, e = 2, self.small.d_head
        pick = {
            "stream": torch.randperm(24, generator=generator)[:12].sort().values,
            "hidden": torch.randperm(40, generator=generator)[:20].sort().values,
            "qkv": torch.arange((r + 2) * e, 2 * (r + 2) * e),  # the second of two groups
            "mixed": torch.arange(r * e, 2 * r * e),
        }
        inner, outer = random_weights(self.small), random_weights(self.large)
        for name, w in outer.items():
            axes = AXES[name.split(".")[-2]][: w.dim()]
            if axes[0] == "stream" or name == "embedding.weight":  # only the small model writes
                w.zero_()
            index = [pick.get(axis, torch.arange(size)) for axis, size in zip(axes, w.shape, strict=True)]
            w[torch.meshgrid(*index, indexing="ij") if w.dim() == 2 else index[0]] = inner[name]
            if name.endswith("norm.weight") and axes == ("stream",):
                w.mul_(math.sqrt(12 / 24))  # the mean square is over twice the entries
        return inner, outer

    def test_slice_finds_it(self, hidden: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        inner, outer = hidden
        wanted = logits(self.small, inner)
        assert (logits(self.large, outer) - wanted).abs().max() <= 1e-4
        found, weights = narrow(self.large, outer, 12)
        assert found == self.small
        for name, w in weights.items():
            assert torch.allclose(w, inner[name], atol=1e-6), name

    def test_svd_finds_it_turned(self, hidden: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        inner, outer = hidden
        wanted = logits(self.small, inner)
        whole, turned = narrow(self.large, outer, 24, by="svd")
        any_turn_dd = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0]
        for name, w in turned.items():
            axes = AXES[name.split(".")[-2]][: w.dim()]
            if "stream" in axes and not name.endswith("norm.weight"):
                turned[name] = w @ any_turn_dd if axes[-1] == "stream" else any_turn_dd.T @ w
        assert (logits(whole, turned) - wanted).abs().max() <= 1e-4
        found, weights = narrow(whole, turned, 12, by="svd")
        assert (logits(found, weights) - wanted).abs().max() <= 1e-4
        assert (logits(*narrow(whole, turned, 12)) - wanted).abs().max() > 0.1, "slices would do as well"


class TestMoments:
    @pytest.mark.parametrize("shape", [SMALL, GPT2, SHAPES["neox"], SHAPES["reverse"]])
    def test_measured_are_those_of_what_norms_read(self, shape: Shape) -> None:
        """Against a plain run block by block, for one sequence at a time."""
        model, tokens_nt = decoder(shape, random_weights(shape)), random_tokens(batch=3, length=20)
        norm = F.rms_norm if shape.norm == "rmsnorm" else F.layer_norm
        wanted_dd, seen = torch.zeros(24, 24, dtype=torch.float64), 0
        with torch.no_grad():
            for tokens_t in tokens_nt:
                for x_btd in _read_streams(model, tokens_t[None]):
                    x_td = norm(x_btd[0], (24,), eps=shape.norm_eps).double()
                    wanted_dd, seen = wanted_dd + x_td.T @ x_td, seen + len(x_td)
        found_dd = measure_moments(model, tokens_nt, batch_sequences=2)
        assert torch.allclose(found_dd, wanted_dd / seen, atol=1e-5)
        assert float(found_dd.trace()) == pytest.approx(24, rel=1e-3)

    def test_hooks_are_gone_afterwards(self) -> None:
        model = decoder(SMALL, random_weights(SMALL))
        measure_moments(model, random_tokens())
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_written_count_every_writer(self) -> None:
        """A stream that only one matrix writes holds that matrix's square."""
        weights = {name: torch.zeros_like(w) for name, w in random_weights(SMALL).items()}
        down_df = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
        weights["blocks.2.mlp.down.weight"] = down_df
        assert torch.allclose(write_moments(SMALL, weights), (down_df @ down_df.T).double(), rtol=1e-4, atol=1e-4)
        assert torch.allclose(write_moments(GPT2, weights).sum(0), torch.zeros(24, dtype=torch.float64), atol=1e-9)

    def test_given_ones_decide(self) -> None:
        weights = random_weights(SMALL)
        moments_dd = torch.diag(torch.arange(24.0))
        _, found = narrow(SMALL, weights, 12, moments_dd=moments_dd)
        assert torch.equal(found["embedding.weight"], weights["embedding.weight"][:, 12:])
        share = sum(range(12, 24)) / sum(range(24))
        gains = weights["norm.weight"][12:] * math.sqrt(2 * share)
        assert torch.allclose(found["norm.weight"], gains)

    def test_flops(self) -> None:
        """By hand: the blocks' matrices and attention, and nine products of the stream with itself."""
        blocks = 4 * (2 * (24 * 48 + 24 * 24 + 3 * 24 * 40) + 4 * 24 * 10.5)
        assert moments_flops(SMALL, 5, 20) == pytest.approx(100 * (blocks + 9 * 2 * 24**2))

    def test_no_moments_at_all(self) -> None:
        weights = random_weights(SMALL)
        for broken in (torch.zeros(24, 24), torch.full((24, 24), math.nan)):
            with pytest.raises(ShapeError, match="zero or no numbers"):
                narrow(SMALL, weights, 12, moments_dd=broken)
        with pytest.raises(ShapeError, match="of 12 directions for a stream of d_model=24"):
            narrow(SMALL, weights, 12, moments_dd=torch.eye(12))


def _read_streams(model: Decoder, tokens_bt: Tensor) -> Iterator[Tensor]:
    """Give the streams that norms read: twice in each block, and at the end."""
    positions_bt = torch.arange(tokens_bt.shape[1])[None]
    x_btd = model.embedding(tokens_bt)
    if model.positions is not None:
        x_btd = x_btd + model.positions(positions_bt + model.shape.position_offset)
    window = Window(rotary_tables(model.shape, positions_bt, x_btd.dtype), None)
    for visit, stored in enumerate(model.visits):
        block: Any = model.blocks[stored]
        yield x_btd
        mixed_btd = block.attention(block.attention_norm(x_btd), window, visit)
        yield x_btd if model.shape.parallel_residual else x_btd + mixed_btd
        x_btd = block(x_btd, window, visit)
    yield x_btd


class TestWidths:
    def test_heads_keep_theirs(self) -> None:
        wide = Shape.of(d_model=1024, n_layers=2, n_heads=16, n_kv_heads=8, d_ff=2816, vocab_size=100)
        small = narrow_shape(wide, 640)
        assert (small.n_heads, small.n_kv_heads, small.d_head, small.d_ff) == (10, 5, 64, 1760)

    @pytest.mark.parametrize("d_model", [0, -12, 13, 20, 36, 25])
    def test_others_are_refused(self, d_model: int) -> None:
        with pytest.raises(
            ShapeError, match=r"heads keep their d_head=6, .* widths that work: the multiples of 12 up to 24$"
        ):
            narrow(SMALL, {}, d_model)

    def test_one_group_of_heads_cannot_shrink(self) -> None:
        with pytest.raises(
            ShapeError, match=r"n_kv_heads=1 must shrink in proportion; widths that work: the multiples of 24 up to 24$"
        ):
            narrow_shape(dataclasses.replace(SMALL, n_kv_heads=1), 12)

    def test_svd_of_layernorm_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="only RMSNorm allows; with norm='layernorm' narrow by slice"):
            narrow(GPT2, random_weights(GPT2), 12, by="svd")
        with pytest.raises(ShapeError, match="did you mean 'svd'"):
            narrow(SMALL, {}, 12, by="svds")  # pyright: ignore[reportArgumentType]

    def test_every_kind_of_weight_has_axes(self) -> None:
        """A weight that a decoder gains must say here what its axes count."""
        for shape in SHAPES.values():
            for name, w in empty_model(shape).named_parameters():
                assert len(AXES[name.split(".")[-2]]) >= w.dim(), name
