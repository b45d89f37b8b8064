"""From loss to downstream scores: chained laws, and capacity density.

Axes: b a bootstrap draw, n a run or a row asked about, p a parameter.

Every law here reads one loss. It must be the loss on the same validation set, and of the same `loss_kind`, as the one
that the loss law predicts: nothing in a table of numbers can show that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from lathe.errors import LawError
from lathe.laws.axes import shape_columns
from lathe.laws.law import Law
from lathe.laws.sigmoid import SigmoidLaw, sigmoid
from lathe.laws.system import Array, predict
from lathe.laws.uncertainty import mix
from lathe.runs import Table

if TYPE_CHECKING:
    from lathe.shape import Shape

REFERENCE_TOKENS = 1e12
SMALLEST, LARGEST = 1.0, 1e18
"""Params between which a reference model is sought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainInterval:
    """A prediction interval of a chained law, and its parts as standard deviations of the score, one entry a row.

    `loss` is what not knowing the loss does (the loss law's refits, forms and noise, pushed through the error law),
    `error_law` the scatter of the error law's refits and forms at the predicted loss, `noise` the error law's
    cross-validation error. The two laws' refits count as independent, though they may share runs.
    """

    level: float
    low: Array
    high: Array
    loss: Array
    error_law: Array
    noise: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """A loss law, and a law from that loss to a downstream error or accuracy; made by `chain`.

    Methods raise as `Law.predict` does. Errors and accuracies are cut off at 0 and 1.
    """

    loss_law: Law
    error_law: Law | SigmoidLaw

    def __post_init__(self) -> None:
        loss, error = self.loss_law, self.error_law
        if not isinstance(loss, Law) or not (loss.target == "loss" or loss.target.startswith("loss_")):
            raise LawError(f"the first law of a chain predicts a loss; this one predicts {loss.target!r}")
        if not error.target.startswith(("error", "accuracy")) and not isinstance(error, SigmoidLaw):
            raise LawError(
                f"the second law of a chain predicts an error or accuracy, and this one {error.target!r}; fit it with"
                " form='error', target='error', or with fit_sigmoid"
            )
        if error.columns != (loss.target,):
            raise LawError(f"the second law reads {', '.join(error.columns)}, but the first predicts {loss.target!r}")
        if None not in (kinds := (loss.loss_kind, error.loss_kind)) and kinds[0] != kinds[1]:
            raise LawError(f"the loss law predicts a {kinds[0]} loss, and the error law was fitted to {kinds[1]} ones")

    def error(self, columns: Table, *, assume: Collection[str] = ()) -> Array:
        """Predict the error at each row, 0–1."""
        return 1 - self.accuracy(columns, assume=assume)

    def accuracy(self, columns: Table, *, assume: Collection[str] = ()) -> Array:
        """Predict the accuracy at each row, 0–1; a sigmoid law's score counts as accuracy."""
        return self._to_accuracy(self.error_law.predict(self._loss(columns, assume)))

    def accuracy_of(self, shape: Shape, *, tokens: float, assume: Collection[str] = ()) -> float:
        """Predict the accuracy of one shape trained on `tokens`."""
        return float(self.accuracy(shape_columns(shape, tokens=tokens), assume=assume)[0])

    def loss_at(self, accuracy: float) -> float:
        """Find the loss at which the error law gives an accuracy, between .2 and 20 nats.

        Raises LawError for an accuracy the error law never gives.
        """
        name = self.loss_law.target

        def excess(loss: float) -> float:
            return float(self._to_accuracy(self.error_law.predict({name: np.array([loss])}))[0]) - accuracy

        best, worst = excess(0.2), excess(20.0)
        if not worst < 0 < best:
            raise LawError(
                f"the error law gives accuracies from {worst + accuracy:.3g} to {best + accuracy:.3g} and never"
                f" {accuracy:g}; ask for one between"
            )
        return float(brentq(excess, 0.2, 20.0))

    def extrapolation(self, columns: Table, *, assume: Collection[str] = ()) -> list[str]:
        """Say how far the rows reach beyond the runs of either law; empty inside their range."""
        beyond = self.error_law.extrapolation(self._loss(columns, assume))
        return [*self.loss_law.extrapolation(columns), *beyond]

    def interval(
        self,
        columns: Table,
        *,
        level: float = 0.9,
        of: Literal["accuracy", "error"] = "accuracy",
        assume: Collection[str] = (),
    ) -> ChainInterval:
        """Bracket the accuracy, or error, of a new run at each row with the given probability.

        Every draw of the loss law gets cross-validation noise and goes through one draw of the error law, picked at
        random; then the error law's own noise is added. Raises LawError for a law without draws too.
        """
        if of not in ("accuracy", "error"):
            raise LawError(f"of={of!r}; wanted 'accuracy' or 'error'")
        name, error = self.loss_law.target, self.error_law
        rng = np.random.default_rng([self.loss_law.seed, 1])  # not the stream that `mix` draws from
        noisy = [(w, _add_noise(v, self.loss_law, rng)) for w, v in self.loss_law.draws(columns, assume=assume)]
        at = self._loss(columns, assume)
        refits = error.draws(at)
        if not noisy or not refits:
            raise LawError("a law of this chain keeps no bootstrap draws; fit it with draws=1000 to get intervals")
        weights = [w for w, _ in noisy]
        scores = [_push(error, loss_bn, rng) for _, loss_bn in noisy]
        whole = mix(scores, weights, cv=error.cv, level=level, log=error.log, seed=error.seed)
        ends = [self._to_accuracy(end_n) for end_n in (whole.low, whole.high)]
        ends = ends if of == "accuracy" else [1 - end_n for end_n in ends]
        known = [error.predict({name: loss_bn.ravel()}).reshape(loss_bn.shape) for _, loss_bn in noisy]
        return ChainInterval(
            level=level,
            low=np.minimum(*ends),
            high=np.maximum(*ends),
            loss=_scatter(known, weights),
            error_law=_scatter([v for _, v in refits], [w for w, _ in refits]),
            noise=error.cv * (error.predict(at) if error.log else np.ones_like(at[name])),
        )

    def _loss(self, columns: Table, assume: Collection[str]) -> dict[str, Array]:
        return {self.loss_law.target: self.loss_law.predict(columns, assume=assume)}

    def _to_accuracy(self, score_n: Array) -> Array:
        return np.clip(1 - score_n if self.error_law.target.startswith("error") else score_n, 0, 1)


def chain(loss_law: Law, error_law: Law | SigmoidLaw) -> Chain:
    """Join a loss law and a law from that loss to downstream error or accuracy.

    Args:
        loss_law: predicts `loss`, or `loss_<set>`.
        error_law: `fit(runs, form="error")` or `fit_sigmoid(runs, …)`, fitted on losses of the same validation set.

    Raises:
        LawError: the second law does not read what the first predicts, or does not predict an error or accuracy.
    """
    return Chain(loss_law=loss_law, error_law=error_law)


def _add_noise(loss_bn: Array, law: Law, rng: np.random.Generator) -> Array:
    noise_b = law.cv * rng.permutation(ndtri((np.arange(len(loss_bn)) + 0.5) / len(loss_bn)))
    return loss_bn * np.exp(noise_b[:, None]) if law.log else loss_bn + noise_b[:, None]


def _push(law: Law | SigmoidLaw, loss_bn: Array, rng: np.random.Generator) -> Array:
    """Send each draw of the losses through one draw of the law, picked by weight."""
    if isinstance(law, SigmoidLaw):
        return sigmoid(np.array(law.draws_theta)[rng.integers(len(law.draws_theta), size=len(loss_bn)), None], loss_bn)
    drawn = [m for m in law.members if m.interval_weight > 0 and len(m.draws_bp)]
    share = np.array([m.interval_weight for m in drawn])
    pick_b = rng.choice(len(drawn), size=len(loss_bn), p=share / share.sum())
    return np.concatenate(
        [
            predict(m.form, m.draws_bp[[rng.integers(len(m.draws_bp))]], {law.columns[0]: loss_n})
            for m, loss_n in zip((drawn[i] for i in pick_b), loss_bn, strict=True)
        ]
    )


def _scatter(values: list[Array], weights: list[float]) -> Array:
    """Take each row's standard deviation over draws (b, n) of several members, by weight."""
    weight_b = np.concatenate([np.full(len(v), w / len(v)) for v, w in zip(values, weights, strict=True)])
    weight_b, value_bn = weight_b / weight_b.sum(), np.concatenate(values)
    return np.sqrt(weight_b @ (value_bn - weight_b @ value_bn) ** 2)


def effective_params(score: float, reference: Law | Chain, *, tokens: float = REFERENCE_TOKENS) -> float:
    """Find the params at which the reference, trained on `tokens`, reaches a score.

    Args:
        score: a loss if the reference is a law of loss, an accuracy (0–1) if it is a chain.
        reference: a law of params and tokens alone: shape must not matter to it.

    Raises:
        LawError: the law reads other columns, or no number of params reaches the score.
    """
    law = reference.loss_law if isinstance(reference, Chain) else reference
    allowed = {"params", "tokens", "flops", "tokens_per_param"}
    if "params" not in law.columns or not set(law.columns) <= allowed:
        raise LawError(
            f"the reference law reads {', '.join(law.columns)}; capacity density compares params alone, so give a law"
            " of params and tokens, such as form='chinchilla'"
        )
    if not all(math.isfinite(v) and v > 0 for v in (score, tokens)):
        raise LawError(f"score={score}, tokens={tokens}; wanted positive, finite numbers")

    def gap(log_params: float) -> float:
        columns = {"params": np.exp([log_params]), "tokens": np.array([tokens])}
        return score - float((reference.accuracy if isinstance(reference, Chain) else reference.predict)(columns)[0])

    ends = math.log(SMALLEST), math.log(LARGEST)
    gaps = gap(ends[0]), gap(ends[1])
    if gaps[0] * gaps[1] >= 0:
        name = "accuracy" if isinstance(reference, Chain) else law.target
        raise LawError(
            f"{name} {score:g} is not reached by the reference at {tokens:.3g} tokens and any params: its {name} there"
            f" goes from {score - gaps[0]:.4g} to {score - gaps[1]:.4g}"
        )
    return math.exp(brentq(gap, *ends, xtol=1e-13, rtol=1e-13))


def capacity_density(params: float, score: float, reference: Law | Chain, *, tokens: float = REFERENCE_TOKENS) -> float:
    """Divide the params that a reference needs for a model's score by the model's own: ρ = N̂/N.

    The reference is trained on `tokens`, 10¹² as the authors have it, whatever the model was trained on. Above 1 the
    model does more with its params than the reference. Xiao et al. 2024, arXiv:2412.04315; they go from params to the
    loss on a test's answers and from that to the score, which is a `Chain`. Most references are fitted far below 10¹²
    tokens: ask `reference.extrapolation`. Arguments and errors are those of `effective_params`.
    """
    if not (math.isfinite(params) and params > 0):
        raise LawError(f"params={params}; wanted a positive, finite number")
    return effective_params(score, reference, tokens=tokens) / params
