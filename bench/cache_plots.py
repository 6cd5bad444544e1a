"""The frontier pictures: hit rate against wrong answers, for every threshold a system could have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import pictures
from bench.cache_counts import Point
from bench.pictures import layered

_MOST_WRONG = 100.0
"""Where the picture ends, wrong answers per 1,000: nobody would run a cache beyond."""
_MOST_POINTS = 400
_TITLES = {
    "article": "article's default: MiniLM, any cosine (dot: 0.95)",
    "ours_strict": "Tenth, strict: any probability (dot: as shipped)",
    "ours_faq": "Tenth, faq: any probability (dot: as shipped)",
}
_COLOURS = ("#8a8f98", "#1f6feb", "#d9480f")


@dataclass(frozen=True, slots=True)
class Line:
    """What one system could do, and what it does: shares of all asked."""

    points: Sequence[Point]
    operating: tuple[float, float]
    """(hit rate, wrong rate)."""


def draw(file: Path, set_name: str, lines: Mapping[str, Line]) -> str:
    """Write one PNG. Returns why there is none, else an empty string."""
    return pictures.draw(file, specification(set_name, lines))


def specification(set_name: str, lines: Mapping[str, Line]) -> dict[str, Any]:
    """The picture in Vega-Lite: one line a system, a dot where it stands, a rule at 5 wrong per 1,000."""
    curve = [
        {"system": _TITLES[name], "wrong": wrong, "hits": hits}
        for name, line in lines.items()
        for wrong, hits in _curve(line.points)
    ]
    dots = [
        {
            "system": _TITLES[name],
            "wrong": min(1000 * line.operating[1], _MOST_WRONG),
            "hits": line.operating[0],
            "text": f"{line.operating[0]:.2f} at {1000 * line.operating[1]:.1f}",
        }
        for name, line in lines.items()
    ]
    colour = {
        "field": "system",
        "type": "nominal",
        "scale": {"domain": [_TITLES[name] for name in lines], "range": _COLOURS[: len(lines)]},
        "legend": {"title": None, "orient": "bottom", "direction": "vertical", "labelLimit": 500},
    }
    x = {
        "field": "wrong",
        "type": "quantitative",
        "title": "wrong answers per 1,000 asked",
        # Where caches are run, below 10, gets most of the width.
        "scale": {"type": "symlog", "constant": 2, "domain": [0, _MOST_WRONG], "nice": False},
        "axis": {"values": [0, 1, 2, 5, 10, 20, 50, 100], "format": "d"},
    }
    y = {
        "field": "hits",
        "type": "quantitative",
        "title": "hit rate",
        "scale": {"domain": [0, 1]},
        "axis": {"format": ".1f"},
    }
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": [{"at": 5}]},
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#b0b5bd"},
            "encoding": {"x": {**x, "field": "at"}},
        },
        {
            "data": {"values": curve},
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5, "clip": True},
            "encoding": {"x": x, "y": y, "color": colour, "order": {"field": "hits"}},
        },
        {
            "data": {"values": dots},
            "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour},
        },
        {
            "data": {"values": dots},
            "mark": {"type": "text", "align": "left", "dx": 9, "dy": 14, "fontSize": 13},
            "encoding": {"x": x, "y": y, "text": {"field": "text"}, "color": colour},
        },
    ]
    return layered(f"{set_name}: hit rate against wrong answers", layers)


def _curve(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(wrong per 1,000, hit rate) from nothing served on; thinned evenly, for a screen shows no more."""
    every = max(1, len(points) // _MOST_POINTS)
    thin = [*points[::every], *points[-1:]]
    return [(0.0, 0.0), *((1000 * point.wrong_rate, point.hit_rate) for point in thin)]
