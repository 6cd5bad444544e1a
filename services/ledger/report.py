"""Reads: receipts, sums and the health of the books. Everything one caller sees comes from one consistent state."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import ColumnElement, Float, Numeric, and_, case, cast, func, literal, or_, select

from mesh.errors import invalid_argument
from mesh.money import MAX_NANO_USD
from services.ledger import nodes
from services.ledger.hardware import Utilization
from services.ledger.labels import CHECK
from services.ledger.measured import Side
from services.ledger.policy import ENDS
from services.ledger.reading import Filter as Filter
from services.ledger.reading import narrowed
from services.ledger.rollup_rows import read_state
from services.ledger.rollup_steps import rolled, shown_before
from services.ledger.spend import DIMENSIONS as DIMENSIONS
from services.ledger.spend import Spend, check_groups, past_retention
from services.ledger.spend import SpendRow as SpendRow
from services.ledger.store import Store
from services.ledger.stream import Streaming
from services.ledger.tables import OPEN, SAVINGS, attempts, open_requests, receipt_events, receipts, reservations


@dataclass(frozen=True, slots=True)
class BooksStatus:
    """Health of the books."""

    open_reservation_count: int
    open_reserved: int
    unreceipted_request_count: int
    identity_violation_count: int
    receipt_count: int
    attempt_count: int


class Reports:
    """The ledger's reads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def receipt(self, request_id: str, tenant_id: str, *, any_tenant: bool) -> bytes | None:
        """The visible receipt of a request: the tenant's own, or with ``any_tenant`` failing that another's."""
        query = (
            select(receipt_events.c.receipt)
            .join(receipts, receipts.c.event_id == receipt_events.c.id)
            .where(receipts.c.request_id == request_id)
            .order_by(case((receipts.c.tenant_id == tenant_id, 0), else_=1), receipts.c.id.desc())
            .limit(1)
        )
        if not any_tenant:
            query = query.where(receipts.c.tenant_id == tenant_id)
        async with self._store.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def receipts(self, which: Filter, page_size: int, page_token: str) -> tuple[list[bytes], str]:
        """A page of receipts, newest first, and the next page's token. Raises INVALID_FIELD for a bad token."""
        query = narrowed(
            select(receipt_events.c.receipt, receipts.c.create_ns, receipts.c.id).join(
                receipts, receipts.c.event_id == receipt_events.c.id
            ),
            which,
            self._store.dialect,
        )
        if page_token:
            create_ns, row_id = _parse_token(page_token, which)
            query = query.where(
                or_(
                    receipts.c.create_ns < create_ns,
                    and_(receipts.c.create_ns == create_ns, receipts.c.id < row_id),
                )
            )
        query = query.order_by(receipts.c.create_ns.desc(), receipts.c.id.desc()).limit(page_size + 1)
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).all()
        page = rows[:page_size]
        token = _token(page[-1].create_ns, page[-1].id, which) if len(rows) > page_size else ""
        return [row.receipt for row in page], token

    def stream(self, which: Filter) -> AsyncIterator[list[bytes]]:
        """Every receipt asked for, oldest first, in messages' worth; see ``Streaming``."""
        return Streaming(self._store, which).pages()

    async def spend(
        self, which: Filter, group_by: Sequence[str], time_zone: str = "", currency: str = ""
    ) -> tuple[list[SpendRow], list[str]]:
        """Sums by group, and the baseline models that occur.

        Raises INVALID_FIELD for an unknown dimension, time zone or currency; EXCHANGE_RATE_UNKNOWN;
        RECEIPTS_PAST_RETENTION; AMOUNT_OUT_OF_RANGE.
        """
        check_groups(group_by)
        if currency and not (len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()):
            raise invalid_argument("not a currency's three letters", field="request.currency")
        question = Spend(which, group_by, _zone(time_zone), currency)
        async with self._store.read() as connection:
            return await question.read(connection, self._store.dialect)

    async def utilization(self, start_ns: int, end_ns: int) -> list[Utilization]:
        """How busy own hardware was: the rows that cover some of the time."""
        async with self._store.read() as connection:
            return await connection.run_sync(nodes.between, start_ns, end_ns)

    async def sides(self, which: Filter) -> tuple[Side, Side]:
        """Sums of the control share, and of all other requests. Raises RECEIPTS_PAST_RETENTION."""
        cost, baseline = cast(receipts.c.actual, Float), cast(receipts.c.baseline, Float)
        # Conditional sums and no GROUP BY, for which SQLite would sort every row.
        amounts = (literal(1), cost, cost * cost, baseline)
        of_control = [func.sum(case((receipts.c.control, value), else_=0)) for value in amounts]
        of_others = [func.sum(case((receipts.c.control, 0), else_=value)) for value in amounts]
        # A shadow check is no request that could have been drawn for either side.
        both = select(*of_control, *of_others).where(receipts.c.cache != CHECK)
        query = narrowed(both, which, self._store.dialect)
        async with self._store.read() as connection:
            state = await read_state(connection)
            if (which.start_ns or 0) < state.kept_ns:
                raise past_retention(state, "")
            sums = [value or 0 for value in (await connection.execute(query)).one()]
        return Side(*sums[:4]), Side(*sums[4:])

    async def status(self) -> BooksStatus:
        """Health of the books. Counts go on from where the rollups are, so that no whole table is read."""
        held = select(func.count(), func.coalesce(func.sum(reservations.c.amount), 0)).where(
            reservations.c.state == OPEN
        )
        async with self._store.read() as connection:
            state = await read_state(connection)
            later = receipt_events.c.id > state.event_id
            new = select(func.count()).where(later, receipt_events.c.kind != "corrected")
            ended = select(func.count()).where(attempts.c.id > state.attempt_id, attempts.c.kind.in_(ENDS))
            # What later events' receipts show now, less what the requests that they correct showed when rolled in.
            shown = select(func.count()).where(receipts.c.event_id > state.event_id, _broken())
            broken = (await connection.execute(shown)).scalar_one()
            for row in await connection.execute(shown_before(state.event_id)):
                broken -= rolled(row).broken
            held_count, held_sum = (await connection.execute(held)).one()
            return BooksStatus(
                open_reservation_count=held_count,
                open_reserved=min(int(held_sum), MAX_NANO_USD),
                unreceipted_request_count=(
                    await connection.execute(select(func.count()).select_from(open_requests))
                ).scalar_one(),
                identity_violation_count=state.violations + broken,
                receipt_count=state.receipts + (await connection.execute(new)).scalar_one(),
                attempt_count=state.attempts + (await connection.execute(ended)).scalar_one(),
            )


def _broken() -> ColumnElement[bool]:
    """True for receipts that break the identity."""
    # Numeric on Postgres, whose bigints fail on overflow; SQLite's own sums become floats there.
    saved: ColumnElement[Any] = cast(receipts.c.baseline, Numeric)
    for name in SAVINGS:
        saved = saved - receipts.c[name]
    return saved + receipts.c.overhead != receipts.c.actual


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise invalid_argument(f"{name!r} is not an IANA time zone", field="request.time_zone") from error


def _token(create_ns: int, row_id: int, which: Filter) -> str:
    return base64.urlsafe_b64encode(f"{create_ns}:{row_id}:{_digest(which)}".encode()).decode()


def _parse_token(token: str, which: Filter) -> tuple[int, int]:
    try:
        create_ns, row_id, digest = base64.urlsafe_b64decode(token).decode("ascii").split(":")
        if digest != _digest(which):
            raise ValueError("of another filter")
        return int(create_ns), int(row_id)
    except (ValueError, binascii.Error) as error:
        raise invalid_argument(
            "not a token that this list gave, or of another filter", field="request.page_token"
        ) from error


def _digest(which: Filter) -> str:
    return hashlib.sha256(repr(astuple(which)).encode()).hexdigest()[:16]
