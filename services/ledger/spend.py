"""Spend by group, from rollups and, where those cannot answer, from receipts; all in one consistent state.

Three parts, which together are every receipt asked for, once:

- **whole**: rollups of whole UTC months, days and hours, as large as lie inside one group, as of the
  last event rolled in;
- **tail**: what later events changed in those: the receipts that they show, less what the same requests showed
  before (from the events);
- **rest**: receipts of what is less than an hour: the window's edges, and hours that a local midnight splits.

With a tag in the filter or among the groups everything is *rest*. Receipts of shadow checks count in the money, and
apart from the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Select, Table, and_, case, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import Code, TenthError, invalid_argument
from mesh.money import MAX_NANO_USD, NANO_PER_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE
from services.ledger.errors import Reason
from services.ledger.grains import (
    DAY,
    HOUR,
    Currency,
    Grain,
    Range,
    Stretch,
    Tiles,
    day_name,
    holds,
    hour_name,
    month_name,
    stretches,
    tiled,
    week_name,
)
from services.ledger.labels import CHECK, MISS
from services.ledger.reading import Filter, named, summed, tag_of, tagged
from services.ledger.rollup_rows import KEY, PEOPLE, SUMS, State, read_state
from services.ledger.rollup_steps import Rolled, level_of, rolled, shown_before
from services.ledger.tables import SAVINGS, exchange_rates, receipts, rollups

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
_COUNTS = ("requests", "failures", "hits", "checks")
_RANGES_AT_ONCE = 100
_RANGES_APART = 8


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Sums of one group; ``amounts`` by column name."""

    group: tuple[str, ...]
    request_count: int
    failed_count: int
    cache_hit_count: int
    shadow_count: int
    amounts: dict[str, int]
    actual_in_currency: str = ""
    baseline_in_currency: str = ""


@dataclass(slots=True)
class _Sums:
    values: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_COUNTS, *AMOUNTS), 0))
    actual_by_day: dict[int, int] = field(default_factory=dict)
    baseline_by_day: dict[int, int] = field(default_factory=dict)
    receipts_by_day: dict[int, int] = field(default_factory=dict)


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
        for stretch in await self._stretches(connection):
            if self._tags:
                tiles = Tiles({}, [(stretch.start_ns, stretch.end_ns)])
            else:
                tiles = tiled(stretch.cut(self._cut()), coarsest=Grain.HOUR if self._hours else Grain.MONTH)
            for grain, ranges in tiles.whole.items():
                await self._add_whole(connection, stretch, grain, ranges)
            if spans := tiles.spans():
                await self._add_tail(connection, stretch, spans, state)
                await self._take_off(connection, stretch, spans, state)
            await self._add_rest(connection, dialect, stretch, tiles.rest, state)
        return self._answer(rates)

    def _cut(self) -> Callable[[int], bool] | None:
        """With which local days a new group begins."""
        if self._currency or "day" in self._group_by:
            return lambda day: True
        wanted = [_GRAINS[name] for name in self._group_by if name in _GRAINS]
        return (lambda day: any(name(day) != name(day - 1) for name in wanted)) if wanted else None

    async def _stretches(self, connection: AsyncConnection) -> list[Stretch]:
        # One query each, so that each is one step in an index.
        queries = [select(end(rollups.c.start_ns)).where(rollups.c.level == 0) for end in (func.min, func.max)]
        queries += [select(end(receipts.c.create_ns)) for end in (func.min, func.max)]
        bounds = [(await connection.execute(query)).scalar_one() for query in queries]
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

    async def _add_whole(
        self, connection: AsyncConnection, stretch: Stretch, grain: Grain, ranges: Sequence[Range]
    ) -> None:
        names = {_COLUMNS[name] for name in self._group_by if name in _COLUMNS}
        people = names & set(PEOPLE) or any(getattr(self._which, name) for name in PEOPLE)
        level = level_of(grain, people=bool(people))
        for some in _inside(rollups.c.start_ns, ranges):
            query = select(rollups).where(rollups.c.level == level, some, *named(rollups, self._which))
            await self._add(connection, rollups, rollups.c.start_ns, stretch, query)

    async def _add_tail(
        self, connection: AsyncConnection, stretch: Stretch, spans: Sequence[Range], state: State
    ) -> None:
        """Receipts of those hours whose newest event is not rolled in."""
        # Only the event shall choose the index: without statistics SQLite would rather read the whole window.
        at = receipts.c.create_ns + 0
        query = select(receipts).where(
            receipts.c.event_id > state.event_id,
            at >= spans[0][0],
            at < spans[-1][1],
            # While a rebuild goes on, hours of before the mark hold it all up to where it began.
            or_(receipts.c.event_id > state.rebuilt_id, at >= state.kept_ns),
            *named(receipts, self._which, indexed=False),
        )
        await self._add(connection, receipts, receipts.c.create_ns, stretch, query, spans=spans)

    async def _add_rest(
        self,
        connection: AsyncConnection,
        dialect: str,
        stretch: Stretch,
        ranges: Sequence[tuple[int, int]],
        state: State,
    ) -> None:
        if ranges and ranges[0][0] < state.kept_ns:
            raise past_retention(
                state, ", or by whole hours and without tags, in a time zone whose days begin on a full hour"
            )
        tags = {name: tag_of(dialect, name[len(TAG) :]) for name in self._group_by if name.startswith(TAG)}
        for some in _inside(receipts.c.create_ns, ranges):
            query = select(receipts).where(some, *named(receipts, self._which), *tagged(dialect, self._which))
            await self._add(connection, receipts, receipts.c.create_ns, stretch, query, tags=tags)

    async def _add(
        self,
        connection: AsyncConnection,
        table: Table,
        at: ColumnElement[Any],
        stretch: Stretch,
        query: Select[Any],
        *,
        tags: Mapping[str, ColumnElement[Any]] | None = None,
        spans: Sequence[Range] | None = None,
    ) -> None:
        """Fold sums in; with ``spans`` only of the hours in them."""
        names = dict.fromkeys(_COLUMNS[name] for name in (*self._group_by, "baseline") if name in _COLUMNS)
        groups: list[ColumnElement[Any]] = [table.c[name].label(f"g_{name}") for name in names]
        # A tag's name is the caller's text: it never becomes a name in SQL.
        tag_names = {f"g_tag{index}": name for index, name in enumerate(tags or {})}
        groups += [
            func.coalesce(value, "").label(label) for label, value in zip(tag_names, (tags or {}).values(), strict=True)
        ]
        if self._hours or spans is not None:
            groups.append((at // HOUR).label("g_hour"))
        if self._days:
            groups.append(((at + stretch.offset_ns) // DAY).label("g_day"))
        one: ColumnElement[Any] = rollups.c.requests if table is rollups else literal(1)
        failures = rollups.c.failures if table is rollups else case((receipts.c.failed, 1), else_=0)
        check = table.c.cache == CHECK
        hits = case((or_(check, table.c.cache == MISS), 0), else_=one)
        counts = (
            ("requests", case((check, 0), else_=one)),
            ("failures", case((check, 0), else_=failures)),
            ("hits", hits),
            ("checks", case((check, one), else_=0)),
        )
        sums = (*counts, *((name, table.c[name]) for name in AMOUNTS))
        for row, values in await summed(connection, groups, sums, query):
            raw = {tag_names.get(name, name[2:]): value for name, value in row.items() if name.startswith("g_")}
            if spans is None or holds(spans, int(raw["hour"]) * HOUR):
                self._fold(raw, values)

    async def _take_off(
        self, connection: AsyncConnection, stretch: Stretch, spans: Sequence[Range], state: State
    ) -> None:
        """What the rollups still hold of requests that later events corrected."""
        later = max(state.event_id, state.rebuilt_id)
        for event_id in dict.fromkeys((state.event_id, later)):
            for row in await connection.execute(shown_before(event_id)):
                old = rolled(row)
                columns = dict(zip(KEY, old.key, strict=True)) | {"create_ns": old.create_ns}
                # Hours of before the mark are not made anew: they hold what was there when a rebuild began.
                here = event_id == (later if columns["start_ns"] < state.kept_ns else state.event_id)
                if here and holds(spans, columns["start_ns"]) and self._which.holds(columns, {}):
                    self._fold_off(columns, old, stretch)

    def _fold_off(self, columns: Mapping[str, Any], old: Rolled, stretch: Stretch) -> None:
        hour = columns["start_ns"]
        sums = dict(zip(SUMS, old.sums, strict=True))
        check = columns["cache"] == CHECK
        values = {
            "requests": int(not check),
            "failures": 0 if check else sums["failures"],
            "hits": int(columns["cache"] not in (MISS, CHECK)),
            "checks": int(check),
        }
        values |= {name: sums[name] for name in AMOUNTS}
        group = dict(columns) | {"hour": hour // HOUR, "day": stretch.local_day(hour)}
        self._fold(group, {name: -value for name, value in values.items()})

    def _fold(self, raw: Mapping[str, Any], values: Mapping[str, int]) -> None:
        key = tuple(_value(name, raw) for name in self._group_by)
        sums = self._groups.setdefault(key, _Sums())
        for name, value in values.items():
            sums.values[name] += value
        baseline = raw["baseline_model"]
        self._baselines[baseline] = self._baselines.get(baseline, 0) + values["requests"]
        if self._currency:
            day, values = int(raw["day"]), {**values, "receipts": values["requests"] + values["checks"]}
            for by_day, name in (
                (sums.actual_by_day, "actual"),
                (sums.baseline_by_day, "baseline"),
                (sums.receipts_by_day, "receipts"),
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
            if not (sums.values["requests"] or sums.values["checks"]) and self._group_by:
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
                    shadow_count=sums.values["checks"],
                    amounts=amounts,
                    actual_in_currency=self._converted(currency, sums, sums.actual_by_day),
                    baseline_in_currency=self._converted(currency, sums, sums.baseline_by_day),
                )
            )
        return rows, sorted(name for name, count in self._baselines.items() if count)

    def _converted(self, currency: Currency | None, sums: _Sums, by_day: Mapping[int, int]) -> str:
        if currency is None:
            return ""
        days = [day for day, count in sorted(sums.receipts_by_day.items()) if count]
        return currency.text(sum(by_day[day] * currency.rate(day, self._zone) for day in days))


def past_retention(state: State, instead: str) -> TenthError:
    """Single receipts that a report needs are deleted; ``instead`` says what can still be asked."""
    return TenthError(
        Code.FAILED_PRECONDITION,
        Reason.RECEIPTS_PAST_RETENTION,
        f"single receipts of before {hour_name(state.kept_ns)} are deleted: ask from then on{instead}",
        "request.filter.start_time",
    )


def check_groups(group_by: Sequence[str]) -> None:
    """Raises INVALID_FIELD for a dimension that there is not, or that is given twice."""
    for index, name in enumerate(group_by):
        here = f"request.group_by[{index}]"
        if name not in DIMENSIONS and not (name.startswith(TAG) and len(name) > len(TAG)):
            raise invalid_argument(f"{name!r} is none of {', '.join(DIMENSIONS)}, tag:KEY", field=here)
        if name in group_by[:index]:
            raise invalid_argument(f"{name!r} is given twice", field=here)


def _inside(at: ColumnElement[Any], ranges: Sequence[Range]) -> Iterator[ColumnElement[bool]]:
    """Conditions that together hold for times in the ranges, each once."""
    if len(ranges) <= _RANGES_APART:
        yield from (and_(at >= start, at < end) for start, end in ranges)
        return
    for index in range(0, len(ranges), _RANGES_AT_ONCE):
        some = ranges[index : index + _RANGES_AT_ONCE]
        each = or_(*(and_(at >= start, at < end) for start, end in some))
        yield and_(at >= some[0][0], at < some[-1][1], each)  # An index serves the outer range alone.


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
