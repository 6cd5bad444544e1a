"""The router's pictures: quality by the share of strong calls, and quality by cost among all models of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.pictures import layered
from bench.router_costs import Frontier
from services.router.scores import SHARES, Curve

LOOKS: Mapping[str, tuple[str, str, bool]] = {
    "oracle": ("oracle, with hindsight", "#b0b5bd", True),
    "ours_in_domain": ("Tenth, in domain", "#d9480f", False),
    "ours_transfer": ("Tenth, heads that never saw this set", "#1f6feb", False),
    "task_prior": ("the task's mean", "#2f9e44", False),
    "task_prior_in_domain": ("the task's mean, learned on the rows of training", "#2f9e44", True),
    "knn": ("20 nearest questions", "#9c36b5", False),
    "knn_in_domain": ("20 nearest questions of the rows of training", "#9c36b5", True),
    "length": ("length of the question", "#f08c00", False),
    "random": ("random", "#868e96", True),
}
"""By system: its name in the legend, its colour, whether its line is dashed."""


def call_shares(
    set_name: str, weak: str, strong: str, weak_quality: float, curves: Mapping[str, Curve]
) -> dict[str, Any]:
    """Mean quality by the share of calls that go to the strong model, a line for each system."""
    values = [
        {"system": LOOKS[system][0], "share": float(share), "quality": weak_quality + float(gain)}
        for system, curve in curves.items()
        for share, gain in zip(SHARES, curve.at(SHARES), strict=True)
    ]
    x = _axis("share", f"share of calls to {strong}", [0.0, 1.0], ".0%")
    y = _axis("quality", f"mean quality, {weak} otherwise", None, ".2f")
    return layered(
        f"{set_name}: quality by the share of strong calls",
        [
            {
                "data": {"values": values},
                "mark": {"type": "line", "strokeWidth": 2.5},
                "encoding": {"x": x, "y": y, **_looks(list(curves)), "order": {"field": "share"}},
            }
        ],
    )


def costs(set_name: str, best: str, frontier: Frontier) -> dict[str, Any]:
    """Quality by cost, both as shares of the best single model's: a line for all prices, dots where systems stand."""
    lines = _points(frontier.by_system)
    dots = _points({system: [point] for system, point in frontier.operating.items()})
    singles = [{"model": model, "cost": cost, "quality": quality} for model, (cost, quality) in frontier.single.items()]
    x = _axis("cost", f"cost, share of {best}'s", None, ".2~r") | {"scale": {"type": "log", "nice": False}}
    y = _axis("quality", f"quality, share of {best}'s", None, ".2f")
    looks = _looks(list(frontier.by_system))
    grey = {"value": "#868e96"}
    at = {"x": x, "y": y}
    return layered(
        f"{set_name}: quality by cost",
        [
            {
                "data": {"values": lines},
                "mark": {"type": "line", "strokeWidth": 2.5},
                "encoding": {**at, **looks, "order": {"field": "cost"}},
            },
            {
                "data": {"values": dots},
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                "encoding": {**at, **looks},
            },
            {
                "data": {"values": singles},
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 60},
                "encoding": {**at, "color": grey},
            },
            {
                "data": {"values": singles},
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": 10, "fontSize": 11},
                "encoding": {**at, "text": {"field": "model"}, "color": grey},
            },
        ],
    )


def _points(by_system: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    return [
        {"system": LOOKS[system][0], "cost": cost, "quality": quality}
        for system, points in by_system.items()
        for cost, quality in points
    ]


def _looks(systems: Sequence[str]) -> dict[str, Any]:
    shown = [LOOKS[system] for system in LOOKS if system in systems]
    names = [name for name, _, _ in shown]
    legend = {"title": None, "orient": "bottom", "columns": 3, "labelLimit": 400, "symbolType": "stroke"}
    return {
        "color": {
            "field": "system",
            "type": "nominal",
            "scale": {"domain": names, "range": [colour for _, colour, _ in shown]},
            "legend": legend,
        },
        "strokeDash": {
            "field": "system",
            "type": "nominal",
            "scale": {"domain": names, "range": [[6, 4] if dashed else [1, 0] for _, _, dashed in shown]},
            "legend": legend,
        },
    }


def _axis(field: str, title: str, domain: list[float] | None, form: str) -> dict[str, Any]:
    scale = {"domain": domain} if domain else {"zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"format": form}}
