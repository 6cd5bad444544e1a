"""The database: SQLite or Postgres behind one shape. Many readers, one writer, commits shared by what waits.

Every write runs inside the writer's transaction, one after another: on SQLite under BEGIN IMMEDIATE, on Postgres
under one advisory lock that all replicas take. So no two writes ever interleave, on either store, and a decision
that reads before it writes is atomic without more locks. What waits while a commit runs shares the next one, so
the cost of durability is paid per commit, not per request.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.errors import Code, TenthError
from services.ledger.errors import Reason

T = TypeVar("T")
Operation = Callable[[Connection], T]
"""One write. It may run again from the start, and must raise a TenthError before its first change or not at all.

Plain functions of a plain connection: on SQLite a whole transaction runs in one thread without a switch of threads
for every statement, which cost four times the statements themselves (4.3 ms of CPU for one reservation).
"""
Transaction = Callable[[Sequence[Operation[Any]]], Awaitable[list[Any]]]
"""Runs some operations in one transaction; a TenthError that one raises is its outcome."""

WRITE_LOCK = 0x7E47_1ED6
"""Key of the Postgres advisory lock that writers of all replicas take in turn."""
_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_BUSY_SECONDS = 30
# FULL: an acknowledged receipt survives not only kill -9 (NORMAL would do) but a power cut too; the orchestrator
# deletes its copy on the acknowledgement. One sync per commit (0.5 ms here) is shared by all writes that wait.
_SQLITE_WRITES = ("BEGIN IMMEDIATE", "PRAGMA synchronous=FULL")
_SHARED = 64
"""Most operations that share one commit: bounds how long the first of them waits."""


class Store:
    """Reads and writes of one database. Made by ``open_store``."""

    def __init__(self, transaction: Transaction, reads: AsyncEngine) -> None:
        self._transaction = transaction
        self._reads = reads
        self._queue: deque[tuple[Operation[Any], asyncio.Future[Any]]] = deque()
        self._wake = asyncio.Event()
        self._closing = False

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._reads.dialect.name

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection that reads one consistent state. Raises STORE_UNAVAILABLE."""
        try:
            async with self._reads.begin() as connection:
                yield connection
        except Exception as error:
            raise _translated(error) from error

    async def write(self, operation: Operation[T]) -> T:
        """Run a write and return when it is durable. Raises what it raises, and STORE_UNAVAILABLE.

        When the caller is cancelled the write may happen all the same: operations are idempotent.
        """
        if self._closing:
            raise TenthError(Code.UNAVAILABLE, Reason.STORE_UNAVAILABLE, "the ledger is shutting down")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((operation, future))
        self._wake.set()
        return await future

    async def ping(self) -> None:
        """Raises while the database does not answer."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1 FROM books"))

    async def serve_writes(self) -> None:
        """The writer: runs until ``close``, and then until nothing waits."""
        while self._queue or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                count = min(len(self._queue), _SHARED)
                batch = [self._queue.popleft() for _ in range(count)]
                await self._commit([each for each in batch if not each[1].done()])

    def close(self) -> None:
        """Take no more writes; the writer ends when those that wait are done."""
        self._closing = True
        self._wake.set()

    async def _commit(self, batch: list[tuple[Operation[Any], asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        try:
            outcomes = await self._transaction([operation for operation, _ in batch])
        except Exception as error:
            typed = _translated(error)
            if len(batch) > 1 and not isinstance(typed, TenthError):
                # One of them is broken and took the others' transaction with it: each gets one of its own.
                for each in batch:
                    await self._commit([each])
                return
            outcomes = [typed] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


@asynccontextmanager
async def open_store(url: str, *, password: str = "", read_connection_count: int = 8) -> AsyncIterator[Store]:
    """A store on a migrated database, with its writer running; on leaving, waiting writes are finished first.

    Raises ValueError for a URL that is neither a SQLite file nor Postgres.
    """
    parsed = _parsed(url, password)
    async with AsyncExitStack() as stack:
        reads = _read_engine(url, password, read_connection_count)
        stack.push_async_callback(reads.dispose)
        sqlite = parsed.get_backend_name() == "sqlite"
        writes = _sqlite_writes(parsed, stack) if sqlite else _postgres_writes(write_engine(url, password), stack)
        store = Store(writes, reads)
        writer = asyncio.create_task(store.serve_writes())
        try:
            yield store
        finally:
            store.close()
            await writer


def _sqlite_writes(url: URL, stack: AsyncExitStack) -> Transaction:
    thread = ThreadPoolExecutor(1, "ledger-writer")
    stack.callback(thread.shutdown)
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"), pool_size=1, max_overflow=0, connect_args={"timeout": _BUSY_SECONDS}
    )
    stack.callback(engine.dispose)
    _sqlite(engine, *_SQLITE_WRITES)

    def run(operations: Sequence[Operation[Any]]) -> list[Any]:
        with engine.begin() as connection:
            return _run(connection, operations)

    async def transaction(operations: Sequence[Operation[Any]]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(thread, run, operations)

    return transaction


def _postgres_writes(engine: AsyncEngine, stack: AsyncExitStack) -> Transaction:
    stack.push_async_callback(engine.dispose)

    async def transaction(operations: Sequence[Operation[Any]]) -> list[Any]:
        locked = False
        # A connection that was lost while nothing was written is found out by its first statement, and replaced: to
        # ask it before every transaction instead took three of a reservation's eleven round trips.
        for last in (False, True):
            try:
                async with engine.begin() as connection:
                    await connection.execute(_LOCK, {"key": WRITE_LOCK})
                    locked = True
                    return await connection.run_sync(_run, operations)
            except DBAPIError as error:
                if last or locked or not error.connection_invalidated:
                    raise
        raise AssertionError("the second try returns or raises")

    return transaction


def _run(connection: Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    outcomes: list[Any] = []
    for operation in operations:
        try:
            outcomes.append(operation(connection))
        except TenthError as error:
            outcomes.append(error)
    return outcomes


def write_engine(url: str, password: str = "") -> AsyncEngine:
    """An engine with one connection whose transactions may write."""
    parsed = _parsed(url, password)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(parsed, pool_size=1, max_overflow=0, connect_args={"timeout": _BUSY_SECONDS})
        _sqlite(engine.sync_engine, *_SQLITE_WRITES)
        return engine
    return create_async_engine(parsed, pool_size=1, max_overflow=0)


def _read_engine(url: str, password: str, connection_count: int) -> AsyncEngine:
    parsed = _parsed(url, password)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(
            parsed, pool_size=connection_count, max_overflow=0, connect_args={"timeout": _BUSY_SECONDS}
        )
        _sqlite(engine.sync_engine, "BEGIN", "PRAGMA query_only=ON")
        return engine
    return create_async_engine(
        parsed,
        pool_size=connection_count,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )


def _parsed(url: str, password: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername == "sqlite+aiosqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ValueError("the ledger's SQLite database must be a file")
        return parsed
    if parsed.drivername != "postgresql+asyncpg":
        raise ValueError(f"{parsed.drivername!r} is neither sqlite+aiosqlite nor postgresql+asyncpg")
    return parsed.set(password=password) if password else parsed


def _sqlite(engine: Engine, begin: str, pragma: str) -> None:
    """Take the transactions of a SQLite engine into our own hands: the driver would begin them too late."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for line in ("PRAGMA journal_mode=WAL", "PRAGMA foreign_keys=ON", pragma):
            cursor.execute(line)
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _translated(error: Exception) -> Exception:
    """STORE_UNAVAILABLE for a database that does not answer; anything else as it is."""
    gone = isinstance(error, OperationalError | InterfaceError | PoolTimeoutError | OSError | sqlite3.OperationalError)
    gone = gone or (isinstance(error, DBAPIError) and error.connection_invalidated)
    if not gone:
        return error
    return TenthError(
        Code.UNAVAILABLE, Reason.STORE_UNAVAILABLE, "the database does not answer", retry_after_seconds=1.0
    )
