"""Say which axes' exponents a study's runs cannot tell, in words.

A law warns of the coefficients that it has (`lathe.laws.judge`). Where it was chosen among forms it may have none for
an axis just because the runs could not carry one, or one that vanished: that is said here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from lathe.laws.forms import FORMS, Form, Term
from lathe.laws.law import Law, Member
from lathe.laws.system import predict

APART = re.compile(r"cannot tell (.+) apart")
"""What a score says of a form left out because runs do not see some combination of these."""
SAID = {"d_model": "width", "n_layers": "depth", "params": "params", "tokens": "tokens", "aspect": "the aspect ratio"}
"""Axes of which this is said, and how they are called."""


def describe_unseen(law: Law) -> list[str]:
    """Say in a sentence an axis whose exponent the runs cannot tell, and whether they show any effect of it."""
    return [sentence for column in SAID if (sentence := _describe(law, column)) is not None]


def _describe(law: Law, column: str) -> str | None:
    axis = law.axes.get(column)
    readers = [member for member in law.averaged if column in member.form.columns]
    if axis is None or axis.distinct < 2 or not readers:
        return None
    if column == "aspect" and "n_layers" in {name for member in law.averaged for name in member.form.columns}:
        return None  # what is said of depth says it
    name = SAID[column]
    blurred = "".join(f"; {form.name} cannot tell {names} apart" for form, names in _list_blurred(law, column))
    if (effect := max(_find_effect(m, column, law) for m in readers)) <= law.cv:
        off, own = (f"{100 * one:.2f} %" if law.log else f"{one:.2g}" for one in (effect, law.cv))
        return (
            f"these runs cannot tell the exponent of {name}, nor whether {name} alone does anything to the loss "
            f"(between their least and their most {column} the law differs by {off}, and its own error is {own}"
            f"{blurred}): runs that differ more in {column} could tell"
        )
    if blurred and not any(_has_own(member.form, column) for member in readers):
        form = readers[0].form
        others = ", ".join(SAID.get(other, other) for other in _list_sharing(form, column))
        return (
            f"these runs cannot tell the exponent of {name} ({blurred.removeprefix('; ')}): the law gives it that of "
            f"{others}, in {form.name}; runs that differ more in {column} could tell"
        )
    return None


def _find_effect(member: Member, column: str, law: Law) -> float:
    """Say how much a column alone changes a prediction from its least to its most, all else in the middle.

    In logs where the law is positive. Infinite for a form of columns whose range the law does not keep.
    """
    if not law.axes.keys() >= set(member.form.columns):
        return math.inf
    middle = {name: np.sqrt(law.axes[name].low * law.axes[name].high) for name in member.form.columns}
    ends = {name: np.full(2, value) for name, value in middle.items()}
    ends[column] = np.array([law.axes[column].low, law.axes[column].high])
    low, high = predict(member.form, member.theta_p, ends)[0]
    return float(abs(np.log(high / low)) if law.log else abs(high - low))


def _list_blurred(law: Law, column: str) -> Iterator[tuple[Form, str]]:
    """Yield the forms that the runs could not carry, for an exponent of a column's own, and what they blurred."""
    for score in law.ranking:
        form, apart = FORMS.get(score.form), APART.search(score.excluded)
        if form is None or apart is None or not _has_own(form, column):
            continue
        names = apart[1].split(", ")
        gate = form.gate is not None and form.gate.coefficient in names  # it blurs all that it multiplies
        terms = [form.gate] if gate and form.gate is not None else form.terms
        if any(term.coefficient in names for term in terms if _reads(term, column)):
            yield form, apart[1]


def _reads(term: Term, column: str) -> bool:
    return any(power.column == column for power in term.powers)


def _has_own(form: Form, column: str) -> bool:
    return column in form.columns and not _list_sharing(form, column)


def _list_sharing(form: Form, column: str) -> list[str]:
    """List the columns that have a column's exponent in a form, too."""
    powers = [power for term in form.all_terms for power in term.powers]
    own = {power.exponent for power in powers if power.column == column}
    return list(dict.fromkeys(p.column for p in powers if p.exponent in own and p.column != column))
