"""One look for every chart and page, on light and dark paper: colours, type, and Vega-Lite's configuration.

A chart names a style ("band", "reference", …) or leaves colour to the scale; the theme says what that looks like, so
that one specification serves both papers. Colour runs along viridis and the Okabe-Ito palette, which colour-blind
readers can tell apart (Okabe and Ito 2008, "Color Universal Design").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The colours of one paper."""

    paper: str
    ink: str
    muted: str
    line: str
    accent: str
    best: str
    category: tuple[str, ...]
    viridis: tuple[float, float]
    """The part of viridis that stands out from the paper."""
    heat: tuple[str, ...]
    """From the lowest value to the highest; ink must be readable on all of it."""


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2128",
    muted="#59636e",
    line="#e4e7eb",
    accent="#0072b2",
    best="#b3480a",
    category=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    viridis=(0.0, 0.9),
    heat=("#6fa8d6", "#a5cae6", "#d3e4f2", "#f3f7fb"),
)
DARK = Theme(
    paper="#14171b",
    ink="#e6e9ed",
    muted="#9aa5b1",
    line="#2c3239",
    accent="#56b4e9",
    best="#f0a35e",
    category=("#56b4e9", "#e69f00", "#2fc596", "#e59bc6", "#8fb8ff", "#f0e442"),
    viridis=(0.22, 1.0),
    heat=("#2e6a9e", "#27527a", "#1f3a54", "#1a242e"),
)


def chart_config(theme: Theme, *, background: bool) -> dict[str, Any]:
    """Build Vega-Lite's `config`; without a background the chart lies on the page's own."""
    viridis = {"scheme": "viridis", "extent": list(theme.viridis)}
    return {
        "background": theme.paper if background else "transparent",
        "font": FONT,
        "padding": 12 if background else 2,
        "view": {"stroke": None},
        "mark": {"color": theme.accent},
        "axis": {
            "domainColor": theme.muted,
            "gridColor": theme.line,
            "tickColor": theme.muted,
            "labelColor": theme.muted,
            "titleColor": theme.ink,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelFlush": False,
            "labelOverlap": "greedy",
        },
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {
            "orient": "bottom",
            "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 4}},
            "columns": 5,
            "labelColor": theme.muted,
            "titleColor": theme.ink,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "symbolType": "circle",
            "symbolSize": 70,
            "symbolOpacity": 1,
            "symbolBaseFillColor": theme.muted,
            "symbolStrokeWidth": 0,
            "columnPadding": 12,
        },
        "title": {
            "color": theme.ink,
            "subtitleColor": theme.muted,
            "fontSize": 14,
            "subtitleFontSize": 12,
            "fontWeight": 600,
            "anchor": "start",
            "offset": 10,
            "subtitlePadding": 5,
        },
        "range": {
            "category": list(theme.category),
            "ordinal": viridis,
            "ramp": {"scheme": list(theme.heat)},
        },
        "style": _styles(theme),
    }


def _styles(theme: Theme) -> dict[str, dict[str, Any]]:
    return {
        "band": {"opacity": 0.16, "strokeWidth": 0},
        "curve": {"strokeWidth": 2},
        "speck": {"opacity": 0.4},
        "dot": {"opacity": 0.9, "stroke": theme.paper, "strokeWidth": 0.7},
        "whisker": {"color": theme.accent, "strokeWidth": 1.2, "opacity": 0.5},
        "reference": {"color": theme.muted, "strokeWidth": 1, "strokeDash": [4, 3]},
        "noise": {"color": theme.muted, "opacity": 0.1, "strokeWidth": 0},
        "iso": {"color": theme.ink, "strokeWidth": 0.9, "opacity": 0.75},
        "iso-text": {"color": theme.ink, "fontSize": 10},
        "equal": {"color": theme.muted, "strokeWidth": 1, "strokeDash": [2, 3]},
        "equal-text": {"color": theme.muted, "fontSize": 10, "fontStyle": "italic"},
        "best": {"color": theme.best, "strokeWidth": 2.5},
        "best-text": {"color": theme.best, "fontSize": 11, "fontWeight": 600},
        "veil": {"color": theme.paper, "opacity": 0.62, "strokeWidth": 0},
        "ring": {"color": theme.paper, "stroke": theme.ink, "strokeWidth": 1.3, "size": 34, "opacity": 1},
    }
