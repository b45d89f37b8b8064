"""Make the optimisers of a recipe, set their learning rates, and average their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lathe.errors import RecipeError
from lathe.model.init import lr_scales
from lathe.recipe import Recipe
from lathe.shape import Shape
from lathe.train.schedule import lr_share

EMBEDDINGS = ("embedding.weight", "positions.weight")


def build_optimisers(module: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Make the optimisers over a module's parameters, whose names are those of `lathe.model.decoder`.

    AdamW for all weights, or Muon for the blocks' matrices and AdamW for the rest. Each group keeps its peak learning
    rate under "peak". Raises RecipeError for Muon on a torch that has none.
    """
    scales = _scales(recipe)
    parts: dict[str, list[dict]] = {"muon": [], "adamw": []}
    for (kind, peak, decay), weights in _group(module, recipe, scales).items():
        parts[kind].append({"params": weights, "lr": peak, "peak": peak, "weight_decay": decay})
    made: list[Optimizer] = []
    if parts["muon"]:
        made.append(_muon(parts["muon"], recipe))
    if parts["adamw"]:
        betas = recipe.optimiser.beta1, recipe.optimiser.beta2
        made.append(torch.optim.AdamW(parts["adamw"], betas=betas, eps=recipe.optimiser.eps, fused=True))
    return made


def set_lr(optimisers: list[Optimizer], recipe: Recipe, step: int) -> float:
    """Set every group's learning rate for a step; gives the recipe's own."""
    share = lr_share(recipe, step)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share
    return recipe.lr * share


def _group(
    module: nn.Module, recipe: Recipe, scales: Mapping[str, float]
) -> dict[tuple[str, float, float], list[nn.Parameter]]:
    """Sort weights by optimiser, peak learning rate and weight decay."""
    asked, groups = recipe.optimiser, {}
    for name, weight in module.named_parameters():
        base = asked.embedding_lr if name in EMBEDDINGS and asked.embedding_lr is not None else recipe.lr
        scale = scales.get(name, 1.0)
        decays = asked.decay == "all" or weight.ndim > 1
        # torch's AdamW multiplies decay with the learning rate: under muP, all weights shall decay alike
        decay = asked.weight_decay / scale if decays else 0.0
        kind = "muon" if asked.name == "muon" and name.startswith("blocks.") and weight.ndim == 2 else "adamw"
        groups.setdefault((kind, base * scale, decay), []).append(weight)
    return groups


def _scales(recipe: Recipe) -> dict[str, float]:
    base: Shape | None = recipe.init.base
    return {} if base is None else lr_scales(recipe.shape, base=base)


def _muon(groups: list[dict], recipe: Recipe) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(f"optimiser=muon needs torch 2.9 or newer, and this is {torch.__version__}; take adamw")
    return torch.optim.Muon(groups, momentum=recipe.optimiser.momentum, adjust_lr_fn="match_rms_adamw")  # pyright: ignore[reportArgumentType]


class Ema:
    """Keep a moving average of a module's weights, sharded as they are.

    The memory grows to `memory` as min(memory, (1 + step) / (10 + step)), so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, memory: float) -> None:
        self.module, self.memory = module, memory
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        memory = min(self.memory, (1 + step) / (10 + step))
        for name, p in self.module.named_parameters():
            self.weights[name].lerp_(p.detach(), 1 - memory)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place for a while."""
        trained: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self.module.named_parameters():
            p.copy_(weights[name])
