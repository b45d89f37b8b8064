"""Cached decoding equals the full forward, token by token, for every block option: in chunks, in ragged batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.errors import WorkloadError
from lathe.model.cache import KVCache
from lathe.model.decoder import Decoder
from lathe.model.init import build
from lathe.shape import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, SLOTS = 23, 20
SHARING = [("none", 1), *((pattern, n) for pattern in ("immediate", "all-over", "reverse") for n in (2, 3))]
POSITIONS = [
    {"position": "rotary"},
    {"position": "rotary", "rotary_fraction": 0.25, "rotary_theta": 500.0},
    {"position": "learned"},
    {"position": "learned", "position_offset": 2},
    {"position": "none"},
]


@st.composite
def shapes(draw) -> Shape:
    sharing, count = draw(st.sampled_from(SHARING))
    return Shape(
        d_model=12,
        n_layers=count * draw(st.sampled_from([1, 2])),
        n_heads=4,
        n_kv_heads=draw(st.sampled_from([4, 2, 1])),
        d_head=8,
        d_ff=16,
        vocab_size=VOCAB,
        max_seq_len=SLOTS,
        sharing=sharing,
        sharing_count=count,
        norm=draw(st.sampled_from(["rmsnorm", "layernorm", "layernorm-gain", "layernorm-plain"])),
        mlp=draw(st.sampled_from(["swiglu", "gelu", "gelu-tanh", "relu"])),
        qk_norm=draw(st.sampled_from(["none", "head", "full"])),
        bias=draw(st.sampled_from(["none", "qkv", "all"])),
        tied=draw(st.booleans()),
        parallel_residual=draw(st.booleans()),
        **draw(st.sampled_from(POSITIONS)),
    )


def random_model(shape: Shape) -> Decoder:
    """Build a decoder whose every weight matters, gains and biases too."""
    model = Decoder(shape).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.ndim == 1 and name.endswith("weight")))
    return model.double()


def new_cache(model: Decoder, *, batch: int, whole: bool, slots: int = SLOTS) -> KVCache:
    return KVCache.allocate(
        model.shape, batch=batch, slots=slots, dtype=model.embedding.weight.dtype, device="cpu", whole=whole
    )


def read(model: Decoder, tokens_bt: torch.Tensor, cache: KVCache, *, chunks: list[int]) -> torch.Tensor:
    """Read tokens in chunks through the cache; give the logits at every position."""
    return torch.cat([model.logits(model.extend(part, cache)) for part in tokens_bt.split(chunks, dim=1)], dim=1)


def step(model: Decoder, tokens_b1: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """Read one token a sequence through `Decoder.step`, as compiled engines do."""
    logits_bv = model.step(tokens_b1, torch.tensor([cache.used]), cache)
    cache.used += 1
    return logits_bv


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare logits in float64, where rounding leaves 1e-9 untouched."""
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


WAYS = {
    "eager": (False, lambda model, tokens_b1, cache: model.logits(model.extend(tokens_b1, cache))[:, -1]),
    "whole": (True, lambda model, tokens_b1, cache: model.logits(model.extend(tokens_b1, cache))[:, -1]),
    "step": (True, step),
}


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), chunks=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 9))
@pytest.mark.parametrize("way", WAYS)
def test_cached_decoding_is_the_full_forward(way, shape, chunks, seed):
    whole, advance = WAYS[way]
    model, read_tokens = random_model(shape), sum(chunks)
    tokens_bt = torch.randint(0, VOCAB, (2, read_tokens + 4), generator=torch.Generator().manual_seed(seed))
    expected = model(tokens_bt)
    cache = new_cache(model, batch=2, whole=whole)
    found = [read(model, tokens_bt[:, :read_tokens], cache, chunks=chunks)]
    found += [advance(model, tokens_bt[:, [at]], cache)[:, None] for at in range(read_tokens, read_tokens + 4)]
    assert_same(torch.cat(found, dim=1), expected)
    assert cache.used == read_tokens + 4


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    first=st.integers(1, 9),
    padding=st.integers(0, VOCAB - 1),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("way", WAYS)
def test_ragged_batches_are_each_prompt_alone(way, shape, lengths, first, padding, seed):
    """Also in a cache that held another batch before, and with prompts read in two chunks."""
    whole, advance = WAYS[way]
    model, longest = random_model(shape), max(lengths)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, VOCAB, (n,), generator=generator) for n in lengths]
    cache = new_cache(model, batch=len(lengths), whole=whole)
    cache.begin([SLOTS] * len(lengths))
    model.extend(torch.randint(0, VOCAB, (len(lengths), SLOTS), generator=generator), cache)

    cache.begin(lengths)
    padded_bt = torch.stack([torch.cat([torch.full((longest - len(p),), padding), p]) for p in prompts])
    chunks = [first, longest - first] if first < longest else [longest]
    logits_bv = read(model, padded_bt, cache, chunks=chunks)[:, -1]
    for _ in range(4):
        for row, prompt in enumerate(prompts):
            assert_same(logits_bv[row], model(prompt[None])[0, -1])
        picked_b = logits_bv.argmax(dim=1)
        assert picked_b.tolist() == [model(p[None])[0, -1].argmax().item() for p in prompts]
        prompts = [torch.cat([p, token[None]]) for p, token in zip(prompts, picked_b, strict=True)]
        logits_bv = advance(model, picked_b[:, None], cache)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options", [{}, {"n_kv_heads": 4, "position": "learned"}, {"sharing": "reverse", "sharing_count": 2}]
)
def test_fp32_decoding_of_a_ragged_batch(way, options):
    whole, advance = WAYS[way]
    shape = {"d_model": 64, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_ff": 128, "vocab_size": 101}
    model = build(Shape(**{**shape, **options}), scheme="openlm", seed=0).requires_grad_(False)
    prompts = [torch.randint(0, 101, (n,), generator=torch.Generator().manual_seed(n)) for n in (17, 3, 30)]
    cache = new_cache(model, batch=3, whole=whole, slots=48)
    cache.begin([len(p) for p in prompts])
    padded_bt = torch.stack([torch.cat([torch.zeros(30 - len(p), dtype=torch.long), p]) for p in prompts])
    logits_bv = read(model, padded_bt, cache, chunks=[30])[:, -1]
    for _ in range(16):
        alone_bv = torch.cat([model(p[None])[:, -1] for p in prompts])
        torch.testing.assert_close(logits_bv, alone_bv, atol=1e-5, rtol=0)
        picked_b = logits_bv.argmax(dim=1)
        assert torch.equal(picked_b, alone_bv.argmax(dim=1))
        prompts = [torch.cat([p, token[None]]) for p, token in zip(prompts, picked_b, strict=True)]
        logits_bv = advance(model, picked_b[:, None], cache)


@pytest.mark.parametrize("whole", [False, True])
def test_bf16_decodes(whole):
    shape = Shape(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=16, vocab_size=VOCAB, max_seq_len=SLOTS
    )
    model = build(shape, scheme="openlm", seed=0, dtype="bf16").requires_grad_(False)
    cache = KVCache.allocate(shape, batch=2, slots=8, dtype=torch.bfloat16, device="cpu", whole=whole)
    cache.begin([3, 5])
    tokens_bt = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    logits = read(model, tokens_bt, cache, chunks=[5, 1])
    expected = model(tokens_bt[1:])[0].float()
    assert (logits[1].float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_every_visit_keeps_its_own():
    shape = Shape(
        d_model=16, n_layers=6, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16, vocab_size=VOCAB, sharing="immediate",
        sharing_count=2,
    )  # fmt: skip
    cache = new_cache(random_model(shape), batch=3, whole=False)
    assert len(cache.keys) == len(cache.values) == 6
    held = sum(x.untyped_storage().nbytes() for x in (cache.keys[0], cache.values[0]))
    assert held == 2 * shape.kv_bytes(3, SLOTS, "fp32")  # float64
    random_model(shape).extend(torch.ones(3, 2, dtype=torch.long), cache)
    assert not torch.equal(cache.keys[0], cache.keys[1])


def test_a_full_cache_refuses():
    model = random_model(Shape(d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_head=4, d_ff=8, vocab_size=VOCAB))
    cache = new_cache(model, batch=1, whole=False, slots=4)
    model.extend(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(WorkloadError, match="5 tokens do not fit in a cache of 4; make a longer one"):
        model.extend(torch.zeros(1, 2, dtype=torch.long), cache)
    assert cache.used == 3


def test_learned_positions_end_in_a_cache_too():
    shape = Shape(
        d_model=8,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        d_head=4,
        d_ff=8,
        vocab_size=VOCAB,
        position="learned",
        max_seq_len=4,
    )
    model = random_model(shape)
    cache = new_cache(model, batch=1, whole=False)
    model.extend(torch.zeros(1, 4, dtype=torch.long), cache)
    with pytest.raises(WorkloadError, match="5 tokens are more than the model's 4 learned positions"):
        model.extend(torch.zeros(1, 1, dtype=torch.long), cache)
