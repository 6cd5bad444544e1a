"""The books: reservations, settlements and attempts, each one operation of the store's writer.

Receipts and attempts are only ever added; what a request shows is its newest receipt. Every operation can be
repeated: the same request with the same payload changes nothing the second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, bindparam, insert, select

from mesh.errors import TenthError
from services.ledger.corrections import as_correction, as_corrections, correct_in, corrects
from services.ledger.errors import Reason
from services.ledger.overage import Recorded, raise_reservations
from services.ledger.policy import AttemptKind
from services.ledger.pricebook import PriceBooks, Version, Versions
from services.ledger.receipts import AttemptRecord, Settlement
from services.ledger.reserving import Reservation, Reserve, release_in, reserve_in, worst_case_of
from services.ledger.settling import (
    ORCHESTRATOR,
    Change,
    settle_in,
    track,
    visible,
)
from services.ledger.store import Store
from services.ledger.tables import attempts

T = TypeVar("T")


class Book:
    """What the servicers and the sweeper do to the books."""

    def __init__(
        self,
        store: Store,
        prices: PriceBooks,
        now_ns: Callable[[], int],
        new_id: Callable[[], str],
        count: Callable[[Sequence[Change]], None] | None = None,
    ) -> None:
        """``count`` hears what receipts became, after each commit."""
        self._count = count
        self.store = store
        self.prices = prices
        self.now_ns = now_ns
        self._new_id = new_id

    async def reserve(self, wanted: Reserve) -> Reservation:
        """Reserve the worst case against every budget that covers the request.

        Raises PRICE_UNKNOWN, UNKNOWN_TENANT, AMOUNT_OUT_OF_RANGE and REQUEST_ID_REUSED.
        """
        now = self.now_ns()
        dated = await self.prices.version(wanted.price_book_version)
        amount = worst_case_of(wanted, dated, now)
        reservation_id = self._new_id()

        def operation(connection: Connection) -> Reservation:
            return reserve_in(connection, wanted, amount, reservation_id, {wanted.price_book_version: dated}, now)

        return await self.store.write(operation)

    async def release(self, tenant_id: str, reservation_id: str) -> None:
        """Give a reservation back; one that is closed already stays so. Raises UNKNOWN_RESERVATION.

        What its request's attempts have cost stays held until a receipt has it.
        """
        now = self.now_ns()
        kept = self.prices.at_hand()

        def operation(connection: Connection) -> None:
            release_in(connection, tenant_id, reservation_id, kept, now)

        await self.store.write(operation)

    async def settle(self, settlements: Sequence[Settlement], origin: str = ORCHESTRATOR) -> list[TenthError | None]:
        """Settle receipts in one transaction; the result of each in order: None, or REQUEST_ID_REUSED.

        A receipt that the ledger made from attempts is replaced, with a correction in the events, when the
        orchestrator's own comes; the other way round nothing happens. Another receipt of the same payload replaces
        an earlier one when it answers what failed, or is the later of the two.
        """
        now = self.now_ns()
        kept = self.prices.at_hand()

        def operation(connection: Connection, changes: list[Change]) -> list[TenthError | None]:
            results = settle_in(connection, settlements, origin, now, changes)
            # The truth may have come before the receipt that estimates.
            doubtful = {each.key for each in settlements if each.estimated}
            correct_in(connection, doubtful, now, changes, {**kept})
            return results

        return await self.write(operation) if settlements else []

    async def record(self, records: Sequence[AttemptRecord]) -> int:
        """Add attempts' records that are new; returns how many were.

        An exact end whose attempt stands on a receipt with an estimate corrects that receipt.
        """
        now = self.now_ns()
        versions = await self._versions({each.price_book_version for each in records})

        def operation(connection: Connection, changes: list[Change]) -> int:
            return record_in(connection, records, now, changes, {**versions})

        return await self.write(operation) if records else 0

    async def write(self, operation: Callable[[Connection, list[Change]], T]) -> T:
        """Run a write that may change receipts; what it changed is counted once it is durable.

        Also when the caller is gone by then: the write is not taken back, and nobody else would count it.
        """
        changes: list[Change] = []

        def run(connection: Connection) -> T:
            changes.clear()  # It may run again.
            return operation(connection, changes)

        def done(future: asyncio.Future[T]) -> None:
            if not future.cancelled() and future.exception() is None and changes and self._count is not None:
                self._count(changes)

        work = asyncio.ensure_future(self.store.write(run))
        work.add_done_callback(done)
        return await asyncio.shield(work)

    async def _versions(self, wanted: Iterable[int]) -> Versions:
        found = self.prices.at_hand()
        for version in wanted:
            try:
                found[version] = await self.prices.version(version)
            except TenthError as error:
                if error.reason != Reason.UNKNOWN_PRICE_BOOK_VERSION:
                    raise
                found[version] = Version(())  # The record is kept all the same: the spend is real.
        return found


def record_in(
    connection: Connection,
    records: Sequence[AttemptRecord],
    now: int,
    changes: list[Change] | None = None,
    versions: Versions | None = None,
) -> int:
    """Add attempts' records that are new, inside a running operation. See ``Book.record``.

    ``versions`` are price books at hand; others are read from the database and put there.
    """
    request_ids = sorted({each.request_id for each in records})
    there = {
        (row.tenant_id, row.request_id, row.purpose, row.attempt, row.kind)
        for row in connection.execute(_ATTEMPT_KEYS, {"requests": request_ids})
    }
    new: dict[tuple[str, str, str, int, str], AttemptRecord] = {}
    for each in (*records, *as_corrections(connection, records, there)):
        if each.key in there:
            continue
        first = new.setdefault(each.key, each)
        truth = as_correction(each)
        if corrects(each, first) and truth.key not in there:
            new.setdefault(truth.key, truth)
    if not new:
        return 0
    connection.execute(
        insert(attempts),
        [
            {
                "tenant_id": each.tenant_id,
                "request_id": each.request_id,
                "purpose": each.attempt.purpose,
                "attempt": each.attempt.attempt,
                "kind": each.attempt.kind.value,
                "event_ns": each.attempt.event_ns,
                "price_book_version": each.price_book_version,
                "event": each.blob,
            }
            for each in new.values()
        ],
    )
    shown = visible(connection, request_ids)
    covered = {key: (found.origin, found.attempts) for key, found in shown.items()}
    settled = {key: found.attempts for key, found in shown.items()}
    added: dict[tuple[str, str], list[Recorded]] = {}
    for each in new.values():
        recorded = Recorded(each.attempt, each.reservation_id, each.price_book_version)
        added.setdefault((each.tenant_id, each.request_id), []).append(recorded)
    track(connection, added, covered, now)
    versions = {} if versions is None else versions
    raise_reservations(connection, added, settled, versions, now)
    corrected = {
        each.key[:2]
        for each in new.values()
        if each.attempt.kind is not AttemptKind.STARTED
        and not each.attempt.estimated
        and each.attempt.attempt in settled.get(each.key[:2], ())
    }
    correct_in(connection, corrected, now, changes, versions)
    return len(new)


_ATTEMPT_KEYS = select(
    attempts.c.tenant_id, attempts.c.request_id, attempts.c.purpose, attempts.c.attempt, attempts.c.kind
).where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
