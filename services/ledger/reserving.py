"""Reservations, inside a running operation of the writer: what is held, and given back.

A reservation is decided against every budget that covers the request, and holds the worst case of its attempt beside
what the request's other attempts have cost or can cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE, price_of, worst_case
from services.ledger import throttle
from services.ledger.balances import Balances
from services.ledger.errors import Reason, request_id_reused, unknown_tenant
from services.ledger.labels import SHADOW, tags_pairs, tags_text
from services.ledger.overage import SPENT, hold_spent, owed
from services.ledger.policy import Decision, Position, Scope, Verdict, decide
from services.ledger.pricebook import Version, Versions
from services.ledger.settling import (
    RECONCILED,
    close_reservations,
    visible,
)
from services.ledger.tables import OPEN, open_requests, receipts, reservations, tenants

_BATCH, _BATCH_LINE = "batch", 6
"""How a payload says that it is a batch's item, and in which of its lines."""


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
            parts += [_BATCH if self.batch else "", tags_text(dict(self.scope.tags))]
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


def worst_case_of(wanted: Reserve, dated: Version, now: int) -> int:
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


def reserve_in(
    connection: Connection, wanted: Reserve, worst: int, reservation_id: str, versions: Versions, now: int
) -> Reservation:
    """Decide and reserve, with the worst case of ``worst_case_of``. See ``Book.reserve``."""
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
    limits = _limits(state, wanted.batch, dict(scope.tags))
    balances = Balances.load(connection, [scope.tenant_id])
    old: Sequence[Row[Any]] = ()
    if state.reservation_id is not None:
        if state.payload == wanted.payload:
            if wanted.batch and state.expire_ns < now + wanted.ttl_ns:
                # Prepared again by another worker, hours later: it must not end before the batch does.
                connection.execute(_LONGER, {"id": state.reservation_id, "until": now + wanted.ttl_ns})
            return Reservation(Decision(Verdict.OK), state.reservation_id, state.amount)
        same = state.held_digest == wanted.payload_digest
        if not (same and (retry or state.payload == SPENT)):
            raise request_id_reused(wanted.request_id, "it holds a reservation of another payload")
        # A retry on another replica, or with another model: what the lost try held makes room for it.
        old = connection.execute(
            select(reservations).where(reservations.c.reservation_id == state.reservation_id)
        ).all()
        close_reservations(connection, balances, old, "released", now)
        if state.payload != SPENT and _limits(state, _is_batch(state.payload), dict(scope.tags)):
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


def release_in(connection: Connection, tenant_id: str, reservation_id: str, versions: Versions, now: int) -> None:
    """Give a reservation back, inside a running operation. See ``Book.release``."""
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
            spent = owed(connection, tenant_id, row.request_id, accounted, {**versions})
            hold_spent(connection, balances, row, spent)
        balances.save(now)
        if row.payload != SPENT and _limits(row, _is_batch(row.payload), dict(tags_pairs(row.tags))):
            throttle.give_back(connection, tenant_id, _tokens_of(row.payload), row.create_ns)


def _limits(row: Any, batch: bool, tags: Mapping[str, str]) -> throttle.Limits:
    """The tenant's limits per minute. None for a batch's item, which has a pool of its own at its provider, and for a
    shadow check: neither may take the place of a caller who waits."""
    if batch or SHADOW in tags:
        return throttle.Limits(0, 0)
    return throttle.Limits(row.max_requests_per_minute, row.max_tokens_per_minute)


def _elsewhere(state: Any, wanted: Reserve, position: Position) -> bool:
    """True when the request's earlier receipt does not count in that position: a window before, another model."""
    other_model = position.budget.model and state.receipt_model != wanted.model
    return bool(state.receipt_ns < position.window_start_ns or other_model)


def _is_batch(payload: str) -> bool:
    return payload.split("\n")[_BATCH_LINE : _BATCH_LINE + 1] == [_BATCH]


def _tokens_of(payload: str) -> int:
    _, entered, made, *_ = payload.split("\n")
    return int(entered) + int(made)


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
        reservations.c.expire_ns,
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
_LONGER = (
    update(reservations).where(reservations.c.reservation_id == bindparam("id")).values(expire_ns=bindparam("until"))
)
