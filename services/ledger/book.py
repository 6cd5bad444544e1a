"""The books: reservations, settlements and attempts, each one operation of the store's writer.

Receipts and attempts are only ever added; what a request shows is its newest receipt. Every operation can be
repeated: the same request with the same payload changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE, price_of, worst_case
from services.ledger.balances import Balances, Scope
from services.ledger.errors import Reason, request_id_reused, unknown_tenant
from services.ledger.policy import Decision, Verdict, decide
from services.ledger.pricebook import PriceBooks
from services.ledger.receipts import AttemptRecord, Settlement
from services.ledger.store import Store
from services.ledger.tables import OPEN, attempts, open_requests, receipt_events, receipts, reservations, tenants

ORCHESTRATOR = "given"
"""Origin of a receipt that was settled."""
RECONCILED = "reconciled"
"""Origin of a receipt that the ledger made from attempts."""


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


@dataclass(frozen=True, slots=True)
class _Visible:
    """A receipt that is in the books."""

    row_id: int
    scope: Scope
    digest: str
    origin: str
    create_ns: int
    actual: int


class Book:
    """What the servicers and the sweeper do to the books."""

    def __init__(self, store: Store, prices: PriceBooks, now_ns: Callable[[], int], new_id: Callable[[], str]) -> None:
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
            if state.origin is not None:
                raise request_id_reused(wanted.request_id, "it is settled already")
            if state.reservation_id is not None:
                if state.payload != wanted.payload:
                    raise request_id_reused(wanted.request_id, "it holds a reservation of another payload")
                return Reservation(Decision(Verdict.OK), state.reservation_id, state.amount)
            balances = Balances.load(connection, [scope.tenant_id])
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
        orchestrator's own comes; the other way round nothing happens.
        """
        now = self.now_ns()

        def operation(connection: Connection) -> list[TenthError | None]:
            return settle_in(connection, settlements, origin, now)

        return await self.store.write(operation) if settlements else []

    async def record(self, records: Sequence[AttemptRecord]) -> int:
        """Add attempts' records that are new; returns how many were."""
        now = self.now_ns()

        def operation(connection: Connection) -> int:
            return _record(connection, records, now)

        return await self.store.write(operation) if records else 0


def close_reservations(
    connection: Connection, balances: Balances, rows: Sequence[Row[Any]], state: str, now: int
) -> None:
    """Close open reservations and take them out of their windows."""
    for row in rows:
        scope = Scope(row.tenant_id, row.user_id, row.project_id)
        balances.touch(scope, row.create_ns)
    for row in rows:
        balances.add(Scope(row.tenant_id, row.user_id, row.project_id), row.create_ns, reserved=-row.amount)
    if rows:
        connection.execute(_CLOSE, [{"id": row.reservation_id, "new_state": state, "now": now} for row in rows])


def settle_in(
    connection: Connection, settlements: Sequence[Settlement], origin: str, now: int
) -> list[TenthError | None]:
    """Settle receipts inside a running operation of the writer; see ``Book.settle``."""
    request_ids = sorted({each.request_id for each in settlements})
    visible = _visible(connection, request_ids)
    seen = {key: (each.digest, each.origin) for key, each in visible.items()}
    results: list[TenthError | None] = []
    fresh: list[Settlement] = []
    corrected: list[tuple[Settlement, _Visible]] = []
    for each in settlements:
        digest, from_whom = seen.get(each.key, ("", ""))
        if from_whom == origin == ORCHESTRATOR and digest != each.digest:
            results.append(request_id_reused(each.request_id, "it was settled with another receipt"))
            continue
        results.append(None)
        if digest == each.digest or from_whom == ORCHESTRATOR:
            continue
        seen[each.key] = (each.digest, origin)
        if each.key in visible:
            corrected.append((each, visible[each.key]))
        else:
            fresh.append(each)
    accepted = {each.key for each, result in zip(settlements, results, strict=True) if result is None}
    if accepted:
        connection.execute(_DONE, [{"tenant": tenant, "request": name} for tenant, name in sorted(accepted)])
    if not fresh and not corrected:
        return results
    held = [
        row
        for row in connection.execute(_HELD, {"requests": request_ids})
        if (row.tenant_id, row.request_id) in accepted
    ]
    balances = Balances.load(connection, {tenant_id for tenant_id, _ in accepted})
    # Windows are read (or derived) before the change that they sum.
    for each in (*fresh, *(new for new, _ in corrected)):
        balances.touch(each.scope, each.create_ns)
    for _, before in corrected:
        balances.touch(before.scope, before.create_ns)
    close_reservations(connection, balances, held, "settled", now)
    _write_receipts(connection, fresh, corrected, origin, now)
    for each in (*fresh, *(new for new, _ in corrected)):
        balances.add(each.scope, each.create_ns, spent=each.actual)
    for _, before in corrected:
        balances.add(before.scope, before.create_ns, spent=-before.actual)
    balances.save()
    return results


def _visible(connection: Connection, request_ids: list[str]) -> dict[tuple[str, str], _Visible]:
    return {
        (row.tenant_id, row.request_id): _Visible(
            row.id, Scope(row.tenant_id, row.user_id, row.project_id), row.digest, row.origin, row.create_ns, row.actual
        )
        for row in connection.execute(_RECEIPTS, {"requests": request_ids})
    }


def _write_receipts(
    connection: Connection,
    fresh: Sequence[Settlement],
    corrected: Sequence[tuple[Settlement, _Visible]],
    origin: str,
    now: int,
) -> None:
    # Ids are counted here, not by the database: there is one writer, and a receipt names its event.
    event_id = int((connection.execute(_LAST_EVENT)).scalar_one())
    events, rows, changes = [], [], []
    for each, before in (*((each, None) for each in fresh), *corrected):
        event_id += 1
        kind = "corrected" if before is not None else "settled" if origin == ORCHESTRATOR else RECONCILED
        events.append(
            {
                "id": event_id,
                "tenant_id": each.tenant_id,
                "request_id": each.request_id,
                "kind": kind,
                "event_ns": now,
                "actual_delta": each.actual - (before.actual if before is not None else 0),
                "receipt": each.blob,
            }
        )
        row = {**each.columns, "origin": origin, "digest": each.digest, "event_id": event_id}
        if before is None:
            rows.append(row)
        else:
            changes.append((before.row_id, row))
    connection.execute(insert(receipt_events), events)
    if rows:
        connection.execute(insert(receipts), rows)
    for row_id, row in changes:
        connection.execute(update(receipts).where(receipts.c.id == row_id).values(row))


def _record(connection: Connection, records: Sequence[AttemptRecord], now: int) -> int:
    request_ids = sorted({each.request_id for each in records})
    there = {
        (row.tenant_id, row.request_id, row.purpose, row.attempt, row.kind)
        for row in connection.execute(_ATTEMPT_KEYS, {"requests": request_ids})
    }
    new: dict[tuple[str, str, str, int, str], AttemptRecord] = {}
    for each in records:
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
    accounted = {
        key
        for key, receipt in (_visible(connection, request_ids)).items()
        # A receipt that the ledger made lacks the attempt that came just now: it is reconciled again.
        if receipt.origin == ORCHESTRATOR
    }
    waiting = {(each.tenant_id, each.request_id) for each in new.values()} - accounted
    if waiting:
        keys = [{"tenant": tenant, "request": request} for tenant, request in sorted(waiting)]
        connection.execute(_DONE, keys)
        connection.execute(
            insert(open_requests),
            [{"tenant_id": each["tenant"], "request_id": each["request"], "last_seen_ns": now} for each in keys],
        )
    return len(new)


_REQUEST_STATE = (
    select(
        tenants.c.tenant_id,
        receipts.c.origin,
        reservations.c.reservation_id,
        reservations.c.payload,
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
_RECEIPTS = select(
    receipts.c.id,
    receipts.c.tenant_id,
    receipts.c.request_id,
    receipts.c.user_id,
    receipts.c.project_id,
    receipts.c.digest,
    receipts.c.origin,
    receipts.c.create_ns,
    receipts.c.actual,
).where(receipts.c.request_id.in_(bindparam("requests", expanding=True)))
_HELD = select(reservations).where(
    reservations.c.request_id.in_(bindparam("requests", expanding=True)), reservations.c.state == OPEN
)
_CLOSE = (
    update(reservations)
    .where(reservations.c.reservation_id == bindparam("id"))
    .values(state=bindparam("new_state"), close_ns=bindparam("now"))
)
_DONE = delete(open_requests).where(
    open_requests.c.tenant_id == bindparam("tenant"), open_requests.c.request_id == bindparam("request")
)
_ATTEMPT_KEYS = select(
    attempts.c.tenant_id, attempts.c.request_id, attempts.c.purpose, attempts.c.attempt, attempts.c.kind
).where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
_LAST_EVENT = select(func.coalesce(func.max(receipt_events.c.id), 0))
