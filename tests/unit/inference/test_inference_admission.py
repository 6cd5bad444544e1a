"""The queue's bounds, the retry that it promises, and when a failed engine is started again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.inference.admission import Admission, QueueLimits, Speed, Ticket
from services.inference.restarts import RestartPolicy, Restarts

LIMITS = QueueLimits(max_running=2, max_waiting=4, kv_promise=2.0, batch_share=0.5)


def admission(limits: QueueLimits = LIMITS, kv_tokens: int = 0, tokens_per_second: float = 0.0) -> Admission:
    speed = Speed()
    speed.tokens_per_second = tokens_per_second
    result = Admission("m", limits, speed)
    result.kv_tokens = kv_tokens
    return result


def refused(queue: Admission, prompt: int = 10, output: int = 10, *, batch: bool = False) -> TenthError:
    with pytest.raises(TenthError) as caught:
        queue.admit(prompt, output, batch=batch)
    assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    return caught.value


def test_batch_work_leaves_room_for_interactive_work() -> None:
    queue = admission()
    tickets = [queue.admit(10, 10, batch=True) for _ in range(4)]
    refused(queue, batch=True)
    tickets += [queue.admit(10, 10) for _ in range(2)]
    error = refused(queue)
    assert error.metadata == {"waiting_count": "6", "running_count": "0"}
    queue.leave(tickets[0])
    queue.leave(tickets[0])
    queue.admit(10, 10)
    refused(queue)
    assert queue.refused_count == 3


def test_no_more_tokens_are_promised_than_the_cache_bears() -> None:
    queue = admission(kv_tokens=1000)
    big = queue.admit(1500, 900)  # Alone, it is the engine's own limit that counts.
    assert "1000" in refused(queue).message
    queue.leave(big)
    first = queue.admit(500, 500)
    refused(queue, 501, 0, batch=True)
    queue.admit(1000, 0)
    refused(queue, 1, 0)
    queue.leave(first)
    queue.admit(500, 500)


def test_the_retry_follows_from_the_measured_speed() -> None:
    assert refused_after(admission()) == 1.0  # Nothing measured yet.
    assert refused_after(admission(tokens_per_second=100)) == pytest.approx(2.0)  # 200 tokens left on average
    assert refused_after(admission(tokens_per_second=1e6)) == 0.1
    assert refused_after(admission(tokens_per_second=0.5)) == 60.0
    queue = admission(kv_tokens=1000, tokens_per_second=100)
    queue.admit(1000, 100)
    assert refused(queue, 1000, 1000).retry_after_seconds == pytest.approx(11.0)  # 1,100 tokens too many


def refused_after(queue: Admission) -> float | None:
    for _ in range(6):
        queue.admit(10, 400).made = 200
    return refused(queue).retry_after_seconds


def test_speed_is_an_average_over_working_time() -> None:
    speed = Speed()
    speed.note(0, 0.0)
    assert speed.tokens_per_second == 0
    speed.note(50, 0.5)
    assert speed.tokens_per_second == 100
    for _ in range(100):
        speed.note(200, 1.0)
    assert speed.tokens_per_second == pytest.approx(200, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 800), st.integers(1, 800), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_comes_and_goes(asked: list[tuple[int, int, bool]]) -> None:
    queue = admission(replace(LIMITS, max_running=4, max_waiting=6), kv_tokens=1000)
    taken: list[Ticket] = []
    for prompt, output, leaves in asked:
        alone = not taken
        with suppress(TenthError):
            taken.append(queue.admit(prompt, output))
        assert taken or not alone, "a sequence that is alone is taken"
        if leaves and taken:
            queue.leave(taken.pop(0))
        assert queue.waiting_count + queue.running_count == len(taken) <= 10
        assert len(taken) <= 1 or sum(ticket.tokens for ticket in taken) <= 2000
    for ticket in taken:
        queue.leave(ticket)
    assert queue._tokens == 0


def test_restarts_back_off_and_end() -> None:
    restarts = Restarts(RestartPolicy(tries=3, backoff_seconds=1.0, window_seconds=100.0, most_seconds=3.0))
    assert [restarts.wait_seconds(now) for now in (0.0, 1.0, 2.0)] == [1.0, 2.0, 3.0]
    assert restarts.wait_seconds(3.0) is None
    assert "4 times within 100 s" in restarts.gave_up
    assert restarts.count == 3


def test_old_failures_are_forgiven() -> None:
    restarts = Restarts(RestartPolicy(tries=1, backoff_seconds=0.5, window_seconds=100.0))
    assert [restarts.wait_seconds(now) for now in (0.0, 101.0, 202.0)] == [0.5, 0.5, 0.5]
    assert restarts.wait_seconds(203.0) is None
