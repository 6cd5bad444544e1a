"""Receipts into the books, inside a running operation of the writer.

A receipt is never changed: what a request shows is its newest one, and every change is an event. Attempts that no
receipt accounts for are tracked in ``open_requests``, for the sweeper to complete the receipt with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from mesh.errors import TenthError
from services.ledger.balances import Balances, Scope
from services.ledger.errors import request_id_reused
from services.ledger.receipts import Settlement
from services.ledger.tables import OPEN, attempts, open_requests, receipt_events, receipts, reservations

ORCHESTRATOR = "given"
"""Origin of a receipt that was settled."""
RECONCILED = "reconciled"
"""Origin of a receipt that the ledger made from attempts."""

Key = tuple[str, str]
"""Tenant and request id."""


@dataclass(frozen=True, slots=True)
class Visible:
    """The receipt that a request shows."""

    row_id: int
    scope: Scope
    digest: str
    payload_digest: str
    attempts: frozenset[int]
    origin: str
    failed: bool
    event_id: int
    create_ns: int
    actual: int


def visible(connection: Connection, request_ids: Collection[str]) -> dict[Key, Visible]:
    """The receipts that some requests show, of every tenant."""
    return {
        (row.tenant_id, row.request_id): Visible(
            row_id=row.id,
            scope=Scope(row.tenant_id, row.user_id, row.project_id),
            digest=row.digest,
            payload_digest=row.payload_digest,
            attempts=frozenset(map(int, row.attempts.split())),
            origin=row.origin,
            failed=row.failed,
            event_id=row.event_id,
            create_ns=row.create_ns,
            actual=row.actual,
        )
        for row in connection.execute(_RECEIPTS, {"requests": sorted(request_ids)})
    }


def settle_in(
    connection: Connection, settlements: Sequence[Settlement], origin: str, now: int
) -> list[TenthError | None]:
    """Settle receipts; the result of each in order: None, or REQUEST_ID_REUSED. See ``Book.settle``."""
    there = visible(connection, {each.request_id for each in settlements})
    winners: dict[Key, Settlement] = {}
    results: list[TenthError | None] = []
    accepted: set[Key] = set()
    ended: set[Key] = set()
    for each in settlements:
        before = winners.get(each.key) or there.get(each.key)
        if before is None or (isinstance(before, Visible) and before.origin == RECONCILED):
            winners[each.key] = each
            ended.add(each.key)
        elif before.digest != each.digest and origin == ORCHESTRATOR:
            if not each.payload_digest or each.payload_digest != before.payload_digest:
                results.append(request_id_reused(each.request_id, "it was settled with another receipt"))
                continue
            if _replaces(each, before):
                winners[each.key] = each
            ended.add(each.key)
        accepted.add(each.key)
        results.append(None)
    _write(connection, winners, there, origin, ended, now)
    covered = {key: (found.origin, found.attempts) for key, found in there.items()}
    covered |= {key: (origin, winner.attempts) for key, winner in winners.items()}
    track(connection, accepted, covered, now)
    return results


def complete_in(connection: Connection, completed: Settlement, before: Visible, now: int) -> None:
    """Put a completed receipt (more overhead from attempts) in the place of the settled one."""
    _write(connection, {completed.key: completed}, {completed.key: before}, before.origin, {completed.key}, now)
    track(connection, [completed.key], {completed.key: (before.origin, completed.attempts)}, now)


def track(
    connection: Connection, keys: Iterable[Key], covered: Mapping[Key, tuple[str, frozenset[int]]], now: int
) -> None:
    """Keep ``open_requests`` true for some requests: open while an attempt is on no receipt.

    A settled receipt that lacks an attempt is due at once; without a receipt the sweeper waits for one to come.
    """
    wanted = sorted(set(keys))
    if not wanted:
        return
    recorded: dict[Key, set[int]] = {}
    for row in connection.execute(_ATTEMPT_NUMBERS, {"requests": sorted({request for _, request in wanted})}):
        recorded.setdefault((row.tenant_id, row.request_id), set()).add(row.attempt)
    among = {"tenants": sorted({key[0] for key in wanted}), "requests": sorted({key[1] for key in wanted})}
    tracked = {(row.tenant_id, row.request_id) for row in connection.execute(_TRACKED, among)}.intersection(wanted)
    if tracked:
        connection.execute(_DONE, [{"tenant": tenant, "request": request} for tenant, request in sorted(tracked)])
    rows = []
    for key in wanted:
        origin, accounted = covered.get(key, ("", frozenset()))
        if recorded.get(key, set()) - accounted:
            due = 0 if origin == ORCHESTRATOR else now
            rows.append({"tenant_id": key[0], "request_id": key[1], "last_seen_ns": due})
    if rows:
        connection.execute(insert(open_requests), rows)


def put_off(connection: Connection, key: Key, now: int) -> None:
    """Look at an open request again only after the usual wait."""
    changed = update(open_requests).where(open_requests.c.tenant_id == key[0], open_requests.c.request_id == key[1])
    connection.execute(changed.values(last_seen_ns=now))


def forget(connection: Connection, key: Key) -> None:
    """A request is not open any more."""
    connection.execute(_DONE, {"tenant": key[0], "request": key[1]})


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


def _replaces(new: Settlement, before: Settlement | Visible) -> bool:
    """An answer stands before a failure; among equals the later request's receipt is what the caller saw last."""
    if new.failed != before.failed:
        return before.failed
    return new.create_ns > before.create_ns


def _write(
    connection: Connection,
    winners: Mapping[Key, Settlement],
    there: Mapping[Key, Visible],
    origin: str,
    ended: Collection[Key],
    now: int,
) -> None:
    """``ended`` are the requests that hold nothing any more: a receipt delivered again does not end a retry."""
    if not ended:
        return
    fresh = [each for key, each in winners.items() if key not in there]
    corrected = [(each, there[key]) for key, each in winners.items() if key in there]
    held = [
        row
        for row in connection.execute(_HELD, {"requests": sorted({request for _, request in ended})})
        if (row.tenant_id, row.request_id) in ended
    ]
    balances = Balances.load(connection, {tenant_id for tenant_id, _ in ended})
    # Windows are read (or derived) before the change that they sum.
    for each in winners.values():
        balances.touch(each.scope, each.create_ns)
    for _, before in corrected:
        balances.touch(before.scope, before.create_ns)
    close_reservations(connection, balances, held, "settled", now)
    if winners:
        _write_receipts(connection, fresh, corrected, origin, now)
    for each in winners.values():
        balances.add(each.scope, each.create_ns, spent=each.actual)
    for _, before in corrected:
        balances.add(before.scope, before.create_ns, spent=-before.actual)
    balances.save()


def _write_receipts(
    connection: Connection,
    fresh: Sequence[Settlement],
    corrected: Sequence[tuple[Settlement, Visible]],
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


_RECEIPTS = select(
    receipts.c.id,
    receipts.c.tenant_id,
    receipts.c.request_id,
    receipts.c.user_id,
    receipts.c.project_id,
    receipts.c.digest,
    receipts.c.payload_digest,
    receipts.c.attempts,
    receipts.c.origin,
    receipts.c.failed,
    receipts.c.event_id,
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
_TRACKED = select(open_requests.c.tenant_id, open_requests.c.request_id).where(
    open_requests.c.tenant_id.in_(bindparam("tenants", expanding=True)),
    open_requests.c.request_id.in_(bindparam("requests", expanding=True)),
)
_ATTEMPT_NUMBERS = (
    select(attempts.c.tenant_id, attempts.c.request_id, attempts.c.attempt)
    .where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
    .distinct()
)
_LAST_EVENT = select(func.coalesce(func.max(receipt_events.c.id), 0))
