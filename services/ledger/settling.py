"""Receipts into the books, inside a running operation of the writer.

A receipt is never changed: what a request shows is its newest one, and every change is an event. Attempts that no
receipt accounts for are tracked in ``open_requests``, for the sweeper to complete the receipt with them.

**Which clock counts.** A receipt counts, in budgets and in reports, at the instant of the reservation that it ends:
the ledger's own clock, in the windows that were checked. Its own create_time (the orchestrator's clock) stays on it
and picks its prices, but never moves money. Without a reservation a receipt counts where the one before it did, else
at its create_time, though never later than now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.balances import Balances, scope_of
from services.ledger.errors import request_id_reused
from services.ledger.partitions import first_id, month_of
from services.ledger.policy import Scope
from services.ledger.pricebook import Version
from services.ledger.receipts import Settlement, flatten, made_ns
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
    """When it counts, see above."""
    actual: int


@dataclass(frozen=True, slots=True)
class Change:
    """A receipt's columns as they are now, and as they were; None: it is new."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any]


def visible(connection: Connection, request_ids: Collection[str]) -> dict[Key, Visible]:
    """The receipts that some requests show, of every tenant."""
    return {
        (row.tenant_id, row.request_id): Visible(
            row_id=row.id,
            scope=scope_of(row),
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
    connection: Connection,
    settlements: Sequence[Settlement],
    origin: str,
    now: int,
    changes: list[Change] | None = None,
) -> list[TenthError | None]:
    """Settle receipts; the result of each in order: None, or REQUEST_ID_REUSED. See ``Book.settle``.

    What the receipts that show became is added to ``changes``.
    """
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
            if _replaces(connection, each, before):
                winners[each.key] = each
            ended.add(each.key)
        accepted.add(each.key)
        results.append(None)
    _write(connection, winners, there, origin, ended, now, changes)
    covered = {key: (found.origin, found.attempts) for key, found in there.items()}
    covered |= {key: (origin, winner.attempts) for key, winner in winners.items()}
    track(connection, accepted, covered, now)
    return results


def computed_anew(facts: receipt_pb2.ReceiptFacts, prices: Version, before: Visible) -> Settlement:
    """The receipt of changed facts, at the prices of its own time, to take the place of the one that shows.

    Its digest stays that of the receipt as it was settled: delivered again, that is still the same one. Raises
    PRICE_UNKNOWN and what else cannot be computed.
    """
    book = prices.at(facts.create_time.ToNanoseconds())
    receipt = build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_FINAL)
    return replace(flatten(receipt, before.create_ns), digest=before.digest)


def complete_in(
    connection: Connection, completed: Settlement, before: Visible, now: int, changes: list[Change] | None = None
) -> None:
    """Put a completed receipt (more overhead from attempts) in the place of the settled one."""
    ended = {completed.key}
    _write(connection, {completed.key: completed}, {completed.key: before}, before.origin, ended, now, changes)
    track(connection, [completed.key], {completed.key: (before.origin, completed.attempts)}, now)


def replace_in(
    connection: Connection, corrected: Settlement, before: Visible, now: int, changes: list[Change] | None = None
) -> None:
    """Put a corrected receipt in the place of the one that shows; what a retry of the request holds stays."""
    _write(connection, {corrected.key: corrected}, {corrected.key: before}, before.origin, (), now, changes)


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
    scopes = [scope_of(row) for row in rows]
    for scope, row in zip(scopes, rows, strict=True):
        balances.touch(scope, row.create_ns)
    for scope, row in zip(scopes, rows, strict=True):
        balances.add(scope, row.create_ns, reserved=-row.amount)
    if rows:
        connection.execute(_CLOSE, [{"id": row.reservation_id, "new_state": state, "now": now} for row in rows])


def _replaces(connection: Connection, new: Settlement, before: Settlement | Visible) -> bool:
    """An answer stands before a failure; among equals the later request's receipt is what the caller saw last."""
    if new.failed != before.failed:
        return before.failed
    if isinstance(before, Settlement):
        return new.create_ns > before.create_ns
    blob = connection.execute(_EVENT, {"event": before.event_id}).scalar_one()
    return new.create_ns > made_ns(blob)


def _counted(
    connection: Connection,
    winners: Iterable[Settlement],
    there: Mapping[Key, Visible],
    held: Sequence[Row[Any]],
    now: int,
) -> dict[Key, Settlement]:
    """The receipts with the instant at which each counts in place of its own; see the top of the file."""
    ends = {(row.tenant_id, row.request_id): int(row.create_ns) for row in held}
    ends = {key: before.create_ns for key, before in there.items()} | ends
    late = {each.reservation_id: each.key for each in winners if each.reservation_id and each.key not in ends}
    if late:
        # It comes after its reservation's expiry.
        for row in connection.execute(_EXPIRED, {"ids": sorted(late)}):
            if late[row.reservation_id] == (row.tenant_id, row.request_id):
                ends[late[row.reservation_id]] = int(row.create_ns)
    found = {}
    for each in winners:
        at = ends.get(each.key, min(each.create_ns, now))
        found[each.key] = replace(each, create_ns=at, columns={**each.columns, "create_ns": at})
    return found


def _write(
    connection: Connection,
    winners: Mapping[Key, Settlement],
    there: Mapping[Key, Visible],
    origin: str,
    ended: Collection[Key],
    now: int,
    changes: list[Change] | None,
) -> None:
    """``ended`` are the requests that hold nothing any more: a receipt delivered again does not end a retry."""
    if not ended and not winners:
        return
    held = [
        row
        for row in connection.execute(_HELD, {"requests": sorted({request for _, request in ended})})
        if (row.tenant_id, row.request_id) in ended
    ]
    balances = Balances.load(connection, {tenant_id for tenant_id, _ in (*ended, *winners)})
    winners = _counted(connection, winners.values(), there, held, now)
    fresh = [each for key, each in winners.items() if key not in there]
    corrected = [(each, there[key]) for key, each in winners.items() if key in there]
    # Windows are read (or derived) before the change that they sum.
    for each in winners.values():
        balances.touch(each.scope, each.create_ns)
    for _, before in corrected:
        balances.touch(before.scope, before.create_ns)
    close_reservations(connection, balances, held, "settled", now)
    if winners:
        if changes is not None:
            changes += _changed(connection, fresh, corrected)
        _write_receipts(connection, fresh, corrected, origin, now)
    for each in winners.values():
        balances.add(each.scope, each.create_ns, spent=each.actual)
    for _, before in corrected:
        balances.add(before.scope, before.create_ns, spent=-before.actual)
    balances.save(now)


def _changed(
    connection: Connection, fresh: Sequence[Settlement], corrected: Sequence[tuple[Settlement, Visible]]
) -> list[Change]:
    """What is about to be written, beside what shows now."""
    found = [Change(None, each.columns) for each in fresh]
    if corrected:
        query = select(receipts).where(receipts.c.id.in_([before.row_id for _, before in corrected]))
        rows: dict[int, dict[str, Any]] = {row.id: dict(row._mapping) for row in connection.execute(query)}
        found += [Change(rows[before.row_id], each.columns) for each, before in corrected]
    return found


def _write_receipts(
    connection: Connection,
    fresh: Sequence[Settlement],
    corrected: Sequence[tuple[Settlement, Visible]],
    origin: str,
    now: int,
) -> None:
    # Ids are counted here, not by the database: there is one writer, and a receipt names its event.
    # Each month begins with an id of its own, which is how events are partitioned. Only this month's need be looked at
    # for the newest; where it has none (or the clock was put back and it is of a later month) all of them.
    first = first_id(month_of(now))
    event_id = connection.execute(_LAST_EVENT.where(receipt_events.c.id >= first)).scalar_one()
    if event_id is None:
        event_id = max(connection.execute(_LAST_EVENT).scalar_one() or 0, first - 1)
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
                "counted_ns": each.create_ns,
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
    receipts.c.model,
    receipts.c.tags,
).where(receipts.c.request_id.in_(bindparam("requests", expanding=True)))
_HELD = select(reservations).where(
    reservations.c.request_id.in_(bindparam("requests", expanding=True)), reservations.c.state == OPEN
)
_EXPIRED = select(
    reservations.c.reservation_id, reservations.c.tenant_id, reservations.c.request_id, reservations.c.create_ns
).where(reservations.c.reservation_id.in_(bindparam("ids", expanding=True)))
_EVENT = select(receipt_events.c.receipt).where(receipt_events.c.id == bindparam("event"))
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
_LAST_EVENT = select(func.max(receipt_events.c.id))
