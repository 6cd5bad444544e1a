"""Spend by group, from rollups and, where those cannot answer, from receipts; all in one consistent state.

Three parts, which together are every receipt asked for, once:

- **hours**: rollups of whole UTC hours, as of the last event rolled in;
- **tail**: what later events changed in those hours: the receipts that they show, less what the same requests showed
  before (from the events);
- **rest**: receipts of the window's edges, and of hours that a local midnight splits.

With a tag in the filter or among the groups everything is *rest*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Table, and_, case, func, literal, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import Code, TenthError, invalid_argument
from mesh.money import MAX_NANO_USD, NANO_PER_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE
from services.ledger.errors import Reason
from services.ledger.grains import (
    DAY,
    HOUR,
    Currency,
    Stretch,
    day_name,
    hour_name,
    month_name,
    stretches,
    week_name,
)
from services.ledger.reading import MISS, Filter, named, summed, tag_of, tagged
from services.ledger.rollups import KEY, SUMS, State, read_state, rolled, shown_before
from services.ledger.tables import SAVINGS, exchange_rates, receipt_events, receipts, rollups

AMOUNTS = ("baseline", *SAVINGS, "overhead", "actual", "input_tokens", "output_tokens", "baseline_prompt_cached")
"""Columns that a row of spend carries."""
DIMENSIONS = (
    "model",
    "tier",
    "tenant",
    "user",
    "project",
    "hour",
    "day",
    "week",
    "month",
    "cache",
    "baseline",
)
"""What spend may be grouped by, beside ``tag:KEY``. Hours are UTC's, days, weeks and months the zone's."""
TAG = "tag:"
_COLUMNS = {
    "model": "model",
    "tier": "tier",
    "tenant": "tenant_id",
    "user": "user_id",
    "project": "project_id",
    "cache": "cache",
    "baseline": "baseline_model",
}
_TIERS = ("", "simple", "medium", "complex")
_GRAINS: dict[str, Callable[[int], str]] = {"day": day_name, "week": week_name, "month": month_name}
_COUNTS = ("requests", "failures", "hits")
_RANGES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Sums of one group; ``amounts`` by column name."""

    group: tuple[str, ...]
    request_count: int
    failed_count: int
    cache_hit_count: int
    amounts: dict[str, int]
    actual_in_currency: str = ""
    baseline_in_currency: str = ""


@dataclass(slots=True)
class _Sums:
    values: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_COUNTS, *AMOUNTS), 0))
    actual_by_day: dict[int, int] = field(default_factory=dict)
    baseline_by_day: dict[int, int] = field(default_factory=dict)
    requests_by_day: dict[int, int] = field(default_factory=dict)


class Spend:
    """One question. ``add`` folds parts in; ``answer`` gives the rows."""

    def __init__(self, which: Filter, group_by: Sequence[str], zone: ZoneInfo, currency: str) -> None:
        self._which = which
        self._group_by = tuple(group_by)
        self._zone = zone
        self._currency = currency
        self._tags = any(name.startswith(TAG) for name in group_by) or bool(which.tag_key)
        self._days = bool(currency) or any(name in _GRAINS for name in group_by)
        self._hours = "hour" in group_by
        self._groups: dict[tuple[Any, ...], _Sums] = {}
        self._baselines: dict[str, int] = {}

    async def read(self, connection: AsyncConnection, dialect: str) -> tuple[list[SpendRow], list[str]]:
        """The rows by group, and the baseline models that occur."""
        state = await read_state(connection)
        rates = await self._rates(connection)
        for stretch in await self._stretches(connection, state):
            if self._tags:
                await self._add_rest(connection, dialect, stretch, [(stretch.start_ns, stretch.end_ns)], state)
                continue
            first, end = stretch.whole_hours()
            if first < end:
                await self._add_hours(connection, stretch, state)
            await self._add_rest(connection, dialect, stretch, stretch.ranges_outside_hours(days=self._days), state)
            if first < end:
                await self._take_off(connection, stretch, state)
        return self._answer(rates)

    async def _stretches(self, connection: AsyncConnection, state: State) -> list[Stretch]:
        ends = [select(end(each)) for each in (rollups.c.hour_ns, receipts.c.create_ns) for end in (func.min, func.max)]
        bounds = [(await connection.execute(query)).scalar_one() for query in ends]
        there = [each for each in bounds if each is not None]
        if not there:
            return []
        start, end_ns = min(there) // HOUR * HOUR, (max(there) // HOUR + 1) * HOUR
        which = self._which
        if which.start_ns is not None:
            start = max(start, which.start_ns)
        if which.end_ns is not None:
            end_ns = min(end_ns, which.end_ns)
        if start >= end_ns:
            return []
        return stretches(self._zone, start, end_ns) if self._days else [Stretch(start, end_ns, 0)]

    async def _add_hours(self, connection: AsyncConnection, stretch: Stretch, state: State) -> None:
        first, end = stretch.whole_hours()
        whole = [rollups.c.hour_ns >= first, rollups.c.hour_ns < end]
        later = [receipts.c.create_ns >= first, receipts.c.create_ns < end]
        if self._days and next(stretch.split_hours(), None) is not None:
            whole.append(not_(_splits(rollups.c.hour_ns, stretch)))
            later.append(not_(_splits(receipts.c.create_ns, stretch)))
        hours = select(rollups).where(*whole, *named(rollups, self._which))
        await self._add(connection, rollups, rollups.c.hour_ns, stretch, hours)
        tail = (
            select(receipts)
            .join_from(
                receipt_events,
                receipts,
                (receipts.c.request_id == receipt_events.c.request_id)
                & (receipts.c.tenant_id == receipt_events.c.tenant_id)
                & (receipts.c.event_id == receipt_events.c.id),
            )
            .where(receipt_events.c.id > state.event_id, *later, *named(receipts, self._which))
        )
        await self._add(connection, receipts, receipts.c.create_ns, stretch, tail)

    async def _add_rest(
        self,
        connection: AsyncConnection,
        dialect: str,
        stretch: Stretch,
        ranges: Sequence[tuple[int, int]],
        state: State,
    ) -> None:
        if ranges and ranges[0][0] < state.kept_ns:
            raise TenthError(
                Code.FAILED_PRECONDITION,
                Reason.RECEIPTS_PAST_RETENTION,
                f"single receipts of before {hour_name(state.kept_ns)} are deleted: ask from then on, or by whole "
                "hours and without tags, in a time zone whose days begin on a full hour",
                "request.filter.start_time",
            )
        tags = {name: tag_of(dialect, name[len(TAG) :]) for name in self._group_by if name.startswith(TAG)}
        for index in range(0, len(ranges), _RANGES_AT_ONCE):
            some = [
                and_(receipts.c.create_ns >= start, receipts.c.create_ns < end)
                for start, end in ranges[index : index + _RANGES_AT_ONCE]
            ]
            query = select(receipts).where(or_(*some), *named(receipts, self._which), *tagged(dialect, self._which))
            await self._add(connection, receipts, receipts.c.create_ns, stretch, query, tags)

    async def _add(
        self,
        connection: AsyncConnection,
        table: Table,
        at: ColumnElement[Any],
        stretch: Stretch,
        query: Any,
        tags: Mapping[str, ColumnElement[Any]] | None = None,
    ) -> None:
        names = dict.fromkeys(_COLUMNS[name] for name in (*self._group_by, "baseline") if name in _COLUMNS)
        groups: list[ColumnElement[Any]] = [table.c[name].label(f"g_{name}") for name in names]
        # A tag's name is the caller's text: it never becomes a name in SQL.
        tag_names = {f"g_tag{index}": name for index, name in enumerate(tags or {})}
        groups += [
            func.coalesce(value, "").label(label) for label, value in zip(tag_names, (tags or {}).values(), strict=True)
        ]
        if self._hours:
            groups.append((at // HOUR).label("g_hour"))
        if self._days:
            groups.append(((at + stretch.offset_ns) // DAY).label("g_day"))
        one: ColumnElement[Any] = rollups.c.requests if table is rollups else literal(1)
        failures = rollups.c.failures if table is rollups else case((receipts.c.failed, 1), else_=0)
        hits = case((table.c.cache != MISS, one), else_=0)
        counts = (("requests", one), ("failures", failures), ("hits", hits))
        sums = (*counts, *((name, table.c[name]) for name in AMOUNTS))
        for row, values in await summed(connection, groups, sums, query):
            raw = {tag_names.get(name, name[2:]): value for name, value in row.items() if name.startswith("g_")}
            self._fold(raw, values)

    async def _take_off(self, connection: AsyncConnection, stretch: Stretch, state: State) -> None:
        """What the rollups still hold of requests that later events corrected."""
        first, end = stretch.whole_hours()
        split = set(stretch.split_hours()) if self._days else set()
        for row in await connection.execute(shown_before(state.event_id)):
            old = rolled(row.receipt)
            columns = dict(zip(KEY, old.key, strict=True)) | {"create_ns": old.create_ns}
            hour = columns["hour_ns"]
            if not first <= hour < end or hour in split or not self._which.holds(columns, {}):
                continue
            sums = dict(zip(SUMS, old.sums, strict=True))
            values = {"requests": 1, "failures": sums["failures"], "hits": int(columns["cache"] != MISS)}
            values |= {name: sums[name] for name in AMOUNTS}
            group = columns | {"hour": hour // HOUR, "day": (hour + stretch.offset_ns) // DAY}
            self._fold(group, {name: -value for name, value in values.items()})

    def _fold(self, raw: Mapping[str, Any], values: Mapping[str, int]) -> None:
        key = tuple(_value(name, raw) for name in self._group_by)
        sums = self._groups.setdefault(key, _Sums())
        for name, value in values.items():
            sums.values[name] += value
        baseline = raw["baseline_model"]
        self._baselines[baseline] = self._baselines.get(baseline, 0) + values["requests"]
        if self._currency:
            day = int(raw["day"])
            for by_day, name in (
                (sums.actual_by_day, "actual"),
                (sums.baseline_by_day, "baseline"),
                (sums.requests_by_day, "requests"),
            ):
                by_day[day] = by_day.get(day, 0) + values[name]

    async def _rates(self, connection: AsyncConnection) -> Currency | None:
        if not self._currency:
            return None
        if self._currency == "USD":
            return Currency("USD", [(-(2**63), NANO_PER_USD)])
        query = select(exchange_rates.c.valid_from_ns, exchange_rates.c.nano_units_per_usd)
        query = query.where(exchange_rates.c.currency == self._currency).order_by(exchange_rates.c.valid_from_ns)
        rows = await connection.execute(query)
        return Currency(self._currency, [(row.valid_from_ns, row.nano_units_per_usd) for row in rows])

    def _answer(self, currency: Currency | None) -> tuple[list[SpendRow], list[str]]:
        if not self._group_by:
            self._groups.setdefault((), _Sums())
        rows = []
        for key in sorted(self._groups):
            sums = self._groups[key]
            if not sums.values["requests"] and self._group_by:
                continue
            amounts = {name: sums.values[name] for name in AMOUNTS}
            for name, amount in amounts.items():
                if abs(amount) > MAX_NANO_USD:
                    raise TenthError(
                        Code.OUT_OF_RANGE,
                        AMOUNT_OUT_OF_RANGE,
                        f"the sum of {name} does not fit 64 bits; narrow the filter",
                        "request.filter",
                    )
            rows.append(
                SpendRow(
                    group=tuple(map(_label, self._group_by, key)),
                    request_count=sums.values["requests"],
                    failed_count=sums.values["failures"],
                    cache_hit_count=sums.values["hits"],
                    amounts=amounts,
                    actual_in_currency=self._converted(currency, sums, sums.actual_by_day),
                    baseline_in_currency=self._converted(currency, sums, sums.baseline_by_day),
                )
            )
        return rows, sorted(name for name, count in self._baselines.items() if count)

    def _converted(self, currency: Currency | None, sums: _Sums, by_day: Mapping[int, int]) -> str:
        if currency is None:
            return ""
        days = [day for day, count in sorted(sums.requests_by_day.items()) if count]
        return currency.text(sum(by_day[day] * currency.rate(day, self._zone) for day in days))


def check_groups(group_by: Sequence[str]) -> None:
    """Raises INVALID_FIELD for a dimension that there is not, or that is given twice."""
    for index, name in enumerate(group_by):
        here = f"request.group_by[{index}]"
        if name not in DIMENSIONS and not (name.startswith(TAG) and len(name) > len(TAG)):
            raise invalid_argument(f"{name!r} is none of {', '.join(DIMENSIONS)}, tag:KEY", field=here)
        if name in group_by[:index]:
            raise invalid_argument(f"{name!r} is given twice", field=here)


def _splits(at: ColumnElement[Any], stretch: Stretch) -> ColumnElement[bool]:
    """True for times in an hour that holds a local midnight inside."""
    return (at - at % HOUR + stretch.offset_ns) % DAY > DAY - HOUR


def _value(name: str, raw: Mapping[str, Any]) -> Any:
    """A group's value as groups are ordered by."""
    if name in _COLUMNS:
        return raw[_COLUMNS[name]]
    if name == "hour":
        return int(raw["hour"])
    if name in _GRAINS:
        return _GRAINS[name](int(raw["day"]))
    return raw[name]


def _label(name: str, value: Any) -> str:
    if name == "hour":
        return hour_name(value * HOUR)
    if name == "tier":
        return _TIERS[value] if 0 <= value < len(_TIERS) else str(value)
    return str(value)
