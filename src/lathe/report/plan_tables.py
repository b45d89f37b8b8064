"""Lay out plans for the terminal: the choices, the published shapes beside them, the limits, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lathe.design.choice import Choice, Plan
from lathe.report.latency_tables import format_bytes, format_seconds
from lathe.report.tables import format_count, make_table, titled

REFERENCES = 5
"""Published shapes shown, of those that fit."""
EXTRAS = {"accuracy": ("accuracy", "{:.3f}"), "train_days": ("days", "{:.3g}"), "dollars": ("dollars", "{:,.0f}")}
"""Columns shown where a plan has them: heading and format."""
NOTHING = "no shape can be trained as asked: none has min_params, or none reaches the target"
UNITS = {"memory_bytes": format_bytes, "params": format_count}


def plan_summary(plan: Plan) -> Group:
    """Lay out a plan: what to train first, then what it was chosen from and why."""
    workload = plan.workload
    served = f"batch {workload.batch}, {workload.prompt_tokens} + {workload.new_tokens} tokens, {workload.dtype}"
    head = f"{plan.device.name}, {plan.engine}; {served}; law {plan.law}"
    counted = f"{plan.considered:,} shapes considered, {plan.fitting:,} fit the budget\n"
    parts: list[RenderableType] = [Text(head, style="dim"), Text(counted, style="dim")]
    if plan.choices:
        parts.append(titled("Choices, lowest predicted loss first", *choice_table(plan.choices, plan)))
    else:
        parts.append(Text(name_nearest(plan), style="bold red"))
    if plan.references:
        parts.append(titled("Published shapes within the budget", *choice_table(plan.references[:REFERENCES], plan)))
    parts.append(titled("Limits", _limit_table(plan)))
    return Group(*parts, *(Text(f"• {note}") for note in plan.notes))


def choice_table(choices: Iterable[Choice], plan: Plan) -> tuple[Table, *tuple[str, ...]]:
    """Lay out some choices, one row each; returns the table and its notes."""
    rows = list(choices)
    lifetime = plan.budget.target_loss is not None
    heads = ["rank", "shape", "params", "tokens", "loss", f"{plan.level:.0%} interval", "best", "total", "a token"]
    heads += ["memory", "bound by", "life FLOPs" if lifetime else "train FLOPs"]
    extra = [name for name in EXTRAS if any(getattr(c, name) is not None for c in rows)]
    table = make_table(*heads, *(EXTRAS[name][0] for name in extra), "front", text=2)
    for c in rows:
        band = "–" if c.loss_low is None or c.loss_high is None else f"{c.loss_low:.4f} – {c.loss_high:.4f}"
        name = f"{c.name} †" if c.unsupported else c.name
        cost = c.lifetime_flops if lifetime and c.lifetime_flops is not None else c.train_flops
        cells = [f"{c.rank}", name, format_count(c.params), format_count(c.tokens), f"{c.loss:.4f}", band]
        cells += [f"{c.chance:.0%}", format_seconds(c.total_s), format_seconds(c.per_token_s)]
        cells += [format_bytes(c.memory_bytes), c.decode_bound, f"{cost:.3g}"]
        cells += [EXTRAS[name][1].format(getattr(c, name)) for name in extra]
        table.add_row(*cells, "yes" if c.on_front else f"no: {c.beaten_by}" if c.beaten_by else "no")
    if any(c.unsupported for c in rows):
        return table, "† leaves what the fitted runs had by assumption: no data supports its loss"
    return (table,)


def _limit_table(plan: Plan) -> Table:
    what = "lower life cost" if plan.budget.target_loss is not None else "lower loss"
    table = make_table("limit", "value", "set by", f"10 % more buys ({what})", "then best")
    for limit in plan.limits:
        unit = UNITS.get(limit.name, format_seconds)
        gain = f"{limit.gain:.4g}" if limit.binds else "nothing"
        table.add_row(limit.name, unit(limit.value), limit.source, gain, limit.best or "–")
    return table


def name_nearest(plan: Plan) -> str:
    """Say which shape breaks the budget least, and what to relax."""
    if plan.nearest is None:
        return NOTHING
    unit = UNITS.get(plan.nearest.limit, format_seconds)
    near = plan.nearest
    return (
        f"nothing fits. The nearest shape is {near.name}: it needs {near.limit} = {unit(near.needed)} where the budget"
        f" allows {unit(near.wanted)}; relax {near.limit}"
    )
