"""Decisions about money: what fits, which window an instant is in, what a lost request has spent."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.receipt import Usage
from services.ledger.policy import (
    Attempt,
    AttemptKind,
    Budget,
    Decision,
    Position,
    Scope,
    Verdict,
    Window,
    decide,
    is_time_zone,
    spent_by_attempts,
    window_bounds,
)

SECOND = 10**9


def position(remaining: int, *, name: str = "b", hard: bool = True) -> Position:
    """A budget with so much left."""
    return Position(Budget(name, "acme", max(remaining, 0), hard), 0, spent=max(-remaining, 0))


@pytest.mark.parametrize(
    ("amount", "left", "verdict", "name"),
    [
        (5, [], Verdict.OK, ""),
        (5, [5], Verdict.OK, ""),
        (6, [5], Verdict.DOWNGRADE, "b0"),
        (6, [0], Verdict.REFUSED, "b0"),
        (6, [-3], Verdict.REFUSED, "b0"),
        (0, [-3], Verdict.OK, ""),
        (6, [100, 5, 4], Verdict.DOWNGRADE, "b2"),
        (6, [100, 5, 0], Verdict.REFUSED, "b2"),
        (6, [0, 100], Verdict.REFUSED, "b0"),
    ],
)
def test_the_tightest_hard_budget_decides(amount: int, left: list[int], verdict: Verdict, name: str) -> None:
    decision = decide(amount, [position(each, name=f"b{index}") for index, each in enumerate(left)])
    assert (decision.verdict, decision.budget_name) == (verdict, name)
    assert decision.remaining >= 0


def test_a_soft_budget_refuses_nothing() -> None:
    assert decide(6, [position(0, hard=False)]) == Decision(Verdict.OK)


@pytest.mark.parametrize(
    ("user", "project", "covered"), [("ann", "x", True), ("ann", "y", False), ("bob", "x", False), ("", "", False)]
)
def test_a_budget_covers_its_scope(user: str, project: str, covered: bool) -> None:
    budget = Budget("b", "acme", 1, True, user_id="ann", project_id="x")
    assert budget.covers(Scope("acme", user, project)) is covered
    assert not budget.covers(Scope("umbrella", "ann", "x"))
    assert Budget("b", "acme", 1, True).covers(Scope("acme", user, project))


def ns(text: str) -> int:
    """Nanoseconds of an ISO time, UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("window", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-06-15T12:00", "2026-06-15T00:00", "2026-06-16T00:00"),
        ("day", "Asia/Seoul", "2026-06-15T15:00", "2026-06-15T15:00", "2026-06-16T15:00"),
        ("day", "Asia/Seoul", "2026-06-15T14:59:59", "2026-06-14T15:00", "2026-06-15T15:00"),
        ("month", "Asia/Seoul", "2026-12-31T16:00", "2026-12-31T15:00", "2027-01-31T15:00"),
        ("month", "UTC", "2028-02-29T23:59:59", "2028-02-01T00:00", "2028-03-01T00:00"),
        # A day of 23 hours, and one of 25.
        ("day", "America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),
        ("day", "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        # Clocks skipped midnight: the day began at one o'clock.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),
    ],
)
def test_windows(window: str, zone: str, at: str, start: str, end: str) -> None:
    assert window_bounds(Window(window), zone, ns(at)) == (ns(start), ns(end))


def test_a_total_has_one_window() -> None:
    assert window_bounds(Window.TOTAL, "UTC", ns("2026-06-15T12:00")) == (0, None)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([Window.DAY, Window.MONTH]),
    st.sampled_from(["UTC", "Asia/Seoul", "America/New_York", "America/Havana", "Pacific/Apia", "Asia/Kathmandu"]),
    st.integers(ns("2000-01-02T00:00"), ns("2090-01-01T00:00")),
)
def test_windows_hold_their_instant_and_leave_no_gap(window: Window, zone: str, at: int) -> None:
    start, end = window_bounds(window, zone, at)
    assert end is not None
    assert start <= at < end
    assert window_bounds(window, zone, start) == (start, end)
    assert window_bounds(window, zone, end - 1) == (start, end)
    assert window_bounds(window, zone, end)[0] == end


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Asia/Seoul", True),
        ("UTC", True),
        ("", False),
        ("Mars/Olympus", False),
        ("/etc/passwd", False),
        ("../x", False),
        ("America", False),
        ("a\0b", False),
        (None, False),
        (7, False),
    ],
)
def test_time_zones(name: object, known: bool) -> None:
    assert is_time_zone(name) is known


def attempt(number: int, kind: str, *, purpose: str = "answer", at: int = 0, output: int = 1) -> Attempt:
    """One record."""
    return Attempt(number, purpose, AttemptKind(kind), "m", Usage(1, output), False, False, at)


def test_each_attempt_counts_once_by_its_end() -> None:
    spent = spent_by_attempts(
        [
            attempt(2, "cancelled", at=4, output=7),
            attempt(1, "started", output=99),
            attempt(1, "failed", at=1, output=3),
            attempt(1, "finished", at=2, output=5),
            attempt(2, "started", at=3, output=99),
            attempt(1001, "finished", purpose="classifier"),
        ],
        assume_worst=False,
    )
    assert spent is not None
    found = [(each.kind, each.attempt.usage.output, each.estimated) for each in spent]
    assert found == [("failed_attempt", 3, False), ("cancelled_attempt", 7, False), ("classifier", 1, False)]


@pytest.mark.parametrize("purpose", ["classifier", "summary", "tokenwise"])
def test_what_was_asked_beside_an_answer_is_called_so_however_it_ended(purpose: str) -> None:
    for kind in ("finished", "failed", "cancelled"):
        spent = spent_by_attempts([attempt(1601, kind, purpose=purpose)], assume_worst=False)
        assert spent is not None
        assert [each.kind for each in spent] == [purpose]


def test_one_that_never_ended_is_waited_for_and_then_counts_with_its_worst_case() -> None:
    records = [attempt(1, "started", output=99), attempt(2, "failed")]
    assert spent_by_attempts(records, assume_worst=False) is None
    spent = spent_by_attempts(records, assume_worst=True)
    assert spent is not None
    assert [(each.attempt.usage.output, each.estimated) for each in spent] == [(99, True), (1, False)]
