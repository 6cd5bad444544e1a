"""Time laid out in months, days and hours: everything once, nothing across a boundary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.ledger.grains import (
    DAY,
    HOUR,
    Currency,
    Grain,
    Range,
    Stretch,
    day_name,
    holds,
    month_name,
    stretches,
    tiled,
    week_name,
)

SECOND = 10**9
START = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * SECOND
ZONES = ["UTC", "Asia/Seoul", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe", "America/Santiago"]


def whole(seconds: int) -> int:
    """Seconds after the start as nanoseconds."""
    return START + seconds * SECOND


def window_of(start: int, length: int, step: int) -> Range:
    """A window that begins and ends at whole steps, seconds."""
    return whole(start // step * step), whole((start + length) // step * step + step)


_SPAN = 200 * 86_400
windows = st.builds(window_of, st.integers(0, _SPAN), st.integers(1, _SPAN), st.sampled_from((1, 60, 3600, 86_400)))


@given(windows, st.sampled_from(ZONES), st.sampled_from(["none", "day", "week", "month"]), st.sampled_from(list(Grain)))
def test_tiles_cover_a_window_once_and_stay_inside_a_part(window: Range, name: str, cut: str, coarsest: Grain) -> None:
    zone = ZoneInfo(name)
    label = {"day": day_name, "week": week_name, "month": month_name}.get(cut)
    pieces: list[Range] = []
    for stretch in stretches(zone, *window):
        parts = stretch.cut(None if label is None else lambda day: label(day) != label(day - 1))
        tiles = tiled(parts, coarsest=coarsest)
        assert not any(ranges for grain, ranges in tiles.whole.items() if grain > coarsest)
        for grain, ranges in tiles.whole.items():
            for start, end in ranges:
                assert (grain.start(start), grain.start(end)) == (start, end)
                at = start
                while at < end:
                    after = grain.next(at + 1)
                    if label is not None:
                        assert label(stretch.local_day(at)) == label(stretch.local_day(after - 1))
                    assert holds(tiles.spans(), at)
                    at = after
        for start, end in tiles.rest:
            assert end - start < 2 * HOUR
            assert not holds(tiles.spans(), start)
        pieces += [*tiles.rest, *(each for ranges in tiles.whole.values() for each in ranges)]
    pieces.sort()
    assert pieces[0][0] == window[0]
    assert pieces[-1][1] == window[1]
    assert all(left[1] == right[0] for left, right in pairwise(pieces))


@given(windows, st.sampled_from(ZONES), st.floats(0, 1))
def test_a_stretch_knows_the_local_day(window: Range, name: str, share: float) -> None:
    zone = ZoneInfo(name)
    at = min(window[0] + int((window[1] - window[0]) * share), window[1] - 1)
    (stretch,) = [each for each in stretches(zone, *window) if each.start_ns <= at < each.end_ns]
    local = datetime.fromtimestamp(at // SECOND, zone)
    day = stretch.local_day(at)
    assert day_name(day) == local.date().isoformat()
    assert week_name(day) == (local.date() - timedelta(days=local.weekday())).isoformat()
    assert month_name(day) == local.date().isoformat()[:7]


def test_a_change_of_the_clock_is_found_to_the_second() -> None:
    changes = [each.start_ns for each in stretches(ZoneInfo("America/New_York"), START + 1, START + 365 * DAY)][1:]
    assert [datetime.fromtimestamp(each / SECOND, UTC).isoformat() for each in changes] == [
        "2026-03-08T07:00:00+00:00",
        "2026-11-01T06:00:00+00:00",
    ]
    assert stretches(ZoneInfo("UTC"), START, START) == []
    assert Stretch(START, START + 2 * DAY, 0).cut(lambda day: True) == [
        (START, START + DAY),
        (START + DAY, START + 2 * DAY),
    ]


@given(st.integers(-(10**30), 10**30), st.sampled_from(["KRW", "EUR", "KWD", "JPY"]))
def test_amounts_are_rounded_once_to_the_smallest_unit(amount: int, code: str) -> None:
    currency = Currency(code, [])
    unit = Decimal(1).scaleb(-{"KRW": 0, "JPY": 0, "EUR": 2, "KWD": 3}[code])
    exact = (Decimal(amount) / 10**18).quantize(unit, ROUND_HALF_EVEN)
    assert currency.text(amount) == (f"{exact:f}" if exact else f"{abs(exact):f}")


def test_the_rate_is_the_one_that_holds_when_the_day_starts() -> None:
    seoul = ZoneInfo("Asia/Seoul")
    midnight = int(datetime(2026, 3, 1, tzinfo=seoul).timestamp()) * SECOND
    day = (midnight + 9 * HOUR) // DAY
    currency = Currency("KRW", [(midnight, 1), (midnight + 1, 2), (midnight + DAY, 3)])
    assert [currency.rate(day + offset, seoul) for offset in (0, 1, 2)] == [1, 3, 3]
    with pytest.raises(TenthError, match=r"EXCHANGE_RATE_UNKNOWN.*2026-02-28"):
        currency.rate(day - 1, seoul)
