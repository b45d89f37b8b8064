"""Lay out a study's numbers as tables: what was trained and what it beat, costs, and where all of it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lathe.report.html import Cell, DataTable
from lathe.report.latency_tables import format_bytes, format_seconds
from lathe.report.tables import format_count
from lathe.studies import Candidate, Rival, StudyResult

STAGES = ("study.toml", "what was asked"), ("result.json", "every number of this report")
"""Files of a study's folder that its result does not name."""
DURATIONS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def versus_table(result: StudyResult) -> DataTable:
    """Set the trained candidates, the chosen or nearest one first, beside the shapes that habit would pick."""
    first = find_chosen(result) or find_nearest(result)
    ordered = sorted(result.candidates, key=lambda c: (c is not first, not c.within_budget, c.true_loss))
    head = ("shape", "params", "loss", f"predicted ({format_level(result)})", "latency", "predicted", "verdict")
    trained = [
        (
            *(one.name, format_count(one.shape.params), format_loss(one.true_loss), format_predicted(one)),
            *(_seconds(one.measured_s), format_seconds(one.predicted_s), judge(one, result)),
        )
        for one in ordered
    ]
    rivals = [
        (
            *(rival.name, format_count(rival.shape.params), None, format_predicted(rival)),
            *(None, format_seconds(rival.predicted_s), "not trained"),
        )
        for rival in result.rivals
    ]
    return DataTable(head=head, rows=[*trained, *rivals])


def candidates_table(result: StudyResult) -> DataTable:
    """Show for every trained candidate how far off its predictions were."""
    head = ("shape", "loss ± s.e.", "predicted", "off by", "in interval", "latency", "off by", "memory", "off by")
    rows = [
        (
            *(one.name, format_error(one.true_loss, one.true_loss_se), format_loss(one.predicted_loss)),
            *(format_share(one.loss_error), "yes" if one.inside else "no"),
            *(_seconds(one.measured_s), _off(one.predicted_s, one.measured_s)),
            *(_bytes(one.measured_memory_bytes), _off(one.memory_bytes, one.measured_memory_bytes)),
        )
        for one in _ranked(result)
    ]
    return DataTable(head=head, rows=rows)


def scores_table(result: StudyResult) -> DataTable | None:
    """Show what each candidate scored; None where it was only the loss."""
    tasks = list(dict.fromkeys(task for one in result.candidates for task in one.accuracies))
    if not tasks and all(one.bits_per_byte is None for one in result.candidates):
        return None
    rows = []
    for one in _ranked(result):
        row: list[Cell] = [one.name, format_error(one.true_loss, one.true_loss_se)]
        row.append(None if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}")
        for task in tasks:
            known = one.accuracies.get(task)
            row.append(None if known is None else format_error(known, one.accuracy_ses.get(task), digits=3))
        rows.append(row)
    return DataTable(head=("shape", "loss ± s.e.", "bits/byte", *(f"{task} ± s.e." for task in tasks)), rows=rows)


def costs_table(result: StudyResult) -> DataTable:
    """List what each stage took, and all of them together."""
    costs = [*result.costs.items()]
    rows = [(name, format_duration(c.seconds), _flops(c.flops), c.runs or None) for name, c in costs]
    total = sum(c.seconds for _, c in costs), sum(c.flops for _, c in costs), sum(c.runs for _, c in costs)
    rows.append(("together", format_duration(total[0]), _flops(total[1]), total[2] or None))
    return DataTable(head=("stage", "time", "training FLOPs", "runs"), rows=rows)


def recipes_table(result: StudyResult) -> DataTable:
    """Name each candidate's recipe and folder, and what its training took."""
    rows = [
        (
            *(one.rank, one.name, one.recipe_id, one.folder, format_count(one.tokens)),
            *(format_duration(one.train_seconds), _flops(one.train_flops)),
        )
        for one in _ranked(result)
    ]
    head = ("rank", "shape", "recipe", "folder", "tokens", "trained in", "training FLOPs")
    return DataTable(head=head, rows=rows)


def files_table(result: StudyResult) -> DataTable:
    """Name the files that the report rests on, and what they hold."""
    named = (
        (result.runs_table, "the runs that the law was fitted to"),
        (result.law_file, "the law"),
        (result.measurements_file, "measured latencies"),
        (result.device_file, "the device, as calibrated"),
        (result.plan_file, "the plan"),
        (result.exported, "the chosen model, to be used elsewhere"),
    )
    rows = [(name, what) for name, what in (*STAGES, *named) if name]
    return DataTable(head=("file", "holds"), rows=rows)


def settings_table(study: Mapping[str, Any]) -> DataTable:
    """List a study's settings under their dotted names."""
    return DataTable(head=("setting", "value"), rows=list(_flatten(study).items()))


def judge(one: Candidate, result: StudyResult) -> str:
    """Say what became of a candidate: chosen, over the budget, or beaten, and by how much."""
    chosen = find_chosen(result)
    if one is chosen:
        return "chosen"
    if not one.within_budget:
        over = None if one.measured_s is None or result.budget_s is None else one.measured_s / result.budget_s - 1
        return "over the budget" if over is None or over <= 0 else f"over the budget by {format_share(over, sign='')}"
    return "" if chosen is None else f"loss higher by {one.true_loss - chosen.true_loss:.4f}"


def find_chosen(result: StudyResult) -> Candidate | None:
    """Find the candidate that was chosen; None where none was."""
    return next((one for one in result.candidates if one.name == result.chosen), None)


def find_nearest(result: StudyResult) -> Candidate | None:
    """Find the trained candidate that took the least time; None where none was measured."""
    timed = [one for one in result.candidates if one.measured_s is not None]
    return min(timed, key=lambda one: one.measured_s or 0.0, default=None)


def format_loss(value: float) -> str:
    """Write a loss with four decimals."""
    return f"{value:.4f}"


def format_predicted(one: Candidate | Rival) -> str:
    """Write a predicted loss with its interval: 3.3759 (3.3402–3.4120)."""
    return f"{one.predicted_loss:.4f} ({one.loss_low:.4f}–{one.loss_high:.4f})"


def format_error(value: float, se: float | None, *, digits: int = 4) -> str:
    """Write a value with its standard error, where it is known: 3.3890 ± 0.0123."""
    return f"{value:.{digits}f}" + ("" if se is None else f" ± {se:.{digits}f}")


def format_latency(one: Candidate) -> str | None:
    """Write a measured latency, with its 95th percentile if that is known."""
    if one.measured_s is None:
        return None
    rare = "" if one.measured_p95_s is None else f" (p95 {format_seconds(one.measured_p95_s)})"
    return f"{format_seconds(one.measured_s)}{rare}"


def format_share(value: float, *, sign: str = "+") -> str:
    """Write a share in per cent: +1.24 %."""
    return f"{100 * value:{sign}.2f} %"


def format_level(result: StudyResult) -> str:
    """Name the interval by its probability: 90 % interval."""
    return f"{100 * result.level:g} % interval"


def format_duration(seconds: float) -> str:
    """Write how long work took, in the unit people would use: 61.3 s, 3.62 min, 2.5 h."""
    for size, unit in DURATIONS:
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _seconds(value: float | None) -> str | None:
    return None if value is None else format_seconds(value)


def _bytes(value: float | None) -> str | None:
    return None if value is None else format_bytes(value)


def _off(predicted: float, true: float | None) -> str | None:
    """Write a prediction's error, where the truth is known."""
    return None if not true else format_share(predicted / true - 1)


def _ranked(result: StudyResult) -> list[Candidate]:
    return sorted(result.candidates, key=lambda one: one.rank)


def _flops(value: float) -> str | None:
    return f"{value:.3g}" if value else None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            found[prefix + key] = json.dumps(value, ensure_ascii=False).strip('"')
    return found
