"""A sweep goes through everything that is due: what it can only wait for never keeps the rest from their turn."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from tenth.ledger.v1 import ledger_pb2

from services.ledger.reconcile import Sweeper, Swept
from services.ledger.tables import reservations
from tests.integration.ledger.ledger_books import SECOND, Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
PAGE = 3


@pytest.fixture
def sweeper(books: Books) -> Sweeper:
    """A sweeper that takes few at once."""
    return Sweeper(books.book, attempt_ttl_seconds=600, unfinished_grace_seconds=900, page=PAGE)


async def test_requests_with_live_reservations_hold_nobody_up(books: Books, sweeper: Sweeper) -> None:
    for index in range(2 * PAGE + 1):
        await books.book.reserve(books.wanted(f"live{index}", ttl_ns=7200 * SECOND))
        await books.record(books.attempt(f"live{index}", FINISHED))
    books.clock.advance(1)
    await books.record(books.attempt("lost", FINISHED))
    books.clock.advance(601)
    assert await sweeper.sweep() == Swept(reconciled=1)
    assert (await books.stored("lost")).facts.failed
    assert (await books.reports.status()).open_reservation_count == 2 * PAGE + 1
    books.clock.advance(7200)
    assert await sweeper.sweep() == Swept(released=2 * PAGE + 1, reconciled=2 * PAGE + 1)


async def test_expired_ones_that_wait_for_their_attempts_hold_nobody_up(books: Books, sweeper: Sweeper) -> None:
    for index in range(2 * PAGE + 1):  # All expire at the same instant.
        await books.book.reserve(books.wanted(f"running{index}"))
        await books.record(books.attempt(f"running{index}", STARTED))
    await books.book.reserve(books.wanted("idle", ttl_ns=61 * SECOND))
    books.clock.advance(62)
    assert await sweeper.sweep() == Swept(released=1)
    async with books.store.read() as connection:
        query = select(reservations.c.state).where(reservations.c.request_id == "idle")
        assert (await connection.execute(query)).scalar_one() == "expired"


async def test_a_broken_record_holds_nobody_up(books: Books, sweeper: Sweeper) -> None:
    for index in range(PAGE):
        await books.record(books.attempt(f"broken{index}", FINISHED))
    broken = (
        "UPDATE attempts SET event = '\\xff'"
        if books.store.dialect == "postgresql"
        else ("UPDATE attempts SET event = x'ff'")
    )
    await books.store.write(lambda connection: connection.exec_driver_sql(broken).rowcount)
    books.clock.advance(1)
    await books.record(books.attempt("lost", FINISHED))
    books.clock.advance(601)
    assert await sweeper.sweep() == Swept(reconciled=1)
