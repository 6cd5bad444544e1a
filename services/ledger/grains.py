"""Time grains in a time zone, pure: stretches of one offset, local days, their names, and what each is worth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time from ``start_ns`` up to ``end_ns`` in which the zone's clocks are one offset ahead of UTC."""

    start_ns: int
    end_ns: int
    offset_ns: int

    def whole_hours(self) -> tuple[int, int]:
        """The first and the end of the whole UTC hours inside; equal or crossed when there is none."""
        return -(-self.start_ns // HOUR) * HOUR, self.end_ns // HOUR * HOUR

    def split_hours(self) -> Iterator[int]:
        """Starts of the whole UTC hours that hold a local midnight inside: their receipts are of two days."""
        first, end = self.whole_hours()
        inside = -self.offset_ns % HOUR  # Where in a UTC hour local midnight lies.
        if inside == 0:
            return
        midnight = first + (-first - self.offset_ns) % DAY
        while midnight < end:
            yield midnight - inside
            midnight += DAY

    def ranges_outside_hours(self, *, days: bool) -> list[tuple[int, int]]:
        """What sums of whole hours cannot answer: the edges, and with ``days`` the hours of two days."""
        first, end = self.whole_hours()
        if first >= end:
            return [(self.start_ns, self.end_ns)]
        edges = [(self.start_ns, first), (end, self.end_ns)]
        split = [(hour, hour + HOUR) for hour in self.split_hours()] if days else []
        return sorted(each for each in (*edges, *split) if each[0] < each[1])


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
