"""Fit a law to few runs under a weak prior, and linearise it: what a design of further runs starts from.

`lathe.fit` refuses fewer runs than coefficients, rightly: a design is asked for when there are still few. Here a weak
prior stands in for the runs that are missing, and the answer is a point to linearise at, not a `Law`.

Axes: b a start, n a run, p q parameters. Parameters are phi = (log terms at the runs' centre, log exponents), see
`lathe.laws.system`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lathe.laws.evaluate import log_terms
from lathe.laws.forms import Form
from lathe.laws.system import Array, System, compile_form
from lathe.runs import Table

EXPONENT, EXPONENT_SD = 0.45, 0.7
"""Centre of the prior on every exponent, and its standard deviation in logs: 90 % between .14 and 1.4."""
TERM_SD = 1.5
"""Standard deviation, in logs, of each term's share of the loss at the runs' centre; an equal share is its centre."""
GATE = 0.05
"""Centre of the prior on the strength of a gate at the runs' centre."""
NOISE_RUNS = 4
"""Runs that the first guess of the noise counts for beside the residuals."""
STARTS, FINALISTS, MAX_STEPS = 8, 3, 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior:
    """One form's most probable parameters under the prior, the noise about it, and the form's share of belief."""

    form: Form
    system: System
    phi_p: Array
    precision_p: Array
    """The prior's: 1 / sd² of each parameter."""
    noise: float
    """Standard deviation of one run's log loss about the law, its misfit included."""
    evidence: float
    """Log marginal likelihood, by Laplace's method, up to a constant common to all forms of these runs."""
    weight: float = 1.0

    def linearise(self, columns: Table) -> tuple[Array, Array]:
        """Predict log loss at each row, with its derivatives by phi (n, p)."""
        system = compile_form(self.form, columns, centred=False)
        scale_p = _scale(self.system, self.phi_p)
        theta_p = self.system.to_theta(_linear(self.system, self.phi_p[None]))
        log_bn, by_theta_bnp = linearise(system, theta_p)
        to_theta_pq = self.system.to_theta(np.eye(self.system.size)).T
        return log_bn[0], by_theta_bnp[0] @ to_theta_pq * scale_p


def fit_posterior(form: Form, columns: Table, y_n: Array, *, noise: float, seed: int) -> Posterior:
    """Find the most probable parameters of a positive form given the runs, by damped Gauss–Newton from several starts.

    Args:
        noise: first guess of the standard deviation of log loss; NOISE_RUNS runs' worth of belief in it.
        seed: of the starts.
    """
    system = compile_form(form, columns)
    problem = _Problem(system, np.log(y_n))
    drawn_bp = np.random.default_rng(seed).standard_normal((STARTS - 1, system.size))
    start_bp = problem.mean_p + problem.sd_p * np.concatenate([np.zeros((1, system.size)), 0.7 * drawn_bp])
    variance = noise**2
    # A first descent with ten times the noise lets the prior lead out of poor starts.
    phi_bp, cost_b = problem.descend(start_bp, 100 * variance, max_steps=20)
    phi_bp, cost_b = problem.descend(phi_bp[np.argsort(cost_b)[:FINALISTS]], variance)
    phi_bp = phi_bp[np.argmin(cost_b)][None]
    runs = len(y_n)
    for _ in range(3):
        missed = float(np.sum((problem.predict(phi_bp)[0] - problem.log_n) ** 2))
        variance = (NOISE_RUNS * noise**2 + missed) / (NOISE_RUNS + runs)
        phi_bp, cost_b = problem.descend(phi_bp, variance)
    curvature_pq = problem.curvature(phi_bp, variance)[0]
    charged = cost_b[0] + NOISE_RUNS * noise**2 / variance + (NOISE_RUNS + runs) * np.log(variance)
    widths = np.linalg.slogdet(curvature_pq)[1] + 2 * np.log(problem.sd_p).sum()
    return Posterior(
        form=form,
        system=system,
        phi_p=phi_bp[0],
        precision_p=problem.sd_p**-2,
        noise=float(np.sqrt(variance)),
        evidence=float(-0.5 * (charged + widths)),
    )


def linearise(system: System, linear_bp: Array) -> tuple[Array, Array]:
    """Evaluate a positive form's log (b, n), and its derivatives by the linear parameters (b, n, p)."""
    log_bn = np.zeros((len(linear_bp), system.runs))
    jacobian_bnp = np.zeros((len(linear_bp), system.runs, system.size))
    for pieces in system.factors:
        z_kbn = np.stack([log_terms(piece, linear_bp, system.runs) for piece in pieces])
        top_bn = z_kbn.max(axis=0)
        share_kbn = np.exp(z_kbn - top_bn)
        total_bn = share_kbn.sum(axis=0)
        log_bn += top_bn + np.log(total_bn)
        for piece, share_bn in zip(pieces, share_kbn / total_bn, strict=True):
            if piece.coefficient is not None:
                jacobian_bnp[:, :, piece.coefficient] += share_bn
            for index, x_n in zip(piece.exponents, piece.x_n, strict=True):
                jacobian_bnp[:, :, index] += share_bn * x_n
    return log_bn, jacobian_bnp


class _Problem:
    """The runs and the prior: a sum of squares in phi."""

    __slots__ = ("log_n", "mean_p", "sd_p", "system")

    def __init__(self, system: System, log_n: Array) -> None:
        self.system, self.log_n = system, log_n
        k, terms = system.coefficients, len(system.form.terms)
        self.mean_p = np.full(system.size, np.log(EXPONENT))
        self.mean_p[:k] = np.log(GATE)
        self.mean_p[:terms] = log_n.mean() - np.log(terms)
        self.sd_p = np.full(system.size, EXPONENT_SD)
        self.sd_p[:k] = TERM_SD

    def predict(self, phi_bp: Array) -> tuple[Array, Array]:
        log_bn, jacobian_bnp = linearise(self.system, _linear(self.system, phi_bp))
        return log_bn, jacobian_bnp * _scale(self.system, phi_bp)[:, None, :]

    def curvature(self, phi_bp: Array, variance: float) -> Array:
        _, jacobian_bnp = self.predict(phi_bp)
        return np.matmul(jacobian_bnp.transpose(0, 2, 1), jacobian_bnp) / variance + np.diag(self.sd_p**-2)

    def descend(self, phi_bp: Array, variance: float, *, max_steps: int = MAX_STEPS) -> tuple[Array, Array]:
        """Walk every start down to a minimum; returns phi (b, p) and costs (b): squares of residuals and of prior."""

        def cost(log_bn: Array, at_bp: Array) -> Array:
            fit_b = np.sum((log_bn - self.log_n) ** 2, axis=1) / variance
            return fit_b + np.sum(((at_bp - self.mean_p) / self.sd_p) ** 2, axis=1)

        eye, precision_pq = np.eye(self.system.size), np.diag(self.sd_p**-2)
        log_bn, jacobian_bnp = self.predict(phi_bp)
        cost_b, damping_b = cost(log_bn, phi_bp), np.full(len(phi_bp), 1e-2)
        for _ in range(max_steps):
            turned_bpn = jacobian_bnp.transpose(0, 2, 1)
            gradient_bp = np.matmul(turned_bpn, (log_bn - self.log_n)[:, :, None])[:, :, 0] / variance
            gradient_bp += (phi_bp - self.mean_p) / self.sd_p**2
            gauss_bpq = np.matmul(turned_bpn, jacobian_bnp) / variance + precision_pq
            damped_bpq = gauss_bpq * (1 + damping_b[:, None, None] * eye)
            step_bp = -np.linalg.solve(damped_bpq, gradient_bp[:, :, None])[:, :, 0]
            if (np.abs(np.sum(gradient_bp * step_bp, axis=1)) < 1e-8).all():
                break
            trial_bp = phi_bp + np.clip(step_bp, -2, 2)
            trial_log_bn, trial_jacobian_bnp = self.predict(trial_bp)
            trial_cost_b = cost(trial_log_bn, trial_bp)
            better = trial_cost_b < cost_b
            phi_bp = np.where(better[:, None], trial_bp, phi_bp)
            cost_b = np.where(better, trial_cost_b, cost_b)
            log_bn = np.where(better[:, None], trial_log_bn, log_bn)
            jacobian_bnp = np.where(better[:, None, None], trial_jacobian_bnp, jacobian_bnp)
            damping_b = np.clip(damping_b * np.where(better, 0.2, 6.0), 1e-9, 1e9)
        return phi_bp, cost_b


def weigh_evidence(found: Sequence[Posterior]) -> Array:
    """Share belief among forms by their evidence, with equal belief beforehand."""
    evidence_f = np.array([f.evidence for f in found])
    share_f = np.exp(evidence_f - evidence_f.max())
    return share_f / share_f.sum()


def _linear(system: System, phi_bp: Array) -> Array:
    k = system.coefficients
    return np.concatenate([phi_bp[:, :k], np.exp(np.clip(phi_bp[:, k:], -20, 3))], axis=1)


def _scale(system: System, phi_xp: Array) -> Array:
    """Differentiate linear parameters by phi: one for terms, the exponent itself for exponents."""
    scale_xp = np.ones_like(phi_xp)
    k = system.coefficients
    scale_xp[..., k:] = np.exp(np.clip(phi_xp[..., k:], -20, 3))
    return scale_xp
