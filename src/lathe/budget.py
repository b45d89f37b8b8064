"""Say what a plan may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lathe.errors import BudgetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Hold what serving may take and what training may spend; None for no limit.

    Serving: `first_token_s`, `per_token_s` (a decoding step) and `total_s` on the plan's workload; `memory_bytes` for
    weights, cache and activations; `params`, and `min_params`. Training, one of: `tokens`; `train_flops`, counted as
    6 · params · tokens (a shared block's params at every visit); or `days` on `train_devices` devices that reach `mfu`
    of `train_flops_per_s` each (with `price_per_hour` a device, `dollars` may stand for days). `inference_tokens`
    served over the model's life, with `target_loss`, changes the aim from the lowest loss to the lowest total cost;
    `target_accuracy` stands for the loss that an error law gives it.
    Raises BudgetError for numbers that make no sense together.
    """

    first_token_s: float | None = None
    per_token_s: float | None = None
    total_s: float | None = None
    memory_bytes: float | None = None
    params: float | None = None
    min_params: float | None = None
    tokens: float | None = None
    train_flops: float | None = None
    days: float | None = None
    dollars: float | None = None
    price_per_hour: float | None = None
    train_devices: int = 1
    train_flops_per_s: float | None = None
    mfu: float = 0.4
    inference_tokens: float | None = None
    target_loss: float | None = None
    target_accuracy: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BudgetError(f"budget {item.name} = {value!r}; wanted a number")
            if not (math.isfinite(value) and value > 0):
                raise BudgetError(f"budget {item.name} = {value}; wanted a number above zero")
        if self.mfu > 1:
            raise BudgetError(f"budget mfu = {self.mfu}; a share of peak is at most 1")
        if self.min_params is not None and self.params is not None and self.min_params > self.params:
            raise BudgetError(f"budget min_params = {self.min_params:g} is above params = {self.params:g}; swap them")
        self._check_training()

    def _check_training(self) -> None:
        timed = self.days is not None or self.dollars is not None
        given = [n for n, v in (("tokens", self.tokens), ("train_flops", self.train_flops)) if v is not None]
        given += ["days or dollars"] if timed else []
        targets = [n for n in ("target_loss", "target_accuracy") if getattr(self, n) is not None]
        if targets or self.inference_tokens is not None:
            if len(targets) > 1:
                raise BudgetError("target_loss and target_accuracy each say what to reach; give one")
            if not targets or self.inference_tokens is None:
                raise BudgetError("inference_tokens and target_loss go together: the cheapest life at that loss")
            if given:
                raise BudgetError(f"{targets[0]} fixes the training tokens of each shape; leave out {given[0]}")
            return
        if len(given) > 1:
            raise BudgetError(f"{' and '.join(given)} each fix the training tokens; give one")
        if not given:
            raise BudgetError("a plan needs training tokens: give tokens, train_flops, days, or target_loss")
        if timed and self.train_flops_per_s is None:
            raise BudgetError("days and dollars need train_flops_per_s, the peak of one training device")
        if self.dollars is not None and self.price_per_hour is None:
            raise BudgetError("dollars need price_per_hour, of one training device")

    @property
    def flops(self) -> float | None:
        """Give the training FLOPs, whichever way they were said; None where tokens or a target loss were given."""
        if self.train_flops is not None:
            return self.train_flops
        hours = [24 * self.days] if self.days is not None else []
        if self.dollars is not None and self.price_per_hour is not None:
            hours.append(self.dollars / (self.price_per_hour * self.train_devices))
        if not hours or self.train_flops_per_s is None:
            return None
        return min(hours) * 3600 * self.train_devices * self.mfu * self.train_flops_per_s

    def training_cost(self, flops: float) -> tuple[float | None, float | None]:
        """Give the days that FLOPs take on the training devices, and their price; None where the budget is silent."""
        if self.train_flops_per_s is None:
            return None, None
        hours = flops / (self.train_devices * self.mfu * self.train_flops_per_s) / 3600
        price = None if self.price_per_hour is None else hours * self.train_devices * self.price_per_hour
        return hours / 24, price
