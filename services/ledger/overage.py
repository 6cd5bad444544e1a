"""What running requests can still cost: attempts that a reservation does not hold yet are added to it.

A reservation holds the worst case of the attempt that it was made for. A request may have more: one that failed
before it under another reservation, the router's own model call, a second one under the same reservation. Their
records say what they cost, or may cost at most while they run. So that admission counts it, a reservation holds

    max(its own worst case, its own attempts) + all other attempts that no receipt accounts for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from mesh.errors import TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import Usage, actual_cost, price_of, worst_case
from services.ledger.balances import Balances, scope_of
from services.ledger.policy import Attempt, AttemptKind, spent_by_attempts
from services.ledger.pricebook import Versions, version_among
from services.ledger.receipts import parse_attempt
from services.ledger.tables import OPEN, attempts, reservations

SPENT = "spent"
"""Payload of a reservation that holds only what was spent: no request is the same as it, so none goes on with it."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record of an attempt, with the reservation that covers it."""

    attempt: Attempt
    reservation_id: str
    price_book_version: int


def owed(connection: Connection, tenant_id: str, request_id: str, settled: frozenset[int], versions: Versions) -> int:
    """What a request's attempts that no receipt accounts for have cost, or may cost while they run, nano-USD."""
    found = _recorded(connection, tenant_id, request_id)
    return _cost(connection, [each for each in found if each.attempt.attempt not in settled], versions)


def hold_spent(connection: Connection, balances: Balances, row: Row[Any], spent: int) -> None:
    """Open a reservation that was just closed again for what its request has spent: no receipt has that yet.

    Nothing where nothing is spent. The caller saves the balances.
    """
    if spent:
        spent = min(spent, MAX_NANO_USD)
        balances.add(scope_of(row), row.create_ns, reserved=spent)
        connection.execute(_REOPEN, {"id": row.reservation_id, "new_amount": spent})


def raise_reservations(
    connection: Connection,
    new: Mapping[tuple[str, str], Sequence[Recorded]],
    settled: Mapping[tuple[str, str], frozenset[int]],
    versions: Versions,
    now: int,
) -> None:
    """After new records: let the open reservations of their requests hold what these cost.

    ``new`` are the records just added and ``settled`` the attempts on receipts, by tenant and request.
    """
    held = [
        row
        for row in connection.execute(_HELD, {"requests": sorted({request for _, request in new})})
        if (row.tenant_id, row.request_id) in new
    ]
    changes = []
    for row in held:
        key = (row.tenant_id, row.request_id)
        everything = [each for each in _recorded(connection, *key) if each.attempt.attempt not in settled.get(key, ())]
        added = {_name(each) for each in new[key]}
        earlier = [each for each in everything if _name(each) not in added]
        own = [each for each in everything if each.reservation_id == row.reservation_id]
        others = [each for each in everything if each.reservation_id != row.reservation_id]
        others_earlier = [each for each in earlier if each.reservation_id != row.reservation_id]
        base = row.amount - _cost(connection, others_earlier, versions)
        amount = max(base, _cost(connection, own, versions)) + _cost(connection, others, versions)
        if amount != row.amount:
            changes.append((row, min(amount, MAX_NANO_USD)))
    if not changes:
        return
    balances = Balances.load(connection, {row.tenant_id for row, _ in changes})
    for row, _ in changes:
        balances.touch(scope_of(row), row.create_ns)
    for row, amount in changes:
        balances.add(scope_of(row), row.create_ns, reserved=amount - row.amount)
        connection.execute(_HOLD, {"id": row.reservation_id, "new_amount": amount})
    balances.save(now)


def _recorded(connection: Connection, tenant_id: str, request_id: str) -> list[Recorded]:
    found = []
    for row in connection.execute(_ATTEMPTS, {"tenant": tenant_id, "request": request_id}):
        event, attempt = parse_attempt(row.event)
        found.append(Recorded(attempt, event.reservation_id, row.price_book_version))
    return found


def _cost(connection: Connection, records: Iterable[Recorded], versions: Versions) -> int:
    found = list(records)
    # Purpose and number name an attempt; all its records are of one price book version.
    versions_of = {(each.attempt.purpose, each.attempt.attempt): each.price_book_version for each in found}
    spent = spent_by_attempts([each.attempt for each in found], assume_worst=True) or ()
    return sum(
        _cost_of(connection, each.attempt, versions_of[each.attempt.purpose, each.attempt.attempt], versions)
        for each in spent
    )


def _cost_of(connection: Connection, attempt: Attempt, version: int, versions: Versions) -> int:
    try:
        price = price_of(attempt.model, version_among(connection, version, versions).at(attempt.event_ns))
        if attempt.usage == Usage():
            return 0  # It never reached the model: no fee either.
        if attempt.kind is AttemptKind.STARTED:
            return worst_case(price, attempt.usage.input, attempt.usage.output)
        return actual_cost(price, attempt.usage, quantized=attempt.quantized)
    except TenthError:
        # Without a price it is not known: the sweeper settles it when there is one.
        return 0


def _name(record: Recorded) -> tuple[str, int, AttemptKind]:
    return record.attempt.purpose, record.attempt.attempt, record.attempt.kind


_ATTEMPTS = select(attempts.c.event, attempts.c.price_book_version).where(
    attempts.c.request_id == bindparam("request"), attempts.c.tenant_id == bindparam("tenant")
)
_HELD = select(reservations).where(
    reservations.c.request_id.in_(bindparam("requests", expanding=True)), reservations.c.state == OPEN
)
_REOPEN = (
    update(reservations)
    .where(reservations.c.reservation_id == bindparam("id"))
    .values(state="open", close_ns=None, payload=SPENT, amount=bindparam("new_amount"))
)
_HOLD = (
    update(reservations).where(reservations.c.reservation_id == bindparam("id")).values(amount=bindparam("new_amount"))
)
