"""A training of a moment, whose states tests save and load."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lathe.train.state import Saver, gather_tensors


class Training:
    """Train a small model with Muon, AdamW and a moving average."""

    def __init__(self, *, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, width), nn.LayerNorm(width))
        weights = list(self.model.parameters())
        self.optimisers = [
            torch.optim.Muon([w for w in weights if w.ndim == 2], lr=0.01),
            torch.optim.AdamW([w for w in weights if w.ndim != 2], lr=0.01, fused=True),
        ]
        self.ema = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        self.width = width

    def step(self, count: int = 1, *, begin: int = 0) -> None:
        for number in range(begin, begin + count):
            x_bd = torch.randn(4, self.width, generator=torch.Generator().manual_seed(number))
            (self.model(x_bd) * x_bd).sum().backward()
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad()
            for name, w in self.model.named_parameters():
                self.ema[name].lerp_(w.detach(), 0.1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return gather_tensors(self.model, self.optimisers, self.ema)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, x in one.items() if not torch.equal(x, other[name])] == []


def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in tensors.items()}


def fail_on_report(message: str) -> None:
    raise AssertionError(message)


def save_steps(make_saver: Callable[..., Saver], *steps: int) -> dict[int, dict[str, Tensor]]:
    """Save the states of one training after some steps; gives what they held."""
    training, saver, held, done = Training(), make_saver(keep_last=len(steps)), {}, 0
    for step in steps:
        training.step(step - done, begin=done)
        done, held[step] = step, copy(training.tensors)
        saver.save(step, training.tensors, {"step": step})
    saver.wait()
    return held
