"""Receipt events by month on Postgres: which ids a month has, its partition made in time, and dropped as a whole.

An event's id says its month: ids are counted up by the one writer, and jump to the month's first id when a new month
(UTC, the ledger's clock) begins. So a month is a range of ids, the partitions' key is the primary key itself, and no
constraint has to carry the time: ids stay unique over all partitions, and a receipt's foreign key to its event holds.

What belongs to no month's partition is in one of two that are always there: events of before the partitions, and the
rest, so that a month whose partition nobody made stops nothing. SQLite counts ids alike, in one table.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, column, delete, exists, func, select, table, text
from sqlalchemy.exc import DBAPIError

from services.ledger.policy import NANOS_PER_SECOND
from services.ledger.rollup_rows import read_state, stored_state
from services.ledger.store import Store
from services.ledger.tables import receipt_events, receipts

log = logging.getLogger("tenth.ledger")

MONTHS_AHEAD = 2
"""Partitions that are made before their month begins."""
_MONTH_BITS = 40
_OTHERS = ("receipt_events_before", "receipt_events_rest")
# Longer readers make it wait for the next run: all writers wait behind a change of the partitions.
_LOCK_TIMEOUT = text("SET LOCAL lock_timeout = '2s'")
_NO_LOCK_TIMEOUT = text("SET LOCAL lock_timeout = DEFAULT")


def month_of(at_ns: int) -> int:
    """The month (UTC) that holds an instant, counted from January 1970."""
    day = datetime.fromtimestamp(at_ns // NANOS_PER_SECOND, UTC)
    return (day.year - 1970) * 12 + day.month - 1


def first_id(month: int) -> int:
    """The least id of a month's events; a month has 2^40 of them."""
    return month << _MONTH_BITS


def start_ns(month: int) -> int:
    """A month's first instant."""
    return int(datetime(1970 + month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * NANOS_PER_SECOND


def partition_name(month: int) -> str:
    """The name of a month's partition, such as receipt_events_2026_06."""
    return f"receipt_events_{1970 + month // 12}_{month % 12 + 1:02d}"


def deletes(dialect: str, **where: Any) -> list[Any]:
    """Statements that delete events which go row by row: those that are in no month's partition."""
    names = ("receipt_events",) if dialect == "sqlite" else _OTHERS
    tables = [table(name, column("tenant_id"), column("request_id")) for name in names]
    return [delete(each).where(*(each.c[key] == value for key, value in where.items())) for each in tables]


class Partitions:
    """Makes the months' partitions that are due and drops those that are past; on SQLite there is nothing to do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def make(self, now_ns: int) -> list[str]:
        """Make the partitions of this month and the coming ones; returns those that are new."""
        if self._store.dialect == "sqlite":
            return []
        first = month_of(now_ns)
        wanted = range(first, first + MONTHS_AHEAD + 1)
        async with self._store.read() as connection:
            there = await connection.run_sync(_months)
        absent = [month for month in wanted if month not in there]
        made = [partition_name(each) for each in absent if await self._store.write(partial(_make, month=each))]
        if made:
            log.info("made %s", ", ".join(made))
        return made

    async def drop(self, before_ns: int) -> list[str]:
        """Drop the months that ended before an instant and whose receipts are all gone; returns their names.

        A month stays while an event in it is not rolled in, or is of a request that still has a receipt: rollups that
        are made anew need every event of that one.
        """
        if self._store.dialect == "sqlite":
            return []
        dropped = []
        async with self._store.read() as connection:
            months = await connection.run_sync(_months)
        for month in months:
            if start_ns(month + 1) > before_ns:
                break
            async with self._store.read() as connection:
                state = await read_state(connection)
                of_month = receipt_events.c.id.between(first_id(month), first_id(month + 1) - 1)
                last = (await connection.execute(select(func.max(receipt_events.c.id)).where(of_month))).scalar_one()
                newest = (await connection.execute(select(func.max(receipt_events.c.id)))).scalar_one()
                shown = exists().where(
                    of_month,
                    receipts.c.request_id == receipt_events.c.request_id,
                    receipts.c.tenant_id == receipt_events.c.tenant_id,
                )
                if last is not None and (
                    last == newest or state.event_id < last or (await connection.execute(select(shown))).scalar_one()
                ):
                    continue
            if await self._store.write(partial(_drop, month=month, last=last or 0)):
                dropped.append(partition_name(month))
        if dropped:
            log.info("dropped %s", ", ".join(dropped))
        return dropped


def _months(connection: Connection) -> list[int]:
    """The months that have a partition, in order."""
    return sorted(month for name in connection.execute(_PARTITIONS).scalars() if (month := _month_named(name)))


def _month_named(name: str) -> int | None:
    year, _, month = name.removeprefix("receipt_events_").partition("_")
    return (int(year) - 1970) * 12 + int(month) - 1 if year.isdecimal() and month.isdecimal() else None


def _make(connection: Connection, month: int) -> bool:
    low, high = first_id(month), first_id(month + 1)
    in_rest = text(f"SELECT EXISTS (SELECT FROM {_OTHERS[1]} WHERE id >= {low} AND id < {high})")  # noqa: S608  (numbers)
    bound = re.search(r"TO \('?([0-9]+)'?\)", connection.execute(_BEFORE).scalar_one())
    if month in _months(connection) or (bound is not None and low < int(bound[1])):
        return False  # Another replica was faster; or the month was there already when the partitions came.
    if connection.execute(in_rest).scalar_one():
        log.warning("%s is not made: events of that month are in %s already", partition_name(month), _OTHERS[1])
        return False
    return _altered(
        connection,
        f"CREATE TABLE {partition_name(month)} PARTITION OF receipt_events FOR VALUES FROM ({low}) TO ({high})",
    )


def _drop(connection: Connection, month: int, last: int) -> bool:
    state = stored_state(connection)
    if month not in _months(connection) or state.event_id < max(last, state.rebuilt_id):
        return False  # Another replica was faster, or the rollups are being made anew.
    name = partition_name(month)
    # The database itself refuses while any receipt names an event of that month.
    return _altered(connection, f"ALTER TABLE receipt_events DETACH PARTITION {name}", f"DROP TABLE {name}")


def _altered(connection: Connection, *statements: str) -> bool:
    """Run statements that wait for readers, not for long; False when the database refuses.

    A reader in the way, or a role that may not: events without a partition of their own go into the rest meanwhile.
    """
    try:
        with connection.begin_nested():
            connection.execute(_LOCK_TIMEOUT)
            for each in statements:
                connection.execute(text(each))
            connection.execute(_NO_LOCK_TIMEOUT)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        log.warning("the partitions of receipt_events are left as they are for now: %s", error.orig)
        return False
    return True


_PARTITIONS = text(
    "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
    "WHERE inhparent = to_regclass('receipt_events')"
)
_BEFORE = text(
    f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = to_regclass('{_OTHERS[0]}')"  # noqa: S608  (ours)
)
