"""Analyses of decoders: every family's as transformers' own attention says, sharing, what they cost and refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe import codec
from lathe.errors import CodecError, EvaluationError
from lathe.evals import analyse as analysing
from lathe.evals.analyse import analyse, draw_sequences, read_sequences
from lathe.evals.analysis import LAZY, Analysis, count_analysis_flops
from lathe.model.attention import Window, document_mask
from lathe.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from lathe.model.decoder import Block, Decoder
from lathe.model.init import build
from lathe.shape import Shape
from tests.hub.foreign_models import MODELS, save_model
from tests.small_datasets import VOCAB, write_small_dataset

SHAPE = Shape.of(d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=32, vocab_size=VOCAB, max_seq_len=48)
T = 20


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Hold torch to one thread: a second one makes tiny matrix products wait where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_ids(sequences: int = 7, seq_len: int = T, *, vocab_size: int = VOCAB) -> Tensor:
    return torch.randint(vocab_size, (sequences, seq_len), generator=torch.Generator().manual_seed(3))


def wild(shape: Shape) -> Decoder:
    """Make a decoder whose weights are large, so that no two heads do the same."""
    model = build(shape, scheme="openlm", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4 + (weight.dim() == 1))
    return model


def block_of(model: Decoder, stored: int) -> Block:
    found = model.blocks[stored]
    assert isinstance(found, Block)
    return found


def look(model: Decoder, tokens_nt: Tensor, **given: Any) -> Analysis:
    return analyse(model, tokens_nt, name="tiny", dataset="ids", **given)


def svd_ranks(weights_bhtt: Tensor, share: float = 0.9) -> list[float]:
    """Average over sequences the singular values needed for a share, one number a head, by numpy."""
    squares = np.linalg.svd(weights_bhtt.double().numpy(), compute_uv=False) ** 2
    reached = squares.cumsum(-1) < share * squares.sum(-1, keepdims=True)
    return (reached.sum(-1) + 1).mean(0).tolist()


def column_masses(weights_bhtt: Tensor, share: float = 0.9) -> list[float]:
    squares = -np.sort(-np.square(weights_bhtt.double().numpy()).sum(-2), axis=-1)
    reached = squares.cumsum(-1) < share * squares.sum(-1, keepdims=True)
    return (reached.sum(-1) + 1).mean(0).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_as_transformers_says(name: str, tmp_path: Path) -> None:
    from lathe.hub.importing import import_checkpoint

    theirs = save_model(name, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    tokens_nt = random_ids(vocab_size=ours.shape.vocab_size)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        told = theirs(tokens_nt, output_attentions=True, output_hidden_states=True)
    found = look(ours, tokens_nt, batch_sequences=3)
    for visit, weights_bhtt in enumerate(told.attentions):
        assert found.rank[visit] == pytest.approx(svd_ranks(weights_bhtt))
        assert found.mass[visit] == pytest.approx(column_masses(weights_bhtt))
    before, after = told.hidden_states[:2]  # transformers gives the last block's output behind the final norm
    cosine = F.cosine_similarity(before.double(), after.double(), dim=-1).mean()
    assert found.influence[0] == pytest.approx(float(1 - cosine), abs=1e-5)
    wanted = F.cross_entropy(told.logits[:, :-1].flatten(0, 1), tokens_nt[:, 1:].flatten())
    assert found.lens_losses[-1] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(
    "given",
    [{}, {"qk_norm": "full"}, {"n_kv_heads": 1}, {"position": "none"}, {"sharing": "reverse", "sharing_count": 3}],
)
def test_weights_are_those_that_forward_mixes_with(given: dict[str, Any]) -> None:
    """With identity values, attention's output is its weights."""
    model = wild(dataclasses.replace(SHAPE, n_kv_heads=given.pop("n_kv_heads", 2), **given))
    attention = block_of(model, 0).attention
    x_btd = torch.randn(2, T, SHAPE.d_model, generator=torch.Generator().manual_seed(0))
    documents_bt = (torch.arange(T) // 8).expand(2, T)
    for mask in (None, document_mask(documents_bt)):
        window = Window(None, mask)
        with torch.no_grad():
            weights_bhts = attention.weights(x_btd, window)
            _, _, v_bgse = attention._read(x_btd, window)
            v_bhse = v_bgse.repeat_interleave(attention.per_group, dim=1)
            mixed = attention.out((weights_bhts @ v_bhse).transpose(1, 2).flatten(2))
            assert torch.allclose(mixed, attention(x_btd, window, 0), atol=1e-5)
        assert torch.allclose(weights_bhts.sum(-1), torch.ones(2, SHAPE.n_heads, T))
        assert weights_bhts.dtype == torch.float32
        assert not weights_bhts.triu(1).any()


def test_losses_along_the_way() -> None:
    """After the embedding alone, and after each layer: what a model cut there would lose."""
    model, tokens_nt = wild(SHAPE), random_ids()
    found = look(model, tokens_nt)
    assert len(found.lens_losses) == SHAPE.n_layers + 1
    for kept in range(SHAPE.n_layers + 1):
        cut = build(dataclasses.replace(SHAPE, n_layers=max(kept, 1)), scheme="openlm", seed=0)
        cut.load_state_dict({k: v for k, v in model.state_dict().items() if k in cut.state_dict()})
        if not kept:
            cut.visits = ()
        losses = cut.loss(tokens_nt[:, :-1], tokens_nt[:, 1:])
        assert found.lens_losses[kept] == pytest.approx(float(losses.cross_entropy / losses.count), rel=1e-4)


def test_a_layer_that_does_nothing_has_no_influence() -> None:
    model = wild(SHAPE)
    with torch.no_grad():
        for name in ("attention.out.weight", "mlp.down.weight"):
            model.blocks[1].get_parameter(name).zero_()
    found = look(model, random_ids())
    assert found.influence[1] == pytest.approx(0, abs=1e-12)
    assert min(found.influence[0], found.influence[2]) > 1e-3
    assert found.effective_depth <= 2
    assert found.lens_losses[1] == found.lens_losses[2]


def test_which_layers_are_lazy() -> None:
    """A layer is as lazy as its least lazy head."""
    model = wild(dataclasses.replace(SHAPE, position="none"))
    with torch.no_grad():
        block_of(model, 2).attention.qkv.weight.zero_()
    found = look(model, random_ids(seq_len=10))
    assert found.rank_max[2] == found.rank[2][0] > LAZY  # every query takes the mean of what it sees: not one direction
    assert 2 not in found.lazy_visits
    lazy = dataclasses.replace(found, rank=(*found.rank[:2], (1.0, 1.5, 1.2, 1.0)))
    assert lazy.lazy_visits == (2,)
    assert lazy.rank_max[2] == 1.5


@pytest.mark.parametrize("sharing", ["immediate", "all-over", "reverse"])
def test_a_shared_decoder_is_its_unrolled_self(sharing: Any) -> None:
    shape = dataclasses.replace(SHAPE, n_layers=4, sharing=sharing, sharing_count=2)
    model, tokens_nt = wild(shape), random_ids()
    flat = build(dataclasses.replace(shape, sharing="none", sharing_count=1), scheme="openlm", seed=0)
    flat.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.")}
        | {
            f"blocks.{visit}.{name}": weight
            for visit, stored in enumerate(shape.visits)
            for name, weight in model.blocks[stored].state_dict().items()
        }
    )
    found, wanted = look(model, tokens_nt), look(flat, tokens_nt)
    assert found == dataclasses.replace(wanted, shape=shape)


def test_batches_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens_nt = wild(SHAPE), random_ids()
    whole = look(model, tokens_nt, batch_sequences=7)
    for found in (look(model, tokens_nt, batch_sequences=2), look(model, tokens_nt)):
        assert found.rank == whole.rank
        assert found.mass == whole.mass
        assert found.influence == pytest.approx(whole.influence)
        assert found.lens_losses == pytest.approx(whole.lens_losses)
    told: list[float] = []
    monkeypatch.setattr(analysing, "WEIGHT_BYTES", 4 * SHAPE.n_heads * T * T * 3)
    look(model, tokens_nt, progress=lambda what, share: told.append(share))
    assert told == pytest.approx([3 / 7, 6 / 7, 1.0])


def test_one_layers_attention_of_one_batch_stands_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    measure = analysing.attention_rank
    monkeypatch.setattr(
        analysing, "attention_rank", lambda w, share: (seen.append(tuple(w.shape)), measure(w, share))[1]
    )
    look(wild(SHAPE), random_ids(), batch_sequences=2)
    assert seen == [(2 * SHAPE.n_heads, T, T)] * SHAPE.n_layers * 3 + [(SHAPE.n_heads, T, T)] * SHAPE.n_layers


def test_the_model_and_the_random_numbers_stay_as_they_were() -> None:
    model = build(SHAPE, scheme="openlm", seed=0).train()
    model.recompute_every = 1
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    look(model, random_ids())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(block._forward_hooks for block in model.blocks)
    assert all(p.requires_grad for p in model.parameters())


def test_the_lens_can_be_left_out() -> None:
    model, tokens_nt = wild(SHAPE), random_ids()
    found = look(model, tokens_nt, lens=False)
    assert found.lens_losses == ()
    assert found.rank == look(model, tokens_nt).rank
    heads = 2.0 * SHAPE.d_model * VOCAB * (SHAPE.n_layers + 1) * 7 * (T - 1)
    assert look(model, tokens_nt).flops - found.flops == pytest.approx(heads)
    assert found.flops == count_analysis_flops(SHAPE, sequences=7, seq_len=T, lens=False)


def test_bf16_weights_are_analysed() -> None:
    model, tokens_nt = wild(SHAPE), random_ids()
    exact, found = look(model, tokens_nt), look(model.to(torch.bfloat16), tokens_nt)
    assert found.rank_max == pytest.approx(exact.rank_max, rel=0.1)
    assert found.lens_losses == pytest.approx(exact.lens_losses, rel=0.1)


def test_an_analysis_survives_its_file(tmp_path: Path) -> None:
    found = look(wild(SHAPE), random_ids())
    codec.save(found, tmp_path / "analysis.json", kind="analysis")
    assert codec.load(Analysis, tmp_path / "analysis.json", kind="analysis") == found


def test_effective_depth_counts_the_fewest_visits() -> None:
    found = look(wild(SHAPE), random_ids())
    for influence, depth in (((0.1, 0.1, 0.1), 3), ((1.0, 0.0, 0.0), 1), ((0.4, 0.3, 0.3), 3), ((0.5, 0.5, 0.0), 2)):
        assert dataclasses.replace(found, influence=influence).effective_depth == depth


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": ((1.0,),)}, "rank is not of 3 visits by 4 heads"),
        ({"mass": ((1.0,) * 4,) * 2}, "mass is not of 3 visits by 4 heads"),
        ({"influence": (0.5,)}, "influence has 1 values; the shape has 3 visits"),
        ({"lens_losses": (0.5,)}, "lens_losses has 1 values; wanted 4"),
        ({"influence": (0.5, float("nan"), 0.1)}, "values that are no numbers"),
        ({"share": 0.0}, "share=0.0; wanted a share"),
    ],
)
def test_an_analysis_that_cannot_be(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = look(wild(SHAPE), random_ids())
    with pytest.raises(EvaluationError, match=said):
        dataclasses.replace(found, **given)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    codec.save(look(wild(SHAPE), random_ids()), tmp_path / "analysis.json", kind="analysis")
    text = (tmp_path / "analysis.json").read_text().replace('"n_layers": 3', '"n_layers": 2')
    (tmp_path / "analysis.json").write_text(text)
    with pytest.raises(CodecError, match="rank is not of 2 visits"):
        codec.load(Analysis, tmp_path / "analysis.json", kind="analysis")


@pytest.mark.parametrize(
    ("tokens_nt", "said"),
    [
        (torch.zeros(0, T, dtype=torch.long), r"one sequence or more of two tokens or more; got 0 × 20"),
        (torch.zeros(2, 1, dtype=torch.long), r"got 2 × 1"),
        (torch.zeros(9, dtype=torch.long), r"got 9"),
        (torch.full((2, T), VOCAB), r"ids from 50 to 50, and the model has 50; it was made with another tokenizer"),
        (torch.full((2, T), -1), r"ids from -1 to -1"),
    ],
)
def test_sequences_that_no_analysis_reads(tokens_nt: Tensor, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        look(wild(SHAPE), tokens_nt)


def test_more_tokens_than_learned_positions() -> None:
    model = wild(dataclasses.replace(SHAPE, position="learned", max_seq_len=16))
    assert look(model, random_ids(seq_len=16)).seq_len == 16
    with pytest.raises(
        EvaluationError, match="seq_len=17 is more than the model's 16 learned positions; take seq_len=16"
    ):
        look(model, random_ids(seq_len=17))


def test_broken_weights_are_told_with_their_layer() -> None:
    model = wild(SHAPE)
    with torch.no_grad():
        block_of(model, 1).attention.qkv.weight[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="layer 1: an attention matrix has entries that are no numbers"):
        look(model, random_ids())
    with torch.no_grad():
        block_of(model, 1).attention.qkv.weight[0, 0] = 0.0
        block_of(model, 2).mlp.down.weight[0, 0] = float("inf")
    with pytest.raises(EvaluationError, match="values that are no numbers; look for broken weights"):
        look(model, random_ids())
    assert not any(block._forward_hooks for block in model.blocks)


class TestReading:
    def test_sequences_of_a_dataset(self, tmp_path: Path) -> None:
        split = write_small_dataset(tmp_path, held_out=1000).split("held-out")
        found = read_sequences(tmp_path, sequences=5, seq_len=30, seed=1)
        assert found.shape == (5, 30)
        whole = torch.from_numpy(split.read(0, 990).astype(np.int64)).view(33, 30)
        at = [next(i for i in range(33) if torch.equal(whole[i], one)) for one in found]
        assert at == sorted(set(at))
        assert torch.equal(found, read_sequences(tmp_path, sequences=5, seq_len=30, seed=1))
        assert not torch.equal(found, read_sequences(tmp_path, sequences=5, seq_len=30, seed=2))
        assert torch.equal(draw_sequences(split, sequences=33, seq_len=30), whole)

    def test_sequences_of_a_text(self, tmp_path: Path) -> None:
        from lathe.data.tokenizer import train_tokenizer

        text = tmp_path / "text.txt"
        text.write_text("".join(f"The cat saw {i} dogs.\n" for i in range(200)), encoding="utf-8")
        tokenizer = train_tokenizer([text], vocab_size=280, out=tmp_path / "tokenizer.json")
        found = read_sequences(text, tokenizer=tokenizer, sequences=3, seq_len=40)
        assert found.shape == (3, 40)
        assert "dogs" in tokenizer.decode(found[0].tolist())
        with pytest.raises(EvaluationError, match="is text, and the model has no tokenizer"):
            read_sequences(text)

    def test_a_text_that_is_too_short(self, tmp_path: Path) -> None:
        write_small_dataset(tmp_path, held_out=250)
        with pytest.raises(
            EvaluationError, match="has 250 tokens: 2 sequences of 100, and 100 were asked for; take --seq"
        ):
            read_sequences(tmp_path)
        with pytest.raises(EvaluationError, match=r"0 sequences of 300, .*; take a longer text than 250 tokens"):
            read_sequences(tmp_path, sequences=1, seq_len=300)

    @pytest.mark.parametrize("given", [{"sequences": 0}, {"seq_len": 1}])
    def test_numbers_that_read_nothing(self, given: dict[str, Any], tmp_path: Path) -> None:
        write_small_dataset(tmp_path, held_out=250)
        with pytest.raises(EvaluationError, match="wanted 1 or more, of 2 tokens or more"):
            read_sequences(tmp_path, **given)

    def test_a_mixture_is_several(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_small_dataset(tmp_path / name, train=200, held_out=250)
        (tmp_path / "mix.toml").write_text('[sources]\na = "a"\nb = "b"\n[weights]\na = 1\nb = 1\n')
        with pytest.raises(EvaluationError, match="is a mixture of a, b; name the folder of one"):
            read_sequences(tmp_path / "mix.toml")


def test_real_weights_and_text(shared_data: Path, tmp_path: Path) -> None:
    """A trained model's losses fall along the way, its attention has few directions, and no layer stands still."""
    from lathe.hub.importing import import_checkpoint

    weights, text = shared_data / "weights/stories260K_hf", shared_data / "text/tinystories_sample.txt"
    if not (weights.is_dir() and text.is_file()):
        pytest.skip(f"needs {weights} and {text}; they are not there")
    import_checkpoint(weights, tmp_path)
    model = load_model(tmp_path)
    tokens_nt = read_sequences(text, tokenizer=load_tokenizer(tmp_path), sequences=20)
    found = look(model, tokens_nt)
    losses = model.loss(tokens_nt[:, :-1], tokens_nt[:, 1:])
    assert found.lens_losses[-1] == pytest.approx(float(losses.cross_entropy / losses.count), rel=1e-5)
    assert found.lens_losses[-1] < 2 < found.lens_losses[0]
    assert max(found.rank_max) < 70
    assert min(found.influence) > 0.01
    assert found.lazy_visits == ()


def test_a_checkpoint_on_disk(tmp_path: Path) -> None:
    model = wild(SHAPE)
    save_checkpoint(tmp_path, SHAPE, model.state_dict())
    assert look(load_model(tmp_path), random_ids()) == look(model, random_ids())
