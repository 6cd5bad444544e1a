"""The schema: both ways, what the tables say, and safe when replicas start together."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select

from services.ledger.migrate import migrate
from services.ledger.partitions import Partitions
from services.ledger.rollup_check import check_rollups
from services.ledger.rollups import Roller
from services.ledger.store import write_engine
from services.ledger.tables import books, metadata, receipt_events, receipts
from tests.integration.ledger.ledger_books import open_books


def is_ours(found: Any, name: str | None, kind: str, _: bool, __: object) -> bool:
    """False for partitions, which are as their table, and for the parts of a foreign key that names them."""
    if kind == "foreign_key_constraint":
        return not any(each.target_fullname.startswith("receipt_events_") for each in found.elements)
    return kind != "table" or not str(name).startswith("receipt_events_")


async def test_up_and_down_and_up_again(empty_database_url: str) -> None:
    await migrate(empty_database_url)
    engine = write_engine(empty_database_url)

    def differences(connection: Connection) -> list[object]:
        options = {"include_object": is_ours}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

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


async def test_what_is_in_the_books_stays_both_ways(empty_database_url: str) -> None:
    await migrate(empty_database_url, revision="0003")
    seen = []
    for revision, down in (("0003", False), ("0004", False), ("0003", True), ("head", False)):
        await migrate(empty_database_url, revision=revision, down=down)
        async with open_books(empty_database_url) as books:
            if revision in ("0004", "head"):
                await Partitions(books.store).make(books.clock.now)
            assert await books.settle(*[await books.receipt() for _ in range(2)]) == ["", ""]
            async with books.store.read() as connection:
                query = select(receipt_events.c.id, receipts.c.id).join(receipts).order_by(receipt_events.c.id)
                seen.append([tuple(row) for row in await connection.execute(query)])
            await Roller(books.store).catch_up()
            assert (await books.reports.status()).receipt_count == 2 * len(seen)
            assert await check_rollups(books.store) == []
    assert [len(each) for each in seen] == [2, 4, 6, 8]
    assert all(after[: len(before)] == before for before, after in pairwise(seen))
