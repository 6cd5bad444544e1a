"""Time grains, pure: a report's time laid out in whole UTC months, days and hours; local days, weeks and months.

Also what a day's amounts are worth in another currency.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from itertools import pairwise
from zoneinfo import ZoneInfo

from mesh.errors import Code, TenthError
from mesh.money import divide_half_even
from services.ledger.errors import Reason
from services.ledger.policy import NANOS_PER_SECOND

HOUR = 3_600 * NANOS_PER_SECOND
DAY = 24 * HOUR
_EPOCH = date(1970, 1, 1)
# ISO 4217: how many decimals a currency's smallest unit has, where that is not 2.
_DECIMALS = dict.fromkeys(
    ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF",
     "XPF"), 0
) | dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3)  # fmt: skip


Range = tuple[int, int]
"""From an instant up to another."""


class Grain(IntEnum):
    """What one rollup is of: a UTC hour, day or month."""

    HOUR = 0
    DAY = 1
    MONTH = 2

    def start(self, at_ns: int) -> int:
        """When the hour, day or month that holds an instant began."""
        if self is Grain.MONTH:
            first = date.fromordinal(_EPOCH.toordinal() + at_ns // DAY).replace(day=1)
            return (first - _EPOCH).days * DAY
        length = HOUR if self is Grain.HOUR else DAY
        return at_ns // length * length

    def next(self, at_ns: int) -> int:
        """The first start at or after an instant."""
        start = self.start(at_ns)
        if start == at_ns:
            return start
        return self.start(start + {Grain.HOUR: HOUR, Grain.DAY: DAY, Grain.MONTH: 31 * DAY}[self])


@dataclass(frozen=True, slots=True)
class Tiles:
    """A time laid out: ranges of whole months, days and hours, and the rest, which is less than an hour each."""

    whole: dict[Grain, list[Range]]
    rest: list[Range]

    def spans(self) -> list[Range]:
        """Everything but the rest, in order, ranges that touch joined."""
        return _joined(sorted(each for ranges in self.whole.values() for each in ranges))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time from ``start_ns`` up to ``end_ns`` in which the zone's clocks are one offset ahead of UTC."""

    start_ns: int
    end_ns: int
    offset_ns: int

    def local_day(self, at_ns: int) -> int:
        """The local day's number since 1970-01-01."""
        return (at_ns + self.offset_ns) // DAY

    def cut(self, starts_here: Callable[[int], bool] | None) -> list[Range]:
        """The stretch in parts: a new one begins with each local day of which ``starts_here`` is true."""
        if starts_here is None:
            return [(self.start_ns, self.end_ns)]
        days = range(self.local_day(self.start_ns) + 1, self.local_day(self.end_ns - 1) + 1)
        marks = [self.start_ns, *(day * DAY - self.offset_ns for day in days if starts_here(day)), self.end_ns]
        return list(pairwise(marks))


def tiled(parts: Iterable[Range], *, coarsest: Grain = Grain.MONTH) -> Tiles:
    """Lay out parts, each with as few and as large pieces as fit inside it."""
    tiles = Tiles({grain: [] for grain in Grain}, [])
    for part in parts:
        _lay(tiles, part, list(Grain)[: coarsest + 1])
    for ranges in (*tiles.whole.values(), tiles.rest):
        ranges[:] = _joined(sorted(ranges))
    return tiles


def _lay(tiles: Tiles, part: Range, grains: Sequence[Grain]) -> None:
    outer = tiles.rest
    for grain in grains:
        start, end = grain.next(part[0]), grain.start(part[1])
        if start >= end:
            break
        outer.extend(each for each in ((part[0], start), (end, part[1])) if each[0] < each[1])
        part, outer = (start, end), tiles.whole[grain]
    outer.append(part)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for start, end in ranges:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        elif start < end:
            found.append((start, end))
    return found


def holds(spans: Sequence[Range], at_ns: int) -> bool:
    """True when an instant lies in one of the (ordered, separate) spans."""
    index = bisect_right(spans, at_ns, key=lambda each: each[0]) - 1
    return index >= 0 and at_ns < spans[index][1]


def stretches(zone: ZoneInfo, start_ns: int, end_ns: int) -> list[Stretch]:
    """A time in pieces of one offset. Offsets are looked up day by day and a change is found to the second."""
    found: list[Stretch] = []
    begin, at, offset = start_ns, start_ns, _offset(zone, start_ns)
    while at < end_ns:
        after = min(at + DAY, end_ns)
        if _offset(zone, after) != offset:
            low, high = at // NANOS_PER_SECOND, -(-after // NANOS_PER_SECOND)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle * NANOS_PER_SECOND) == offset else (low, middle)
            change = high * NANOS_PER_SECOND
            if change < end_ns:
                found.append(Stretch(begin, change, offset))
                begin = after = change
                offset = _offset(zone, change)
        at = after
    if begin < end_ns:
        found.append(Stretch(begin, end_ns, offset))
    return found


def _offset(zone: ZoneInfo, at_ns: int) -> int:
    ahead = datetime.fromtimestamp(at_ns // NANOS_PER_SECOND, zone).utcoffset() or timedelta()
    return int(ahead.total_seconds()) * NANOS_PER_SECOND


def hour_name(hour_ns: int) -> str:
    """A UTC hour, e.g. ``2026-06-15T18:00Z``."""
    return datetime.fromtimestamp(hour_ns // NANOS_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:00Z")


def day_name(day: int) -> str:
    """A local day by its number since 1970-01-01, e.g. ``2026-06-15``."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def week_name(day: int) -> str:
    """The Monday of a day's week, e.g. ``2026-06-15``."""
    return day_name(day - (day + 3) % 7)


def month_name(day: int) -> str:
    """A day's month, e.g. ``2026-06``."""
    return day_name(day)[:7]


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency's dated rates, by their first instant: nano-units per USD."""

    code: str
    rates: Sequence[tuple[int, int]]

    @property
    def decimals(self) -> int:
        """Decimals of its smallest unit."""
        return _DECIMALS.get(self.code, 2)

    def rate(self, day: int, zone: ZoneInfo) -> int:
        """The rate that holds when a local day starts. Raises EXCHANGE_RATE_UNKNOWN, naming the day."""
        start = datetime.combine(_EPOCH + timedelta(days=day), datetime.min.time(), zone)
        start_ns = int(start.timestamp()) * NANOS_PER_SECOND
        index = bisect_right(self.rates, start_ns, key=lambda each: each[0]) - 1
        if index < 0:
            raise TenthError(
                Code.FAILED_PRECONDITION,
                Reason.EXCHANGE_RATE_UNKNOWN,
                f"no rate of {self.code} holds on {day_name(day)}",
                "request.currency",
            )
        return self.rates[index][1]

    def text(self, nano_usd_times_rate: int) -> str:
        """An amount as a decimal string, rounded once, half to even. It is given in 10^-18 units."""
        scale = 10**self.decimals
        amount = divide_half_even(nano_usd_times_rate * scale, 10**18)
        whole, part = divmod(abs(amount), scale)
        sign = "-" if amount < 0 else ""
        return f"{sign}{whole}.{part:0{self.decimals}d}" if self.decimals else f"{sign}{whole}"
