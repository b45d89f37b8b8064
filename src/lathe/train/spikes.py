"""Judge each step's loss and gradient norm by those just before: is it a spike, has training diverged, is it no number?

What is usual is read off the last `window` steps, robustly: the level is the median of their newer half, and the
deviation the scaled MAD around a line through the medians of both halves, so that a falling loss is neither an alarm
nor widens what passes for noise. Losses are judged in nats, gradient norms, whose noise is multiplicative, in logs.
Spikes do not enter the window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

MAD_TO_SIGMA = 1.4826
"""Turns a normal distribution's median absolute deviation into its standard deviation."""
LOSS_FLOOR, LOSS_FLOOR_SHARE = 0.01, 0.005
"""A loss's deviation is at least so many nats, and this share of its level: a batch seen again has next to none."""
NORM_FLOOR = math.log(10) / 10
"""The deviation of a gradient norm's log is at least this: at 10 deviations a spike is ten times the usual, or more."""
DIVERGED, DIVERGED_SHARE = 0.5, 0.25
"""Training has diverged when the level is so many nats, and this share, above the lowest level it had."""
SMALLEST_NORM = 1e-30
FEWEST = 8
"""Steps without which nothing is usual yet."""


Kind = Literal["not a number", "loss", "gradient", "diverged"]


class Usual(NamedTuple):
    """Hold what values usually are, and how far they stray from it."""

    level: float
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Hold a step that should not be trained on, why, and what was usual there.

    `usual_loss` and `usual_norm` are levels, None where there were too few steps to know.
    """

    step: int
    kind: Kind
    reason: str
    loss: float
    grad_norm: float
    usual_loss: float | None
    usual_norm: float | None


class SpikeWatch:
    """Remember the last steps, and judge the next one by them.

    Args:
        spike: deviations above the usual that make a spike.
        window: steps to remember; nothing but non-numbers is judged before half of them, and FEWEST, are there.
        state: what `state` gave, to go on exactly from there.
    """

    def __init__(self, *, spike: float = 10.0, window: int = 64, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.spike, self.enough = spike, min(window, max(FEWEST, window // 2))
        self._losses = deque[float](state.get("losses", ()), maxlen=window)
        self._log_norms = deque[float](state.get("log_norms", ()), maxlen=window)
        self._lowest: float | None = state.get("lowest")

    def judge(self, step: int, *, loss: float, grad_norm: float) -> Spike | None:
        """Say what is wrong with a step, and remember it if nothing is.

        `loss` is in nats per token, `grad_norm` as before clipping.
        """
        usual_loss = usual_log = None
        if len(self._losses) >= self.enough:
            usual_loss = find_usual(self._losses, LOSS_FLOOR, LOSS_FLOOR_SHARE)
            usual_log = find_usual(self._log_norms, NORM_FLOOR)
            self._lowest = min(usual_loss.level, math.inf if self._lowest is None else self._lowest)
        found = self._compare(loss, grad_norm, usual_loss, usual_log)
        if found is None:
            self._losses.append(loss)
            self._log_norms.append(_log(grad_norm))
            return None
        kind, reason = found
        return Spike(
            step=step,
            kind=kind,
            reason=f"step {step}: {reason}",
            loss=loss,
            grad_norm=grad_norm,
            usual_loss=None if usual_loss is None else usual_loss.level,
            usual_norm=None if usual_log is None else math.exp(usual_log.level),
        )

    def _compare(
        self, loss: float, grad_norm: float, usual_loss: Usual | None, usual_log: Usual | None
    ) -> tuple[Kind, str] | None:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return "not a number", f"loss {loss:g}, gradient norm {grad_norm:g}"
        if usual_loss is None or usual_log is None or self._lowest is None:
            return None
        above = (loss - usual_loss.level) / usual_loss.deviation
        if above > self.spike:
            usually = f"the usual {usual_loss.level:.4g}"
            return "loss", f"loss {loss:.4g} is {above:.3g} deviations of {usual_loss.deviation:.2g} above {usually}"
        risen = _log(grad_norm) - usual_log.level
        if risen > self.spike * usual_log.deviation:
            usually = f"the usual {math.exp(usual_log.level):.4g}"
            return "gradient", f"gradient norm {grad_norm:.4g} is {math.exp(risen):.3g} times {usually}"
        if usual_loss.level > self._lowest + max(DIVERGED, DIVERGED_SHARE * abs(self._lowest)):
            return (
                "diverged",
                f"the usual loss has risen to {usual_loss.level:.4g} from {self._lowest:.4g} at its lowest",
            )
        return None

    def state(self) -> dict[str, Any]:
        """Give all that later judgements hang on, as JSON."""
        return {"losses": list(self._losses), "log_norms": list(self._log_norms), "lowest": self._lowest}


def find_usual(values: deque[float], floor: float, floor_share: float = 0.0) -> Usual:
    """Find the level of the newest values, and how far values stray from their trend, at least the floors."""
    known = list(values)
    half = len(known) // 2
    older, newer = known[:half], known[half:]
    level = statistics.median(newer)
    slope = (level - statistics.median(older)) / (len(known) / 2) if older else 0.0
    strays = [value - slope * i for i, value in enumerate(known)]
    centre = statistics.median(strays)
    deviation = MAD_TO_SIGMA * statistics.median(abs(stray - centre) for stray in strays)
    return Usual(level, max(deviation, floor, floor_share * abs(level)))


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, SMALLEST_NORM))
