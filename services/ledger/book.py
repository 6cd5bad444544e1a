"""The books: reservations, settlements and attempts, each one operation of the store's writer.

Receipts and attempts are only ever added; what a request shows is its newest receipt. Every operation can be
repeated: the same request with the same payload changes nothing the second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, bindparam, insert, select

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE, price_of, worst_case
from services.ledger import throttle
from services.ledger.balances import Balances
from services.ledger.corrections import as_correction, as_corrections, correct_in, corrects
from services.ledger.errors import Reason, request_id_reused, unknown_tenant
from services.ledger.labels import tags_text
from services.ledger.overage import SPENT, Recorded, hold_spent, owed, raise_reservations
from services.ledger.policy import AttemptKind, Decision, Position, Scope, Verdict, decide
from services.ledger.pricebook import PriceBooks, Version, Versions
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
from services.ledger.tables import OPEN, attempts, open_requests, receipts, reservations, tenants

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
    batch: bool = False
    tier: int = 0
    create_ns: int | None = None
    """When the request was made, at which its receipt will be priced; None: now. A retry may say another time."""

    @property
    def payload(self) -> str:
        """What must be equal for two requests to be the same; the token counts are its second and third line."""
        parts = [self.model, self.input_tokens, self.max_output_tokens, self.price_book_version]
        parts += [self.scope.user_id, self.scope.project_id]
        if self.batch or self.scope.tags:
            parts += ["batch" if self.batch else "", tags_text(dict(self.scope.tags))]
        return "\n".join(map(str, parts))

    @property
    def tokens(self) -> int:
        """What it counts for under a limit of tokens per minute."""
        return self.input_tokens + self.max_output_tokens


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
        dated = await self.prices.version(wanted.price_book_version)
        amount = _worst_case(wanted, dated, now)
        reservation_id = self._new_id()

        def operation(connection: Connection) -> Reservation:
            return _reserve(connection, wanted, amount, reservation_id, {wanted.price_book_version: dated}, now)

        return await self.store.write(operation)

    async def release(self, tenant_id: str, reservation_id: str) -> None:
        """Give a reservation back; one that is closed already stays so. Raises UNKNOWN_RESERVATION.

        What its request's attempts have cost stays held until a receipt has it.
        """
        now = self.now_ns()
        kept = self.prices.at_hand()

        def operation(connection: Connection) -> None:
            row = (
                connection.execute(
                    select(
                        reservations,
                        tenants.c.max_requests_per_minute,
                        tenants.c.max_tokens_per_minute,
                        open_requests.c.request_id.label("open_request"),
                    )
                    .join(tenants, tenants.c.tenant_id == reservations.c.tenant_id)
                    .outerjoin(
                        open_requests,
                        (open_requests.c.tenant_id == reservations.c.tenant_id)
                        & (open_requests.c.request_id == reservations.c.request_id),
                    )
                    .where(reservations.c.reservation_id == reservation_id, reservations.c.tenant_id == tenant_id)
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
                if row.open_request is not None:
                    before = visible(connection, [row.request_id]).get((tenant_id, row.request_id))
                    accounted = before.attempts if before is not None else frozenset()
                    spent = owed(connection, tenant_id, row.request_id, accounted, {**kept})
                    hold_spent(connection, balances, row, spent)
                balances.save(now)
                if row.payload != SPENT and throttle.Limits(row.max_requests_per_minute, row.max_tokens_per_minute):
                    throttle.give_back(connection, tenant_id, _tokens_of(row.payload), row.create_ns)

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


def _worst_case(wanted: Reserve, dated: Version, now: int) -> int:
    """The worst case at the dearest price that can come to be on the request's receipt. Raises PRICE_UNKNOWN.

    The receipt is priced at the request's creation, by a clock that may differ; where it is lost, its attempts are at
    theirs, until the reservation's end.
    """
    price_of(wanted.model, dated.at(now))
    created = now if wanted.create_ns is None else wanted.create_ns
    possible = dated.between(wanted.model, min(created, now), max(created, now + wanted.ttl_ns))
    return max(
        worst_case(price, wanted.input_tokens, wanted.max_output_tokens, batch=wanted.batch)
        for price in possible
        if price.confirmed
    )


def _reserve(
    connection: Connection, wanted: Reserve, worst: int, reservation_id: str, versions: Versions, now: int
) -> Reservation:
    scope = wanted.scope
    state = (
        connection.execute(_REQUEST_STATE, {"tenant": scope.tenant_id, "request": wanted.request_id})
    ).one_or_none()
    if state is None:
        raise unknown_tenant(scope.tenant_id, "identity.tenant_id")
    retry = bool(wanted.payload_digest)
    # A receipt made from attempts says only what a lost try has spent; it is no answer.
    settled = state.origin not in (None, RECONCILED)
    if settled and not (retry and state.receipt_digest == wanted.payload_digest):
        raise request_id_reused(wanted.request_id, "it is settled already")
    limits = throttle.Limits(state.max_requests_per_minute, state.max_tokens_per_minute)
    balances = Balances.load(connection, [scope.tenant_id])
    old: Sequence[Row[Any]] = ()
    if state.reservation_id is not None:
        if state.payload == wanted.payload:
            return Reservation(Decision(Verdict.OK), state.reservation_id, state.amount)
        same = state.held_digest == wanted.payload_digest
        if not (same and (retry or state.payload == SPENT)):
            raise request_id_reused(wanted.request_id, "it holds a reservation of another payload")
        # A retry on another replica, or with another model: what the lost try held makes room for it.
        old = connection.execute(
            select(reservations).where(reservations.c.reservation_id == state.reservation_id)
        ).all()
        close_reservations(connection, balances, old, "released", now)
        if limits and state.payload != SPENT:
            throttle.give_back(connection, scope.tenant_id, _tokens_of(state.payload), state.held_ns)
    spent = 0
    if state.open_request is not None:
        accounted = frozenset(map(int, (state.receipt_attempts or "").split()))
        spent = owed(connection, scope.tenant_id, wanted.request_id, accounted, versions)
    positions = balances.positions(scope, now)
    amount = worst + spent
    if state.receipt_ns is not None and any(_elsewhere(state, wanted, each) for each in positions):
        # What an earlier try spent comes along when this one's receipt takes its place.
        amount += state.receipt_actual
    wait = throttle.wait_ns(connection, scope.tenant_id, limits, wanted.tokens, now) if limits else 0
    if wait:
        decision = Decision(Verdict.RATE_LIMITED, retry_after_ns=wait)
    else:
        decision = decide(amount, positions, batch=wanted.batch, tier=wanted.tier)
    too_much = amount > MAX_NANO_USD or any(each.reserved + amount > MAX_NANO_USD for each in positions)
    if too_much or decision.verdict is not Verdict.OK:
        for row in old:
            hold_spent(connection, balances, row, spent)
        balances.save(now)  # Also before an error: what was released is written already.
        if decision.verdict is not Verdict.OK:
            return Reservation(decision)
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "the reservations do not fit 64 bits", "request")
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
            "model": wanted.model,
            "tags": tags_text(dict(scope.tags)),
            "amount": amount,
            "state": "open",
            "create_ns": now,
            "expire_ns": now + wanted.ttl_ns,
            "close_ns": None,
        },
    )
    balances.save(now)
    if limits:
        throttle.count(connection, scope.tenant_id, limits, wanted.tokens, now)
    return Reservation(decision, reservation_id, amount)


def _elsewhere(state: Any, wanted: Reserve, position: Position) -> bool:
    """True when the request's earlier receipt does not count in that position: a window before, another model."""
    other_model = position.budget.model and state.receipt_model != wanted.model
    return bool(state.receipt_ns < position.window_start_ns or other_model)


def _tokens_of(payload: str) -> int:
    _, entered, made, *_ = payload.split("\n")
    return int(entered) + int(made)


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


_REQUEST_STATE = (
    select(
        tenants.c.tenant_id,
        receipts.c.origin,
        tenants.c.max_requests_per_minute,
        tenants.c.max_tokens_per_minute,
        receipts.c.payload_digest.label("receipt_digest"),
        receipts.c.attempts.label("receipt_attempts"),
        receipts.c.create_ns.label("receipt_ns"),
        receipts.c.actual.label("receipt_actual"),
        receipts.c.model.label("receipt_model"),
        reservations.c.reservation_id,
        reservations.c.payload,
        reservations.c.payload_digest.label("held_digest"),
        reservations.c.amount,
        reservations.c.create_ns.label("held_ns"),
        open_requests.c.request_id.label("open_request"),
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
    .outerjoin(
        open_requests,
        (open_requests.c.tenant_id == tenants.c.tenant_id) & (open_requests.c.request_id == bindparam("request")),
    )
    .where(tenants.c.tenant_id == bindparam("tenant"))
)
_ATTEMPT_KEYS = select(
    attempts.c.tenant_id, attempts.c.request_id, attempts.c.purpose, attempts.c.attempt, attempts.c.kind
).where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
