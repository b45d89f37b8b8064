"""From loss to downstream scores: chained laws, the sigmoid of a task's score, and capacity density.

Axes: b a bootstrap draw, g a cell of the scanned grid, n a run or a row asked about, p a parameter.

Every law here reads one loss. It must be the loss on the same validation set, and of the same `loss_kind`, as the one
that the loss law predicts: nothing in a table of numbers can show that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import brentq, least_squares
from scipy.special import expit, logit, ndtri

from lathe import codec
from lathe.errors import LawError
from lathe.laws.choose import sizes
from lathe.laws.law import Law, shape_columns
from lathe.laws.system import Array, column, predict
from lathe.laws.uncertainty import Interval, bootstrap_weights, mix
from lathe.runs import Table, list_columns, validate

if TYPE_CHECKING:
    from lathe.shape import Shape

NAMES = ("c", "gamma", "l", "d")
STEEPEST = 200.0
"""Largest |gamma| times the range of losses: beyond it the sigmoid is a step between two runs."""
REFERENCE_TOKENS = 1e12
SMALLEST, LARGEST = 1.0, 1e18
"""Params between which a reference model is sought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidLaw:
    """A score that rises from d to c + d as loss falls: S = c/(1 + e^{−gamma(L − l)}) + d.

    The formula is its authors' (Xiao et al. 2024, arXiv:2412.04315; also the OLMo ladder's). S falls as L grows, so
    c is positive and gamma negative; it is steepest at L = l. It is a quotient, which the engine's sums of powers
    cannot hold, so SciPy fits it. Scores are 0–1, and so are d and c + d. Made by `fit_sigmoid`.
    """

    target: str
    column: str
    """The column it reads, of losses."""
    theta: tuple[float, float, float, float]
    """c, gamma, l, d."""
    theta_se: tuple[float | None, ...]
    """Delta-method standard errors of `theta`; None where the runs say nothing."""
    draws_theta: tuple[tuple[float, float, float, float], ...]
    cv: float
    """Standard deviation of the noise that cross-validation shows, in units of the score."""
    runs: int
    loss_kind: str | None
    lowest_loss: float
    highest_loss: float
    warnings: tuple[str, ...]
    seed: int

    @property
    def coefficients(self) -> dict[str, float]:
        """Name each coefficient."""
        return dict(zip(NAMES, self.theta, strict=True))

    @property
    def standard_errors(self) -> dict[str, float]:
        """Give each coefficient's delta-method standard error; infinite where the runs say nothing."""
        return {n: math.inf if se is None else se for n, se in zip(NAMES, self.theta_se, strict=True)}

    @property
    def columns(self) -> tuple[str, ...]:
        """List the one column it reads, as `Law.columns` does."""
        return (self.column,)

    @property
    def log(self) -> bool:
        """Say that it scatters in the score itself, not in its log."""
        return False

    def predict(self, columns: Table) -> Array:
        """Predict the score at each row, from its loss. Raises LawError where the column is missing."""
        return _curve(np.array(self.theta), _losses(columns, self.column))

    def draws(self, columns: Table) -> list[tuple[float, Array]]:
        """Predict with every bootstrap draw: the weight 1, and values with axes (b, n)."""
        theta_bp = np.array(self.draws_theta).reshape(-1, 1, 4)
        return [(1.0, _curve(theta_bp, _losses(columns, self.column)))] if len(theta_bp) else []

    def interval(self, columns: Table, *, level: float = 0.9) -> Interval:
        """Bracket the score of a new run of known loss with the given probability; see `Law.interval`."""
        drawn = [v for _, v in self.draws(columns)]
        return mix(drawn, [1.0], cv=self.cv, level=level, log=False, seed=self.seed)

    def extrapolation(self, columns: Table) -> list[str]:
        """Say how far the rows' losses reach beyond the fitted runs'; empty inside their range."""
        loss_n, found = _losses(columns, self.column), []
        if loss_n.min() < self.lowest_loss:
            found.append(f"{self.column} {loss_n.min():.4g} is below every run's (lowest {self.lowest_loss:.4g})")
        if loss_n.max() > self.highest_loss:
            found.append(f"{self.column} {loss_n.max():.4g} is above every run's (highest {self.highest_loss:.4g})")
        return found

    def save(self, path: str | Path) -> None:
        """Write the law as JSON, whole or not at all."""
        codec.save(self, path, kind="sigmoid-law")

    @classmethod
    def load(cls, path: str | Path) -> SigmoidLaw:
        """Read a law that `save` wrote. Raises CodecError for any other file."""
        return codec.load(cls, path, kind="sigmoid-law")


def fit_sigmoid(
    runs: Table,
    target: str = "accuracy",
    *,
    loss: str = "loss",
    seed: int = 0,
    draws: int = 1000,
    folds: str = "auto",
) -> SigmoidLaw:
    """Fit the sigmoid of a downstream score against loss, by least squares.

    Args:
        runs: any mapping of column name to values.
        target: the score, 0–1 and rising as loss falls; an `accuracy…` that the table lacks is taken as 1 − `error…`.
        loss: the column of losses.
        seed: of the bootstrap's weights.
        draws: bootstrap draws to keep for intervals; 0 for none.
        folds: how cross-validation groups runs into sizes, see `lathe.laws.choose.sizes`.

    Raises:
        RunsError: a column is missing, or a value is missing, mistyped or impossible.
        LawError: fewer than five runs, one loss for all, or a score that does not rise as loss falls.
    """
    twin = target.replace("accuracy", "error", 1)
    flipped = target.startswith("accuracy") and target not in list_columns(runs) and twin in list_columns(runs)
    columns = validate(runs, target=twin if flipped else target, columns=(loss,))
    x_n, y_n = column(columns, loss), column(columns, twin if flipped else target)
    y_n = 1 - y_n if flipped else y_n
    _check_points(x_n, y_n, loss=loss, target=target)
    if draws < 0 or draws == 1:
        raise LawError(f"draws={draws}; give 0 for none, or 2 or more (1000 serves most uses)")
    ones = np.ones_like(y_n)
    inner_p = _solve(x_n, y_n, ones)
    theta_p = _outer(inner_p)
    split = sizes(columns, rule=folds, fallback=loss)
    cv = _cross_validate(x_n, y_n, np.concatenate([split.leave_one_out, split.forward]))
    trunks = None
    if "trunk" in columns:
        names = [f"row {i}" if t is None else f"trunk {t}" for i, t in enumerate(columns["trunk"].tolist())]
        trunks = np.unique(names, return_inverse=True)[1]
    weights_bn = bootstrap_weights(len(y_n), draws, seed=seed, trunks=trunks)
    drawn = [_outer(_polish(inner_p, x_n, y_n, w_n)[0]) for w_n in weights_bn]
    kinds = columns.get("loss_kind")
    residual_n = _curve(theta_p, x_n) - y_n
    return SigmoidLaw(
        target=target,
        column=loss,
        theta=_pack(theta_p),
        theta_se=_standard_errors(theta_p, x_n, residual_n),
        draws_theta=tuple(_pack(t) for t in drawn),
        cv=math.sqrt(residual_n @ residual_n / (len(y_n) - 4)) if cv is None else cv,
        runs=len(y_n),
        loss_kind=None if kinds is None else str(kinds[0]),
        lowest_loss=float(x_n.min()),
        highest_loss=float(x_n.max()),
        warnings=_judge(theta_p, x_n, folded=cv is not None),
        seed=seed,
    )


def _losses(columns: Table, name: str) -> Array:
    loss_n = column(columns, name)
    if not np.isfinite(loss_n).all():
        row = int(np.argmax(~np.isfinite(loss_n)))
        raise LawError(f"row {row}: {name} = {loss_n[row]:g}; wanted a finite loss")
    return loss_n


def _check_points(x_n: Array, y_n: Array, *, loss: str, target: str) -> None:
    if len(y_n) < 5:
        raise LawError(
            f"{len(y_n)} runs cannot fix the 4 coefficients of a sigmoid and check them; add runs, 5 at least"
        )
    if (bad := (y_n < 0) | (y_n > 1)).any():
        row = int(np.argmax(bad))
        raise LawError(f"row {row}: {target} = {y_n[row]:g}; give scores as a fraction, 0–1")
    if (distinct := len(np.unique(x_n))) < 4:
        raise LawError(f"{loss} takes {distinct} distinct values; a sigmoid of 4 coefficients needs 4: add other runs")


def _curve(theta: Array, loss: Array) -> Array:
    """Evaluate the sigmoid; the last axis of theta is (c, gamma, l, d), its others broadcast against the losses'."""
    c, gamma, bend, d = np.moveaxis(theta, -1, 0)
    return c * expit(gamma * (loss - bend)) + d


def _outer(inner_p: Array) -> Array:
    """Turn (log −gamma, l, logit d, logit of c's share of 1 − d), which may be any numbers, into theta."""
    d, share = expit(inner_p[2]), expit(inner_p[3])
    return np.array([(1 - d) * share, -math.exp(inner_p[0]), inner_p[1], d])


def _pack(theta_p: Array) -> tuple[float, float, float, float]:
    c, gamma, bend, d = map(float, theta_p)
    return c, gamma, bend, d


def _jacobian(theta_p: Array, x_n: Array) -> Array:
    """Differentiate the curve by theta; axes n, p."""
    c, gamma, bend, _ = theta_p
    q_n = expit(gamma * (x_n - bend))
    steep_n = c * q_n * (1 - q_n)
    return np.stack([q_n, steep_n * (x_n - bend), -steep_n * gamma, np.ones_like(q_n)], axis=1)


def _polish(inner_p: Array, x_n: Array, y_n: Array, w_n: Array) -> tuple[Array, float]:
    """Descend to a local minimum of the weighted squares; returns inner parameters and their cost."""
    root_n, steepest = np.sqrt(w_n), math.log(STEEPEST / np.ptp(x_n))

    def clip(p: Array) -> Array:
        return np.clip(p, (-40, -1e3, -40, -40), (steepest, 1e3, 40, 40))

    def residual(p: Array) -> Array:
        return root_n * (_curve(_outer(clip(p)), x_n) - y_n)

    def jacobian(p: Array) -> Array:
        theta_p = _outer(clip(p))
        c, gamma, _, d = theta_p
        share = c / (1 - d)
        to_theta_pq = np.zeros((4, 4))
        to_theta_pq[1, 0], to_theta_pq[2, 1], to_theta_pq[3, 2] = gamma, 1.0, d * (1 - d)
        to_theta_pq[0, 2], to_theta_pq[0, 3] = -c * d, c * (1 - share)
        return root_n[:, None] * (_jacobian(theta_p, x_n) @ to_theta_pq)

    found = least_squares(
        residual, inner_p, jac=jacobian, method="lm", x_scale="jac", xtol=1e-12, ftol=1e-14, gtol=1e-14, max_nfev=200
    )
    return clip(found.x), float(found.cost)


def _solve(x_n: Array, y_n: Array, w_n: Array) -> Array:
    """Scan gamma and l, with c and d by linear least squares, then polish the best cells (variable projection)."""
    low, span = x_n.min(), np.ptp(x_n)
    gamma_g, bend_g = np.meshgrid(-np.geomspace(0.5, 60, 20) / span, low + span * np.linspace(-1, 2, 25))
    gamma_g, bend_g = gamma_g.ravel(), bend_g.ravel()
    q_gn = expit(gamma_g[:, None] * (x_n - bend_g[:, None]))
    share_n = w_n / w_n.sum()
    q_g, y = q_gn @ share_n, y_n @ share_n
    offset_gn = q_gn - q_g[:, None]
    c_g = (offset_gn * share_n) @ (y_n - y) / np.maximum((offset_gn**2) @ share_n, 1e-300)
    if not (c_g > 0).any():
        raise LawError("the score does not rise as loss falls, so no sigmoid describes it; see whether it is an error")
    d_g = np.clip(y - c_g * q_g, 1e-3, 0.99)
    share_g = np.clip(c_g / (1 - d_g), 1e-3, 1 - 1e-3)
    cost_g = (((1 - d_g) * share_g)[:, None] * q_gn + d_g[:, None] - y_n) ** 2 @ share_n
    best = np.argsort(cost_g)[:4]
    starts = np.stack([np.log(-gamma_g), bend_g, logit(d_g), logit(share_g)], axis=1)[best]
    return min((_polish(p, x_n, y_n, w_n) for p in starts), key=lambda found: found[1])[0]


def _cross_validate(x_n: Array, y_n: Array, masks_fn: np.ndarray) -> float | None:
    """Give the geometric mean over folds of the RMS error on what each left out; None without a fold to fit."""
    rms = []
    for keep_n in masks_fn:
        if len(np.unique(x_n[keep_n])) < 4 or keep_n.sum() < 5 or keep_n.all():
            continue
        try:
            inner_p = _solve(x_n[keep_n], y_n[keep_n], np.ones(keep_n.sum()))
        except LawError:  # this part of the runs shows no rise
            continue
        rms.append(np.sqrt(np.mean((_curve(_outer(inner_p), x_n[~keep_n]) - y_n[~keep_n]) ** 2)))
    return float(np.exp(np.mean(np.log(np.maximum(rms, 1e-12))))) if rms else None


def _standard_errors(theta_p: Array, x_n: Array, residual_n: Array) -> tuple[float | None, ...]:
    jacobian_np = _jacobian(theta_p, x_n)
    norm_p = np.linalg.norm(jacobian_np, axis=0)
    inverse_pn = np.linalg.pinv(jacobian_np / np.maximum(norm_p, 1e-300), rcond=1e-12)
    se_p = np.linalg.norm(inverse_pn, axis=1) / np.maximum(norm_p, 1e-300)
    se_p = se_p * math.sqrt(residual_n @ residual_n / (len(x_n) - 4))
    return tuple(float(se) if norm > 0 else None for se, norm in zip(se_p, norm_p, strict=True))


def _judge(theta_p: Array, x_n: Array, *, folded: bool) -> tuple[str, ...]:
    c, gamma, bend, d = theta_p
    found = []
    if not x_n.min() <= bend <= x_n.max():
        found.append(
            f"the bend, at loss {bend:.3g}, is not among the runs ({x_n.min():.3g}–{x_n.max():.3g}), so"
            f" {'c + d' if bend < x_n.min() else 'd'} is a guess"
        )
    if -gamma * np.ptp(x_n) > 0.5 * STEEPEST:
        found.append("the score jumps between two runs: gamma is only a lower bound of the steepness")
    if d < 1e-3 or c + d > 1 - 1e-3:
        found.append(f"the runs show no {'floor above 0' if d < 1e-3 else 'ceiling below 1'}")
    if not folded:
        found.append(
            "too few runs or sizes to leave any out: intervals carry the fit's own residuals, and are too narrow"
        )
    return tuple(found)


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
        return _curve(np.array(law.draws_theta)[rng.integers(len(law.draws_theta), size=len(loss_bn)), None], loss_bn)
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
