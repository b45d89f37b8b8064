"""Lay out what a decoder's layers do as one page: heat maps of attention, influence, and losses along the way."""

from __future__ import annotations

from statistics import median

from lathe.evals.analysis import LAZY, Analysis
from lathe.report.analysis_charts import chart_heads, chart_influence, chart_losses
from lathe.report.analysis_table import describe_lazy, list_heads, list_rows, name_unit
from lathe.report.html import DataTable, Page, Section
from lathe.report.tables import format_count


def analysis_page(found: Analysis) -> Page:
    """Show an analysis."""
    shape, unit = found.shape, name_unit(found)
    figures = [
        (f"lazy {unit}s", f"{len(found.lazy_visits)} of {shape.n_layers}"),
        ("effective depth", f"{found.effective_depth} of {shape.n_layers}"),
        ("median of the largest ranks", f"{median(found.rank_max):.3g}"),
    ]
    if found.lens_losses:
        figures.append(("loss, nats per token", f"{found.lens_losses[-1]:.3f}"))
    lead = (
        f"{found.sequences:,} sequences of {found.seq_len:,} tokens of {found.dataset}; {format_count(shape.params)} "
        f"params, {format_count(found.flops)} FLOPs"
    )
    notes = []
    if found.lazy_visits:
        listed = describe_lazy(found)
        notes.append(f"{listed[0].upper()}{listed[1:]}. A smaller model may inherit the other {unit}s alone.")
    return Page(
        title=f"Layers: {found.name}", lead=[lead], figures=figures, notes=notes, sections=_list_sections(found, unit)
    )


def _list_sections(found: Analysis, unit: str) -> list[Section]:
    share = f"{found.share:.0%}".replace("%", " %")
    sections = [
        Section(
            heading="Attention rank",
            text=f"The fewest singular values of a head's attention matrix whose squares sum to {share} of the total, "
            f"averaged over the sequences. A {unit} whose largest rank is at most {LAZY:g} is lazy, and marked with a "
            "dot: each of its heads spreads one direction over all tokens.",
            chart=chart_heads(found, found.rank, what="rank", unit=unit, marked=found.lazy_visits),
        ),
        Section(
            heading="Attention mass",
            text=f"The fewest tokens looked at, columns of the matrix, that hold {share} of its squared norm. Near 1, "
            "a head looks at a single token, often the first.",
            chart=chart_heads(found, found.mass, what="mass", unit=unit),
        ),
        Section(
            heading="Influence",
            text=f"One less the mean cosine between what goes into a {unit} and what comes out: at 0 nothing is turned."
            f" The effective depth, {found.effective_depth}, is the fewest {unit}s that have {share} of all influence "
            "(Lathe's own measure); these are drawn in full colour.",
            chart=chart_influence(found, unit=unit),
        ),
    ]
    if found.lens_losses:
        sections.append(
            Section(
                heading="Loss along the way",
                text=f"Nats per token if final norm and head came right after the embedding, or after a {unit}: the "
                "logit lens. It need not fall, as only the last stream is trained for the head.",
                chart=chart_losses(found, unit=unit),
            )
        )
    table = DataTable(head=list_heads(found), rows=list_rows(found))
    return [*sections, Section(heading="Table", table=table)]
