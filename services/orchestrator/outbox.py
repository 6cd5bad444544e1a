"""Receipts on their way to the ledger, and answers kept for retries: one SQLite file per replica.

A receipt is appended before its answer leaves, so that a killed orchestrator forgets no spend. In WAL mode with
synchronous=NORMAL an append is a write to the page cache, about 50 microseconds: it survives the death of the
process; after a power loss the last receipts are re-made by the ledger from inference's attempt records. A row is
deleted only when the ledger has accepted it and its answer is too old to be replayed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenth.type.v1 import chat_pb2, receipt_pb2

log = logging.getLogger("tenth.outbox")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    tenant_id TEXT NOT NULL, request_id TEXT NOT NULL, user_id TEXT NOT NULL, digest BLOB NOT NULL,
    receipt BLOB NOT NULL, completion BLOB NOT NULL, entry_id TEXT NOT NULL,
    error TEXT NOT NULL, namespace TEXT NOT NULL,
    settled INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT '', expire_time REAL NOT NULL,
    shard TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, request_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_open ON answers (settled) WHERE settled = 0;
CREATE INDEX IF NOT EXISTS answers_expire ON answers (expire_time);
"""

Settle = Callable[[Sequence[receipt_pb2.Receipt]], Awaitable[Sequence[str]]]
"""Delivers receipts; returns a reason per receipt, empty when the ledger accepted it. Raises when it is down."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer kept for retries. ``completion`` is None for a failed request, whose ``error`` is "REASON: message"."""

    digest: bytes
    receipt: receipt_pb2.Receipt
    completion: chat_pb2.Completion | None
    entry_id: str
    error: str
    namespace: str
    shard: str
    """Routing key of the cache replica that was asked."""
    settled: bool
    expire_time: float


class Outbox:
    """The durable outbox. Used from the event loop's thread only."""

    def __init__(self, path: Path, replay_ttl_seconds: float, now: Callable[[], float]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        if "shard" not in {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}:
            # A file of an earlier revision, maybe with receipts that still have to be settled.
            self._db.execute("ALTER TABLE answers ADD COLUMN shard TEXT NOT NULL DEFAULT ''")
        self._ttl = replay_ttl_seconds
        self._now = now
        self._waiting = asyncio.Event()
        if self.open_count():
            self._waiting.set()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is appended inside is kept together, in one write, or not at all. Nothing may be awaited inside."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # A full disk may have ended it already.
                self._db.execute("ROLLBACK")
            raise

    def append(
        self,
        digest: bytes,
        receipt: receipt_pb2.Receipt,
        completion: chat_pb2.Completion | None,
        entry_id: str = "",
        error: str = "",
        namespace: str = "",
        shard: str = "",
    ) -> None:
        """Keep a receipt for the ledger and the answer for retries. A later one of the same request replaces it."""
        facts = receipt.facts
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', ?, ?)",
            (
                facts.tenant_id,
                facts.request_id,
                facts.user_id,
                digest,
                receipt.SerializeToString(),
                completion.SerializeToString() if completion is not None else b"",
                entry_id,
                error,
                namespace,
                self._now() + self._ttl,
                shard,
            ),
        )
        self._waiting.set()

    def withdraw(self, tenant_id: str, request_id: str) -> None:
        """Forget a failure that the ledger has not accepted yet: its request is tried again, and carries what it spent.

        A receipt that came late would end the reservation of that next try.
        """
        self._db.execute(
            "DELETE FROM answers WHERE tenant_id = ? AND request_id = ? AND settled = 0 AND completion = x''",
            (tenant_id, request_id),
        )

    def note_entry(self, tenant_id: str, request_id: str, entry_id: str) -> None:
        """Remember which cache entry a request's answer became."""
        self._db.execute(
            "UPDATE answers SET entry_id = ? WHERE tenant_id = ? AND request_id = ?", (entry_id, tenant_id, request_id)
        )

    def find(self, tenant_id: str, request_id: str) -> Kept | None:
        """The kept answer of a request, if it has not expired or its receipt is not settled yet."""
        row = self._db.execute(
            "SELECT digest, receipt, completion, entry_id, error, namespace, settled, expire_time, shard FROM answers "
            "WHERE tenant_id = ? AND request_id = ?",
            (tenant_id, request_id),
        ).fetchone()
        if row is None or (row[6] and row[7] <= self._now()):
            return None
        digest, receipt, completion, entry_id, error, namespace, settled, expire_time, shard = row
        return Kept(
            digest=digest,
            receipt=receipt_pb2.Receipt.FromString(receipt),
            completion=chat_pb2.Completion.FromString(completion) if completion else None,
            entry_id=entry_id,
            error=error,
            namespace=namespace,
            shard=shard,
            settled=bool(settled),
            expire_time=expire_time,
        )

    def forget_user(self, tenant_id: str, user_id: str) -> int:
        """Delete a user's kept answers; receipts that still have to be settled stay until they are."""
        whose = "WHERE tenant_id = ? AND user_id = ?"
        gone = self._db.execute(f"DELETE FROM answers {whose} AND settled = 1", (tenant_id, user_id))  # noqa: S608  (a constant)
        blanked = self._db.execute(
            f"UPDATE answers SET completion = x'', expire_time = 0 {whose}",  # noqa: S608  (a constant)
            (tenant_id, user_id),
        )
        return gone.rowcount + blanked.rowcount

    def open_count(self) -> int:
        """Receipts that the ledger has not accepted yet."""
        return int(self._db.execute("SELECT count(*) FROM answers WHERE settled = 0").fetchone()[0])

    async def deliver(self, settle: Settle, batch_size: int, gather_seconds: float) -> None:
        """Settle receipts for ever, in batches; while the ledger is down, try again every second."""
        while True:
            await self._waiting.wait()
            await asyncio.sleep(gather_seconds)
            self._waiting.clear()
            try:
                while await self.flush(settle, batch_size):
                    continue
            except sqlite3.Error:
                # A full disk, for one: giving up would strand every later receipt.
                log.exception("the outbox cannot be read or marked")
                await asyncio.sleep(1.0)
                self._waiting.set()

    async def flush(self, settle: Settle, batch_size: int) -> bool:
        """Settle one batch. True when there may be more."""
        rows = self._db.execute(
            "SELECT tenant_id, request_id, receipt FROM answers WHERE settled = 0 LIMIT ?", (batch_size,)
        ).fetchall()
        if not rows:
            self._db.execute("DELETE FROM answers WHERE settled = 1 AND expire_time < ?", (self._now(),))
            return False
        receipts = [receipt_pb2.Receipt.FromString(row[2]) for row in rows]
        try:
            problems = await settle(receipts)
        except Exception as error:
            # Whatever it is, the receipts stay and are tried again: nothing may be lost here.
            log.warning("the ledger does not take receipts: %s", error)
            await asyncio.sleep(1.0)
            self._waiting.set()
            return False
        for row, problem in zip(rows, problems, strict=True):
            if problem:
                log.error("the ledger refuses the receipt of %s: %s", row[1], problem)
        self._db.executemany(
            # Only the row that was sent: a newer receipt of the same request still has to go.
            "UPDATE answers SET settled = 1, problem = ? WHERE tenant_id = ? AND request_id = ? AND receipt = ?",
            [(problem, row[0], row[1], row[2]) for row, problem in zip(rows, problems, strict=True)],
        )
        return True
