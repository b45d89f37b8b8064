"""The table of laws: each form is a value, a product of sums of powers with positive coefficients.

Every form reads  target = (sum of terms) · (1 + gate), where a term is a signed coefficient times powers of columns. A
new law is a new row: `FORMS["mine"] = Form(...)`, or pass the `Form` itself to `lathe.fit`.

The one law here that is not of this kind, the sigmoid of a downstream score, is a quotient: it lives in
`lathe.laws.sigmoid`, on SciPy, because a power basis cannot hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lathe.errors import LawError, nearest

Objective = Literal["squares-log", "huber-log", "squares"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

HUBER_DELTA = 1e-3
"""Where Huber's loss of log residuals turns linear (Hoffmann et al. 2022, arXiv:2203.15556, app. D.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """One factor of a term: (scale · column)^(sign · exponent), or exp(sign · exponent · column) if `exponential`."""

    column: str
    exponent: str
    sign: int = -1
    scale: float = 1.0
    exponential: bool = False

    def __post_init__(self) -> None:
        if self.sign not in (-1, 1) or not self.scale > 0:
            raise LawError(f"a power of {self.column!r} has sign={self.sign}, scale={self.scale}; wanted ±1 and > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A positive coefficient, its sign in the sum, and the powers it multiplies."""

    coefficient: str
    powers: tuple[Power, ...] = ()
    sign: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A law's formula: target = (Σ terms) · (1 + gate).

    `auto` says whether `fit(form="auto")` may consider it: reparametrisations of another form, and laws of another
    target, are left out. Every coefficient and exponent is positive; signs are stated in the terms.
    """

    name: str
    terms: tuple[Term, ...]
    formula: str
    source: str
    gate: Term | None = None
    target: str = "loss"
    auto: bool = True

    def __post_init__(self) -> None:
        names = self.coefficients
        if len(set(names)) != len(names):
            raise LawError(f"form {self.name!r} uses a coefficient twice: {', '.join(names)}; name each term's own")
        if set(names) & set(self.exponents):
            raise LawError(f"form {self.name!r} names a coefficient and an exponent alike; rename one")
        if not self.exponents:
            raise LawError(f"form {self.name!r} reads no column; give at least one term a power")
        if not any(t.sign > 0 for t in self.terms):
            raise LawError(f"form {self.name!r} has no positive term, so it cannot describe a positive {self.target}")

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """List the terms of the sum, then the gate's."""
        return self.terms if self.gate is None else (*self.terms, self.gate)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """List the coefficients' names in the order of the terms."""
        return tuple(t.coefficient for t in self.all_terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """List the exponents' names, each once, in order of appearance."""
        return tuple(dict.fromkeys(p.exponent for t in self.all_terms for p in t.powers))

    @property
    def names(self) -> tuple[str, ...]:
        """List every fitted name: coefficients, then exponents."""
        return self.coefficients + self.exponents

    @property
    def columns(self) -> tuple[str, ...]:
        """List the columns the form reads, each once."""
        return tuple(dict.fromkeys(p.column for t in self.all_terms for p in t.powers))

    @property
    def positive(self) -> bool:
        """Say whether every term adds, so that the law is positive and its log exists everywhere."""
        return all(t.sign > 0 for t in self.all_terms)

    @property
    def objective(self) -> Objective:
        """Name the objective used when none is asked for: log residuals where the law is positive."""
        return "squares-log" if self.positive else "squares"


def _term(coefficient: str, *powers: tuple[str, str], sign: int = 1) -> Term:
    return Term(coefficient=coefficient, sign=sign, powers=tuple(Power(column=c, exponent=e) for c, e in powers))


_E = _term("E")
_MORPH = "Bian et al. 2025, arXiv:2501.18107"
_GEMSTONES = "separate width and depth terms; also in Gemstones, McLeish et al. 2025, arXiv:2502.06857"


def _aspect(gamma: str) -> Term:
    return Term(coefficient="epsilon", powers=(Power(column="aspect", exponent=gamma, sign=1),))


_ROWS = (
    Form(
        name="chinchilla",
        terms=(_E, _term("A", ("params", "alpha")), _term("B", ("tokens", "beta"))),
        formula="L = E + A·N^-alpha + B·D^-beta",
        source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2",
    ),
    Form(
        name="chinchilla-tied",
        terms=(_E, _term("A", ("params", "alpha")), _term("B", ("tokens", "alpha"))),
        formula="L = E + A·N^-alpha + B·D^-alpha",
        source=f"{_MORPH}, the baseline",
    ),
    Form(
        name="overtraining",
        terms=(
            _E,
            _term("a", ("params", "alpha")),
            Term(coefficient="b", powers=(Power(column="tokens", exponent="alpha", scale=6**0.5),)),
        ),
        formula="L = E + a·N^-alpha + b·6^(-alpha/2)·(M·N)^-alpha,  M = D/N",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 4, as its authors fit it; chinchilla-tied with b scaled",
        auto=False,
    ),
    Form(
        name="aspect",
        terms=(_E, _term("A", ("params", "alpha")), _term("B", ("tokens", "alpha"))),
        gate=_aspect("alpha"),
        formula="L = (E + A·N^-alpha + B·D^-alpha)·(1 + epsilon·R^alpha),  R = d_model/n_layers",
        source=f"{_MORPH}, eq. 4",
    ),
    Form(
        name="aspect-free",
        terms=(_E, _term("A", ("params", "alpha")), _term("B", ("tokens", "alpha"))),
        gate=_aspect("gamma"),
        formula="L = (E + A·N^-alpha + B·D^-alpha)·(1 + epsilon·R^gamma)",
        source=f"{_MORPH}, its variant with a free exponent on R",
    ),
    Form(
        name="aspect-free-tokens",
        terms=(_E, _term("A", ("params", "alpha")), _term("B", ("tokens", "beta"))),
        gate=_aspect("gamma"),
        formula="L = (E + A·N^-alpha + B·D^-beta)·(1 + epsilon·R^gamma)",
        source="Lathe; aspect-free with its own exponent on tokens",
    ),
    Form(
        name="width-depth",
        terms=(_E, _term("A", ("d_model", "a")), _term("C", ("n_layers", "c")), _term("B", ("tokens", "b"))),
        formula="L = E + A·d^-a + C·n^-c + B·D^-b",
        source=f"Lathe; {_GEMSTONES}",
    ),
    Form(
        name="width-depth-tied",
        terms=(_E, _term("A", ("d_model", "a")), _term("C", ("n_layers", "a")), _term("B", ("tokens", "b"))),
        formula="L = E + A·d^-a + C·n^-a + B·D^-b",
        source=f"Lathe; {_GEMSTONES}",
    ),
    Form(
        name="width-depth-shared",
        terms=(_E, _term("A", ("d_model", "a")), _term("C", ("n_layers", "a")), _term("B", ("tokens", "a"))),
        formula="L = E + A·d^-a + C·n^-a + B·D^-a",
        source=f"Lathe; {_GEMSTONES}",
    ),
    Form(
        name="vocabulary",
        terms=(
            Term(coefficient="E", sign=-1),
            _term("A1", ("non_vocab_params", "alpha1")),
            _term("A2", ("vocab_params", "alpha2")),
            _term("B", ("tokens", "beta")),
        ),
        formula="L_u = -E + A1·N_nv^-alpha1 + A2·N_v^-alpha2 + B·D^-beta,  N_v = V·d_model",
        source="Tao et al. 2024, arXiv:2407.13623, eq. 5; L_u is the loss less that of a unigram model",
        target="unigram_normalised_loss",
        auto=False,
    ),
    Form(
        name="error",
        terms=(
            _term("epsilon"),
            Term(
                coefficient="k",
                sign=-1,
                powers=(Power(column="loss", exponent="gamma", exponential=True),),
            ),
        ),
        formula="Err = epsilon - k·exp(-gamma·L)",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 5; downstream top-1 error averaged over tasks",
        target="error",
        auto=False,
    ),
)

FORMS: dict[str, Form] = {form.name: form for form in _ROWS}
"""Every form by name. Assigning a new row adds a law everywhere: `auto`, `lathe fit --form`, `lathe compare`."""


def find_form(form: str | Form) -> Form:
    """Return the form of that name, or the form itself.

    Raises:
        LawError: no form has the name; the nearest are named.
    """
    if isinstance(form, Form):
        return form
    if not isinstance(form, str):
        raise LawError(f"form={form!r} is neither a Form nor the name of one")
    if form not in FORMS:
        raise LawError(f"no law form is called {form!r}{nearest(form, [*FORMS, 'auto', 'best'])}")
    return FORMS[form]
