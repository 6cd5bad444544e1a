"""The end-to-end benchmark's pictures: the waterfall by layer, the frontier, the ablation, the warming cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.endtoend_arms import ABLATED, FRONTIERS, TARGETS, frontier_name
from bench.endtoend_sums import LAYERS
from bench.pictures import draw, layered
from services.router.scores import Floats

Metrics = Mapping[str, Mapping[str, Any]]
_SAVED, _PAID, _WHOLE = "#2a9d8f", "#e76f51", "#8d99ae"
_STEPS = ("cache", "routing", "compression", "prompt_cache", "batch", "quantization")


def array(values: Sequence[float]) -> Floats:
    """As floats."""
    return np.array(values, float)


def draw_all(metrics: Metrics, warming: Mapping[str, Sequence[tuple[int, float, float]]], folder: Path) -> str:
    """Write every picture that there are figures for. Returns why there are none, else an empty string."""
    pictures: dict[str, dict[str, Any]] = {}
    for mix in sorted({name.partition("/")[0] for name in metrics if name.endswith("/ours/cost_ratio")}):
        pictures[f"endtoend_waterfall_{mix}"] = waterfall(metrics, mix)
    if any(f"{mix}/{frontier_name(TARGETS[0])}/cost_ratio" in metrics for mix in FRONTIERS):
        pictures["endtoend_frontier"] = frontier(metrics)
    if f"{ABLATED}/full/cost_ratio" in metrics:
        pictures["endtoend_ablation"] = ablation(metrics)
    if warming:
        pictures["endtoend_warming"] = warm(warming)
    for name, picture in pictures.items():
        missing = draw(folder / f"{name}.png", picture)
        if missing:
            return missing
    return ""


def waterfall(metrics: Metrics, mix: str) -> dict[str, Any]:
    """From the baseline to what is paid, layer by layer, as shares of the baseline."""
    rows: list[dict[str, Any]] = [{"step": "baseline", "from": 0.0, "to": 1.0, "colour": _WHOLE}]
    left = 1.0
    for layer in _STEPS:
        saved = float(metrics[f"{mix}/ours/saved_by_{layer}"]["value"])
        colour = _SAVED if saved >= 0 else _PAID
        rows.append({"step": layer.replace("_", " "), "from": left, "to": left - saved, "colour": colour})
        left -= saved
    over = float(metrics[f"{mix}/ours/overhead"]["value"])
    rows.append({"step": "overhead", "from": left, "to": left + over, "colour": _PAID})
    rows.append({"step": "paid", "from": 0.0, "to": left + over, "colour": _WHOLE})
    for row in rows:
        row["label"] = f"{100 * abs(row['to'] - row['from']):.1f}%"
        row["top"] = max(row["from"], row["to"])
    order = [row["step"] for row in rows]
    x = {"field": "step", "type": "nominal", "sort": order, "axis": {"labelAngle": 0, "title": None}}
    bars = {
        "data": {"values": rows},
        "mark": {"type": "bar", "size": 62},
        "encoding": {
            "x": x,
            "y": {"field": "from", "type": "quantitative", "title": "share of the baseline", "axis": {"format": "%"}},
            "y2": {"field": "to"},
            "color": {"field": "colour", "type": "nominal", "scale": None},
        },
    }
    labels = {
        "data": {"values": rows},
        "mark": {"type": "text", "dy": -8, "fontSize": 13},
        "encoding": {"x": x, "y": {"field": "top", "type": "quantitative"}, "text": {"field": "label"}},
    }
    return layered(f"{mix}: from the strong model's bill to ours", [bars, labels])


def frontier(metrics: Metrics) -> dict[str, Any]:
    """Cost and quality at several quality targets, and where the mixes were run."""
    rows = []
    for mix in FRONTIERS:
        for system in [*(frontier_name(target) for target in TARGETS), "ours"]:
            cost, kept = (metrics.get(f"{mix}/{system}/{measure}") for measure in ("cost_ratio", "quality_ratio"))
            if cost is None or kept is None:
                continue
            rows.append({
                "mix": mix, "cost": cost["value"], "quality": kept["value"], "as run": system == "ours",
                "label": "as run" if system == "ours" else f"target {system.removeprefix('frontier_')}%",
                "low": (kept["ci95"] or [kept["value"]])[0], "high": (kept["ci95"] or [kept["value"]])[-1],
            })  # fmt: skip
    x = {"field": "cost", "type": "quantitative", "title": "cost, share of the baseline", "axis": {"format": "%"}}
    y: dict[str, Any] = {
        "type": "quantitative",
        "title": "quality kept",
        "scale": {"zero": False},
        "axis": {"format": "%"},
    }
    colour = {"field": "mix", "type": "nominal", "title": None}
    line = {
        "data": {"values": [row for row in rows if not row["as run"]]},
        "mark": {"type": "line", "point": True},
        "encoding": {"x": x, "y": {"field": "quality"} | y, "color": colour, "order": {"field": "cost"}},
    }
    range_ = {
        "data": {"values": rows},
        "mark": {"type": "rule", "opacity": 0.35},
        "encoding": {"x": x, "y": {"field": "low"} | y, "y2": {"field": "high"}, "color": colour},
    }
    own = {
        "data": {"values": [row for row in rows if row["as run"]]},
        "mark": {"type": "point", "shape": "diamond", "size": 180, "filled": True},
        "encoding": {"x": x, "y": {"field": "quality"} | y, "color": colour},
    }
    labels = {
        "data": {"values": rows},
        "mark": {"type": "text", "dy": 16, "fontSize": 11},
        "encoding": {"x": x, "y": {"field": "quality"} | y, "text": {"field": "label"}, "color": colour},
    }
    return layered("What quality costs: the router's target from 80% to 99%", [range_, line, own, labels])


def ablation(metrics: Metrics) -> dict[str, Any]:
    """What is left of the bill with each layer alone and with each taken out."""
    rows = []
    for layer in LAYERS:
        for kind, name in (("alone", f"only_{layer}"), ("taken out", f"without_{layer}")):
            found = metrics.get(f"{ABLATED}/{name}/cost_ratio")
            if found is not None:
                low, high = found["ci95"] or (found["value"], found["value"])
                rows.append({"layer": layer, "kind": kind, "cost": found["value"], "low": low, "high": high})
    x = {"field": "layer", "type": "nominal", "sort": list(LAYERS), "axis": {"labelAngle": 0, "title": None}}
    offset = {"field": "kind"}
    y: dict[str, Any] = {"type": "quantitative", "title": "cost, share of the baseline", "axis": {"format": "%"}}
    bars = {
        "data": {"values": rows},
        "mark": "bar",
        "encoding": {
            "x": x,
            "xOffset": offset,
            "y": {"field": "cost"} | y,
            "color": {"field": "kind", "type": "nominal", "title": None},
        },
    }
    ranges = {
        "data": {"values": rows},
        "mark": {"type": "rule"},
        "encoding": {"x": x, "xOffset": offset, "y": {"field": "low"} | y, "y2": {"field": "high"}},
    }
    full = float(metrics[f"{ABLATED}/full/cost_ratio"]["value"])
    line = {
        "data": {"values": [{"cost": full}]},
        "mark": {"type": "rule", "strokeDash": [5, 4]},
        "encoding": {"y": {"field": "cost", "type": "quantitative"}},
    }
    return layered(f"{ABLATED}: each layer alone and taken out; dashed: all of them", [bars, ranges, line])


def warm(warming: Mapping[str, Sequence[tuple[int, float, float]]]) -> dict[str, Any]:
    """The saved share and the share of hits over the requests so far, from a cold cache."""
    rows = [
        {"mix": name.partition("/")[0], "requests": end, "share": value, "what": what}
        for name, points in warming.items()
        for end, saved, hits in points
        for what, value in (("saved", saved), ("hits", hits))
    ]
    line = {
        "data": {"values": rows},
        "mark": {"type": "line"},
        "encoding": {
            "x": {"field": "requests", "type": "quantitative", "title": "requests so far"},
            "y": {"field": "share", "type": "quantitative", "title": "share of the window", "axis": {"format": "%"}},
            "color": {"field": "mix", "type": "nominal", "title": None},
            "strokeDash": {"field": "what", "type": "nominal", "title": None},
        },
    }
    return layered("Savings and hits while the cache warms", [line])
