"""The batch bench's picture: items a second of the local lane and of what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.pictures import layered

_ARMS = {
    "local_lane/one_at_a_time": "one at a time",
    "local_lane/online_c8": "online, 8 at once",
    "local_lane/batch": "batch, local lane",
    "prefix_order/input_order": "small KV cache: input's order",
    "prefix_order/ordered": "small KV cache: alike side by side",
}


def pictures(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pictures that these figures are enough for, in Vega-Lite, by name."""
    values = [
        {"arm": said, "speed": metrics[f"{arm}/items_per_s"]["value"]}
        for arm, said in _ARMS.items()
        if f"{arm}/items_per_s" in metrics
    ]
    if not values:
        return {}
    order = [each["arm"] for each in values]
    y = {"field": "arm", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    x = {"field": "speed", "type": "quantitative", "title": "items a second"}
    bars = {"data": {"values": values}, "mark": {"type": "bar", "color": "#1f6feb"}, "encoding": {"x": x, "y": y}}
    return {"speed": layered("Items a second on the local engine", [bars])}
