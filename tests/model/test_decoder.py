"""The decoder against a naive one in float64, its parameter counts, packed documents, recomputation and bf16.

`forward_naive` shares nothing with the decoder but the names of its weights: one sequence, one head and one query at a
time, in numpy.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lathe.errors import WorkloadError
from lathe.hub.layout import split_qkv
from lathe.model.checkpoint import empty_model
from lathe.model.decoder import Decoder
from lathe.model.init import build
from lathe.presets.shapes import load_shape, shape_names
from lathe.shape import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = Shape(d_model=16, n_layers=4, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24, vocab_size=37, max_seq_len=24)
OPTIONS = {
    "llama": {},
    "qwen2": {"bias": "qkv", "tied": True, "rotary_theta": 1e6},
    "qwen3": {"qk_norm": "head", "n_kv_heads": 1},
    "openlm": {"norm": "layernorm-gain", "qk_norm": "full", "n_kv_heads": 4, "n_heads": 4},
    "olmo": {"norm": "layernorm-plain", "n_kv_heads": 4},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu-tanh", "bias": "all", "tied": True},
    "opt": {"norm": "layernorm", "position": "learned", "position_offset": 2, "mlp": "relu", "bias": "all"},
    "neox": {
        "norm": "layernorm", "mlp": "gelu", "bias": "all", "rotary_fraction": 0.25, "parallel_residual": True,
        "n_kv_heads": 4,
    },
    "all at once": {
        "norm": "layernorm", "qk_norm": "full", "bias": "all", "rotary_fraction": 0.75, "parallel_residual": True,
        "norm_eps": 1e-3,
    },
    "no positions": {"position": "none"},
    "immediate": {"sharing": "immediate", "sharing_count": 2},
    "all-over": {"sharing": "all-over", "sharing_count": 2},
    "reverse": {"sharing": "reverse", "sharing_count": 2},
    "one block": {"sharing": "reverse", "sharing_count": 4},
}  # fmt: skip


def random_model(shape: Shape, *, seed: int = 0) -> Decoder:
    """Build a decoder whose every weight matters: gains and biases are random too."""
    model = build(shape, scheme="openlm", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def some_tokens(*size: int, vocab_size: int = PLAIN.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab_size, size, generator=torch.Generator().manual_seed(seed))


def forward_naive(model: Decoder, tokens: list[int]) -> np.ndarray:
    """Give the logits of one sequence, [t, v]."""
    shape = model.shape
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    stream = [w["embedding.weight"][token].copy() for token in tokens]
    if shape.position == "learned":
        stream = [x + w["positions.weight"][at + shape.position_offset] for at, x in enumerate(stream)]
    for stored in shape.visits:
        block = {n.removeprefix(f"blocks.{stored}."): p for n, p in w.items() if n.startswith(f"blocks.{stored}.")}
        mixed = mix_naive(block, [normalise(x, block, "attention_norm", shape) for x in stream], shape)
        if shape.parallel_residual:
            stream = [x + m + widen(block, normalise(x, block, "mlp_norm", shape), shape)
                      for x, m in zip(stream, mixed, strict=True)]  # fmt: skip
        else:
            stream = [x + m for x, m in zip(stream, mixed, strict=True)]
            stream = [x + widen(block, normalise(x, block, "mlp_norm", shape), shape) for x in stream]
    head = w["embedding.weight"] if shape.tied else w["head.weight"]
    return np.array([head @ normalise(x, w, "norm", shape) for x in stream])


def normalise(x: np.ndarray, w: dict[str, np.ndarray], name: str, shape: Shape) -> np.ndarray:
    if shape.norm == "rmsnorm":
        x = x / math.sqrt((x * x).mean() + shape.norm_eps)
    else:
        x = (x - x.mean()) / math.sqrt(x.var() + shape.norm_eps)
    return x * w.get(f"{name}.weight", 1.0) + w.get(f"{name}.bias", 0.0)


def apply(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)


def widen(w: dict[str, np.ndarray], x: np.ndarray, shape: Shape) -> np.ndarray:
    up = apply(w, "mlp.up", x)
    inner = {
        "swiglu": lambda: up * (gate := apply(w, "mlp.gate", x)) / (1 + np.exp(-gate)),
        "gelu": lambda: np.array([u * (1 + math.erf(u / math.sqrt(2))) / 2 for u in up]),
        "gelu-tanh": lambda: up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))) / 2,
        "relu": lambda: np.maximum(up, 0),
    }[shape.mlp]()
    return apply(w, "mlp.down", inner)


def turn(x: np.ndarray, position: int, shape: Shape) -> np.ndarray:
    """Rotate pairs as complex numbers."""
    if shape.position != "rotary":
        return x
    n = round(shape.d_head * shape.rotary_fraction)
    pairs = x[: n // 2] + 1j * x[n // 2 : n]
    pairs = pairs * np.exp(1j * position / shape.rotary_theta ** (2 * np.arange(n // 2) / n))
    return np.concatenate([pairs.real, pairs.imag, x[n:]])


def mix_naive(w: dict[str, np.ndarray], xs: list[np.ndarray], shape: Shape) -> list[np.ndarray]:
    e, per_group = shape.d_head, shape.n_heads // shape.n_kv_heads
    queries, keys, values = [], [], []
    for position, x in enumerate(xs):
        q, k, v = (part.numpy() for part in split_qkv(torch.from_numpy(apply(w, "attention.qkv", x)), shape))
        if shape.qk_norm == "full":
            q, k = normalise(q, w, "attention.q_norm", shape), normalise(k, w, "attention.k_norm", shape)
        q, k = list(q.reshape(-1, e)), list(k.reshape(-1, e))
        if shape.qk_norm == "head":
            q = [normalise(one, w, "attention.q_norm", shape) for one in q]
            k = [normalise(one, w, "attention.k_norm", shape) for one in k]
        queries.append([turn(one, position, shape) for one in q])
        keys.append([turn(one, position, shape) for one in k])
        values.append(v.reshape(-1, e))
    mixed = []
    for at in range(len(xs)):
        heads = []
        for head in range(shape.n_heads):
            group = head // per_group
            scores = np.array([queries[at][head] @ keys[s][group] / math.sqrt(e) for s in range(at + 1)])
            weights = np.exp(scores - scores.max())
            heads.append(sum(p * values[s][group] for s, p in enumerate(weights / weights.sum())))
        mixed.append(apply(w, "attention.out", np.concatenate(heads)))
    return mixed


@pytest.mark.parametrize("name", shape_names())
def test_parameters_are_the_shapes(name):
    shape = load_shape(name)
    model = empty_model(shape)
    assert sum(p.numel() for p in model.parameters()) == shape.params
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_are_those_of_a_naive_forward(options):
    model = random_model(replace(PLAIN, **options))
    assert sum(p.numel() for p in model.parameters()) == model.shape.params
    tokens = some_tokens(2, 9)
    with torch.no_grad():
        logits = model(tokens)
        exact = model.double()(tokens)
    for row, sequence in enumerate(tokens.tolist()):
        expected = forward_naive(model, sequence)
        np.testing.assert_allclose(logits[row].numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(exact[row].numpy(), expected, atol=1e-5)  # rotary tables are made in fp32


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_packed_documents_are_as_if_alone(options):
    model = random_model(replace(PLAIN, **options)).double()
    lengths = [(5, 1, 7, 3), (16,)]
    tokens = some_tokens(2, 16)
    ids = torch.tensor([[4] * 5 + [0] + [2] * 7 + [4] * 3, [9] * 16])  # 4 comes back: another document
    with torch.no_grad():
        packed = model(tokens, documents_bt=ids)
        for row, split in enumerate(lengths):
            alone = [model(part[None])[0] for part in tokens[row].split(split)]
            torch.testing.assert_close(packed[row], torch.cat(alone), atol=1e-9, rtol=1e-9)


def test_no_token_sees_the_next():
    model = random_model(PLAIN)
    tokens = some_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % PLAIN.vocab_size
    with torch.no_grad():
        before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:7], after[:7], atol=0, rtol=0)
    assert (before[7:] != after[7:]).any(dim=1).all()


@pytest.mark.parametrize("options", [{}, OPTIONS["immediate"], OPTIONS["neox"]], ids=["plain", "shared", "neox"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_recomputing_changes_no_gradient(options, every):
    model = random_model(replace(PLAIN, **options))
    tokens, ids = some_tokens(2, 13), torch.tensor([[0] * 7 + [1] * 5]).expand(2, -1)

    def gradients(recompute_every: int | None) -> list[torch.Tensor]:
        model.recompute_every = recompute_every
        model.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:], documents_bt=ids).total.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    kept, recomputed = gradients(None), gradients(every)
    assert len(kept) == len(recomputed) == len(list(model.parameters()))
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_recomputing_keeps_fewer_activations():
    model = random_model(PLAIN)
    tokens = some_tokens(2, 13)

    def kept_bytes(recompute_every: int | None) -> int:
        model.recompute_every = recompute_every
        sizes: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.hidden(tokens)
        return sum(sizes.values())

    whole, half, least = kept_bytes(None), kept_bytes(2), kept_bytes(1)
    assert whole > half > least


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bf16_runs_and_stays_near(options):
    model = build(replace(PLAIN, **options), scheme="openlm", seed=0)
    tokens = some_tokens(2, 12)
    with torch.no_grad():
        exact = model(tokens)
        rounded = model.bfloat16()(tokens)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    losses = model.loss(tokens[:, :-1], tokens[:, 1:], z_weight=1e-4)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_end(offset):
    model = random_model(replace(PLAIN, position="learned", position_offset=offset, max_seq_len=8))
    with torch.no_grad():
        assert model(some_tokens(1, 8)).isfinite().all()
        with pytest.raises(WorkloadError, match="9 tokens are more than the model's 8 learned positions; shorten"):
            model(some_tokens(1, 9))


def test_rotary_positions_do_not_end():
    with torch.no_grad():
        assert random_model(PLAIN)(some_tokens(1, PLAIN.max_seq_len + 5)).isfinite().all()
