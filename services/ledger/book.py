"""The books: reservations, settlements and attempts, each one operation of the store's writer.

Receipts and attempts are only ever added; what a request shows is its newest receipt. Every operation can be
repeated: the same request with the same payload changes nothing the second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, bindparam, insert, select

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE, price_of, worst_case
from services.ledger.balances import Balances, Scope
from services.ledger.corrections import as_corrections, correct_in
from services.ledger.errors import Reason, request_id_reused, unknown_tenant
from services.ledger.policy import AttemptKind, Decision, Verdict, decide
from services.ledger.pricebook import PriceBooks
from services.ledger.receipts import AttemptRecord, Settlement
from services.ledger.settling import (
    ORCHESTRATOR,
    RECONCILED,
    Change,
    close_reservations,
    settle_in,
    track,
    visible,
)
from services.ledger.store import Store
from services.ledger.tables import OPEN, attempts, receipts, reservations, tenants

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reserve:
    """A worst case to reserve."""

    scope: Scope
    request_id: str
    model: str
    input_tokens: int
    max_output_tokens: int
    price_book_version: int
    ttl_ns: int
    payload_digest: str = ""

    @property
    def payload(self) -> str:
        """What must be equal for two requests to be the same."""
        parts = (self.model, self.input_tokens, self.max_output_tokens, self.price_book_version)
        return "\n".join(map(str, (*parts, self.scope.user_id, self.scope.project_id)))


@dataclass(frozen=True, slots=True)
class Reservation:
    """The decision, and the reservation when it is OK."""

    decision: Decision
    reservation_id: str = ""
    amount: int = 0


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
        book = await self.prices.at(wanted.price_book_version, now)
        amount = worst_case(price_of(wanted.model, book), wanted.input_tokens, wanted.max_output_tokens)
        reservation_id = self._new_id()
        scope = wanted.scope

        def operation(connection: Connection) -> Reservation:
            key = {"tenant": scope.tenant_id, "request": wanted.request_id}
            state = (connection.execute(_REQUEST_STATE, key)).one_or_none()
            if state is None:
                raise unknown_tenant(scope.tenant_id, "identity.tenant_id")
            retry = bool(wanted.payload_digest)
            # A receipt made from attempts says only what a lost try has spent; it is no answer.
            settled = state.origin not in (None, RECONCILED)
            if settled and not (retry and state.receipt_digest == wanted.payload_digest):
                raise request_id_reused(wanted.request_id, "it is settled already")
            balances = Balances.load(connection, [scope.tenant_id])
            if state.reservation_id is not None:
                if state.payload == wanted.payload:
                    return Reservation(Decision(Verdict.OK), state.reservation_id, state.amount)
                if not (retry and state.held_digest == wanted.payload_digest):
                    raise request_id_reused(wanted.request_id, "it holds a reservation of another payload")
                # A retry on another replica, or with another model: what the lost try held makes room for it.
                old = connection.execute(
                    select(reservations).where(reservations.c.reservation_id == state.reservation_id)
                ).all()
                close_reservations(connection, balances, old, "released", now)
                balances.save()
            positions = balances.positions(scope, now)
            decision = decide(amount, positions)
            if decision.verdict is not Verdict.OK:
                return Reservation(decision)
            if any(each.reserved + amount > MAX_NANO_USD for each in positions):
                raise TenthError(
                    Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "the reservations do not fit 64 bits", "request"
                )
            balances.add(scope, now, reserved=amount)
            connection.execute(
                insert(reservations),
                {
                    "reservation_id": reservation_id,
                    "tenant_id": scope.tenant_id,
                    "request_id": wanted.request_id,
                    "user_id": scope.user_id,
                    "project_id": scope.project_id,
                    "payload": wanted.payload,
                    "payload_digest": wanted.payload_digest,
                    "amount": amount,
                    "state": "open",
                    "create_ns": now,
                    "expire_ns": now + wanted.ttl_ns,
                    "close_ns": None,
                },
            )
            balances.save()
            return Reservation(decision, reservation_id, amount)

        return await self.store.write(operation)

    async def release(self, tenant_id: str, reservation_id: str) -> None:
        """Give a reservation back; one that is closed already stays so. Raises UNKNOWN_RESERVATION."""
        now = self.now_ns()

        def operation(connection: Connection) -> None:
            row = (
                connection.execute(
                    select(reservations).where(
                        reservations.c.reservation_id == reservation_id, reservations.c.tenant_id == tenant_id
                    )
                )
            ).one_or_none()
            if row is None:
                raise TenthError(
                    Code.NOT_FOUND,
                    Reason.UNKNOWN_RESERVATION,
                    f"no reservation {reservation_id!r}",
                    "request.reservation_id",
                )
            if row.state == "open":
                balances = Balances.load(connection, [tenant_id])
                close_reservations(connection, balances, [row], "released", now)
                balances.save()

        await self.store.write(operation)

    async def settle(self, settlements: Sequence[Settlement], origin: str = ORCHESTRATOR) -> list[TenthError | None]:
        """Settle receipts in one transaction; the result of each in order: None, or REQUEST_ID_REUSED.

        A receipt that the ledger made from attempts is replaced, with a correction in the events, when the
        orchestrator's own comes; the other way round nothing happens. Another receipt of the same payload replaces
        an earlier one when it answers what failed, or is the later of the two.
        """
        now = self.now_ns()

        def operation(connection: Connection, changes: list[Change]) -> list[TenthError | None]:
            results = settle_in(connection, settlements, origin, now, changes)
            # The truth may have come before the receipt that estimates.
            correct_in(connection, {each.key for each in settlements if each.estimated}, now, changes)
            return results

        return await self.write(operation) if settlements else []

    async def record(self, records: Sequence[AttemptRecord]) -> int:
        """Add attempts' records that are new; returns how many were.

        An exact end whose attempt stands on a receipt with an estimate corrects that receipt.
        """
        now = self.now_ns()

        def operation(connection: Connection, changes: list[Change]) -> int:
            return record_in(connection, records, now, changes)

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


def record_in(
    connection: Connection, records: Sequence[AttemptRecord], now: int, changes: list[Change] | None = None
) -> int:
    """Add attempts' records that are new, inside a running operation. See ``Book.record``."""
    request_ids = sorted({each.request_id for each in records})
    there = {
        (row.tenant_id, row.request_id, row.purpose, row.attempt, row.kind)
        for row in connection.execute(_ATTEMPT_KEYS, {"requests": request_ids})
    }
    new: dict[tuple[str, str, str, int, str], AttemptRecord] = {}
    for each in (*records, *as_corrections(connection, records, there)):
        if each.key not in there:
            new.setdefault(each.key, each)
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
    track(connection, {(each.tenant_id, each.request_id) for each in new.values()}, covered, now)
    exact = [
        each for each in new.values() if each.attempt.kind is not AttemptKind.STARTED and not each.attempt.estimated
    ]
    correct_in(
        connection,
        {
            (each.tenant_id, each.request_id)
            for each in exact
            if each.attempt.attempt in covered.get((each.tenant_id, each.request_id), ("", frozenset()))[1]
        },
        now,
        changes,
    )
    return len(new)


_REQUEST_STATE = (
    select(
        tenants.c.tenant_id,
        receipts.c.origin,
        receipts.c.payload_digest.label("receipt_digest"),
        reservations.c.reservation_id,
        reservations.c.payload,
        reservations.c.payload_digest.label("held_digest"),
        reservations.c.amount,
    )
    .select_from(tenants)
    .outerjoin(
        receipts,
        (receipts.c.request_id == bindparam("request")) & (receipts.c.tenant_id == tenants.c.tenant_id),
    )
    .outerjoin(
        reservations,
        (reservations.c.tenant_id == tenants.c.tenant_id)
        & (reservations.c.request_id == bindparam("request"))
        & (reservations.c.state == OPEN),
    )
    .where(tenants.c.tenant_id == bindparam("tenant"))
)
_ATTEMPT_KEYS = select(
    attempts.c.tenant_id, attempts.c.request_id, attempts.c.purpose, attempts.c.attempt, attempts.c.kind
).where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
