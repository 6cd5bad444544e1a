"""Which lane an item takes, who shares an answer, what is tried after a failure, which numbers attempts get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batch.policy import (
    ANTHROPIC,
    LANES,
    LOCAL,
    MOST_ATTEMPTS,
    ONLINE,
    OPENAI,
    Failure,
    ModelFacts,
    Next,
    after_failure,
    attempt_number,
    choose_lane,
    may_share,
    may_wait_for_near_same,
    may_wait_for_twin,
    pause_seconds,
    provider_lane,
)

OWN = ModelFacts("own", self_hosted=True, has_batch_price=True)
PAID = ModelFacts("paid", self_hosted=False, has_batch_price=True, provider_lane=OPENAI)
PLAIN = ModelFacts("plain", self_hosted=False, has_batch_price=False, provider_lane=OPENAI)


@pytest.mark.parametrize(
    ("facts", "allowed", "left", "lane", "another"),
    [
        (OWN, (), 0, LOCAL, False),
        (OWN, (ONLINE, OPENAI), 9999, ONLINE, True),
        (OWN, (OPENAI,), 9999, "", False),
        (PAID, (), 900, OPENAI, False),
        (PAID, (), 899, ONLINE, False),
        (PAID, (OPENAI,), 10, OPENAI, False),
        (PAID, (ANTHROPIC, LOCAL), 9999, "", False),
        (PAID, (ONLINE,), 9999, ONLINE, False),
        (PLAIN, (), 9999, ONLINE, False),
        (PLAIN, (OPENAI,), 9999, "", False),
    ],
)
def test_the_cheapest_lane_that_is_in_time(
    facts: ModelFacts, allowed: tuple[str, ...], left: float, lane: str, another: bool
) -> None:
    choice = choose_lane(facts, allowed, left, 900)
    assert (choice.lane, choice.another_model) == (lane, another)
    assert choice.why


@given(
    st.builds(ModelFacts, st.just("m"), st.booleans(), st.booleans(), st.sampled_from(["", OPENAI, ANTHROPIC])),
    st.sets(st.sampled_from(LANES)),
    st.floats(-1e6, 1e6),
)
def test_a_lane_is_allowed_and_a_provider_has_a_batch_price(facts: ModelFacts, allowed: set[str], left: float) -> None:
    choice = choose_lane(facts, allowed, left, 900)
    assert not choice.lane or choice.lane in (allowed or set(LANES))
    if choice.lane in (OPENAI, ANTHROPIC):
        assert facts.has_batch_price
        assert choice.lane == facts.provider_lane
    if not allowed:
        assert choice.lane, "with every lane allowed each item has one"


def test_the_lane_of_a_batch_interface() -> None:
    assert provider_lane("openai") == OPENAI
    assert provider_lane("anthropic") == ANTHROPIC
    assert provider_lane("") == ""
    assert provider_lane("another") == "", "a provider of a later version has no lane yet"


def test_who_may_have_the_answer_of_the_same_question() -> None:
    assert may_wait_for_twin(True, None, 0.3)
    assert may_wait_for_twin(True, 0.3, 0.3)
    assert not may_wait_for_twin(True, 0.31, 0.3)
    assert not may_wait_for_twin(False, 0.0, 0.3)
    assert may_share(True, 0.3)
    assert may_share(False, 0.0)
    assert not may_share(False, None)


FULL = Failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", 0.5)
DOWN = Failure("UNAVAILABLE", "MODEL_UNAVAILABLE", None)


@pytest.mark.parametrize(
    ("failure", "tried", "waited", "step"),
    [
        (FULL, 0, 1, Next.AGAIN),
        (FULL, 0, 10, Next.ANOTHER_MODEL),
        (DOWN, 1, 0, Next.AGAIN),
        (DOWN, 2, 0, Next.ANOTHER_MODEL),
        (Failure("UNIMPLEMENTED", "UNSUPPORTED", None), 1, 0, Next.ANOTHER_MODEL),
        (Failure("INVALID_ARGUMENT", "INVALID_FIELD", None), 1, 0, Next.FAIL),
        (Failure("PERMISSION_DENIED", "CALLER_FORBIDDEN", None), 1, 0, Next.FAIL),
    ],
)
def test_what_comes_after_a_failure(failure: Failure, tried: int, waited: int, step: Next) -> None:
    assert after_failure(failure, tried, waited, 10) is step


@given(st.integers(1, 50), st.floats(0, 1))
def test_a_pause_is_as_told_or_grows_to_a_bound(tried: int, jitter: float) -> None:
    assert 0.5 <= pause_seconds(FULL, tried, jitter) <= 0.6
    assert 0 < pause_seconds(DOWN, tried, jitter) <= 20


@given(st.integers(0, 1_999_999), st.integers(1, 20), st.integers(1, 50), st.integers(1, 500), st.integers(1, 300))
def test_numbers_of_attempts_stay_where_answers_are_counted(
    thousand: int, first: int, run: int, delivery: int, number: int
) -> None:
    base = thousand * 1000
    assert base + first <= attempt_number(base + first, run, delivery, number) <= base + MOST_ATTEMPTS


def test_no_number_is_used_twice_in_ordinary_life() -> None:
    used = [
        attempt_number(1, run, delivery, number)
        for run in (1, 2, 3)
        for delivery in range(1, 6)
        for number in range(1, 17)
    ]
    assert len(set(used)) == len(used)
    assert attempt_number(1, 1, 1, 1) == 1


@pytest.mark.parametrize(
    ("lane", "allowed", "waits"),
    [
        (OPENAI, [], True),
        (OPENAI, [OPENAI, ONLINE], True),
        (OPENAI, [OPENAI], False),
        (OPENAI, [OPENAI, LOCAL], False),
        (LOCAL, [OPENAI, LOCAL], True),
        (ONLINE, [ONLINE], True),
    ],
)
def test_nothing_waits_for_a_provider_that_it_cannot_leave(lane: str, allowed: list[str], waits: bool) -> None:
    assert may_wait_for_near_same(lane, allowed) is waits
