"""Compute cross-entropy, z-loss and the distance to a teacher over a large vocabulary, a few positions at a time.

Axes in names: n positions, d d_model, v vocabulary. A chunk's logits are made, turned into their loss and, where a
backward pass will come, at once into the gradients of hidden states and head: three matrix products a chunk, as many as
with whole logits, and nothing is computed twice. What stands in memory is one chunk's logits and the gradients. The
idea is Liger-Kernel's (Hsu et al. 2024, arXiv:2410.10989, section 3.2), in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lathe.model.distil import Lesson
from lathe.model.linear import multiply, multiply_over_rows

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""What one chunk's fp32 logits may take: enough for full-speed matrix products, and few sums of the head's gradient."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Hold sums over `count` targets.

    `total` = cross_entropy + z_weight · z can be differentiated; `cross_entropy` (nats), `z`, the squared
    log-partition, and `divergence` from a teacher (nats, 0 without one) are to report. Divide by `count` for means.
    With a lesson of weight w and temperature T, `total` = (1 - w) · cross_entropy + z_weight · z + w · T² · divergence.
    """

    total: Tensor
    cross_entropy: Tensor
    z: Tensor
    divergence: Tensor
    count: Tensor


def chunked_losses(
    x_nd: Tensor,
    weight_vd: Tensor,
    targets_n: Tensor,
    *,
    z_weight: float = 0.0,
    lesson: Lesson | None = None,
    chunk: int | None = None,
) -> Losses:
    """Sum the losses of predicting targets from hidden states; targets below zero are left out.

    `chunk` is how many positions' logits stand at once, as many as fit in CHUNK_BYTES if not given. The softmax and the
    sums are fp32 whatever the dtype of states and weights. `z_weight` is z-loss's, 1e-4 in OpenLM; a `lesson` is what a
    teacher makes of the same positions.
    """
    x_nd, weight_vd = _autocast(x_nd, weight_vd)
    chunk = chunk or _fit_chunk(weight_vd, taught=lesson is not None)
    total, cross_entropy, z, divergence = _ChunkedLosses.apply(x_nd, weight_vd, targets_n, z_weight, lesson, chunk)
    return Losses(total, cross_entropy, z, divergence, (targets_n >= 0).sum())


@torch.no_grad()
def position_losses(x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, *, chunk: int | None = None) -> Tensor:
    """Give each position's cross-entropy in nats, fp32 and without gradients; 0 where the target is below zero.

    `chunk` is as in `chunked_losses`.
    """
    x_nd, weight_vd = _autocast(x_nd, weight_vd)
    chunk = chunk or _fit_chunk(weight_vd)
    losses_n = torch.zeros(x_nd.shape[0], dtype=torch.float32, device=x_nd.device)
    for at in range(0, x_nd.shape[0], chunk):
        logits = multiply(x_nd[at : at + chunk], weight_vd)
        log_probs = logits.log_softmax(dim=1, dtype=torch.float32)
        losses_n[at : at + chunk] = _read_off(logits, log_probs, targets_n[at : at + chunk])[0]
    return losses_n


@torch.no_grad()
def target_log_probs(
    x_nd: Tensor, weight_vd: Tensor, at_m: Tensor, targets_m: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Give targets' log-probabilities, fp32 nats, and by how much each one's logit leads all others, negative behind.

    `at_m` says which hidden state each target is predicted from; many may share one. `chunk` is as in `chunked_losses`.
    """
    chunk = chunk or _fit_chunk(weight_vd)
    log_prob_m = torch.empty(len(at_m), dtype=torch.float32, device=x_nd.device)
    lead_m = torch.empty_like(log_prob_m)
    for at in range(0, x_nd.shape[0], chunk):
        logits_nv = multiply(x_nd[at : at + chunk], weight_vd).float()
        here = slice(None) if x_nd.shape[0] <= chunk else (at_m >= at) & (at_m < at + chunk)
        log_prob_m[here], lead_m[here] = read_targets(logits_nv, at_m[here] - at, targets_m[here])
    return log_prob_m, lead_m


def read_targets(logits_nv: Tensor, at_m: Tensor, targets_m: Tensor) -> tuple[Tensor, Tensor]:
    """Read off logits what `target_log_probs` gives."""
    logit_m = logits_nv[at_m, targets_m]
    best_nk, index_nk = logits_nv.topk(2, dim=1)
    rival_m = torch.where(index_nk[at_m, 0] == targets_m, best_nk[at_m, 1], best_nk[at_m, 0])
    return logit_m - logits_nv.logsumexp(dim=1)[at_m], logit_m - rival_m


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype where that is on: its rules do not reach into a function of our own."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def count_chunk(vocab_size: int, device: str, *, taught: bool = False) -> int:
    """Count the positions whose logits stand at once, where it is not said how many; `device` is torch's type.

    They are half as many beside a teacher's.
    """
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size * (2 if taught else 1)))


def _fit_chunk(weight_vd: Tensor, *, taught: bool = False) -> int:
    return count_chunk(weight_vd.shape[0], weight_vd.device.type, taught=taught)


def _read_off(logits_nv: Tensor, log_probs_nv: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Give each position's cross-entropy, 0 without a target, and its log-partition."""
    picked_n1 = targets_n.clamp(min=0)[:, None]
    picked_n = log_probs_nv.gather(1, picked_n1)[:, 0]
    return -picked_n * (targets_n >= 0), logits_nv.gather(1, picked_n1)[:, 0].float() - picked_n


class _ChunkedLosses(torch.autograd.Function):
    """Sum the losses, and make the gradients in the same pass: backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, z_weight: float, lesson: Lesson | None, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        learns_x, learns_weight = ctx.needs_input_grad[:2]
        hard, soft = (1.0, 0.0) if lesson is None else (1 - lesson.weight, lesson.weight * lesson.temperature**2)
        cross_entropy = torch.zeros((), dtype=torch.float32, device=x_nd.device)
        z, divergence = torch.zeros_like(cross_entropy), torch.zeros_like(cross_entropy)
        grad_x_nd = torch.empty_like(x_nd) if learns_x else None
        grad_weight_vd: Tensor | None = None
        for at in range(0, x_nd.shape[0], chunk):
            part, targets = x_nd[at : at + chunk], targets_n[at : at + chunk]
            kept_n1 = (targets >= 0)[:, None]
            logits = multiply(part, weight_vd)
            log_probs = logits.log_softmax(dim=1, dtype=torch.float32)
            losses, partition = _read_off(logits, log_probs, targets)
            del logits
            cross_entropy += losses.sum()
            z += (partition.square() * kept_n1[:, 0]).sum()
            pull = None
            if lesson is not None:
                apart, pull = lesson.compare(slice(at, at + chunk), log_probs)
                divergence += (apart * kept_n1[:, 0]).sum()
            if not (learns_x or learns_weight):
                continue
            # d total / d logits = softmax · (hard + 2 · z_weight · partition) - hard · onehot + soft · pull, where
            # there is a target; to leave others out, it is narrow hidden states that are masked, not the wide logits
            probs = log_probs.exp_()
            if z_weight or hard != 1:
                probs.mul_((hard + 2 * z_weight * partition)[:, None])
            probs.scatter_add_(1, targets.clamp(min=0)[:, None], torch.full_like(probs[:, :1], -hard))
            if pull is not None:
                probs.add_(pull, alpha=soft)
            grad_logits = probs.to(x_nd.dtype)
            if grad_x_nd is not None:
                torch.mul(multiply(grad_logits, weight_vd.T), kept_n1, out=grad_x_nd[at : at + chunk])
            if learns_weight:
                grad_weight_vd = _add_product(grad_weight_vd, grad_logits, part * kept_n1)
            del log_probs, probs, pull, grad_logits
        ctx.grads = grad_x_nd, None if grad_weight_vd is None else grad_weight_vd.to(weight_vd.dtype)
        ctx.mark_non_differentiable(cross_entropy, z, divergence)
        total = cross_entropy if lesson is None else hard * cross_entropy + soft * divergence
        return total + z_weight * z, cross_entropy, z, divergence

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # the gradients are scaled where they stand, so they serve once
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("chunked_losses has gradients for one backward pass, and this is another")
        return (*(None if grad is None else grad.mul_(grad_total) for grad in grads), None, None, None, None)


def _add_product(sum_vd: Tensor | None, grad_nv: Tensor, x_nd: Tensor) -> Tensor:
    """Add grad_nvᵀ · x_nd to a sum, in fp32 where there is one."""
    if sum_vd is None:
        return multiply_over_rows(grad_nv, x_nd)
    return sum_vd.float().add_(multiply_over_rows(grad_nv, x_nd))
