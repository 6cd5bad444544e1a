"""The sweeper: what was left open is reconciled against the recorded attempts, so that no spend is lost and no
reservation stands for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, exists, literal, select, tuple_
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.receipt import Usage
from mesh.wire import build_receipt
from services.ledger.admin import baseline_model
from services.ledger.balances import Balances
from services.ledger.book import Book
from services.ledger.labels import tags_pairs
from services.ledger.policy import NANOS_PER_SECOND, Attempt, spent_by_attempts
from services.ledger.pricebook import current_version
from services.ledger.receipts import Settlement, add_spent, flatten, parse_attempt, reconciled_facts
from services.ledger.settling import (
    ORCHESTRATOR,
    RECONCILED,
    Change,
    Key,
    Visible,
    close_reservations,
    complete_in,
    computed_anew,
    forget,
    put_off,
    settle_in,
    visible,
)
from services.ledger.tables import OPEN, attempts, open_requests, receipt_events, reservations

log = logging.getLogger("tenth.ledger")

_PAGE = 1000
"""Most requests read at once."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    released: int = 0
    reconciled: int = 0


class Sweeper:
    """Reconciles expired reservations, and attempts that no reservation and no receipt covers."""

    def __init__(
        self, book: Book, *, attempt_ttl_seconds: float, unfinished_grace_seconds: float, page: int = _PAGE
    ) -> None:
        self._book = book
        self._page = page
        self._attempt_ttl_ns = int(attempt_ttl_seconds * NANOS_PER_SECOND)
        self._grace_ns = int(unfinished_grace_seconds * NANOS_PER_SECOND)

    async def run(self, interval_seconds: float) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.sweep()
            except TenthError as error:
                log.warning("sweep put off: %s", error)
            except Exception:
                # Whatever it is, giving up would leave every later reservation open.
                log.exception("sweep failed")

    async def sweep(self) -> Swept:
        """Reconcile what is due now."""
        now = self._book.now_ns()
        results = []
        # Reservations first: what they end is no longer among the quiet requests.
        expired = reservations.c.state == OPEN, reservations.c.expire_ns <= now
        quiet = (
            open_requests.c.last_seen_ns <= now - self._attempt_ttl_ns,
            ~exists().where(  # Its turn comes with the reservation's end.
                reservations.c.tenant_id == open_requests.c.tenant_id,
                reservations.c.request_id == open_requests.c.request_id,
                reservations.c.state == OPEN,
                reservations.c.expire_ns > now,
            ),
        )
        for at, due in ((reservations.c.expire_ns, expired), (open_requests.c.last_seen_ns, quiet)):
            async for key in self._due(at, due):
                try:
                    results.append(await self._reconcile(*key))
                except TenthError:
                    raise  # The store is away: the next sweep will do.
                except Exception:
                    # One broken record must not stop the reconciling of all others; the log has it.
                    log.exception("request %s of %s could not be reconciled", key[1], key[0])
        swept = Swept(
            released=sum(each.released for each in results), reconciled=sum(each.reconciled for each in results)
        )
        if swept != Swept():
            log.info("released %d expired reservations, reconciled %d requests", swept.released, swept.reconciled)
        return swept

    async def _due(self, at: Column[int], due: Sequence[ColumnElement[bool]]) -> AsyncIterator[Key]:
        """What is due, oldest first, page by page: those that can only wait stay due, and are passed over."""
        order = at, at.table.c.tenant_id, at.table.c.request_id
        query = select(*order).where(*due).order_by(*order).limit(self._page)
        after: Row[Any] | None = None
        while True:
            following = query if after is None else query.where(tuple_(*order) > tuple_(*map(literal, after)))
            async with self._book.store.read() as connection:
                rows = (await connection.execute(following)).all()
            for row in rows:
                yield row.tenant_id, row.request_id
            if len(rows) < self._page:
                return
            after = rows[-1]

    async def _reconcile(self, tenant_id: str, request_id: str) -> Swept:
        now = self._book.now_ns()

        def operation(connection: Connection, changes: list[Change]) -> Swept:
            held = (
                connection.execute(
                    select(reservations).where(
                        reservations.c.tenant_id == tenant_id,
                        reservations.c.request_id == request_id,
                        reservations.c.state == OPEN,
                    )
                )
            ).all()
            if any(row.expire_ns > now for row in held):
                return Swept()
            rows = (
                connection.execute(
                    select(attempts.c.event, attempts.c.price_book_version).where(
                        attempts.c.tenant_id == tenant_id, attempts.c.request_id == request_id
                    )
                )
            ).all()
            if not rows:
                return _release(connection, held, now)
            parsed = [parse_attempt(row.event) for row in rows]
            before = visible(connection, [request_id]).get((tenant_id, request_id))
            if before is not None and before.origin == ORCHESTRATOR:
                return self._complete(connection, before, [each for _, each in parsed], request_id, now, held, changes)
            settled = self._settlement(connection, parsed, max(row.price_book_version for row in rows), now, held)
            if settled is None:
                return Swept()
            if isinstance(settled, TenthError):
                # Without a price there is no receipt: the request stays among the unreceipted, and is tried again
                # with every later price book, but its reservation is not held for that.
                log.warning("request %s of %s cannot be priced: %s", request_id, tenant_id, settled)
                put_off(connection, (tenant_id, request_id), now)
                return _release(connection, held, now)
            settle_in(connection, [settled], RECONCILED, now, changes)
            return Swept(released=len(held), reconciled=1)

        return await self._book.write(operation)

    def _complete(
        self,
        connection: Connection,
        before: Visible,
        recorded: Sequence[Attempt],
        request_id: str,
        now: int,
        held: Sequence[Row[Any]],
        changes: list[Change],
    ) -> Swept:
        """Put attempts that a settled receipt does not account for on it, as overhead.

        ``held`` are expired reservations, of a retry that came to nothing.
        """
        missing = [each for each in recorded if each.attempt not in before.attempts]
        due = max((each.event_ns for each in missing), default=0) + self._attempt_ttl_ns + self._grace_ns
        spent = spent_by_attempts(missing, assume_worst=now >= due)
        key = (before.scope.tenant_id, request_id)
        if spent is None:
            put_off(connection, key, now)
            return Swept()
        owed = [each for each in spent if each.attempt.usage != Usage()]
        if not owed:
            forget(connection, key)
            return _release(connection, held, now)
        blob = connection.execute(
            select(receipt_events.c.receipt).where(receipt_events.c.id == before.event_id)
        ).scalar_one()
        facts = receipt_pb2.Receipt.FromString(blob).facts
        add_spent(facts, owed)
        facts.attempts_unknown = False
        try:
            completed = computed_anew(facts, self._book.prices.version_in(connection, facts.price_book_version), before)
        except TenthError as error:
            log.warning("attempts of request %s of %s cannot be priced: %s", request_id, key[0], error)
            put_off(connection, key, now)
            return _release(connection, held, now)
        complete_in(connection, completed, before, now, changes)
        return Swept(released=len(held), reconciled=1)

    def _settlement(
        self,
        connection: Connection,
        parsed: Sequence[tuple[Any, Attempt]],
        version: int,
        now: int,
        held: Sequence[Row[Any]],
    ) -> Settlement | TenthError | None:
        """The receipt of a lost request: None to wait on, an error when a price is missing."""
        due = max(
            (row.expire_ns for row in held), default=max(each.event_ns for _, each in parsed) + self._attempt_ttl_ns
        )
        spent = spent_by_attempts([each for _, each in parsed], assume_worst=now >= due + self._grace_ns)
        if spent is None:
            return None
        events = [event for event, _ in parsed]
        # A tenant that the ledger does not know has no baseline of its own; a failed request's baseline is 0.
        baseline = baseline_model(connection, events[0].tenant_id) or events[0].model
        tags = _tags(connection, events, held)
        current = current_version(connection)
        error: TenthError | None = None
        for candidate in dict.fromkeys((version, current)):
            facts = reconciled_facts(events, spent, baseline, candidate, tags)
            create_ns = facts.create_time.ToNanoseconds()
            try:
                book = self._book.prices.version_in(connection, candidate).at(create_ns)
                return flatten(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_FINAL), create_ns)
            except TenthError as raised:
                error = raised
        return error


def _tags(connection: Connection, events: Sequence[Any], held: Sequence[Row[Any]]) -> dict[str, str]:
    """The labels that a request was admitted with, so that what it spent counts in the budgets that let it in."""
    if held:
        return dict(tags_pairs(held[0].tags))
    query = select(reservations.c.tags).where(
        reservations.c.reservation_id.in_({each.reservation_id for each in events} - {""}),
        reservations.c.tenant_id == events[0].tenant_id,
        reservations.c.request_id == events[0].request_id,
    )
    found = connection.execute(query.order_by(reservations.c.create_ns.desc()).limit(1)).scalar_one_or_none()
    return dict(tags_pairs(found)) if found is not None else {}


def _release(connection: Connection, held: Sequence[Row[Any]], now: int) -> Swept:
    if held:
        balances = Balances.load(connection, {row.tenant_id for row in held})
        close_reservations(connection, balances, held, "expired", now)
        balances.save(now)
    return Swept(released=len(held))
