"""Retention: single receipts older than a set time are deleted, once their sums are proven to be in the rollups.

A day's receipts go in this order: all of their events are rolled in; rollups and receipts of that day are compared, to
the nano-dollar; the day is marked as one whose receipts may be gone; receipts, events and attempts are deleted in
small steps. On Postgres events go with the partition of their month, once all of it is past. Reports by names and
whole hours answer as before; what is lost is the single receipt and its tags.

Also pruned: closed reservations, which carry no money, and the counts of past minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, select

from mesh.errors import TenthError
from services.ledger.grains import DAY, HOUR
from services.ledger.partitions import Partitions, deletes
from services.ledger.policy import NANOS_PER_SECOND
from services.ledger.rollup_check import check_rollups
from services.ledger.rollup_rows import read_state, save_state, stored_state
from services.ledger.rollups import Roller
from services.ledger.settings import LedgerSettings
from services.ledger.store import Store
from services.ledger.tables import (
    OPEN,
    attempts,
    open_requests,
    rate_minutes,
    receipt_events,
    receipts,
    reservations,
)

log = logging.getLogger("tenth.ledger")

_AT_ONCE = 250
"""Most receipts, or reservations, deleted in one operation: bounds how long the writer is held."""
_MINUTES_KEPT = 10


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one run deleted."""

    receipts: int = 0
    reservations: int = 0


def upkeep(store: Store, settings: LedgerSettings, now_ns: Callable[[], int]) -> Iterator[Coroutine[Any, Any, None]]:
    """What keeps the tables small and reports fast, to run in the background."""
    retention = Retention(
        store,
        now_ns,
        receipt_days=settings.receipt_retention_days,
        reservation_days=settings.reservation_retention_days,
    )
    yield Roller(store).run(settings.rollup_interval_seconds)
    yield retention.run(settings.retention_interval_seconds)


class Retention:
    """Deletes what is past its time."""

    def __init__(
        self, store: Store, now_ns: Callable[[], int], *, receipt_days: float, reservation_days: float
    ) -> None:
        self._store = store
        self._partitions = Partitions(store)
        self._now_ns = now_ns
        self._receipt_ns = int(receipt_days * DAY)
        self._reservation_ns = int(reservation_days * DAY)

    async def run(self, interval_seconds: float) -> None:
        """Prune for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.prune()
            except TenthError as error:
                log.warning("retention put off: %s", error)
            except Exception:
                # Nothing is lost by keeping more: the next run tries again.
                log.exception("retention failed")

    async def prune(self) -> Pruned:
        """Delete what is past its time now."""
        now = self._now_ns()
        await self._store.write(lambda connection: _forget_minutes(connection, now))
        await self._partitions.make(now)
        gone = 0
        if self._reservation_ns:
            gone = await self._prune_reservations(now - self._reservation_ns)
        count = 0
        if self._receipt_ns:
            await self._keep(now - self._receipt_ns)
            count = await self._prune_receipts()
            await self._partitions.drop(now - self._receipt_ns)
        if count or gone:
            log.info("deleted %d receipts and %d closed reservations past their time", count, gone)
        return Pruned(count, gone)

    async def _keep(self, before_ns: int) -> None:
        """Move the mark on, day by day, as far as the rollups are proven to hold the receipts."""
        before_ns -= before_ns % HOUR
        while True:
            async with self._store.read() as connection:
                state = await read_state(connection)
                query = select(func.min(receipts.c.create_ns)).where(receipts.c.create_ns >= state.kept_ns)
                oldest = (await connection.execute(query)).scalar_one()
                if oldest is None or oldest >= before_ns or state.event_id < state.rebuilt_id:
                    return
                start = max(oldest - oldest % HOUR, state.kept_ns)
                end = min(start + DAY, before_ns)
                behind = exists().where(
                    receipts.c.create_ns >= start, receipts.c.create_ns < end, receipts.c.event_id > state.event_id
                )
                if (await connection.execute(select(behind))).scalar_one():
                    return  # Not all rolled in yet: the next run goes on from here.
            if differences := await check_rollups(self._store, start, end):
                log.error("receipts are kept: their sums are not in the rollups: %s", differences[0])
                return
            await self._store.write(partial(_mark, kept_ns=end))

    async def _prune_receipts(self) -> int:
        count, after = 0, (-(2**63), 0)
        while True:
            async with self._store.read() as connection:
                state = await read_state(connection)
                # Ids count on from the newest row: that one stays, whatever its age.
                newest = (await connection.execute(select(func.max(receipt_events.c.id)))).scalar_one()
                open_request = exists().where(
                    open_requests.c.tenant_id == receipts.c.tenant_id,
                    open_requests.c.request_id == receipts.c.request_id,
                )
                query = (
                    select(receipts.c.id, receipts.c.create_ns, receipts.c.tenant_id, receipts.c.request_id)
                    .where(
                        receipts.c.create_ns < state.kept_ns,
                        receipts.c.create_ns >= after[0],
                        (receipts.c.create_ns > after[0]) | (receipts.c.id > after[1]),
                        receipts.c.event_id <= state.event_id,
                        receipts.c.event_id != newest,
                        ~open_request,
                    )
                    .order_by(receipts.c.create_ns, receipts.c.id)
                    .limit(_AT_ONCE)
                )
                rows = (await connection.execute(query)).all()
            if not rows:
                return count
            after = (rows[-1].create_ns, rows[-1].id)
            count += await self._store.write(partial(_delete, ids=[row.id for row in rows]))

    async def _prune_reservations(self, before_ns: int) -> int:
        # There is no index on the time of closing: one pass over the table for a reader, not for the writer.
        async with self._store.read() as connection:
            query = select(reservations.c.reservation_id).where(
                reservations.c.state != OPEN, reservations.c.close_ns < before_ns
            )
            ids = list((await connection.execute(query)).scalars())
        for index in range(0, len(ids), _AT_ONCE):
            some = ids[index : index + _AT_ONCE]
            await self._store.write(partial(_delete_reservations, ids=some))
        return len(ids)


def _mark(connection: Connection, kept_ns: int) -> None:
    """Receipts of before this hour may be gone from now on; what comes late for them is rolled in all the same."""
    state = stored_state(connection)
    save_state(connection, replace(state, kept_ns=max(kept_ns, state.kept_ns)))


def _delete(connection: Connection, ids: Sequence[int]) -> int:
    """Delete receipts that are still as rolled in, with their events and attempts; returns how many."""
    state = stored_state(connection)
    still = connection.execute(_STILL, {"ids": ids, "rolled": state.event_id}).all()
    if not still:
        return 0
    last = connection.execute(select(func.max(attempts.c.id))).scalar_one()
    keys = [{"tenant": row.tenant_id, "request": row.request_id} for row in still]
    connection.execute(delete(receipts).where(receipts.c.id.in_([row.id for row in still])))
    for events in deletes(connection.dialect.name, request_id=bindparam("request"), tenant_id=bindparam("tenant")):
        connection.execute(events, keys)
    # The newest attempt stays for its id, and those not counted yet stay until they are.
    known = [{**key, "counted": min(state.attempt_id, (last or 0) - 1)} for key in keys]
    connection.execute(_ATTEMPTS, known)
    return len(still)


def _delete_reservations(connection: Connection, ids: Sequence[str]) -> None:
    connection.execute(delete(reservations).where(reservations.c.reservation_id.in_(ids), reservations.c.state != OPEN))


def _forget_minutes(connection: Connection, now: int) -> None:
    minute = now // (60 * NANOS_PER_SECOND)
    connection.execute(delete(rate_minutes).where(rate_minutes.c.minute < minute - _MINUTES_KEPT))


_STILL = select(receipts.c.id, receipts.c.tenant_id, receipts.c.request_id).where(
    receipts.c.id.in_(bindparam("ids", expanding=True)), receipts.c.event_id <= bindparam("rolled")
)
_ATTEMPTS = delete(attempts).where(
    and_(
        attempts.c.request_id == bindparam("request"),
        attempts.c.tenant_id == bindparam("tenant"),
        attempts.c.id <= bindparam("counted"),
    )
)
