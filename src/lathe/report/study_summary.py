"""Say in the terminal what a study found: the choice first, then prediction beside truth."""

from __future__ import annotations

from rich.console import Group, RenderableType

from lathe.report.study_tables import find_chosen
from lathe.report.tables import make_table, titled
from lathe.studies import Candidate, StudyResult


def study_summary(result: StudyResult) -> Group:
    """Lay out the choice, and every candidate's loss and latency, predicted and true."""
    chosen = find_chosen(result)
    table = make_table("shape", "params", "predicted loss", f"{result.level:.0%} interval", "true loss", "off",
                       "predicted", "measured", "within budget")  # fmt: skip
    for one in sorted(result.candidates, key=lambda c: c.rank):
        table.add_row(*_row(one))
    lines = [f"{cost.seconds:.0f} s {name}" for name, cost in result.costs.items()]
    parts: list[RenderableType] = [_lead(result, chosen), titled("Predicted beside true", table)]
    parts += [f"! {note}" for note in result.notes]
    parts.append(f"took: {', '.join(lines)}")
    return Group(*parts)


def _lead(result: StudyResult, chosen: Candidate | None) -> str:
    if chosen is None:
        return f"no model was chosen: {result.reason}"
    latency = chosen.predicted_s if chosen.measured_s is None else chosen.measured_s
    budget = "" if result.budget_s is None else f" of {result.budget_s * 1e3:.4g} ms"
    return (
        f"chosen: {chosen.name}, {chosen.shape.params:,} params; held-out loss {chosen.true_loss:.4f}, "
        f"{latency * 1e3:.4g} ms{budget}; {result.reason}"
    )


def _row(one: Candidate) -> tuple[str, ...]:
    measured = "" if one.measured_s is None else f"{one.measured_s * 1e3:.4g} ms"
    return (
        one.name, f"{one.shape.params:,}", f"{one.predicted_loss:.4f}", f"{one.loss_low:.4f}–{one.loss_high:.4f}",
        f"{one.true_loss:.4f}", f"{one.loss_error:+.2%}", f"{one.predicted_s * 1e3:.4g} ms", measured,
        "yes" if one.within_budget else "no",
    )  # fmt: skip
