"""Prices of quality where costs were recorded."""

from __future__ import annotations

import numpy as np

from bench.router_pricing import Learned, picks, price_for_cost, price_on_average, price_with_confidence
from services.router.scores import Floats


def _learned(success: Floats, quality: Floats) -> Learned:
    usd = np.tile([0.001, 0.01], (len(success), 1))
    return Learned(success, usd, quality, usd, quality[:, 1], usd[:, 1])


def _hard_and_easy(count: int, known: bool) -> Learned:
    """Every fourth row is hard: only the second model, ten times as dear, gets it right."""
    hard = np.arange(count) % 4 == 0
    first = np.where(hard, 0.1, 0.9) if known else np.full(count, 0.7)
    success = np.stack([first, np.full(count, 0.95)], axis=1)
    return _learned(success, np.stack([~hard, np.ones(count)], axis=1).astype(float))


def _taken(learned: Learned, price: float) -> list[int]:
    return [int(place) for place in picks(learned.success, learned.expected_usd, price)]


def test_picks_weigh_success_against_cost() -> None:
    success = np.array([[0.5, 0.9], [0.8, 0.9], [0.9, 0.9]])
    cost = np.array([[1.0, 2.0]] * 3)
    assert picks(success, cost, 0.2).tolist() == [1, 0, 0]
    assert picks(success, cost, 0.0).tolist() == [1, 1, 0]  # the cheaper of equals
    assert picks(success, cost, 1.0).tolist() == [0, 0, 0]


def test_the_price_is_the_last_that_keeps_the_wanted_quality() -> None:
    learned = _hard_and_easy(40, known=True)
    for rule in (price_with_confidence, price_on_average):
        assert _taken(learned, rule(learned)) == [1, 0, 0, 0] * 10


def test_where_nothing_keeps_it_only_quality_counts() -> None:
    assert price_with_confidence(_learned(np.array([[0.9, 0.8]] * 9), np.array([[0.0, 1.0]] * 9))) == 0.0


def test_confidence_needs_more_than_the_average() -> None:
    # The first model fails on one row of a hundred: 99% on average, and as likely as not less.
    success = np.array([[0.9, 0.95]] * 100)
    quality = np.ones((100, 2))
    quality[0, 0] = 0.0
    learned = _learned(success, quality)
    assert _taken(learned, price_on_average(learned)) == [0] * 100
    assert _taken(learned, price_with_confidence(learned)) == [1] * 100


def test_the_price_for_a_cost_is_the_lowest_that_is_cheap_enough() -> None:
    learned = _hard_and_easy(40, known=True)
    assert _taken(learned, price_for_cost(learned)) == [1, 0, 0, 0] * 10
    blind = _hard_and_easy(40, known=False)
    assert _taken(blind, price_for_cost(blind)) == [0] * 40
