"""Lay out a plan as one page: the shape to train first, then what else there is and why it is not that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lathe.design.choice import Choice, Plan
from lathe.design.limits import Limit
from lathe.report.html import Cell, DataTable, Page, Section
from lathe.report.latency_tables import format_bytes, format_seconds
from lathe.report.plan_charts import WORSE, chart_plan, find_top, format_cost, list_rows, readout
from lathe.report.plan_marks import Trained
from lathe.report.tables import format_count

PUBLISHED = 12
"""Published shapes to list."""
CAUTIONS = ("law: ", "extrapolation: ", "assumed ")
"""How notes begin that are to be heeded; the others are reasons."""
LIMITS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "first_token_s": ("first token", format_seconds),
    "per_token_s": ("per token", format_seconds),
    "total_s": ("total latency", format_seconds),
    "memory_bytes": ("memory", format_bytes),
    "params": ("params", format_count),
}
"""What each limit is called, and how its value is written."""


def plan_page(plan: Plan, *, trained: Sequence[Trained] = ()) -> Page:
    """Show a plan: its best shape, loss against latency with movable budgets, choices, limits, published shapes.

    Where nothing fits: the nearest shape and what it lacks, and what larger budgets would buy.

    Args:
        trained: shapes that were trained since, to mark where they came out; not where a whole life's cost is charted.
    """
    cautions = [note for note in plan.notes if note.startswith(CAUTIONS)]
    reasons = [note for note in plan.notes if not note.startswith(CAUTIONS)]
    sections = [_chart(plan, () if _lifelong(plan) else trained)] if plan.alternatives else []
    if reasons:
        sections.append(Section(heading="Why this shape", points=[write_sentence(note) for note in reasons]))
    if plan.choices:
        sections.append(_choices(plan))
    sections.append(_limits(plan))
    if plan.references:
        sections.append(_published(plan))
    return Page(
        title=f"Plan: {plan.choices[0].name}" if plan.choices else "Plan: nothing fits the budget",
        lead=_lead(plan),
        figures=_answer(plan, plan.choices[0]) if plan.choices else _nearest(plan),
        notes=[write_sentence(note) for note in cautions],
        sections=sections,
    )


def _lead(plan: Plan) -> tuple[str, ...]:
    """Say what was asked: the service, the budget, and whose predictions these are."""
    work, budget = plan.workload, plan.budget
    asked = f"{work.batch} × ({work.prompt_tokens} prompt + {work.new_tokens} new tokens), {work.dtype}"
    within = [f"{LIMITS[limit.name][0]} ≤ {LIMITS[limit.name][1](limit.value)}" for limit in plan.limits]
    if budget.min_params is not None:
        within.append(f"params ≥ {format_count(budget.min_params)}")
    return (
        f"{plan.device.name}, {plan.engine}: {asked}",
        f"Budget: {', '.join([*within, _training(plan)])}",
        f"Law: {plan.law}. {plan.fitting:,} of {plan.considered:,} shapes fit.",
    )


def _training(plan: Plan) -> str:
    budget = plan.budget
    if budget.target_loss is not None and budget.inference_tokens is not None:
        return f"loss {budget.target_loss:g}, then {format_count(budget.inference_tokens)} tokens served"
    if budget.tokens is not None:
        return f"{format_count(budget.tokens)} training tokens"
    return f"{budget.flops:.3g} training FLOPs"


def _answer(plan: Plan, best: Choice) -> list[tuple[str, str]]:
    found = [("predicted loss", f"{best.loss:.3f}")]
    if best.loss_low is not None and best.loss_high is not None:
        found.append((f"its {100 * plan.level:g} % interval", f"{best.loss_low:.3f}–{best.loss_high:.3f}"))
        found.append(("chance of being best", _share(best.chance)))
    if best.lifetime_flops is not None:
        found.append(("life cost (FLOPs)", f"{best.lifetime_flops:.3g}"))
    if plan.budget.tokens is None:
        found.append(("training tokens", format_count(best.tokens)))
    return [
        *found,
        ("total latency", format_seconds(best.total_s)),
        ("first token", format_seconds(best.first_token_s)),
        ("per token", format_seconds(best.per_token_s)),
        ("decoding bound by", best.decode_bound),
        ("memory", format_bytes(best.memory_bytes)),
        ("params", format_count(best.params)),
    ]


def _nearest(plan: Plan) -> list[tuple[str, str]]:
    if plan.nearest is None:
        return []
    near = plan.nearest
    name, write = LIMITS[near.limit]
    times = near.needed / near.wanted
    return [
        ("nearest shape", near.name),
        (f"{name}, at most", write(near.wanted)),
        (f"{name}, as it needs", write(near.needed)),
        ("over the limit", f"by {100 * (times - 1):.2g} %" if times < 2 else f"×{float(f'{times:.3g}'):,g}"),
    ]


def _loss_head(plan: Plan) -> str:
    return f"loss ({100 * plan.level:g} % interval)" if _banded(plan) else "loss"


def _chart(plan: Plan, trained: Sequence[Trained]) -> Section:
    life = _lifelong(plan)
    text = (
        f"Move the budgets: the ring goes to the shape of lowest {'life cost' if life else 'predicted loss'} within"
        " both. The line joins what nothing within the memory beats"
        + (f"; its band holds the loss with probability {100 * plan.level:g} %" if _banded(plan) and not life else "")
        + ". Paler points break a budget"
        + (", diamonds are published shapes" if plan.references else "")
        + "."
    )
    rows = list_rows(plan)
    if rows[-1]["cost"] > find_top(plan, rows):
        text += f" Shapes over {100 * (WORSE - 1):.0f} % worse than the best are off the chart."
    fixed = [LIMITS[x.name][0] for x in plan.limits if x.name not in ("total_s", "memory_bytes")]
    if fixed:
        text += f" The {' and '.join(dict.fromkeys(fixed))} {'limit stays' if len(fixed) == 1 else 'limits stay'}."
    if trained:
        text += " Squares are trained shapes, as measured; lines lead there from where the plan saw them."
    heading = "Life cost against latency" if life else "Loss against latency"
    return Section(heading=heading, text=text, chart=chart_plan(plan, trained=trained), readout=readout(plan))


def _lifelong(plan: Plan) -> bool:
    """Say whether the plan minimises a whole life's cost, not the loss."""
    return plan.budget.target_loss is not None


def _banded(plan: Plan) -> bool:
    return any(choice.loss_low is not None for choice in (*plan.choices, *plan.alternatives))


def _choices(plan: Plan) -> Section:
    head = ["rank", "shape", "life cost (FLOPs)" if _lifelong(plan) else _loss_head(plan), "chance", "params"]
    head += [] if plan.budget.tokens is not None else ["training tokens"]
    timed = [name for name in ("total_s", "per_token_s", "first_token_s") if name in _shown(plan)]
    head += [*(LIMITS[name][0] for name in timed), "memory", "bound by", "beaten by"]
    assumed = any(choice.unsupported for choice in plan.choices)
    rows = []
    for choice in plan.choices:
        row: list[Cell] = [choice.rank, choice.name, format_cost(choice)]
        row += [_share(choice.chance) if _banded(plan) else None, format_count(choice.params)]
        row += [] if plan.budget.tokens is not None else [format_count(choice.tokens)]
        row += [format_seconds(getattr(choice, name)) for name in timed]
        row += [format_bytes(choice.memory_bytes), choice.decode_bound, _beaten(choice)]
        rows.append([*row, ", ".join(choice.unsupported) or None] if assumed else row)
    head += ["no run speaks for its"] if assumed else []
    text = "Chance: of being the best, over the law's draws. What beats a shape is no slower, and predicted better."
    return Section(heading="Choices", text=text, table=DataTable(head=head, rows=rows))


def _shown(plan: Plan) -> set[str]:
    """Name the latencies to list: the first token's only where it is limited, since the chart shows it on hover."""
    return {"total_s", "per_token_s", *(limit.name for limit in plan.limits)}


def _limits(plan: Plan) -> Section:
    best = plan.choices[0] if plan.choices else None
    gain = "10 % more saves (FLOPs)" if _lifelong(plan) else "10 % more lowers the loss by"
    rows = [_limit(plan, limit, best) for limit in plan.limits]
    binding = [LIMITS[limit.name][0] for limit in plan.limits if limit.binds]
    text = f"What binds: {', '.join(binding)}." if binding else "No limit binds: 10 % more of any buys nothing."
    if plan.nearest is not None:
        name, write = LIMITS[plan.nearest.limit]
        near = plan.nearest
        text = (
            f"Nothing fits. Nearest is {near.name}, which needs {write(near.needed)} where the {name} limit is"
            f" {write(near.wanted)}: relax that first."
        )
    elif not plan.choices:
        text = "No shape can be trained as the budget asks."
    head = ("limit", "at most", "used", gain, "the best then", "set by")
    return Section(heading="Limits", text=text, table=DataTable(head=head, rows=rows))


def _limit(plan: Plan, limit: Limit, best: Choice | None) -> tuple[Cell, ...]:
    name, write = LIMITS[limit.name]
    used = None if best is None else _share(getattr(best, limit.name) / limit.value)
    gain = None if not limit.binds else f"{limit.gain:.3g}" if _lifelong(plan) else f"{limit.gain:.4f}"
    return (name, write(limit.value), used, gain, limit.best or None, limit.source)


def _published(plan: Plan) -> Section:
    rows = [
        (
            *(choice.rank, choice.name, format_cost(choice), format_count(choice.params)),
            *(format_seconds(choice.total_s), format_bytes(choice.memory_bytes), _beaten(choice)),
        )
        for choice in plan.references[:PUBLISHED]
    ]
    more = len(plan.references) - len(rows)
    text = "Published shapes within the budget, trained as the plan would train them."
    text += f" The best {len(rows)} of {len(plan.references)}." if more else ""
    cost = "life cost (FLOPs)" if _lifelong(plan) else _loss_head(plan)
    head = ("rank", "shape", cost, "params", "total", "memory", "beaten by")
    return Section(heading="Published shapes", text=text, table=DataTable(head=head, rows=rows))


def _beaten(choice: Choice) -> str | None:
    return "nothing" if choice.on_front else choice.beaten_by or None


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def write_sentence(note: str) -> str:
    """Begin a note with a capital, unless code begins it, and end it with a stop."""
    plain = note.split(" ")[0].rstrip(":").isalpha()
    return (note[:1].upper() if plain else note[:1]) + note[1:] + ("" if note.endswith((".", "!", "?")) else ".")
