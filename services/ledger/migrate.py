"""Migrations of the books' schema: run at every start, under a lock, and by hand.

    python -m services.ledger.migrate upgrade [REVISION]
    python -m services.ledger.migrate downgrade REVISION        (``base`` drops everything)

The database is the one of the ledger's settings.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh.settings import MeshSettings, load
from services.ledger.settings import LedgerSettings
from services.ledger.store import WRITE_LOCK, write_engine
from services.ledger.tables import books


async def migrate(url: str, password: str = "", *, revision: str = "head", down: bool = False) -> None:
    """Bring the schema to a revision. Replicas that start together wait for each other."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = write_engine(url, password)
    try:
        await _run(engine, revision, down=down)
    finally:
        await engine.dispose()


async def _run(engine: AsyncEngine, revision: str, *, down: bool) -> None:
    # One transaction that holds the writers' lock throughout: on SQLite BEGIN IMMEDIATE is that lock.
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITE_LOCK})
        await connection.run_sync(_migrate, revision, down)


def _migrate(connection: Connection, revision: str, down: bool) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    if down:
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)
    if inspect(connection).has_table("books") and connection.execute(select(books.c.id)).first() is None:
        connection.execute(
            insert(books).values(id=1, books_id=uuid.uuid4().hex[:12], price_book_version=0, policy_version=0)
        )


def database_password(settings: LedgerSettings) -> str:
    """The database password from its file; empty without one."""
    path = settings.database_password_file
    return path.read_text("utf-8").strip() if path is not None else ""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="services.ledger.migrate", description="Migrates the ledger's database.")
    parser.add_argument("direction", choices=["upgrade", "downgrade"])
    parser.add_argument("revision", nargs="?")
    arguments = parser.parse_args()
    down = arguments.direction == "downgrade"
    if down and not arguments.revision:
        parser.error("downgrade needs a revision; `base` drops everything")
    settings = load(LedgerSettings)
    url = settings.url(load(MeshSettings).data_dir)
    asyncio.run(migrate(url, database_password(settings), revision=arguments.revision or "head", down=down))


if __name__ == "__main__":
    main()
