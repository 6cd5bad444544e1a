"""Pictures as Vega-Lite, tables as Markdown, and the timing of a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bench import router_decision, router_plots
from bench.result import Result
from bench.router_costs import Frontier
from bench.router_tables import router_tables
from bench.tables import TABLES
from services.router.scores import curve

GAIN = np.array([1.0, 0.0, 0.0, 0.0])


def test_the_picture_of_call_shares() -> None:
    curves = {"oracle": curve(GAIN, GAIN), "ours_transfer": curve(-GAIN, GAIN)}
    picture = router_plots.call_shares("mine", "mixtral", "gpt", 0.5, curves)
    (layer,) = picture["layer"]
    values = layer["data"]["values"]
    assert len(values) == 2 * 101
    oracle = {each["share"]: each["quality"] for each in values if each["system"] == "oracle, with hindsight"}
    assert oracle[0.0] == 0.5
    assert oracle[0.25] == oracle[1.0] == 0.75
    assert "gpt" in layer["encoding"]["x"]["title"]
    colours = layer["encoding"]["color"]["scale"]
    assert colours["domain"] == ["oracle, with hindsight", "Tenth, heads that never saw this set"]
    assert layer["encoding"]["strokeDash"]["scale"]["range"] == [[6, 4], [1, 0]]


def test_the_picture_of_costs() -> None:
    frontier = Frontier(
        {"ours_in_domain": [(0.1, 0.7), (0.4, 1.0)]}, {"ours_in_domain": (0.4, 1.0)}, {"a": (0.1, 0.7), "b": (1.0, 1.0)}
    )
    lines, dots, singles, names = router_plots.costs("mine", "b", frontier)["layer"]
    assert [each["cost"] for each in lines["data"]["values"]] == [0.1, 0.4]
    assert dots["data"]["values"] == [{"system": "Tenth, in domain", "cost": 0.4, "quality": 1.0}]
    assert [each["model"] for each in singles["data"]["values"]] == ["a", "b"]
    assert names["encoding"]["text"] == {"field": "model"}
    assert lines["encoding"]["x"]["scale"]["type"] == "log"


def _result() -> Mapping[str, Any]:
    result = Result("router", False)
    result.assumptions |= {
        "rows": "held out of training",
        "seed": 7,
        "mine_pair": "weak a, strong b",
        "mine_best_single": "b",
    }
    for system, value in (("ours_in_domain", 0.75), ("length", 0.5), ("random", 0.5)):
        spread = 0.0 if system == "random" else 0.05
        for measure in ("apgr", "cpt50", "cpt80"):
            result.add(f"mine/{system}/{measure}", value, "ratio", 40, (value - spread, value + spread))
    result.add("mine/ours_in_domain/score_ratio", 0.99, "ratio", 39, (0.98, 1.0))
    result.add("mine/ours_in_domain/cost_ratio", 0.4, "ratio", 39, (0.3, 0.5))
    result.add("mine/ours_in_domain/score_ratio_at_60", 0.97, "ratio", 39, (0.96, 0.98))
    result.add("mine/ours_in_domain/cost_ratio_at_60", 0.59, "ratio", 39, (0.5, 0.6))
    result.add("quality_target/all/bound_95", 0.953, "ratio", 900)
    for name in ("mine", "all"):
        result.add(f"quality_target/{name}/ratio_95", 0.96, "ratio", 40, (0.95, 0.97))
        result.add(f"quality_target/{name}/cost_share_95", 0.3, "ratio", 40, (0.2, 0.4))
    result.add("quality_target/all/violations", 0, "count", 1)
    for measure in ("p50_us", "p95_us", "cpu_us"):
        result.add(f"decision/ours/{measure}", 143.4, "us", 2000)
    result.skipped.append("other: no router/other.jsonl.gz in the evaluation data")
    return result.as_json()


def test_tables() -> None:
    text = router_tables(_result())
    assert "| mine | weak a, strong b | 40 | 0.750 [0.700, 0.800] | 0.500 [0.450, 0.550] | 0.500 |" in text
    assert "| mine | 0.75 / 0.75 | 0.50 / 0.50 | 0.50 / 0.50 |" in text
    assert "| mine | b | Tenth, in domain | surely 99% | 0.990 [0.980, 1.000] | 0.400 [0.300, 0.500] | 39 |" in text
    assert "| 60% of the cost | 0.970 [0.960, 0.980] | 0.590 [0.500, 0.600] | 39 |" in text
    assert "| mine | 95% |  | 0.960 [0.950, 0.970] | 0.300 [0.200, 0.400] | 40 |" in text
    assert "| all together | 95% | 0.95 | 0.960 [0.950, 0.970] | 0.300 [0.200, 0.400] | 40 |" in text
    assert "Below the target of 95% beyond noise: 0 of 1 (each set, and all together)." in text
    assert "| whole decision | 143 | 143 | 143 | 2000 |" in text
    assert "rows: held out of training, seed 7" in text
    assert text.endswith("Not measured: other: no router/other.jsonl.gz in the evaluation data.")
    assert TABLES["router"] is router_tables


def test_tables_of_what_was_not_measured_are_left_out() -> None:
    result = {**_result(), "metrics": {}, "skipped": []}
    text = router_tables(result)
    assert "|" not in text
    assert text.startswith("Commit ")


def test_every_question_is_timed_once_after_the_warm_up() -> None:
    asked: list[int] = []
    timed = router_decision.timings(asked.append, 120, "test")
    assert asked == [*range(50), *range(120)]
    assert len(timed.each) == 120
    assert min(timed.each) >= 0
    assert timed.cpu >= 0


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (10, 5)])
def test_a_sample_has_different_questions(count: int, expected: int) -> None:
    texts = ["a", "b", "c", "d", "e"] * 3
    found = router_decision.sample(texts, count, 7)
    assert len(set(found)) == len(found) == expected
    assert found == router_decision.sample(texts[::-1], count, 7)
