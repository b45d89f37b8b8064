"""Distillation against plain autograd over whole logits: values, gradients, ignored targets, z-loss, chunks, dtypes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lathe.model import loss
from lathe.model.distil import Lesson
from lathe.model.loss import chunked_losses

pytestmark = pytest.mark.usefixtures("one_thread")
N, D, D_TEACHER, V = 29, 12, 20, 41
Z = 0.01


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_nd = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight_vd = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets_n = torch.randint(0, V, (N,), generator=generator)
    targets_n[::5] = -100
    targets_n[3] = -1
    return x_nd, weight_vd, targets_n


def make_lesson(*, temperature: float = 2.0, weight: float = 0.3, dtype: torch.dtype = torch.float32) -> Lesson:
    generator = torch.Generator().manual_seed(1)
    x_nd = torch.randn(N, D_TEACHER, generator=generator).to(dtype)
    return Lesson(x_nd, torch.randn(V, D_TEACHER, generator=generator).to(dtype), temperature, weight)


def whole_losses(
    x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, lesson: Lesson, *, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the losses from whole logits in float64: in all, cross-entropy, divergence."""
    logits_nv, kept = x_nd.double() @ weight_vd.double().T, targets_n >= 0
    teacher_nv = lesson.x_nd.double() @ lesson.weight_vd.double().T
    cross_entropy = F.cross_entropy(logits_nv[kept], targets_n[kept], reduction="sum")
    divergence = F.kl_div(
        (logits_nv[kept] / lesson.temperature).log_softmax(1),
        (teacher_nv[kept] / lesson.temperature).softmax(1),
        reduction="sum",
    )
    total = (1 - lesson.weight) * cross_entropy + lesson.weight * lesson.temperature**2 * divergence
    return total + z_weight * logits_nv[kept].logsumexp(dim=1).square().sum(), cross_entropy, divergence


@pytest.mark.parametrize("chunk", [1, 2, 7, N - 1, N, N + 1, None])
@pytest.mark.parametrize("z_weight", [0.0, Z])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (2.0, 0.3), (0.5, 1.0), (7.0, 0.0)])
def test_value_and_gradient(chunk, z_weight, temperature, weight):
    x_nd, weight_vd, targets_n = inputs()
    lesson = make_lesson(temperature=temperature, weight=weight)
    found = chunked_losses(x_nd, weight_vd, targets_n, z_weight=z_weight, lesson=lesson, chunk=chunk)
    grads = torch.autograd.grad(found.total / found.count, (x_nd, weight_vd))
    total, cross_entropy, divergence = whole_losses(x_nd, weight_vd, targets_n, lesson, z_weight=z_weight)
    torch.testing.assert_close(found.total, total.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.cross_entropy, cross_entropy.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.divergence, divergence.float(), rtol=1e-6, atol=0)
    expected = torch.autograd.grad(total / (targets_n >= 0).sum(), (x_nd, weight_vd))
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-6)


def test_bf16_is_as_near_as_whole_bf16_logits():
    x_nd, weight_vd, targets_n = inputs(torch.bfloat16)
    lesson = make_lesson(dtype=torch.bfloat16)
    found = chunked_losses(x_nd, weight_vd, targets_n, z_weight=Z, lesson=lesson, chunk=7)
    total, cross_entropy, divergence = whole_losses(x_nd, weight_vd, targets_n, lesson, z_weight=Z)
    assert found.total.dtype == found.divergence.dtype == torch.float32
    for one, wanted in (
        (found.total, total),
        (found.cross_entropy, cross_entropy),
        (found.divergence, divergence),
    ):
        torch.testing.assert_close(one, wanted.float(), rtol=3e-3, atol=0)
    ours = torch.autograd.grad(found.total, (x_nd, weight_vd))
    theirs = torch.autograd.grad(total, (x_nd, weight_vd))
    for grad, other in zip(ours, theirs, strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad - other).float().norm() < 0.01 * other.float().norm()


def test_a_bf16_teacher_teaches_an_fp32_student():
    x_nd, weight_vd, targets_n = inputs()
    lesson = make_lesson(dtype=torch.bfloat16)
    found = chunked_losses(x_nd, weight_vd, targets_n, lesson=lesson, chunk=7)
    total, *_ = whole_losses(x_nd, weight_vd, targets_n, lesson, z_weight=0.0)
    torch.testing.assert_close(found.total, total.float(), rtol=3e-3, atol=0)
    ours = torch.autograd.grad(found.total, (x_nd, weight_vd))
    for grad, other in zip(ours, torch.autograd.grad(total, (x_nd, weight_vd)), strict=True):
        assert (grad - other).norm() < 0.01 * other.norm()


def test_who_is_the_own_teacher_learns_nothing_from_it():
    x_nd, weight_vd, targets_n = inputs()
    lesson = Lesson(x_nd.detach(), weight_vd.detach(), 2.0, 1.0)
    found = chunked_losses(x_nd, weight_vd, targets_n, lesson=lesson, chunk=7)
    assert abs(float(found.divergence)) < 1e-5
    for grad in torch.autograd.grad(found.total, (x_nd, weight_vd)):
        assert grad.abs().max() < 1e-5


def test_without_a_lesson_nothing_changes():
    x_nd, weight_vd, targets_n = inputs()
    plain = chunked_losses(x_nd, weight_vd, targets_n, z_weight=Z, chunk=7)
    assert float(plain.divergence) == 0
    unmoved = chunked_losses(x_nd, weight_vd, targets_n, z_weight=Z, chunk=7, lesson=make_lesson(weight=0.0))
    assert torch.equal(plain.total, unmoved.total)
    ours, theirs = (torch.autograd.grad(one.total, (x_nd, weight_vd)) for one in (plain, unmoved))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("learns", ["x", "weight", "nothing"])
def test_only_what_learns_has_gradients(learns):
    x_nd, weight_vd, targets_n = inputs()
    x_nd.requires_grad_(learns == "x")
    weight_vd.requires_grad_(learns == "weight")
    found = chunked_losses(x_nd, weight_vd, targets_n, lesson=make_lesson(), chunk=7)
    assert found.total.requires_grad == (learns != "nothing")
    if learns != "nothing":
        found.total.backward()
    assert (x_nd.grad is not None, weight_vd.grad is not None) == (learns == "x", learns == "weight")


def test_no_targets_and_no_positions():
    x_nd, weight_vd, targets_n = inputs()
    lesson = make_lesson()
    found = chunked_losses(x_nd, weight_vd, torch.full_like(targets_n, -1), lesson=lesson)
    assert float(found.total.detach()) == float(found.divergence) == 0
    assert not any(grad.any() for grad in torch.autograd.grad(found.total, (x_nd, weight_vd)))
    none = Lesson(lesson.x_nd[:0], lesson.weight_vd, 2.0, 0.5)
    assert float(chunked_losses(x_nd[:0], weight_vd, targets_n[:0], lesson=none).total.detach()) == 0


def test_two_chunks_logits_are_as_many_as_one_without_a_teacher(monkeypatch):
    """The whole logits would take 64 MiB; at most four of a chunk's tables stand, of half as many rows."""
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * 2**20)
    x_nd, weight_vd = torch.randn(4096, 8).requires_grad_(), torch.randn(4096, 8).requires_grad_()
    lesson = Lesson(torch.randn(4096, 8), torch.randn(4096, 8), 2.0, 0.5)
    targets_n = torch.zeros(4096, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        chunked_losses(x_nd, weight_vd, targets_n, lesson=lesson).total.backward()
    recorded: Any = profiled.profiler
    records = [one for one in recorded.kineto_results.events() if one.name() == "[memory]"]
    taken = most = 0
    for record in sorted(records, key=lambda one: one.start_ns()):
        taken += record.nbytes()
        most = max(most, taken)
    assert most < 2 * 4 * 2**20 + 2**20
