"""Reads: receipts, sums and the health of the books. Everything one caller sees comes from one consistent state."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, and_, case, cast, func, or_, select
from sqlalchemy.types import Numeric

from mesh.errors import Code, TenthError, invalid_argument
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE
from services.ledger import nodes
from services.ledger.hardware import Utilization
from services.ledger.measured import Side
from services.ledger.policy import NANOS_PER_SECOND
from services.ledger.store import Store
from services.ledger.tables import OPEN, SAVINGS, attempts, open_requests, receipt_events, receipts, reservations

_TIERS = ("", "simple", "medium", "complex")
_DAY = 86_400 * NANOS_PER_SECOND
_HOUR = 3_600 * NANOS_PER_SECOND
_DIMENSIONS: dict[str, tuple[ColumnElement[Any], Callable[[Any], str]]] = {
    "model": (receipts.c.model, str),
    "tier": (receipts.c.tier, lambda number: _TIERS[number] if 0 <= number < len(_TIERS) else str(number)),
    "tenant": (receipts.c.tenant_id, str),
    "user": (receipts.c.user_id, str),
    "project": (receipts.c.project_id, str),
    "day": (
        receipts.c.create_ns - receipts.c.create_ns % _DAY,
        lambda ns: datetime.fromtimestamp(int(ns) // NANOS_PER_SECOND, UTC).strftime("%Y-%m-%d"),
    ),
    "hour": (
        receipts.c.create_ns - receipts.c.create_ns % _HOUR,
        lambda ns: datetime.fromtimestamp(int(ns) // NANOS_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:00Z"),
    ),
    "cache": (receipts.c.cache, str),
}
DIMENSIONS = tuple(_DIMENSIONS)
"""What spend may be grouped by; days and hours are UTC's."""
_AMOUNTS = ("baseline", *SAVINGS, "overhead", "actual", "input_tokens", "output_tokens", "baseline_prompt_cached")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which receipts; empty strings and None do not narrow."""

    start_ns: int | None = None
    end_ns: int | None = None
    tenant_id: str = ""
    user_id: str = ""
    project_id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Sums of one group; ``amounts`` by column name."""

    group: tuple[str, ...]
    request_count: int
    failed_count: int
    cache_hit_count: int
    amounts: dict[str, int]


@dataclass(frozen=True, slots=True)
class BooksStatus:
    """Health of the books."""

    open_reservation_count: int
    open_reserved: int
    unreceipted_request_count: int
    identity_violation_count: int
    receipt_count: int
    attempt_count: int


_HALF = 2**31


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
        query = _narrowed(
            select(receipt_events.c.receipt, receipts.c.create_ns, receipts.c.id).join(
                receipts, receipts.c.event_id == receipt_events.c.id
            ),
            which,
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

    async def spend(self, which: Filter, group_by: Sequence[str]) -> tuple[list[SpendRow], list[str]]:
        """Sums by group, and the baseline models that occur. Raises INVALID_FIELD for an unknown dimension."""
        for index, name in enumerate(group_by):
            if name not in _DIMENSIONS:
                raise invalid_argument(
                    f"{name!r} is none of {', '.join(DIMENSIONS)}", field=f"request.group_by[{index}]"
                )
            if name in group_by[:index]:
                raise invalid_argument(f"{name!r} is given twice", field=f"request.group_by[{index}]")
        groups = [_DIMENSIONS[name][0].label(f"group_{name}") for name in group_by]
        query = _narrowed(
            select(
                *groups,
                func.count().label("requests"),
                func.sum(case((receipts.c.failed, 1), else_=0)).label("failures"),
                func.sum(case((receipts.c.cache != "miss", 1), else_=0)).label("hits"),
                # Halves are summed apart: SQLite's own sum fails past 64 bits, and silently becomes a float in others.
                *(func.sum(receipts.c[name] // _HALF).label(f"{name}_high") for name in _AMOUNTS),
                *(func.sum(receipts.c[name] % _HALF).label(f"{name}_low") for name in _AMOUNTS),
            ),
            which,
        )
        if groups:
            query = query.group_by(*groups).order_by(*groups)
        models = _narrowed(select(receipts.c.baseline_model).distinct(), which).order_by(receipts.c.baseline_model)
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).all()
            baselines = list((await connection.execute(models)).scalars())
        found = [_spend_row(row._mapping, group_by) for row in rows if row.requests]
        if not found and not group_by:
            found = [SpendRow((), 0, 0, 0, dict.fromkeys(_AMOUNTS, 0))]
        return found, baselines

    async def utilization(self, start_ns: int, end_ns: int) -> list[Utilization]:
        """How busy own hardware was: the rows that cover some of the time."""
        async with self._store.read() as connection:
            return await connection.run_sync(nodes.between, start_ns, end_ns)

    async def sides(self, which: Filter) -> tuple[Side, Side]:
        """Sums of the control share, and of all other requests."""
        cost, baseline = cast(receipts.c.actual, Float), cast(receipts.c.baseline, Float)
        sums = (func.count(), func.sum(cost), func.sum(cost * cost), func.sum(baseline))
        query = _narrowed(select(receipts.c.control, *sums), which).group_by(receipts.c.control)
        async with self._store.read() as connection:
            sides = {bool(control): Side(*rest) for control, *rest in await connection.execute(query)}
        return sides.get(True, Side()), sides.get(False, Side())

    async def status(self) -> BooksStatus:
        """Health of the books."""
        held = select(func.count(), func.coalesce(func.sum(reservations.c.amount), 0)).where(
            reservations.c.state == OPEN
        )
        ended = select(func.count()).select_from(attempts).where(attempts.c.kind != "started")
        saved: ColumnElement[Any] = (
            cast(receipts.c.baseline, Numeric) if self._store.dialect == "postgresql" else (receipts.c.baseline + 0)
        )
        for name in SAVINGS:
            saved = saved - receipts.c[name]
        broken = select(func.count()).select_from(receipts).where(saved + receipts.c.overhead != receipts.c.actual)
        async with self._store.read() as connection:
            held_count, held_sum = (await connection.execute(held)).one()
            return BooksStatus(
                open_reservation_count=held_count,
                open_reserved=min(int(held_sum), MAX_NANO_USD),
                unreceipted_request_count=(
                    await connection.execute(select(func.count()).select_from(open_requests))
                ).scalar_one(),
                identity_violation_count=(await connection.execute(broken)).scalar_one(),
                receipt_count=(await connection.execute(select(func.count()).select_from(receipts))).scalar_one(),
                attempt_count=(await connection.execute(ended)).scalar_one(),
            )


def _narrowed(query: Select[Any], which: Filter) -> Select[Any]:
    if which.start_ns is not None:
        query = query.where(receipts.c.create_ns >= which.start_ns)
    if which.end_ns is not None:
        query = query.where(receipts.c.create_ns < which.end_ns)
    for column in ("tenant_id", "user_id", "project_id", "model"):
        value = getattr(which, column)
        if value:
            query = query.where(receipts.c[column] == value)
    return query


def _spend_row(row: Any, group_by: Sequence[str]) -> SpendRow:
    amounts = {name: int(row[f"{name}_high"]) * _HALF + int(row[f"{name}_low"]) for name in _AMOUNTS}
    for name, amount in amounts.items():
        if abs(amount) > MAX_NANO_USD:
            raise TenthError(
                Code.OUT_OF_RANGE,
                AMOUNT_OUT_OF_RANGE,
                f"the sum of {name} does not fit 64 bits; narrow the filter",
                "request.filter",
            )
    return SpendRow(
        group=tuple(_DIMENSIONS[name][1](row[f"group_{name}"]) for name in group_by),
        request_count=row["requests"],
        failed_count=int(row["failures"]),
        cache_hit_count=int(row["hits"]),
        amounts=amounts,
    )


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
