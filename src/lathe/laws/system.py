"""A form set against a table: the logs, signs and centres that the engine and predictions read.

Axes: b a fit (a start, a fold or a bootstrap draw), k a term, n a run, p a parameter.

A law's parameters stand in two coordinates. `theta_p` = (log coefficients, exponents) is what a `Law` keeps and
predicts from. `phi_p` = (log of each term at the table's geometric mean, log exponents) is what the engine moves:
centring takes away most of the correlation between a coefficient and its exponent, and logs keep both positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lathe.errors import LawError, nearest
from lathe.laws.forms import Form, Term
from lathe.runs import Table, derive, list_columns

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One term against the table: z_n = log coefficient + Σ exponent · x_n, with x signed, logged and centred."""

    coefficient: int | None  # None: the 1 in (1 + gate)
    sign: float
    exponents: tuple[int, ...]
    x_n: tuple[Array, ...]
    centres: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A form's factors against one table of runs."""

    form: Form
    factors: tuple[tuple[Piece, ...], ...]
    size: int
    """Number of parameters, p."""
    runs: int
    """Number of rows, n."""

    @property
    def coefficients(self) -> int:
        """Count the coefficients; the exponents follow them in every parameter vector."""
        return len(self.form.coefficients)

    def to_linear(self, theta_bp: Array) -> Array:
        """Turn (log coefficients, exponents) into (log terms at the centre, exponents)."""
        return theta_bp @ self._shift(1.0).T

    def to_theta(self, linear_bp: Array) -> Array:
        """Turn (log terms at the centre, exponents) into (log coefficients, exponents)."""
        return linear_bp @ self._shift(-1.0).T

    def _shift(self, sign: float) -> Array:
        shift_pp = np.eye(self.size)
        for pieces in self.factors:
            for piece in pieces:
                for index, centre in zip(piece.exponents, piece.centres, strict=True):
                    assert piece.coefficient is not None
                    shift_pp[piece.coefficient, index] += sign * centre
        return shift_pp

    def rows(self, keep_n: NDArray[np.bool_] | NDArray[np.intp]) -> System:
        """Keep some runs only, centres unchanged."""
        factors = tuple(
            tuple(
                Piece(
                    coefficient=p.coefficient,
                    sign=p.sign,
                    exponents=p.exponents,
                    x_n=tuple(x[keep_n] for x in p.x_n),
                    centres=p.centres,
                )
                for p in pieces
            )
            for pieces in self.factors
        )
        runs = int(np.count_nonzero(keep_n)) if keep_n.dtype == bool else len(keep_n)
        return System(form=self.form, factors=factors, size=self.size, runs=runs)


def column(columns: Table, name: str) -> Array:
    """Read one column as floats, deriving `aspect` and the like where the table lacks them.

    Raises:
        LawError: the column is missing and does not follow from others, or does not hold numbers.
    """
    known = list_columns(columns)
    values = columns[name] if name in known else derive(columns).get(name)
    if values is None:
        raise LawError(f"the table has no column {name!r}{nearest(name, known)}")
    try:
        return np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise LawError(f"column {name!r} does not hold numbers: {error}") from None


def compile_form(form: Form, columns: Table, *, centred: bool = True) -> System:
    """Set a form against a table's columns.

    Raises:
        LawError: a column is missing, is not numeric, or holds a value whose log does not exist.
    """
    exponents = {name: len(form.coefficients) + i for i, name in enumerate(form.exponents)}
    data = {name: column(columns, name) for name in form.columns}
    lengths = {name: len(v) for name, v in data.items()}
    if len(set(lengths.values()) - {1}) > 1:
        raise LawError(f"columns differ in length: {lengths}")
    runs = max(lengths.values(), default=1)
    data = {name: np.broadcast_to(v, (runs,)) for name, v in data.items()}

    def piece(index: int, term: Term) -> Piece:
        xs, centres = [], []
        for power in term.powers:
            x_n = data[power.column]
            bad = ~np.isfinite(x_n) if power.exponential else ~(np.isfinite(x_n) & (x_n > 0))
            if bad.any():
                row = int(np.argmax(bad))
                raise LawError(
                    f"row {row + 1}: {power.column} = {x_n[row]:g}; form {form.name!r} wants a finite number"
                    f"{'' if power.exponential else ' above zero'}"
                )
            x_n = power.sign * (x_n if power.exponential else np.log(power.scale * x_n))
            centre = float(x_n.mean()) if centred else 0.0
            xs.append(np.ascontiguousarray(x_n - centre))
            centres.append(centre)
        return Piece(
            coefficient=index,
            sign=float(term.sign),
            exponents=tuple(exponents[p.exponent] for p in term.powers),
            x_n=tuple(xs),
            centres=tuple(centres),
        )

    factors = [tuple(piece(i, t) for i, t in enumerate(form.terms))]
    if form.gate is not None:
        one = Piece(coefficient=None, sign=1.0, exponents=(), x_n=(), centres=())
        factors.append((one, piece(len(form.terms), form.gate)))
    return System(form=form, factors=tuple(factors), size=len(form.names), runs=runs)


def predict(form: Form, theta_bp: Array, columns: Table) -> Array:
    """Evaluate a form at each row of the columns for each parameter vector; returns axes b, n."""
    system = compile_form(form, columns, centred=False)
    theta_bp = np.atleast_2d(theta_bp)
    value_bn = np.ones((len(theta_bp), system.runs))
    for pieces in system.factors:
        total_bn = np.zeros_like(value_bn)
        for piece in pieces:
            z_bn = np.zeros_like(value_bn)
            if piece.coefficient is not None:
                z_bn += theta_bp[:, piece.coefficient, None]
            for index, x_n in zip(piece.exponents, piece.x_n, strict=True):
                z_bn += theta_bp[:, index, None] * x_n
            total_bn += piece.sign * np.exp(z_bn)
        value_bn *= total_bn
    return value_bn
