"""What a fit gives: a `Law` that predicts, says how surely, and remembers what it never saw.

Axes: b a bootstrap draw, n a row asked about, p a parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lathe.errors import LawError
from lathe.laws.axes import HELD, SCALES, Axis, axis_values, shape_columns
from lathe.laws.choose import Score
from lathe.laws.forms import Form, Objective
from lathe.laws.system import Array, predict
from lathe.laws.uncertainty import Interval, mix
from lathe.runs import Table, list_columns

if TYPE_CHECKING:
    from lathe.laws.optimum import Optimum
    from lathe.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """One fitted form of a law: parameters are (log coefficients, exponents) in the order of `form.names`."""

    form: Form
    theta_p: Array
    theta_se_p: Array
    """Delta-method standard errors of `theta_p`."""
    draws_bp: Array
    condition: float
    cost: float
    """The objective's value at the fit: Σ of r²/2, or of Huber's loss, over the runs."""
    weight: float
    interval_weight: float

    @property
    def coefficients(self) -> dict[str, float]:
        """Name each coefficient and exponent, in natural units."""
        k = len(self.form.coefficients)
        with np.errstate(over="ignore"):
            values_p = np.concatenate([np.exp(self.theta_p[:k]), self.theta_p[k:]])
        return dict(zip(self.form.names, values_p.tolist(), strict=True))

    @property
    def standard_errors(self) -> dict[str, float]:
        """Give each coefficient's delta-method standard error, in natural units."""
        k = len(self.form.coefficients)
        scale_p = np.concatenate([np.exp(self.theta_p[:k]), np.ones(len(self.theta_p) - k)])
        return dict(zip(self.form.names, (self.theta_se_p * scale_p).tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Law:
    """One form, or a weighted average of several, fitted to a table of runs; made by `lathe.fit`.

    An average is over the logs of the members' predictions (over the predictions themselves for a target that may be
    negative). `weight` is a member's part in it, `interval_weight` its part in intervals; either may be zero.
    """

    members: tuple[Member, ...]
    ranking: tuple[Score, ...]
    folds: str
    """The rule that split the runs into sizes, with the sizes: "size: 80M, 86M, …"; empty if none was possible."""
    target: str
    objective: Objective
    loss_kind: str | None
    runs: int
    axes: Mapping[str, Axis]
    cv: float
    """Standard deviation of the noise that cross-validation shows, in log target (in target if it may be negative)."""
    warnings: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Name the form, or the average."""
        names = [m.form.name for m in self.averaged]
        return names[0] if len(names) == 1 else f"average of {', '.join(names)}"

    @property
    def averaged(self) -> tuple[Member, ...]:
        """List the members that make the prediction, best in cross-validation first."""
        return tuple(m for m in self.members if m.weight > 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """List the columns the law reads, over all its members."""
        return tuple(dict.fromkeys(c for m in self.members for c in m.form.columns))

    @property
    def log(self) -> bool:
        """Say whether the law is positive, so that it averages and scatters in logs."""
        return all(m.form.positive for m in self.members)

    @property
    def has_draws(self) -> bool:
        """Say whether the law keeps bootstrap draws, so that it can give intervals."""
        return any(len(m.draws_bp) for m in self.members)

    @property
    def coefficients(self) -> dict[str, float]:
        """Name each coefficient; for an average each name begins with its form's, "width-depth.E"."""
        return self._named("coefficients")

    @property
    def standard_errors(self) -> dict[str, float]:
        """Give delta-method standard errors, named as `coefficients` are."""
        return self._named("standard_errors")

    @property
    def condition(self) -> float:
        """Give the worst condition number among the averaged members; see `uncertainty.identify`."""
        return max(m.condition for m in self.averaged)

    def _named(self, what: str) -> dict[str, float]:
        if len(self.averaged) == 1:
            return dict(getattr(self.averaged[0], what))
        return {f"{m.form.name}.{k}": v for m in self.averaged for k, v in getattr(m, what).items()}

    def predict(self, columns: Table, *, assume: Collection[str] = ()) -> Array:
        """Predict the target at each row.

        Args:
            columns: any mapping of column name to values; columns that follow from others may be left out.
            assume: held axes (`lathe.laws.axes.HELD`) on which to predict off the runs' one value.

        Raises:
            LawError: a column the law reads is missing, or a row differs on an axis that no fitted run varied.
        """
        self._refuse_unseen(columns, assume)
        values = [(m.weight, predict(m.form, m.theta_p, columns)[0]) for m in self.averaged]
        if self.log:
            return np.exp(sum(w * np.log(v) for w, v in values) / sum(w for w, _ in values))
        return np.asarray(sum(w * v for w, v in values) / sum(w for w, _ in values))

    def draws(self, columns: Table, *, assume: Collection[str] = ()) -> list[tuple[float, Array]]:
        """Predict with every bootstrap draw: for each member its interval weight and values with axes (b, n)."""
        self._refuse_unseen(columns, assume)
        drawn = [m for m in self.members if m.interval_weight > 0 and len(m.draws_bp)]
        return [(m.interval_weight, predict(m.form, m.draws_bp, columns)) for m in drawn]

    def interval(self, columns: Table, *, level: float = 0.9, assume: Collection[str] = ()) -> Interval:
        """Bracket the target of a new run at each row with the given probability.

        Mixes every member's bootstrap draws by interval weight and adds cross-validation noise: the bootstrap alone
        covers less than half of what it claims (docs/laws.md). Raises as `predict` does, and for a law without draws.
        """
        drawn = self.draws(columns, assume=assume)
        return mix([v for _, v in drawn], [w for w, _ in drawn], cv=self.cv, level=level, log=self.log, seed=self.seed)

    def loss(self, shape: Shape, *, tokens: float, assume: Collection[str] = ()) -> float:
        """Predict the loss of one shape trained on `tokens`, in nats per token. Raises as `predict` does."""
        return float(self.predict(shape_columns(shape, tokens=tokens), assume=assume)[0])

    def extrapolation(self, columns: Table) -> list[str]:
        """Say how far the rows reach beyond the fitted runs, one sentence an axis; empty inside their range."""
        table = {name: columns[name] for name in list_columns(columns)}
        found = []
        for name, values_n in axis_values(table).items():
            axis = self.axes.get(name)
            if axis is None or name not in SCALES or not len(values_n):
                continue
            above, below = float(np.nanmax(values_n)) / axis.high, axis.low / float(np.nanmin(values_n))
            if above > 1.001:
                found.append(f"{name} reaches ×{above:.3g} beyond the largest run ({axis.high:.4g})")
            if below > 1.001:
                found.append(f"{name} reaches ×{below:.3g} below the smallest run ({axis.low:.4g})")
        return found

    def optimal(self, *, flops: float, aspect: float | None = None, level: float = 0.9) -> Optimum:
        """Split a training budget between params and tokens; see `lathe.laws.optimum.optimal`."""
        from lathe.laws.optimum import optimal

        return optimal(self, flops=flops, aspect=aspect, level=level)

    def save(self, path: str | Path) -> None:
        """Write the law as JSON, whole or not at all."""
        from lathe.laws.store import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Law:
        """Read a law that `save` wrote.

        Raises:
            CodecError: the file is truncated, is no law, or was written by a newer version.
        """
        from lathe.laws.store import load

        return load(Path(path))

    def _refuse_unseen(self, columns: Table, assume: Collection[str]) -> None:
        if unknown := set(assume) - set(HELD):
            raise LawError(f"assume={sorted(unknown)} names no held axis; held axes are {', '.join(HELD)}")
        known = set(list_columns(columns))
        if not known & {"vocab_size", "tied", "d_ff", "n_kv_heads", "stored_ratio"}:
            return
        values = axis_values({name: columns[name] for name in known})
        for name in HELD:
            axis = self.axes.get(name)
            if name in assume or axis is None or axis.distinct > 1 or name not in values:
                continue
            off_n = np.abs(values[name] / axis.low - 1) > 0.01 if axis.low else values[name] != axis.low
            if off_n.any():
                row = int(np.argmax(off_n))
                raise LawError(
                    f"row {row + 1}: {name} = {values[name][row]:g}, but every run this law was fit on has {name} ="
                    f" {axis.low:g}, so it cannot say what that does to {self.target}; change the shape, add runs that"
                    f" vary {name}, or accept the ignorance with assume={name!r} (--assume {name})"
                )
