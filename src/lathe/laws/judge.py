"""What a table of runs cannot tell, said in sentences beside the law fitted to it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lathe.laws.axes import axis_values
from lathe.laws.law import Member
from lathe.laws.system import Array, predict
from lathe.runs import Table, list_columns


def judge(members: tuple[Member, ...], columns: Table, y_n: Array) -> tuple[str, ...]:
    """Say what these runs cannot tell: collinear axes, unseen coefficients, a vanished floor, too few shapes."""
    found = []
    spread = float(np.sum((y_n - y_n.mean()) ** 2))
    for member in members:
        missed = float(np.sum((predict(member.form, member.theta_p, columns)[0] - y_n) ** 2))
        if member.weight > 0 and missed > 0.5 * spread and spread > 1e-12 * float(np.sum(y_n**2)):
            found.append(
                f"{member.form.name}: explains only {max(0.0, 1 - missed / spread):.0%} of the losses' variance"
            )
    table = axis_values({c: columns[c] for c in list_columns(columns)})
    if "params" in table and "tokens" in table and len(table["params"]) > 2:
        log_n, log_d = np.log(table["params"]), np.log(table["tokens"])
        r = float(np.corrcoef(log_n, log_d)[0, 1]) if log_n.std() > 1e-9 and log_d.std() > 1e-9 else 0.0
        if abs(r) > 0.98:
            found.append(
                f"tokens are all but proportional to params (correlation of logs {r:.3f}): their two terms are"
                " collinear, and only runs at another tokens_per_param can tell them apart"
            )
    for member in members:
        if member.weight > 0:
            found += [f"{member.form.name}: {text}" for text in _unsure(member, runs=len(y_n))]
    shapes = _distinct_shapes(table)
    reads_shape = {c for m in members for c in m.form.columns} & {"d_model", "n_layers", "aspect"}
    if reads_shape and shapes is not None and shapes < 8:
        axes_read = " and ".join(sorted(reads_shape))
        found.append(f"only {shapes} distinct shapes: exponents of {axes_read} are hardly seen")
    return tuple(found)


def _distinct_shapes(table: Mapping[str, Array]) -> int | None:
    if "d_model" not in table or "n_layers" not in table:
        return None
    return len(set(zip(table["d_model"].tolist(), table["n_layers"].tolist(), strict=True)))


def _unsure(member: Member, *, runs: int) -> list[str]:
    found = []
    k = len(member.form.coefficients)
    for name, theta, se in zip(member.form.exponents, member.theta_p[k:], member.theta_se_p[k:], strict=True):
        if math.isinf(se) and runs <= len(member.theta_p):
            found.append("as many parameters as runs: no standard error can be given")
            break
        if math.isinf(se):
            found.append(f"exponent {name} cannot be told from other coefficients by these runs")
        elif se > 0.5 * theta:
            found.append(f"exponent {name} = {theta:.3g} ± {se:.2g} is not identified by these runs")
    constant = next((i for i, t in enumerate(member.form.terms) if not t.powers and t.sign > 0), None)
    if constant is not None and member.theta_p[constant] < math.log(0.02):
        name = member.form.terms[constant].coefficient
        found.append(f"{name} → 0: these runs show no floor, so do not trust predictions far beyond them")
    if member.condition > 1e8:
        found.append(f"condition number {member.condition:.1g}: some combination of coefficients is not seen at all")
    return found
