"""When a cascade is planned, and its threshold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.cascade import best, min_confidence, plan
from services.router.catalog import Abilities, Model, Tier
from services.router.decision import UNKNOWN_COST, Candidate, Route

USD = 1_000_000_000
chances = st.floats(0.0, 1.0)


def candidate(
    name: str, success: float, cost_usd: float, rejected: str = "", speed: float = 0.0, first_token: float = 0.0
) -> Candidate:
    model = Model(
        name,
        "fake",
        Tier.MEDIUM,
        8192,
        1024,
        200,
        Abilities(logprobs=True),
        output_tokens_per_second=speed,
        first_token_seconds=first_token,
    )
    cost = UNKNOWN_COST if cost_usd < 0 else int(cost_usd * USD)
    return Candidate(model, success, cost, 200, 0.0, rejected)


def route(first: Candidate, *others: Candidate) -> Route:
    return Route(first.model, tuple(item.model for item in others), (first, *others), "")


@pytest.mark.parametrize(
    ("cost_usd", "strong", "price", "expected"),
    [
        (0.01, 0.9, 10.0, 0.8),  # A cent buys a tenth of a good answer.
        (0.01, 0.9, 0.0, 0.9),  # Money does not matter.
        (0.0, 0.9, 10.0, 0.9),
        (0.2, 0.9, 10.0, 0.0),  # Never worth it.
        (0.05, 0.9, 10.0, 0.4),
    ],
)
def test_the_threshold_follows_from_the_price(cost_usd: float, strong: float, price: float, expected: float) -> None:
    assert min_confidence(int(cost_usd * USD), strong, price) == pytest.approx(expected)


@given(chances, chances, st.integers(0, 10 * USD), st.floats(0, 1000))
def test_escalating_pays_exactly_below_the_threshold(confidence: float, strong: float, cost: int, price: float) -> None:
    gain = strong - confidence - price * cost / USD
    if gain > 1e-9:
        assert confidence < min_confidence(cost, strong, price)
    elif gain < -1e-9:
        assert confidence >= min_confidence(cost, strong, price)


CHEAP, STRONG = candidate("cheap", 0.7, 0.0005), candidate("strong", 0.9, 0.02)


def test_a_cascade_is_planned_where_it_beats_both_alone() -> None:
    # The strong model's gain of 0.2 is worth about its price: the doubtful answers alone are worth escalating.
    made = plan(route(CHEAP, STRONG), 10.0)
    assert made is not None
    assert made.escalation is STRONG.model
    assert made.min_confidence == pytest.approx(0.9 - 10.0 * 0.02)
    assert min_confidence(STRONG.expected_cost_nano_usd, 0.9, 10.0) == made.min_confidence


@pytest.mark.parametrize(
    ("first", "second", "price"),
    [
        (CHEAP, STRONG, 200.0),  # Money is dear: cheap alone.
        (CHEAP, STRONG, 0.01),  # Money is cheap: nearly every answer would be asked twice.
        (replace(CHEAP, success_probability=0.01), STRONG, 10.0),  # Hopeless first answers are only paid for.
        (replace(CHEAP, success_probability=0.99), STRONG, 10.0),
        (CHEAP, replace(STRONG, success_probability=0.7), 10.0),  # No better.
        (CHEAP, replace(STRONG, rejected_reason="excluded for now"), 10.0),
        (CHEAP, replace(STRONG, expected_cost_nano_usd=UNKNOWN_COST), 10.0),
        (replace(CHEAP, expected_cost_nano_usd=UNKNOWN_COST), STRONG, 10.0),
        (candidate("dear", 0.7, 0.02), STRONG, 10.0),  # The first saves nothing.
    ],
    ids=["dear", "free", "hopeless", "sure", "no better", "rejected", "no price", "no first price", "no saving"],
)
def test_no_cascade_where_one_model_does(first: Candidate, second: Candidate, price: float) -> None:
    assert plan(route(first, second), price) is None


def test_one_model_alone_is_no_cascade() -> None:
    assert plan(route(CHEAP), 10.0) is None
    assert best([CHEAP], 10.0) is None
    assert best([], 10.0) is None


def test_both_must_have_time() -> None:
    slow = [replace(item, model=replace(item.model, output_tokens_per_second=100.0)) for item in (CHEAP, STRONG)]
    assert plan(route(slow[0], slow[1]), 10.0, seconds_left=4.1) is not None
    assert plan(route(slow[0], slow[1]), 10.0, seconds_left=3.9) is None
    assert plan(route(CHEAP, STRONG), 10.0, seconds_left=0.1) is not None  # Nothing was measured.


def test_the_best_pair_is_found_whatever_the_route_begins_with() -> None:
    middling = candidate("middling", 0.8, 0.018)
    assert plan(route(STRONG, CHEAP, middling), 10.0) is None
    found = best([STRONG, middling, CHEAP], 10.0)
    assert found is not None
    first, expected = found
    assert (first, expected.plan.escalation) == (CHEAP, STRONG.model)
    assert 0.0 < expected.escalation_probability < 1.0
    assert expected.utility > max(
        item.success_probability - 10.0 * item.expected_cost_nano_usd / USD for item in (CHEAP, STRONG, middling)
    )


@given(chances, chances, st.integers(0, USD), st.integers(0, USD), st.floats(0, 1000))
def test_a_plan_never_loses_to_one_of_its_models(p: float, q: float, cost: int, dear: int, price: float) -> None:
    first = replace(CHEAP, success_probability=p, expected_cost_nano_usd=cost)
    second = replace(STRONG, success_probability=q, expected_cost_nano_usd=dear)
    found = best([first, second], price)
    if found is not None:
        assert found[1].gain > 0
        assert 0.0 <= found[1].plan.min_confidence <= 1.0
