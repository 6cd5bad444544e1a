"""What may be set as a limit, by field, and how rates and rolling windows count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.ledger.limits import (
    MINUTE_NS,
    check_budget,
    is_alert_url,
    ladder_text,
    parse_ladder,
    parse_percents,
    parse_span,
    percents_text,
    rate_wait_ns,
)
from services.ledger.policy import Budget, LadderStep, Rung, Scope, Window, window_bounds

SECOND = 10**9
GOOD = Budget("b", "acme", 1000, True)


def rungs(*pairs: tuple[str, int]) -> tuple[Rung, ...]:
    """A ladder."""
    return tuple(Rung(LadderStep(step), percent) for step, percent in pairs)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"time_zone": "Mars/Olympus"}, "INVALID_FIELD", "time_zone"),
        ({"limit": -1}, "INVALID_FIELD", "limit_nano_usd"),
        ({"limit": 2**63}, "INVALID_FIELD", "limit_nano_usd"),
        ({"tag_value": "search"}, "REQUIRED_FIELD", "tag_key"),
        ({"rolling_seconds": 60}, "INVALID_FIELD", "rolling"),
        ({"window": Window.ROLLING}, "REQUIRED_FIELD", "rolling"),
        ({"window": Window.ROLLING, "rolling_seconds": 59}, "INVALID_FIELD", "rolling"),
        ({"window": Window.ROLLING, "rolling_seconds": 400 * 86_400 + 1}, "INVALID_FIELD", "rolling"),
        ({"alert_percents": (0,)}, "INVALID_FIELD", "alert_percents[0]"),
        ({"alert_percents": (50, 1001)}, "INVALID_FIELD", "alert_percents[1]"),
        ({"alert_percents": (50, 50)}, "INVALID_FIELD", "alert_percents[1]"),
        ({"alert_percents": tuple(range(1, 22))}, "INVALID_FIELD", "alert_percents"),
        ({"alert_url": "https://x.example"}, "REQUIRED_FIELD", "alert_percents"),
        ({"alert_url": "http://x.example", "alert_percents": (50,)}, "INVALID_FIELD", "alert_url"),
        ({"ladder": rungs(("batch", 80)), "hard": False}, "INVALID_FIELD", "ladder"),
        ({"ladder": rungs(("batch", 0))}, "INVALID_FIELD", "ladder[0].from_percent"),
        ({"ladder": rungs(("batch", 101))}, "INVALID_FIELD", "ladder[0].from_percent"),
        ({"ladder": rungs(("batch", 80), ("batch", 90))}, "INVALID_FIELD", "ladder[1].step"),
        ({"ladder": rungs(("batch", 80), ("cache_only", 80))}, "INVALID_FIELD", "ladder[1].from_percent"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_by_its_field(changes: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        check_budget(replace(GOOD, **changes), "request.budget")
    assert (caught.value.reason, caught.value.field) == (reason, f"request.budget.{field}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"limit": 0},
        {"limit": 2**63 - 1},
        {"window": Window.ROLLING, "rolling_seconds": 60},
        {"window": Window.ROLLING, "rolling_seconds": 400 * 86_400},
        {"tag_key": "team"},
        {"alert_percents": (1, 1000), "hard": False},
    ],
)
def test_a_budget_that_can_be(changes: dict[str, Any]) -> None:
    budget = replace(GOOD, **changes)
    assert check_budget(budget, "b") == budget


def test_marks_and_steps_come_out_in_order() -> None:
    budget = replace(GOOD, alert_percents=(100, 50), ladder=rungs(("cheaper_tier", 95), ("batch", 80)))
    checked = check_budget(budget, "b")
    assert checked.alert_percents == (50, 100)
    assert checked.ladder == rungs(("batch", 80), ("cheaper_tier", 95))


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://alerts.example/hook?a=b", True),
        ("https://alerts.example:8443/", True),
        ("http://127.0.0.1:9000/hook", True),
        ("http://[::1]:9000/hook", True),
        ("http://localhost/hook", True),
        ("http://alerts.example/", False),
        ("http://127.0.0.1.example/", False),
        ("http://localhost.example/", False),
        ("http://10.0.0.1/", False),
        ("ftp://127.0.0.1/", False),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https://user:secret@alerts.example/", False),
        ("http://127.0.0.1@evil.example/", False),
        ("https://alerts.example/#part", False),
        ("https://alerts.example/a\r\nX: y", False),
        ("https://alerts.example/a b", False),
        ("https://alerts.example:99999/", False),
        ("https://alerts.example:0/", False),
        ("https://[::1", False),
        ("https://alérts.example/", False),
        ("https://alerts.example/" + "x" * 2048, False),
        ("", False),
    ],
)
def test_alert_urls(url: str, good: bool) -> None:
    assert is_alert_url(url) is good


def test_texts_read_back_as_they_were_written() -> None:
    assert parse_ladder(ladder_text(rungs(("cheaper_tier", 95), ("batch", 80)))) == rungs(
        ("batch", 80), ("cheaper_tier", 95)
    )
    assert parse_ladder("cache-only=80") == rungs(("cache_only", 80))
    assert parse_percents(percents_text((100, 50))) == (50, 100)
    assert (parse_ladder(""), parse_percents("")) == ((), ())
    assert [parse_span(each) for each in ("90s", "30m", "12h", "7d")] == [90, 1800, 43_200, 604_800]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_ladder, "batch"),
        (parse_ladder, "batch=x"),
        (parse_ladder, "faster=80"),
        (parse_percents, "50,80"),
        (parse_percents, "-1"),
        (parse_span, "7"),
        (parse_span, "7w"),
        (parse_span, "0d"),
        (parse_span, "-1d"),
        (parse_span, ""),
    ],
)
def test_texts_that_cannot_be_read(parse: Any, text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse(text)


@pytest.mark.parametrize(
    ("limit", "cost", "previous", "current", "into_seconds", "wait_seconds"),
    [
        (10, 1, 0, 9, 0, 0),
        (10, 1, 0, 10, 0, 66),  # Fades in the next minute: 10 - 10 * 6/60 leaves room for one.
        (10, 1, 10, 0, 0, 6),
        (10, 1, 10, 0, 6, 0),
        (10, 1, 10, 5, 30, 6),
        (10, 1, 10, 4, 30, 0),
        (10, 11, 0, 0, 0, 60),
        (10, 10, 1, 0, 59, 1),
        (10, 10, 0, 0, 59, 0),
    ],
)
def test_rates(limit: int, cost: int, previous: int, current: int, into_seconds: int, wait_seconds: int) -> None:
    into = into_seconds * SECOND
    assert rate_wait_ns(limit, cost, previous, current, into) == wait_seconds * SECOND


@given(
    limit=st.integers(1, 1000),
    cost=st.integers(1, 1000),
    previous=st.integers(0, 1000),
    current=st.integers(0, 1000),
    into=st.integers(0, MINUTE_NS - 1),
)
def test_after_the_wait_it_fits(limit: int, cost: int, previous: int, current: int, into: int) -> None:
    wait = rate_wait_ns(limit, cost, previous, current, into)
    assert 0 <= wait <= 2 * MINUTE_NS
    if wait == 0 or cost > limit:
        return
    minutes, later = divmod(into + wait, MINUTE_NS)
    shifted = (previous, current) if minutes == 0 else (current, 0) if minutes == 1 else (0, 0)
    assert rate_wait_ns(limit, cost, *shifted, later) == 0


def ns(text: str) -> int:
    """Nanoseconds of an ISO time, UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("zone", "at", "start", "end"),
    [
        # 2026-06-15 is a Monday.
        ("UTC", "2026-06-15T00:00", "2026-06-15T00:00", "2026-06-22T00:00"),
        ("UTC", "2026-06-14T23:59:59", "2026-06-08T00:00", "2026-06-15T00:00"),
        ("Asia/Seoul", "2026-06-14T15:00", "2026-06-14T15:00", "2026-06-21T15:00"),
        ("Asia/Seoul", "2026-06-14T14:59:59", "2026-06-07T15:00", "2026-06-14T15:00"),
        # A week of 167 hours, and one of 169.
        ("America/New_York", "2026-03-08T12:00", "2026-03-02T05:00", "2026-03-09T04:00"),
        ("America/New_York", "2026-11-01T12:00", "2026-10-26T04:00", "2026-11-02T05:00"),
        # Over the year's end.
        ("Asia/Seoul", "2027-01-01T00:00", "2026-12-27T15:00", "2027-01-03T15:00"),
    ],
)
def test_a_week_begins_on_monday(zone: str, at: str, start: str, end: str) -> None:
    assert window_bounds(Window.WEEK, zone, ns(at)) == (ns(start), ns(end))


@given(st.integers(60, 400 * 86_400), st.integers(ns("2026-01-01T00:00"), ns("2027-01-01T00:00")))
def test_a_rolling_window_covers_its_length_and_one_step_more_at_most(length: int, at: int) -> None:
    budget = Budget("b", "acme", 1, True, window=Window.ROLLING, rolling_seconds=length)
    start, end = budget.bounds(at)
    assert end is not None
    assert start <= at < end
    covered = at - budget.first_bucket(at)
    assert length * SECOND <= covered < length * SECOND + 2 * budget.bucket_ns
    assert budget.bounds(end)[0] == end


@pytest.mark.parametrize(
    ("budget", "tags", "covered"),
    [
        ({"model": "small"}, {}, True),
        ({"model": "big"}, {}, False),
        ({"tag_key": "team"}, {"team": ""}, True),
        ({"tag_key": "team"}, {"other": "team"}, False),
        ({"tag_key": "team", "tag_value": "a"}, {"team": "a"}, True),
        ({"tag_key": "team", "tag_value": "a"}, {"team": "b"}, False),
        ({"tag_key": "team", "tag_value": "a", "model": "big"}, {"team": "a"}, False),
    ],
)
def test_what_a_budget_covers(budget: dict[str, str], tags: dict[str, str], covered: bool) -> None:
    scope = Scope("acme", "ann", "x", "small", tuple(tags.items()))
    assert Budget("b", "acme", 1, True, **budget).covers(scope) is covered  # type: ignore[arg-type]  # Texts all.


@pytest.mark.parametrize(
    ("spent", "above", "marks"),
    [(0, 0, []), (499, 0, []), (500, 0, [50]), (1000, 0, [50, 80, 100]), (1000, 80, [100]), (1000, 100, [])],
)
def test_marks_that_are_crossed(spent: int, above: int, marks: list[int]) -> None:
    assert replace(GOOD, alert_percents=(50, 80, 100)).crossed(spent, above) == marks
    assert replace(GOOD, limit=0, alert_percents=(100,)).crossed(1, 0) == [100]
