"""The inference bench's pictures: tokens a second by concurrency, and perplexity against size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.inference_schemes import BASE, SCHEMES
from bench.pictures import layered

_COLOURS = ("#8a8f98", "#1f6feb", "#9c36b5", "#d9480f", "#f59f00", "#2b8a3e")
_SPEED = re.compile(r"(\w+)/vllm/tokens_per_s_c(\d+)")


def pictures(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pictures that these figures are enough for, in Vega-Lite, by name."""
    speeds = [
        {"scheme": _said(found[1]), "concurrency": int(found[2]), "tokens": metric["value"]}
        for name, metric in metrics.items()
        if (found := _SPEED.fullmatch(name))
    ]
    points = [
        {
            "scheme": scheme.said,
            "size": metrics[size]["value"],
            "ratio": metrics[loss]["value"] if scheme.key != BASE else 1.0,
            "low": metrics[loss]["ci95"][0] if scheme.key != BASE else 1.0,
            "high": metrics[loss]["ci95"][1] if scheme.key != BASE else 1.0,
        }
        for scheme in SCHEMES
        if (size := f"{scheme.key}/vllm/weights_ratio") in metrics
        and ((loss := f"{scheme.key}/vllm/perplexity_ratio") in metrics or scheme.key == BASE)
    ]
    made = {}
    if speeds:
        made["speed"] = _speed(speeds)
    if len(points) > 1:
        made["quality"] = _quality(points)
    return made


def _speed(values: list[dict[str, Any]]) -> dict[str, Any]:
    counts = sorted({each["concurrency"] for each in values})
    x = {
        "field": "concurrency",
        "type": "quantitative",
        "title": "sequences at once",
        "scale": {"type": "log", "base": 2},
        "axis": {"values": counts},
    }
    y = {"field": "tokens", "type": "quantitative", "title": "output tokens a second, all sequences"}
    at = {"x": x, "y": y, "color": _colour([each["scheme"] for each in values])}
    return layered(
        "Tokens a second by precision",
        [
            {"data": {"values": values}, "mark": {"type": "line", "strokeWidth": 2.5, "point": True}, "encoding": at},
        ],
    )


def _quality(values: list[dict[str, Any]]) -> dict[str, Any]:
    x = {
        "field": "size",
        "type": "quantitative",
        "title": "weights on disk, share of bf16's",
        "scale": {"domain": [0.3, 1.05]},
        "axis": {"format": ".2f"},
    }
    y = {
        "field": "ratio",
        "type": "quantitative",
        "title": "perplexity, times bf16's",
        "scale": {"zero": False},
        "axis": {"format": ".3~f"},
    }
    colour = _colour([each["scheme"] for each in values])
    data = {"values": values}
    return layered(
        "What smaller weights cost in perplexity",
        [
            {
                "data": data,
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "data": data,
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour},
            },
        ],
    )


def _said(key: str) -> str:
    return next((scheme.said for scheme in SCHEMES if scheme.key == key), key)


def _colour(there: list[str]) -> dict[str, Any]:
    looks = [(scheme.said, colour) for scheme, colour in zip(SCHEMES, _COLOURS, strict=True) if scheme.said in there]
    return {
        "field": "scheme",
        "type": "nominal",
        "scale": {"domain": [said for said, _ in looks], "range": [colour for _, colour in looks]},
        "legend": {"title": None, "orient": "bottom", "columns": 3, "labelLimit": 400},
    }
