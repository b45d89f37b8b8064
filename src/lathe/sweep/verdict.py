"""Choose among the candidates that were trained, by their true loss and the time they take."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.studies import Candidate


def is_within(candidate: Candidate, budget_s: float | None) -> bool:
    """Say whether a candidate is quick enough: as measured, or as predicted where it was not."""
    return budget_s is None or _seconds(candidate) <= budget_s


def choose(candidates: Sequence[Candidate], budget_s: float | None) -> tuple[Candidate | None, str]:
    """Take the lowest true loss among those within the budget, and say why; of none, say which was nearest."""
    within = [c for c in candidates if c.within_budget]
    if within:
        best = min(within, key=lambda c: c.true_loss)
        how = "as measured" if best.measured_s is not None else "as predicted"
        limit = "" if budget_s is None else f" of the {len(within)} within {budget_s * 1e3:.4g} ms {how}"
        return best, f"lowest held-out loss{limit}"
    if not candidates:
        return None, "no shape of the plan fits the budget"
    fastest = min(candidates, key=_seconds)
    seconds = _seconds(fastest)
    over = "" if budget_s is None else f", {seconds / budget_s - 1:.0%} over the budget of {budget_s * 1e3:.4g} ms"
    return None, f"none was quick enough; the nearest is {fastest.name}{over}"


def _seconds(candidate: Candidate) -> float:
    return candidate.predicted_s if candidate.measured_s is None else candidate.measured_s
