"""Rates of stored answers: a minute's worth at once, then evenly, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cache.rates import TokenBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly() -> None:
    clock = Clock()
    rates = TokenBuckets(clock)
    key = (("acme", "x"), 4.0)
    assert [rates.take(key) for _ in range(6)] == [True] * 4 + [False] * 2
    clock.now += 14.9
    assert not rates.take(key)
    clock.now += 0.2
    assert rates.take(key)
    assert not rates.take(key)
    clock.now += 3600
    assert [rates.take(key) for _ in range(5)] == [True] * 4 + [False]


def test_less_than_one_a_minute_still_lets_one_through() -> None:
    clock = Clock()
    rates = TokenBuckets(clock)
    assert [rates.take((("a",), 0.5)) for _ in range(2)] == [True, False]
    clock.now += 121
    assert rates.take((("a",), 0.5))


def test_one_empty_bucket_takes_nothing_from_the_other() -> None:
    rates = TokenBuckets(Clock())
    namespace, user = (("acme", "x"), 3.0), (("acme", "x", "u"), 1.0)
    assert [rates.take(namespace, user) for _ in range(9)] == [True] + [False] * 8
    assert [rates.take(namespace) for _ in range(3)] == [True, True, False]


def test_names_cannot_pretend_to_be_each_other() -> None:
    rates = TokenBuckets(Clock())
    assert rates.take((("a", "b"), 1.0))
    assert rates.take((("a", "b", ""), 1.0))
    assert rates.take((("ab",), 1.0))


def test_a_rate_that_is_lowered_holds_at_once() -> None:
    rates = TokenBuckets(Clock())
    assert rates.take((("a",), 100.0))
    assert [rates.take((("a",), 2.0)) for _ in range(3)] == [True, True, False]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 30)), max_size=200))
def test_memory_is_bounded_and_no_key_gets_more_than_burst_and_rate(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    rates = TokenBuckets(clock, most_buckets=60)
    taken: dict[int, int] = {}
    for key, seconds in steps:
        clock.now += seconds
        taken[key] = taken.get(key, 0) + rates.take(((str(key),), 6.0))
    assert all(count <= 6 + (clock.now - 100) / 10 for count in taken.values())
    small = TokenBuckets(clock, most_buckets=3)
    for key, _ in steps:
        small.take(((str(key),), 6.0))
    assert len(small._buckets) <= 3
