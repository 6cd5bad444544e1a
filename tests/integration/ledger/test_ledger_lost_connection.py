"""The writer's connection to Postgres may be lost between two writes: the next write does not notice."""

from __future__ import annotations

from sqlalchemy import text

from services.ledger.store import write_engine
from tests.integration.ledger.ledger_books import Books


async def test_a_write_after_the_server_dropped_the_connection_succeeds(books: Books) -> None:
    await books.book.reserve(books.wanted("before"))
    if books.store.dialect == "postgresql":
        engine = write_engine(books.url)
        async with engine.begin() as connection:
            dropped = await connection.execute(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            assert dropped.scalar_one() > 0
        await engine.dispose()
    made = await books.book.reserve(books.wanted("after"))
    assert made.reservation_id
    assert (await books.reports.status()).open_reservation_count == 2
