"""Laws of hyper-parameters: the learning rate and the batch that a run of a given size wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lathe.errors import LawError
from lathe.shape import Shape

LR = (1.79, -0.713, 0.307)
"""lr = a · N^b · D^c."""
BATCH = (0.58, 0.571)
"""batch_tokens = a · D^c."""
EXPONENT_SES = {"lr_params": 0.030, "lr_tokens": 0.019, "batch_tokens": 0.019}
"""Standard errors of the exponents over the authors' 1000 bootstrap fits."""

GRID_PARAMS = (214_663_680, 1_073_741_824)
GRID_TOKENS = (4e9, 100e9)
"""The range of the authors' 18 dense settings, as their page of loss contours lists them; N without vocabulary."""
CENTRE = (4.01e8, 2.41e10)
"""Geometric means of N and of D over those settings: where the fitted lines turn as their exponents vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLaw:
    """The step law's answer for one run.

    `lr_log_se` and `batch_log_se` are standard errors of log lr and log batch_tokens, so .1 is about 10 %. They come
    from the exponents' published errors alone, about the centre of the authors' grid, the two taken as independent:
    a fitted exponent and its coefficient err together, so that adding up their errors at N = D = 1 would say nothing.
    They are therefore lower bounds, zero at the centre. The error of the line's level is unpublished; nor do they hold
    the width of the optimum, which is broad, or what other data, optimisers and schedules do to it.
    """

    params: float
    """N, without embedding and head."""
    tokens: float
    lr: float
    """Peak learning rate of AdamW, decayed to a fixed 1e-5."""
    batch_tokens: float
    """Tokens a step; round to whole sequences."""
    lr_log_se: float
    batch_log_se: float
    warnings: tuple[str, ...]
    """What lies outside the authors' grid, one sentence an axis."""


def step_law(model: Shape | float, tokens: float) -> StepLaw:
    """Suggest the learning rate and the batch for one training run.

    lr = 1.79·N^−0.713·D^0.307 and batch_tokens = 0.58·D^0.571, N without vocabulary params. Li et al. 2025,
    arXiv:2503.04715, whose published loss contours cover dense models of 0.21–1.07 billion such params on 4–100
    billion tokens.

    Args:
        model: a shape, of which non_embedding_params count, or that number itself.
        tokens: training tokens, D.

    Raises:
        LawError: a number is not positive and finite.
    """
    params = _check("non_embedding_params", model.non_embedding_params if isinstance(model, Shape) else model)
    tokens = _check("tokens", tokens)
    scale, by_params, by_tokens = LR
    batch, batch_by_tokens = BATCH
    far_params, far_tokens = math.log(params / CENTRE[0]), math.log(tokens / CENTRE[1])
    return StepLaw(
        params=params,
        tokens=tokens,
        lr=scale * params**by_params * tokens**by_tokens,
        batch_tokens=batch * tokens**batch_by_tokens,
        lr_log_se=math.hypot(EXPONENT_SES["lr_params"] * far_params, EXPONENT_SES["lr_tokens"] * far_tokens),
        batch_log_se=abs(EXPONENT_SES["batch_tokens"] * far_tokens),
        warnings=(*_outside("non_embedding_params", params, GRID_PARAMS), *_outside("tokens", tokens, GRID_TOKENS)),
    )


def _check(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise LawError(f"{name}={value!r} should be a positive, finite number")
    return float(value)


def _outside(name: str, value: float, grid: tuple[float, float]) -> list[str]:
    low, high = grid
    if value > high:
        return [f"{name} is ×{value / high:.3g} beyond the step law's largest published setting ({high:.3g})"]
    if value < low:
        return [f"{name} is ×{low / value:.3g} below the step law's smallest published setting ({low:.3g})"]
    return []
