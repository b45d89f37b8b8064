"""First weights: each scheme's standard deviations, independence of order and device, and muP's coordinate check."""

import math
from dataclasses import replace

import pytest
import torch

from lathe.errors import DeviceError, RecipeError, ShapeError
from lathe.model.decoder import Decoder
from lathe.model.init import SCHEMES, build, draw_weights, initialise, lr_scales
from lathe.shape import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
D, F, HEADS, LAYERS = 96, 160, 24, 4  # heads wider than the model: 24 · 8 = 192
SHAPE = Shape(
    d_model=D, n_layers=LAYERS, n_heads=HEADS, n_kv_heads=12, d_head=8, d_ff=F, vocab_size=300, norm="layernorm",
    position="learned", max_seq_len=200, bias="all", qk_norm="head",
)  # fmt: skip
BASE = replace(SHAPE, d_model=48, n_heads=12, n_kv_heads=6, d_ff=80)
CUT = 0.98658  # standard deviation of a unit normal cut at ±3: √(1 - 6 φ(3) / (2 Φ(3) - 1))
KNOWN = (-0.02171658, 0.02925678, 0.00813918)  # what seed 0 gave when this was written: a change breaks old recipes


def drawn(scheme: str, shape: Shape = SHAPE, **given) -> dict[str, torch.Tensor]:
    return dict(draw_weights(shape, scheme=scheme, **{"seed": 0, **given}))


# embedding, positions, qkv, up, out of layer 2, down of layer 2, head
STDS = {
    "openlm": (D**-0.5, D**-0.5, D**-0.5, D**-0.5, (192 * 6) ** -0.5, (F * 6) ** -0.5, D**-0.5),
    "llama": (0.02,) * 7,
    "mobilellm": (0.02,) * 7,
    "gpt2": (0.02, 0.02, 0.02, 0.02, 0.02 / 8**0.5, 0.02 / 8**0.5, 0.02),
    "opt": (0.006, 0.006, 0.006, 0.006, 0.006 / 8**0.5, 0.006 / 8**0.5, 0.006),
    "neox": (*((2 / 5 / D) ** 0.5,) * 4, 2 / 4 / D**0.5, 2 / 4 / D**0.5, (2 / 5 / D) ** 0.5),
    "mup": (48**-0.5, 48**-0.5, D**-0.5, D**-0.5, (192 * 6) ** -0.5, (F * 6) ** -0.5, 48**-0.5 / 2),
}


def test_every_scheme_is_tested():
    assert set(STDS) == set(SCHEMES)


@pytest.mark.parametrize("scheme", STDS)
def test_standard_deviations(scheme):
    weights = drawn(scheme, base=BASE if scheme == "mup" else None)
    names = ("embedding", "positions", "blocks.2.attention.qkv", "blocks.2.mlp.up", "blocks.2.attention.out",
             "blocks.2.mlp.down", "head")  # fmt: skip
    cut = SCHEMES[scheme].cut
    for name, std in zip(names, STDS[scheme], strict=True):
        weight = weights[f"{name}.weight"]
        near = 5 / math.sqrt(2 * weight.numel())  # five standard errors
        assert weight.std().item() == pytest.approx(std * (CUT if cut else 1.0), rel=near), name
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name
        if cut is not None:
            assert weight.abs().max() <= cut * std * (1 + 1e-6)
            assert weight.abs().max() > 2.5 * std


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gains_are_one_and_biases_zero(scheme):
    vectors = {n: w for n, w in drawn(scheme, base=BASE if scheme == "mup" else None).items() if w.ndim == 1}
    assert len(vectors) == LAYERS * 13 + 2  # a block: four norms of two, and a bias for each of five matrices
    for name, vector in vectors.items():
        assert vector.eq(0.0 if name.endswith("bias") else 1.0).all(), name


def test_gpt2_counts_visits():
    shared = replace(SHAPE, sharing="immediate", sharing_count=2)
    std = drawn("gpt2", shared)["blocks.1.mlp.down.weight"].std().item()
    assert std == pytest.approx(0.02 / math.sqrt(2 * LAYERS), rel=0.03)


@pytest.mark.parametrize(("sharing", "first"), [("immediate", 2), ("all-over", 1), ("reverse", 1)])
def test_shared_blocks_take_their_first_visit(sharing, first):
    plain = drawn("openlm", replace(SHAPE, n_layers=2))["blocks.1.attention.out.weight"]
    shared = drawn("openlm", replace(SHAPE, sharing=sharing, sharing_count=2))["blocks.1.attention.out.weight"]
    torch.testing.assert_close(shared, plain * math.sqrt(2 / (first + 1)))


def test_a_weight_depends_on_seed_name_and_scheme_alone():
    model = Decoder(SHAPE)
    for p in reversed(list(model.parameters())):
        torch.nn.init.normal_(p)  # what stood there, and torch's own generator, do not matter
    initialise(model, scheme="openlm", seed=7)
    built = build(SHAPE, scheme="openlm", seed=7).state_dict()
    deeper = drawn("openlm", replace(SHAPE, n_layers=6), seed=7)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, built[name]), name
        assert torch.equal(weight, deeper[name]), name
    other = drawn("openlm", seed=8)
    assert not torch.equal(other["embedding.weight"], built["embedding.weight"])
    assert not torch.equal(built["blocks.0.mlp.up.weight"], built["blocks.1.mlp.up.weight"])
    assert not torch.equal(built["blocks.0.mlp.up.weight"], built["blocks.0.mlp.gate.weight"])


def test_known_values():
    first = build(replace(SHAPE, tied=True), scheme="llama", seed=0).embedding.weight[0, :3]
    torch.testing.assert_close(first, torch.tensor(KNOWN), rtol=0, atol=1e-6)


def test_built_models_are_whole_and_train():
    model = build(SHAPE, scheme="llama", seed=0, dtype="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert model.training
    assert torch.equal(model.embedding.weight, drawn("llama")["embedding.weight"].bfloat16())
    with pytest.raises(DeviceError, match="unknown dtype"):
        build(SHAPE, scheme="llama", seed=0, dtype="fp31")


def test_mup_is_openlm_at_the_base():
    ours, plain = drawn("mup", base=SHAPE), drawn("openlm")
    for name, weight in plain.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=0)


def test_lr_scales():
    scales = lr_scales(SHAPE, base=BASE)
    halved = {n for n, scale in scales.items() if scale == 0.5}
    assert set(scales) == set(Decoder(SHAPE).state_dict())
    assert {scale for n, scale in scales.items() if n not in halved} == {1.0}
    matrices = {
        n for n in scales if n.endswith(("qkv.weight", "out.weight", "up.weight", "gate.weight", "down.weight"))
    }
    assert halved == matrices | {"head.weight"}
    assert set(lr_scales(SHAPE, base=SHAPE).values()) == {1.0}
    assert lr_scales(replace(SHAPE, d_ff=320), base=BASE)["blocks.0.mlp.down.weight"] == 0.25


WIDTHS = (64, 128, 256, 512)


def widen(d_model: int) -> Shape:
    return Shape(
        d_model=d_model, n_layers=3, n_heads=d_model // 16, n_kv_heads=d_model // 32, d_head=16, d_ff=2 * d_model,
        vocab_size=64,
    )  # fmt: skip


def coordinates(d_model: int, scheme: str) -> tuple[float, float]:
    """Take four steps of Adam; give how far logits and the last block's output have moved, root mean square."""
    shape, base = widen(d_model), widen(WIDTHS[0])
    model = build(shape, scheme=scheme, seed=0, base=base if scheme == "mup" else None)
    scales = lr_scales(shape, base=base) if scheme == "mup" else {}
    groups = [{"params": [p], "lr": 0.01 * scales.get(name, 1.0)} for name, p in model.named_parameters()]
    adam = torch.optim.Adam(groups)
    tokens = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(1))
    streams: list[torch.Tensor] = []
    hook = model.blocks[-1].register_forward_hook(lambda block, given, output: streams.append(output.detach()))
    with torch.no_grad():
        before = model(tokens[:, :-1])
    for _ in range(4):
        adam.zero_grad()
        losses = model.loss(tokens[:, :-1], tokens[:, 1:])
        (losses.total / losses.count).backward()
        adam.step()
    with torch.no_grad():
        after = model(tokens[:, :-1])
    hook.remove()
    return (after - before).square().mean().sqrt().item(), (streams[-1] - streams[0]).square().mean().sqrt().item()


@pytest.mark.parametrize(("scheme", "held"), [("mup", True), ("openlm", False), ("gpt2", False)])
def test_coordinate_check(scheme, held):
    """Yang et al. 2022, arXiv:2203.03466, appendix D.1: under muP nothing grows with width."""
    logits, streams = zip(*(coordinates(d, scheme) for d in WIDTHS), strict=True)
    for moved in (logits, streams):
        if held:
            assert max(moved) < 1.6 * min(moved), moved
            assert moved[-1] < 1.1 * moved[0], moved
        else:
            assert list(moved) == sorted(moved), moved
            assert moved[-1] > 2 * moved[0], moved


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"scheme": "lama"}, RecipeError, "did you mean 'llama'"),
        ({"scheme": "mup"}, RecipeError, "give base"),
        ({"scheme": "llama", "base": BASE}, RecipeError, "leave base out, or take mup"),
        ({"scheme": "mup", "base": BASE, "shape": replace(SHAPE, tied=True)}, ShapeError, "untie"),
        ({"scheme": "mup", "base": replace(BASE, d_head=4)}, ShapeError, "adding heads"),
    ],
)
def test_bad_schemes(given, error, message):
    shape = given.pop("shape", SHAPE)
    with pytest.raises(error, match=message):
        draw_weights(shape, seed=0, **given)


def test_lr_scales_refuse_too():
    with pytest.raises(ShapeError, match="untie"):
        lr_scales(replace(SHAPE, tied=True), base=BASE)
