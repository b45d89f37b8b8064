"""The chunked loss against whole logits: value, gradient, ignored targets, dtypes, and the memory it is for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lathe.model.decoder import Decoder
from lathe.model.init import build
from lathe.model.loss import chunked_losses, position_losses
from lathe.shape import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
N, D, V = 29, 12, 41
Z = 0.01
SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=V)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_nd = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight_vd = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets_n = torch.randint(0, V, (N,), generator=generator)
    targets_n[::5] = -100
    targets_n[3] = -1
    return x_nd, weight_vd, targets_n


def whole_losses(
    x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, *, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the losses from whole logits: in all, cross-entropy, z."""
    logits_nv = (x_nd @ weight_vd.T).to(torch.promote_types(x_nd.dtype, torch.float32))
    kept = targets_n >= 0
    cross_entropy = F.cross_entropy(logits_nv[kept], targets_n[kept], reduction="sum")
    z = logits_nv[kept].logsumexp(dim=1).square().sum()
    return cross_entropy + z_weight * z, cross_entropy, z


@pytest.mark.parametrize("chunk", [1, 2, 7, N - 1, N, N + 1, None])
@pytest.mark.parametrize("z_weight", [0.0, Z])
def test_value_and_gradient(chunk, z_weight):
    x_nd, weight_vd, targets_n = inputs()
    found = chunked_losses(x_nd, weight_vd, targets_n, z_weight=z_weight, chunk=chunk)
    grads = torch.autograd.grad(3 * found.total, (x_nd, weight_vd))
    exact = x_nd.double(), weight_vd.double()
    total, cross_entropy, z = whole_losses(*exact, targets_n, z_weight=z_weight)
    torch.testing.assert_close(found.total, total.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.cross_entropy, cross_entropy.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.z, z.float(), rtol=1e-6, atol=0)
    assert found.count == sum(t >= 0 for t in targets_n.tolist()) == 22
    for grad, expected in zip(grads, torch.autograd.grad(3 * total, (x_nd, weight_vd)), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=5e-6)


def test_gradient_against_differences():
    """In float64 inputs; the softmax is fp32, so differences are taken over a wide step."""
    x_nd, weight_vd, targets_n = (t.double() if t.is_floating_point() else t for t in inputs())
    x_nd, weight_vd = x_nd.detach().requires_grad_(), weight_vd.detach().requires_grad_()

    def total(x: Tensor, weight: Tensor) -> Tensor:
        return chunked_losses(x, weight, targets_n, z_weight=Z, chunk=5).total.double()

    grads = torch.autograd.grad(total(x_nd, weight_vd), (x_nd, weight_vd))
    for at, grad in enumerate(grads):
        direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(at), dtype=torch.float64)
        step = 1e-2 * direction
        ahead, behind = ([x_nd, weight_vd] for _ in range(2))
        ahead[at], behind[at] = ahead[at] + step, behind[at] - step
        difference = (total(*ahead) - total(*behind)) / 2e-2
        torch.testing.assert_close((grad * direction).sum(), difference, rtol=2e-3, atol=0)


def test_bf16_is_as_near_as_whole_bf16_logits():
    x_nd, weight_vd, targets_n = inputs(torch.bfloat16)
    found = chunked_losses(x_nd, weight_vd, targets_n, z_weight=Z, chunk=7)
    expected = whole_losses(x_nd, weight_vd, targets_n, z_weight=Z)
    assert found.total.dtype == found.z.dtype == torch.float32
    torch.testing.assert_close((found.total, found.cross_entropy, found.z), expected[:3], rtol=1e-5, atol=0)
    ours = torch.autograd.grad(found.total, (x_nd, weight_vd))
    theirs = torch.autograd.grad(expected[0], (x_nd, weight_vd))
    for grad, other in zip(ours, theirs, strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad - other).float().norm() < 0.01 * other.float().norm()


@pytest.mark.parametrize("chunk", [1, 7, N, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_by_position(chunk, dtype):
    x_nd, weight_vd, targets_n = inputs(dtype)
    found = position_losses(x_nd, weight_vd, targets_n, chunk=chunk)
    logits_nv = (x_nd @ weight_vd.T).float()
    expected = F.cross_entropy(logits_nv, targets_n.clamp(min=-1), ignore_index=-1, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    assert not found[targets_n < 0].any()
    summed = chunked_losses(x_nd, weight_vd, targets_n, chunk=chunk).cross_entropy
    torch.testing.assert_close(found.sum(), summed, rtol=1e-6, atol=0)


def test_losses_by_position_take_autocast():
    x_nd, weight_vd, targets_n = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = position_losses(x_nd, weight_vd, targets_n)
    torch.testing.assert_close(found, position_losses(x_nd.bfloat16(), weight_vd.bfloat16(), targets_n))
    assert position_losses(x_nd[:0], weight_vd, targets_n[:0]).shape == (0,)


@pytest.mark.parametrize("asks", [(True, False), (False, True), (False, False)])
def test_gradients_only_where_they_are_asked(asks):
    x_nd, weight_vd, targets_n = inputs()
    x_nd.requires_grad_(asks[0])
    weight_vd.requires_grad_(asks[1])
    found = chunked_losses(x_nd, weight_vd, targets_n, chunk=4)
    assert found.total.requires_grad is any(asks)
    assert not any(reported.requires_grad for reported in (found.cross_entropy, found.z, found.count))
    if any(asks):
        found.total.backward()
    assert (x_nd.grad is not None, weight_vd.grad is not None) == asks


def test_nothing_to_predict():
    x_nd, weight_vd, _ = inputs()
    found = chunked_losses(x_nd, weight_vd, torch.full((N,), -1), z_weight=Z)
    found.total.backward()
    assert found.total == found.z == found.count == 0
    assert x_nd.grad is not None
    assert not x_nd.grad.any()
    empty = chunked_losses(x_nd[:0], weight_vd, torch.zeros(0, dtype=torch.long))
    assert empty.total == empty.count == 0


def test_far_logits_stay_finite():
    x_nd, weight_vd, targets_n = inputs()
    found = chunked_losses(x_nd * 1e4, weight_vd, targets_n, z_weight=1e-4)
    found.total.backward()
    assert found.total.isfinite()
    assert x_nd.grad is not None
    assert x_nd.grad.isfinite().all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_decoder_loss_is_that_of_its_logits(tied, autocast):
    shape = Shape(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=V, tied=tied)
    model = build(shape, scheme="openlm", seed=0)
    tokens_bt = torch.randint(0, V, (3, 10), generator=torch.Generator().manual_seed(0))
    targets_bt = tokens_bt.roll(-1, dims=1)
    targets_bt[:, -1] = -1

    def gradients(ours: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if ours:
                total = model.loss(tokens_bt, targets_bt, z_weight=Z, chunk=4).total
            else:
                logits_nv = model(tokens_bt).float().flatten(0, 1)
                identity = torch.eye(V)
                with torch.autocast("cpu", enabled=False):
                    total = whole_losses(logits_nv, identity, targets_bt.flatten(), z_weight=Z)[0]
        total.backward()
        return total.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    found, expected = gradients(True), gradients(False)
    assert found[1].keys() == expected[1].keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for name, grad in expected[1].items():
        assert found[1][name].dtype == torch.float32
        assert (found[1][name] - grad).norm() <= (0.01 if autocast else 1e-5) * grad.norm(), name


def peak_bytes(call: Callable[[], None]) -> int:
    """Run it, and give the most memory that stood allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        call()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events: list[Any] = seen.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_a_training_step_needs_little_memory():
    """A vocabulary of 50k: at most 60 % of what whole fp32 logits need, weights and gradients included."""
    shape = Shape.of(d_model=64, n_layers=2, n_heads=4, d_ff=128, vocab_size=50432)
    tokens_bt = torch.randint(0, shape.vocab_size, (4, 257), generator=torch.Generator().manual_seed(0))
    read_bt, targets_bt = tokens_bt[:, :-1], tokens_bt[:, 1:]

    def ours() -> None:
        losses = build(shape, scheme="llama", seed=0).loss(read_bt, targets_bt, z_weight=1e-4)
        (losses.total / losses.count).backward()

    def whole() -> None:
        model: Decoder = build(shape, scheme="llama", seed=0)
        F.cross_entropy(model(read_bt).float().flatten(0, 1), targets_bt.flatten()).backward()

    logits_bytes = 4 * read_bt.numel() * shape.vocab_size
    needed = peak_bytes(whole)
    assert needed > 2 * logits_bytes
    assert peak_bytes(ours) <= 0.6 * needed
