"""The schema: both ways, what the tables say, and safe when replicas start together."""

from __future__ import annotations

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select

from services.ledger.migrate import migrate
from services.ledger.store import write_engine
from services.ledger.tables import books, metadata


async def test_up_and_down_and_up_again(empty_database_url: str) -> None:
    await migrate(empty_database_url)
    engine = write_engine(empty_database_url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    def names(connection: Connection) -> set[str]:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}

    async with engine.begin() as connection:
        assert await connection.run_sync(differences) == []
        first = (await connection.execute(select(books.c.books_id))).scalar_one()
    await engine.dispose()
    await migrate(empty_database_url, revision="base", down=True)
    async with engine.begin() as connection:
        assert await connection.run_sync(names) == set()
    await engine.dispose()
    await migrate(empty_database_url)
    await migrate(empty_database_url)
    async with engine.begin() as connection:
        assert (await connection.execute(select(books.c.books_id))).scalar_one() != first
    await engine.dispose()


async def test_replicas_that_start_together_migrate_once(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
    engine = write_engine(empty_database_url)
    async with engine.begin() as connection:
        assert len((await connection.execute(select(books))).all()) == 1
    await engine.dispose()
