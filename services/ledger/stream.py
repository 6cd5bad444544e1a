"""Receipts as a stream, oldest first, as the books were when it began; no transaction is held while a caller reads.

A page is one short read. Receipts whose newest event came after the stream began are left out of pages; what they
showed at the beginning is read from the events (which never change) and put in at its place. A long transaction
instead would keep SQLite from cleaning its log, and Postgres from cleaning its tables, for as long as the slowest
caller likes.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from tenth.type.v1 import receipt_pb2

from services.ledger.reading import Filter, narrowed
from services.ledger.receipts import flatten
from services.ledger.rollup_steps import counted_at, shown_before
from services.ledger.store import Store
from services.ledger.tables import receipt_events, receipts

PAGE = 500
"""Receipts of one message."""

_Place = tuple[int, int]
"""When a receipt was created, and its row: the order of the stream."""


class Streaming:
    """One stream."""

    def __init__(self, store: Store, which: Filter, *, page: int = PAGE) -> None:
        self._store = store
        self._which = which
        self._page = page
        self._start: int | None = None
        """The last event when the stream began."""
        self._seen = 0
        """The last event that corrections were looked for in."""
        self._place: _Place = (-(2**63), 0)
        self._corrected: set[tuple[str, str]] = set()
        """Requests that were corrected since."""
        self._replaced: list[tuple[_Place, bytes]] = []
        """What corrected receipts showed at the start, as far as it is still to come."""

    async def pages(self) -> AsyncIterator[list[bytes]]:
        """The receipts, in pages of at most 500; none empty."""
        more = True
        while more:
            found, more = await self._next()
            for start in range(0, len(found), self._page):
                yield found[start : start + self._page]

    async def _next(self) -> tuple[list[bytes], bool]:
        async with self._store.read() as connection:
            last = (await connection.execute(select(func.coalesce(func.max(receipt_events.c.id), 0)))).scalar_one()
            if self._start is None:
                self._start = self._seen = last
            elif last > self._seen:
                await self._look_back(connection, self._start, last)
            query = (
                narrowed(
                    select(receipts.c.create_ns, receipts.c.id, receipts.c.event_id, receipt_events.c.receipt).join(
                        receipt_events, receipts.c.event_id == receipt_events.c.id
                    ),
                    self._which,
                    self._store.dialect,
                )
                .where(
                    or_(
                        receipts.c.create_ns > self._place[0],
                        and_(receipts.c.create_ns == self._place[0], receipts.c.id > self._place[1]),
                    )
                )
                .order_by(receipts.c.create_ns, receipts.c.id)
                .limit(self._page)
            )
            if self._place[0] > -(2**63):
                query = query.where(receipts.c.create_ns >= self._place[0])  # The range that the index serves.
            rows = (await connection.execute(query)).all()
        more = len(rows) == self._page
        found = [((row.create_ns, row.id), row.receipt) for row in rows if row.event_id <= self._start]
        end: _Place = (rows[-1].create_ns, rows[-1].id) if more else (2**63, 0)
        while self._replaced and self._replaced[0][0] <= end:
            found.append(heapq.heappop(self._replaced))
        self._place = end
        return [blob for _, blob in sorted(found)], more

    async def _look_back(self, connection: AsyncConnection, start: int, last: int) -> None:
        """Keep what requests showed at the start that were corrected since the last look, where it is to come."""
        query = shown_before(start, last, since=self._seen).add_columns(receipts.c.id)
        query = query.join(
            receipts,
            (receipts.c.request_id == receipt_events.c.request_id)
            & (receipts.c.tenant_id == receipt_events.c.tenant_id),
        )
        for row in await connection.execute(query):
            if (row.tenant_id, row.request_id) in self._corrected:
                continue
            self._corrected.add((row.tenant_id, row.request_id))
            receipt = receipt_pb2.Receipt.FromString(row.receipt)
            create_ns = counted_at(row, receipt)
            place = (create_ns, row.id)
            if place > self._place and self._which.holds(flatten(receipt, create_ns).columns, receipt.facts.tags):
                heapq.heappush(self._replaced, (place, row.receipt))
        self._seen = last
