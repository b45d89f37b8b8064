"""Lay out the best mixture for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from lathe.report.tables import make_table, titled

if TYPE_CHECKING:
    from lathe.laws.mixture import BestMixture, MixtureLaw


def mix_table(law: MixtureLaw, best: BestMixture) -> Group:
    """Lay out each source's weight with its interval, beside its mean and range over the runs."""
    table = make_table("source", "best weight", f"{best.level:.0%} interval", "runs' mean", "runs' range")
    means, lows, highs = law.weights_ns.mean(axis=0), law.weights_ns.min(axis=0), law.weights_ns.max(axis=0)
    for i, (name, weight) in enumerate(best.weights.items()):
        low, high = best.intervals[name]
        table.add_row(
            name, f"{weight:.2%}", f"{low:.2%} – {high:.2%}", f"{means[i]:.2%}", f"{lows[i]:.2%} – {highs[i]:.2%}"
        )
    low, high = best.loss_interval
    notes = (
        f"predicted {law.target} {best.loss:.4f} ({low:.4f} – {high:.4f}); {best.reference:.4f} for the mixture they"
        f" were drawn around; mean of the best {best.averaged} of {best.simulated:,} simulated",
        f"{law.model} regression on {len(law.losses_n)} runs; held out: Spearman {law.spearman:.3f}, RMS error"
        f" {law.error:.4f} ({law.folds} folds)",
    )
    title = f"Best mixture of {len(law.sources)} sources"
    return Group(titled(title, table, *notes), *(Text(f"! {text}", style="yellow") for text in law.warnings))
