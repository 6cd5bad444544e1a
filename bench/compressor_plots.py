"""The compressor's frontier pictures: answers kept against tokens saved, for every threshold or number of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.pictures import layered

_LEAST_KEPT = 0.6
_LOOKS: Mapping[str, tuple[str, str]] = {
    "ours": ("Tenth, with vectors", "#d9480f"),
    "ours_words": ("Tenth, words alone", "#f59f00"),
    "article": ("article's filter: MiniLM, best chunks", "#8a8f98"),
    "bm25": ("BM25, best chunks", "#1f6feb"),
    "last_n": ("newest messages", "#1f6feb"),
}

Point = tuple[float, float]
"""(tokens saved, kept), both shares."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one system could do, and what it does under the names that it has for that."""

    points: Sequence[Point]
    operating: Mapping[str, Point]


def frontier(title: str, kept: str, lines: Mapping[str, Line]) -> dict[str, Any]:
    """The picture in Vega-Lite; ``kept`` says what is kept."""
    systems = [system for system in _LOOKS if system in lines]
    curve: list[dict[str, Any]] = [
        {"system": _LOOKS[system][0], "saved": saved, "kept": share}
        for system in systems
        for saved, share in sorted(lines[system].points)
    ]
    dots: list[dict[str, Any]] = [
        {"system": _LOOKS[system][0], "saved": saved, "kept": share, "text": f"{name}: {share:.3f} at {saved:.0%}"}
        for system in systems
        for name, (saved, share) in lines[system].operating.items()
    ]
    # Nobody would run below: lines end there, dots do not.
    lowest = min((each["kept"] for each in dots), default=_LEAST_KEPT)
    named = [each for each in dots if each["system"] != _LOOKS["ours_words"][0]]
    x = {
        "field": "saved",
        "type": "quantitative",
        "title": "tokens saved",
        "scale": {"domain": [0, 1]},
        "axis": {"format": ".0%"},
    }
    y = {
        "field": "kept",
        "type": "quantitative",
        "title": kept,
        "scale": {"domain": [min(_LEAST_KEPT, lowest // 0.1 / 10), 1.0]},
        "axis": {"format": ".2f"},
    }
    colour = {
        "field": "system",
        "type": "nominal",
        "scale": {"domain": [_LOOKS[each][0] for each in systems], "range": [_LOOKS[each][1] for each in systems]},
        "legend": {"title": None, "orient": "bottom", "labelLimit": 400},
    }
    at = {"x": x, "y": y, "color": colour}
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": curve},
            "mark": {"type": "line", "strokeWidth": 2.5, "clip": True},
            "encoding": {**at, "order": {"field": "saved"}},
        },
        {
            "data": {"values": dots},
            "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
            "encoding": at,
        },
        {
            "data": {"values": named},
            "mark": {"type": "text", "align": "left", "dx": 9, "dy": 14, "fontSize": 12},
            "encoding": {**at, "text": {"field": "text"}},
        },
    ]
    return layered(title, layers)
