"""The page's charts: Vega-Lite drawn here into SVG, so that the page needs neither script nor network.

Colours are CSS variables of the page (``style.py``), which is how one drawing serves the light and the dark theme.
Each chart is drawn twice, for a wide and for a narrow screen; the page shows one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tenth_client.reporting.files import EXTRA

WIDE, NARROW = 920, 360
"""Widths of the two drawings, CSS pixels."""
MODEL_COLOURS = 7
"""Models with a colour of their own; the others share one."""
Spec = dict[str, Any]
Maker = Callable[[int], Spec]
"""Makes a chart's specification for a width."""


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the waterfall: from where to where, USD, and the amount as text."""

    label: str
    start: float
    end: float
    text: str
    kind: str
    """``total``, ``down`` or ``up``."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series at a bucket of time; None leaves a gap."""

    bucket: str
    series: str
    value: float | None


def svg(spec: Spec) -> str:
    """The drawing of a Vega-Lite specification. Raises LookupError naming the extra when the library is absent."""
    try:
        library = import_module("vl_convert")
    except ImportError:
        raise LookupError(f"the HTML page {EXTRA}") from None
    drawn: str = library.vegalite_to_svg(spec, allowed_base_urls=[], show_warnings=False)
    return drawn


def waterfall(steps: Sequence[Step], width: int) -> Spec:
    """Horizontal bars from the baseline to what was spent."""
    narrow = width <= NARROW
    rows = [
        {
            "label": step.label,
            "start": step.start,
            "end": step.end,
            "high": max(step.start, step.end),
            "text": step.text,
            "kind": step.kind,
        }
        for step in steps
    ]
    high = max((max(step.start, step.end) for step in steps), default=0) or 1
    low = min((min(step.start, step.end) for step in steps), default=0)
    order = [step.label for step in steps]
    # Room at the right for the amounts, so that the longest fits beside the longest bar.
    extent = max((_text_width(label) for label in order), default=0) + 14
    amount = max((_text_width(step.text) for step in steps), default=0) + 10
    plot = width - extent
    scale = {"domain": [min(low, 0), high * plot / max(plot - amount, plot // 3)], "nice": False}
    y = {
        "field": "label",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {
            "labelLimit": 150 if narrow else 220,
            "labelPadding": 8,
            "minExtent": extent,
            "ticks": False,
            "domain": False,
        },
    }
    return _chart(
        width,
        34 * len(steps),
        {
            "data": {"values": rows},
            "layer": [
                {
                    "mark": {"type": "bar", "height": {"band": 0.66}, "cornerRadius": 2},
                    "encoding": {
                        "x": {
                            "field": "start",
                            "type": "quantitative",
                            "title": None,
                            "scale": scale,
                            "axis": _money_axis(3 if narrow else 6, high),
                        },
                        "x2": {"field": "end"},
                        "color": {
                            "field": "kind",
                            "type": "nominal",
                            "legend": None,
                            "scale": {
                                "domain": ["total", "down", "up"],
                                "range": ["var(--total)", "var(--down)", "var(--up)"],
                            },
                        },
                    },
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 13, "fill": "var(--ink)"},
                    "encoding": {"x": {"field": "high", "type": "quantitative"}, "text": {"field": "text"}},
                },
            ],
            "encoding": {"y": y},
        },
    )


def stacked(points: Sequence[Point], colours: Mapping[str, str], buckets: Sequence[str], width: int) -> Spec:
    """Stacked bars of USD over time; negative values are stacked below the line."""
    above, below = dict.fromkeys(buckets, 0.0), dict.fromkeys(buckets, 0.0)
    for point in points:
        (above if (point.value or 0) > 0 else below)[point.bucket] += point.value or 0
    low, high = min(below.values(), default=0), max(above.values(), default=0)
    rank = {name: index for index, name in enumerate(colours)}
    rows = [
        {"t": point.bucket, "s": point.series, "v": point.value or 0, "rank": rank[point.series]} for point in points
    ]
    return _chart(
        width,
        230 if width <= NARROW else 280,
        {
            "data": {"values": rows},
            "layer": [
                {
                    "mark": {"type": "bar", "width": {"band": 0.8}},
                    "encoding": {
                        "x": _time_axis(buckets, width),
                        "y": {
                            "field": "v",
                            "type": "quantitative",
                            "title": None,
                            "stack": "zero",
                            "scale": {"domain": [low, high if high or low else 1], "nice": 5},
                            "axis": _money_axis(5, (high - low) or 1),
                        },
                        "color": _colour(colours, width),
                        "order": {"field": "rank", "type": "quantitative"},
                    },
                },
                {
                    "mark": {"type": "rule", "stroke": "var(--line-strong)"},
                    "encoding": {"y": {"datum": 0, "type": "quantitative"}},
                },
            ],
        },
    )


def lines(
    points: Sequence[Point], colours: Mapping[str, str], buckets: Sequence[str], width: int, *, axis: Spec
) -> Spec:
    """Lines over time with a point per bucket; the axis begins at zero."""
    rows = [{"t": point.bucket, "s": point.series, "v": point.value} for point in points]
    domain = {"zero": True, **axis.pop("scale", {})}
    return _chart(
        width,
        190 if width <= NARROW else 220,
        {
            "data": {"values": rows},
            "mark": {
                "type": "line",
                "point": {"size": 34 if len(buckets) <= 40 else 12, "filled": True},
                "strokeWidth": 2,
                "invalid": "break-paths-show-domains",
            },
            "encoding": {
                "x": _time_axis(buckets, width),
                "y": {"field": "v", "type": "quantitative", "title": None, "scale": domain, "axis": axis},
                "color": _colour(colours, width, shown=len(colours) > 1),
            },
        },
    )


def palette(names: Sequence[str], variable: str) -> dict[str, str]:
    """A CSS variable per name, in order: ``--NAME1`` and so on."""
    return {name: f"var(--{variable}{index})" for index, name in enumerate(names, 1)}


def _money_axis(ticks: int, span: float) -> Spec:
    step = span / ticks
    places = next((places for places in range(6) if step >= 10**-places), 6)
    return {
        "labelExpr": f"(datum.value < 0 ? '−$' : '$') + format(abs(datum.value), ',.{places}f')",
        "tickCount": ticks,
        "labelOverlap": True,
    }


def _time_axis(buckets: Sequence[str], width: int) -> Spec:
    fitting = 5 if width <= NARROW else 14
    every = -(-len(buckets) // fitting) or 1
    return {
        "field": "t",
        "type": "ordinal",
        "sort": None,
        "title": None,
        "scale": {"domain": list(buckets), "paddingInner": 0.15, "paddingOuter": 0.1},
        "axis": {"labelAngle": 0, "values": list(buckets)[::every], "ticks": False, "labelPadding": 6, "grid": False},
    }


def _colour(colours: Mapping[str, str], width: int, *, shown: bool = True) -> Spec:
    legend = {
        "title": None,
        "orient": "top",
        "direction": "horizontal",
        "columns": max(1, (width - 40) // (max(map(_text_width, colours), default=60) + 34)),
        "labelLimit": width - 80,
        "symbolType": "square",
        "columnPadding": 18,
        "rowPadding": 4,
        "offset": 14,
    }
    return {
        "field": "s",
        "type": "nominal",
        "sort": None,
        "legend": legend if shown else None,
        "scale": {"domain": list(colours), "range": list(colours.values())},
    }


def _text_width(text: str) -> int:
    """Pixels that a label can take in the widest of the usual fonts; the drawing library measures with its own."""
    return sum(14 if ord(letter) > 0x1100 else 8 for letter in text)


def _chart(width: int, height: int, body: Spec) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": 2,
        "background": "transparent",
        **body,
        "config": {
            "font": "system-ui, -apple-system, 'Noto Sans KR', 'Noto Sans CJK KR', sans-serif",
            "view": {"stroke": None},
            "axis": {
                "labelFontSize": 12,
                "labelColor": "var(--soft)",
                "gridColor": "var(--line)",
                "domainColor": "var(--line-strong)",
                "tickColor": "var(--line)",
            },
            "legend": {"labelFontSize": 12.5, "labelColor": "var(--ink)"},
        },
    }
