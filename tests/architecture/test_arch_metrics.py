"""docs/telemetry.md lists every metric that the code makes, and the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "histogram": "histogram",
    "counter": "counter",
    "up_down_counter": "up-down counter",
    "observable_gauge": "gauge",
    "observable_counter": "counter",
}
MADE = re.compile(r'create_(histogram|counter|up_down_counter|observable_gauge|observable_counter)\(\s*"([^"]+)"')
UNIT = re.compile(r'create_\w+\(\s*"([^"]+)".*?unit=(NANO_USD|"[^"]+")', re.DOTALL)
ROW = re.compile(r"^\| `([a-z_.]+)` \(([a-z-]+(?: counter)?)\) \| ([^|]+) \| (.*) \|$", re.MULTILINE)
SUFFIXES = {"s": "_seconds", "ms": "_milliseconds"}
"""What the collector's Prometheus exporter makes of a unit; one in braces is left out."""
WORDS = {"sum", "rate", "max", "min", "by", "or", "vector", "le", "histogram_quantile", "label_values"}


def documented() -> dict[str, tuple[str, str, set[str]]]:
    """Kind, unit and attributes of every metric in the page."""
    text = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    rows = {name: (kind, unit, set(re.findall("`([a-z_.]+)`", rest))) for name, kind, unit, rest in ROW.findall(text)}
    assert "rpc.server.duration" in rows
    return rows


def made() -> dict[str, tuple[str, str]]:
    """Kind and unit of every metric in the code."""
    found = {}
    for folder in ("mesh", "services"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text("utf-8")
            units = {name: "{nano_usd}" if unit == "NANO_USD" else unit.strip('"') for name, unit in UNIT.findall(text)}
            found.update({name: (KINDS[kind], units[name]) for kind, name in MADE.findall(text)})
    return found


def test_every_metric_is_documented_with_its_kind_and_unit() -> None:
    assert made() == {name: (kind, unit) for name, (kind, unit, _) in documented().items()}


def test_the_dashboard_asks_for_documented_metrics_and_attributes() -> None:
    series, labels = set(), {"service_name"}
    for name, (kind, unit, attributes) in documented().items():
        base = name.replace(".", "_") + SUFFIXES.get(unit, "")
        ends = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(kind, ("",))
        series |= {base + end for end in ends}
        labels |= {each.replace(".", "_") for each in attributes}
    board = json.loads((ROOT / "deploy" / "grafana" / "tenth.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    asked: set[str] = set()
    for expression in expressions:
        bare = re.sub(r'"[^"]*"|\$\w+|\b[0-9][0-9.e]*\b', "", expression)
        names = set(re.findall(r"[a-z_]+", bare)) - WORDS
        assert names & series, expression
        assert not names - series - labels, f"{sorted(names - series - labels)} in {expression}"
        asked |= names
    assert {"tenth_cost_total", "tenth_savings", "gen_ai_client_token_usage_sum"} <= asked


def test_the_dashboards_panels_do_not_overlap_and_have_names() -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "tenth.json").read_text("utf-8"))
    panels: list[dict[str, Any]] = board["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
