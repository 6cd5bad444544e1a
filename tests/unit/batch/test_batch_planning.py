"""When work leaves its lane: as late as that is safe, never later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batch.planning import (
    LaneLoad,
    Margins,
    check_seconds,
    local_overflow,
    may_wait,
    measured_rate,
    online_start,
    pace_end,
    plan,
    poll_seconds,
)
from services.batch.policy import LOCAL, ONLINE, OPENAI

MARGINS = Margins(1.5, 60)
DEADLINE = 10_000.0


def test_a_provider_has_until_online_would_be_late() -> None:
    load = LaneLoad("b", OPENAI, 100, leave_seconds=50)
    # 100 items at 1 a second with half as much again, the reserve, and the time it takes to get them back.
    start = DEADLINE - 60 - 150 - 50
    early = plan(start - 1, DEADLINE, [load], 1.0, MARGINS)
    assert (early.moves, early.ask_again) == ((), start)
    now = plan(start, DEADLINE, [load], 1.0, MARGINS)
    assert [(move.key, move.item_count) for move in now.moves] == [("b", 100)]
    assert "100 items" in now.words


def test_online_work_that_waits_makes_it_earlier() -> None:
    loads = [LaneLoad("b", OPENAI, 100), LaneLoad("waiting", ONLINE, 40)]
    assert plan(0, DEADLINE, loads, 1.0, MARGINS).ask_again == DEADLINE - 60 - 1.5 * 140


def test_own_hardware_gives_away_only_what_it_cannot_do() -> None:
    load = LaneLoad("l", LOCAL, 1000, items_per_second=1.5)
    assert local_overflow(DEADLINE - 60 - 900, DEADLINE, load, MARGINS) == 100
    assert local_overflow(DEADLINE - 60 - 1000, DEADLINE, load, MARGINS) == 0
    decided = plan(DEADLINE - 60 - 150, DEADLINE, [load], 1.0, MARGINS)
    assert [move.item_count for move in decided.moves] == [850]
    assert plan(DEADLINE - 60 - 1000, DEADLINE, [load], 1.0, MARGINS).moves == ()


def test_where_online_is_not_allowed_nothing_moves() -> None:
    load = LaneLoad("b", OPENAI, 100)
    assert plan(DEADLINE - 1, DEADLINE, [load], 1.0, MARGINS, online_allowed=False).moves == ()


loads = st.lists(
    st.builds(
        LaneLoad,
        st.uuids().map(str),
        st.sampled_from([LOCAL, OPENAI, ONLINE]),
        st.integers(0, 50_000),
        st.floats(0.001, 1000),
        st.floats(0, 600),
    ),
    max_size=6,
)


@given(loads, st.floats(0.01, 1000), st.floats(0, DEADLINE), st.floats(1, 3), st.floats(0, 300))
def test_nothing_moves_before_it_must_and_everything_in_time(
    held: list[LaneLoad], rate: float, now: float, safety: float, reserve: float
) -> None:
    margins = Margins(safety, reserve)
    decided = plan(now, DEADLINE, held, rate, margins)
    by_key = {load.key: load for load in held}
    assert len({move.key for move in decided.moves}) == len(decided.moves)
    for move in decided.moves:
        assert by_key[move.key].lane != ONLINE
        assert 0 < move.item_count <= by_key[move.key].item_count
    providers = [load for load in held if load.lane == OPENAI and load.item_count]
    if providers and not decided.moves:
        # Asked again at that time, everything that would then move can still be done.
        later = plan(decided.ask_again + 0.01, DEADLINE, held, rate, margins)
        assert {load.key for load in providers} <= {move.key for move in later.moves}
        total = sum(load.item_count for load in held if load.lane != LOCAL)
        assert decided.ask_again <= online_start(DEADLINE, total, rate, margins) + 1e-6


@given(st.floats(0, 1e6), st.floats(-1e6, 1e6), st.floats(0.01, 10), st.floats(10, 1000))
def test_looks_are_neither_rare_nor_frequent(now: float, ahead: float, least: float, most: float) -> None:
    assert least <= check_seconds(now, now + ahead, least, most) <= most


@given(st.integers(0, 1000), st.floats(0.1, 60), st.floats(60, 3600), st.floats(1, 1e6))
def test_polls_grow_to_a_bound(polled: int, first: float, longest: float, left: float) -> None:
    assert 0 < poll_seconds(polled, first, longest, left) <= min(longest, left)
    assert poll_seconds(polled, first, longest, left) <= poll_seconds(polled + 1, first, longest, left)


@pytest.mark.parametrize(("left", "holds"), [(359, False), (360, True)])
def test_who_waits_has_time_for_a_second_round(left: float, holds: bool) -> None:
    assert may_wait(left, 300, MARGINS) is holds


def test_a_rate_is_measured_when_there_is_something_to_measure() -> None:
    assert measured_rate(7, 1.0, 2.0) == 2.0
    assert measured_rate(80, 10.0, 2.0) == 8.0
    assert measured_rate(80, 0.0, 2.0) == 2.0


def test_a_limit_is_waited_for_only_while_what_passed_can_still_run() -> None:
    margins = Margins(2.0, 60.0)
    assert pace_end(0, 10_000, 1000, 1.0, margins) == 7940
    assert pace_end(0, 10_000, 100_000, 1.0, margins) == 5000, "at least half of what is left"
