"""The time axis: days of a time zone, or weeks when there are many, without holes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

MAX_DAYS = 92
"""With more days than this the axis is in weeks, from Monday."""


@dataclass(frozen=True, slots=True)
class Periods:
    """Buckets in order, by their first day; each is ``days`` long."""

    starts: tuple[date, ...]
    days: int

    @property
    def weekly(self) -> bool:
        """True when a bucket is a week."""
        return self.days == 7

    def index(self, day: date) -> int:
        """The bucket that holds a day of the axis."""
        return (day - self.starts[0]).days // self.days

    def edges(self, zone: tzinfo) -> Sequence[datetime]:
        """The instants between which the buckets lie, one more than there are buckets."""
        ends = [*self.starts, self.starts[-1] + timedelta(days=self.days)] if self.starts else []
        return [datetime.combine(day, time(), zone) for day in ends]


def periods(days: Iterable[date]) -> Periods:
    """Buckets from the first to the last of some days."""
    known = sorted(set(days))
    if not known:
        return Periods((), 1)
    first, last = known[0], known[-1]
    length = 1 if (last - first).days < MAX_DAYS else 7
    if length == 7:
        first -= timedelta(days=first.weekday())
    count = (last - first).days // length + 1
    return Periods(tuple(first + timedelta(days=length * index) for index in range(count)), length)


def parse_day(text: str) -> date | None:
    """A day as the ledger names it, ``2026-11-26``; None for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
