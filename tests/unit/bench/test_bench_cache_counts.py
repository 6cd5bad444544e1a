"""From decisions to figures, on cases small enough to count by hand."""

from __future__ import annotations

import math

import pytest

from bench.cache_counts import (
    Asked,
    Decided,
    Point,
    add_adversarial,
    add_frontier,
    add_inference,
    add_pairs,
    add_stream,
    frontier,
    wilson,
)
from bench.result import Result


def _values(result: Result) -> dict[str, float]:
    return {name: metric["value"] for name, metric in result.metrics.items()}


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Table I of Newcombe (1998), method 3: the same four cases, to its four digits.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_holds_the_share() -> None:
    for trials in (1, 2, 7, 1000):
        for successes in range(0, trials + 1, max(1, trials // 7)):
            low, high = wilson(successes, trials)
            assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_a_stream_with_out_of_scope_rows() -> None:
    asked = [
        Asked(True, right=True, attainable=True, exact=True),
        Asked(True, right=True, attainable=True),
        Asked(True, right=False, attainable=True),
        Asked(True, right=False, attainable=False, out_of_scope=True),
        Asked(False, out_of_scope=True),
        Asked(False, attainable=True),
        Asked(False, attainable=True, bypassed=True),
        Asked(False),
    ]
    result = Result("cache", quick=False)
    add_stream(result, "made/ours", asked)
    assert _values(result) == {
        "made/ours/hit_rate": 0.5,
        "made/ours/precision": 0.5,
        "made/ours/wrong_per_1000": 250.0,
        "made/ours/attainable": 0.625,
        "made/ours/exact_hit_rate": 0.125,
        "made/ours/bypassed": 0.125,
        "made/ours/oos_served_per_1000": 500.0,
    }
    counts = {name.rpartition("/")[2]: metric["n"] for name, metric in result.metrics.items()}
    assert counts["precision"] == 4
    assert counts["oos_served_per_1000"] == 2
    assert counts["hit_rate"] == 8
    assert result.metrics["made/ours/wrong_per_1000"]["ci95"] == pytest.approx([1000 * bound for bound in wilson(2, 8)])


def test_nothing_is_right_out_of_scope() -> None:
    assert Asked(True, right=True, out_of_scope=True).wrong
    assert not Asked(False, out_of_scope=True).wrong
    result = Result("cache", quick=False)
    add_stream(result, "made/ours", [Asked(True, right=True, out_of_scope=True)])
    assert _values(result)["made/ours/precision"] == 0.0
    assert _values(result)["made/ours/wrong_per_1000"] == 1000.0


def test_no_precision_of_nothing() -> None:
    result = Result("cache", quick=False)
    add_stream(result, "made/ours", [Asked(False), Asked(False)])
    assert "made/ours/precision" not in result.metrics
    assert "made/ours/oos_served_per_1000" not in result.metrics
    assert result.skipped == ["made/ours/precision: of nothing"]
    assert _values(result)["made/ours/hit_rate"] == 0.0


def test_pairs() -> None:
    decided = [
        Decided("same", True),
        Decided("same", True, "identical"),
        Decided("same", False),
        Decided("same", False, bypassed=True),
        Decided("different", True),
        Decided("different", False),
        Decided("different", False),
        Decided("different", False),
    ]
    result = Result("cache", quick=False)
    add_pairs(result, "made/ours", decided)
    assert _values(result) == {
        "made/ours/precision": pytest.approx(2 / 3),
        "made/ours/recall": 0.5,
        "made/ours/recall_reworded": pytest.approx(1 / 3),
        "made/ours/wrong_per_1000": 125.0,
        "made/ours/bypassed": 0.125,
    }


def test_inference_sets() -> None:
    decided = [
        *(Decided("contradiction", served) for served in (True, False, False, False)),
        *(Decided("neutral", served) for served in (True, True, False, False)),
        Decided("entailment", True),
    ]
    result = Result("cache", quick=False)
    add_inference(result, "made/ours", decided)
    assert _values(result)["made/ours/contradiction_served_rate"] == 0.25
    assert _values(result)["made/ours/neutral_served_rate"] == 0.5
    assert _values(result)["made/ours/entailment_served_rate"] == 1.0


def test_traps_by_kind() -> None:
    decided = [
        Decided("different", False, "numbers"),
        Decided("different", True, "numbers"),
        Decided("different", False, "roles"),
        Decided("same", True, "roles"),
        Decided("same", False, "roles"),
    ]
    result = Result("cache", quick=False)
    add_adversarial(result, "adversarial_en/ours", decided)
    assert _values(result) == {
        "adversarial_en/ours/refused_rate": pytest.approx(2 / 3),
        "adversarial_en/ours/passed_rate": 0.5,
        "adversarial_en/ours/refused_rate_numbers": 0.5,
        "adversarial_en/ours/refused_rate_roles": 1.0,
        "adversarial_en/ours/passed_rate_roles": 0.5,
    }


def test_the_frontier_counts_equal_scores_together() -> None:
    asked = [
        Asked(True, score=0.9, best_right=True),
        Asked(True, score=0.8, best_right=True),
        Asked(True, score=0.8, best_right=False),
        Asked(False, score=0.5, best_right=True, out_of_scope=True),
        Asked(False),
    ]
    assert frontier(asked) == [Point(0.9, 0.2, 0.0), Point(0.8, 0.6, 0.2), Point(0.5, 0.8, 0.4)]


def test_the_best_hit_rate_within_five_per_thousand() -> None:
    asked = [
        *(Asked(True, score=1 - place / 1000, best_right=True) for place in range(300)),
        Asked(True, score=0.5, best_right=False),
        Asked(True, score=0.4, best_right=True),
        Asked(True, score=0.3, best_right=False),
    ]
    points = frontier(asked)
    result = Result("cache", quick=False)
    add_frontier(result, "made/ours", points, len(asked))
    # One wrong of 303 is within 5 per 1,000; two are not.
    assert _values(result) == {"made/ours/hindsight_hit_rate_at_5": pytest.approx(302 / 303)}
    assert math.isclose(points[-1].wrong_rate, 2 / 303)


def test_a_frontier_of_nothing() -> None:
    result = Result("cache", quick=False)
    add_frontier(result, "made/ours", frontier([Asked(False)]), 1)
    assert _values(result) == {"made/ours/hindsight_hit_rate_at_5": 0.0}
