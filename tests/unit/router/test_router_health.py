"""When a model is down, when it is tried again, and that nobody stays down for ever."""

from __future__ import annotations

import pytest

from services.router.health import MAX_MODELS, Health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock, failure_count=3, down_seconds=2.0, max_down_seconds=10.0)


def test_everything_is_up_at_first(health: Health) -> None:
    assert health.down() == {}
    health.note_choice("a")
    health.note_success("a")
    assert health.down() == {}


def test_what_inference_calls_down_is_down_until_it_says_otherwise(health: Health) -> None:
    health.listed({"a": "no key", "b": ""})
    assert health.down() == {"a": "no key"}
    health.listed({"a": "401", "b": ""})
    assert health.down() == {"a": "401"}
    health.listed({"a": "", "b": ""})
    assert health.down() == {}


def test_a_model_that_is_served_no_more_is_no_concern_of_ours(health: Health) -> None:
    health.listed({"a": "no key"})
    health.listed({"b": ""})
    assert health.down() == {}


def test_one_request_tries_a_model_and_each_failed_trial_doubles_the_wait(health: Health, clock: Clock) -> None:
    waits = []
    health.listed({"a": "down"})
    for _ in range(6):
        started = clock.now
        while "a" in health.down():
            clock.now += 0.5
            health.listed({"a": "down"})  # Looking does not prolong it.
        waits.append(clock.now - started)
        assert health.down() == {}, "up until it is chosen"
        health.note_choice("other")
        assert health.down() == {}
        health.note_choice("a")
        assert health.down() == {"a": "down"}, "one request is the trial, the next ones go elsewhere"
        health.note_failure("a")
    assert waits == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_a_trial_that_succeeds_forgets_everything(health: Health, clock: Clock) -> None:
    health.listed({"a": "down"})
    clock.now += 2
    health.note_choice("a")
    health.note_success("a")
    assert health.down() == {}
    health.listed({"a": "down"})
    clock.now += 2
    assert health.down() == {}, "the wait begins anew with the shortest"


def test_failed_attempts_in_a_row_take_a_model_down(health: Health, clock: Clock) -> None:
    health.note_failure("a")
    health.note_failure("a")
    health.note_success("a")
    health.note_failure("a")
    health.note_failure("a")
    assert health.down() == {}
    health.note_failure("a")
    assert list(health.down()) == ["a"]
    health.listed({"a": ""})
    assert list(health.down()) == ["a"], "another replica of inference may be the one that fails"
    clock.now += 2
    assert health.down() == {}


def test_late_reports_of_the_same_outage_do_not_prolong_it(health: Health, clock: Clock) -> None:
    for _ in range(50):
        health.note_failure("a")
    clock.now += 2
    assert health.down() == {}


def test_a_trial_as_a_fallback_counts_without_a_choice(health: Health, clock: Clock) -> None:
    health.listed({"a": "down"})
    clock.now += 2
    health.note_failure("a")
    clock.now += 3.5
    assert health.down() == {"a": "down"}
    clock.now += 0.5
    assert health.down() == {}


def test_while_inference_is_out_of_reach_no_model_is_to_blame(health: Health) -> None:
    health.listed({"a": "down"})
    health.unreachable()
    assert health.down() == {}
    for _ in range(5):
        health.note_failure("b")
    assert health.down() == {}
    health.listed({"a": "", "b": ""})
    assert health.down() == {}
    health.listed({"a": "down again"})
    assert health.down() == {"a": "down again"}


def test_memory_has_a_bound_and_waits_never_overflow(health: Health, clock: Clock) -> None:
    for number in range(MAX_MODELS + 100):
        for _ in range(3):
            health.note_failure(f"m{number}")
    assert len(health.down()) == MAX_MODELS
    for _ in range(2000):
        clock.now += 10
        health.note_choice("m0")
    assert "m0" in health.down()
