"""The outcome log on disk: one SQLite file per replica, written in batches by a thread of its own.

Callers only queue; the queue is bounded, and what does not fit is counted, never waited for. A row is one request of
one tenant; decision, completion and feedback fill it in whatever order they come, so that feedback about a decision of
another replica is a row by itself. In WAL mode a written batch survives ``kill -9``; what was queued in the moment
before it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.router.outcome_rows import (
    completion_of,
    completion_text,
    decision_fields,
    decision_text,
    embedding_of,
    vector_bytes,
)
from services.router.outcomes import Completion, Feedback, Outcome, ScoreSource

log = logging.getLogger("tenth.router.outcomes")

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL, request_id TEXT NOT NULL, user_id TEXT NOT NULL, decide_time REAL NOT NULL,
    decision TEXT, vector BLOB, embedder TEXT NOT NULL DEFAULT '',
    completion TEXT, score REAL, score_source TEXT NOT NULL DEFAULT '',
    UNIQUE (tenant_id, request_id)
);
CREATE INDEX IF NOT EXISTS outcomes_tenant ON outcomes (tenant_id, seq);
CREATE INDEX IF NOT EXISTS outcomes_user ON outcomes (user_id, tenant_id) WHERE user_id != '';
CREATE INDEX IF NOT EXISTS outcomes_time ON outcomes (decide_time);
"""
_KEY = "(tenant_id, request_id, user_id, decide_time"
_MERGE = "ON CONFLICT (tenant_id, request_id) DO UPDATE SET "
# A part may come without its user; the user of any part is the request's.
_USER = "user_id = CASE WHEN excluded.user_id != '' THEN excluded.user_id ELSE user_id END"
_DECISION = (
    f"INSERT INTO outcomes {_KEY}, decision, vector, embedder) "  # noqa: S608  (constants)
    f"VALUES (?, ?, ?, ?, ?, ?, ?) {_MERGE}{_USER}, "
    "decide_time = excluded.decide_time, decision = excluded.decision, vector = excluded.vector, "
    "embedder = excluded.embedder"
)
_COMPLETION = (
    f"INSERT INTO outcomes {_KEY}, completion) "  # noqa: S608  (constants)
    f"VALUES (?, ?, ?, ?, ?) {_MERGE}{_USER}, completion = excluded.completion"
)
# A judge's word never takes the place of a caller's; else the last one stands.
_KEPT = "score_source = 'caller' AND excluded.score_source = 'judge'"
_FEEDBACK = (
    f"INSERT INTO outcomes {_KEY}, score, score_source) "  # noqa: S608  (constants)
    f"VALUES (?, ?, ?, ?, ?, ?) {_MERGE}{_USER}, "
    f"score = CASE WHEN {_KEPT} THEN score ELSE excluded.score END, "
    f"score_source = CASE WHEN {_KEPT} THEN score_source ELSE excluded.score_source END"
)
_COLUMNS = "seq, tenant_id, request_id, user_id, decide_time, decision, completion, score, score_source, embedder"

_TIDY_SECONDS = 60.0
_TIDY_ROWS = 1000
_RETRY_SECONDS = 1.0
_BUSY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much is kept. ``entries`` of 0 keeps nothing."""

    entries: int
    """Requests, of all tenants; the oldest go first. For a moment a twentieth more, at most 1000."""
    age_seconds: float
    queue_entries: int
    """Parts that wait to be written; the next ones are dropped and counted."""
    keep_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class _Part:
    """One queued statement. ``values`` are made in the writer's thread, off the caller's path."""

    statement: str
    values: Callable[[], Sequence[object]]


class OutcomeLog:
    """Used from the event loop. Reads see every part that was queued before them."""

    def __init__(self, path: Path, limits: LogLimits, now: Callable[[], float]) -> None:
        """``now`` is Unix seconds. Nothing is opened before ``open``."""
        self._path = path
        self._limits = limits
        self._now = now
        self._thread = ThreadPoolExecutor(1, "outcome-log")
        self._queue: deque[_Part] = deque()
        self._waiting = asyncio.Event()
        self._database: sqlite3.Connection | None = None
        self._tidied = now()
        self._written = 0
        self.dropped_count = 0
        """Parts that were never written, since the start."""

    async def open(self) -> None:
        """Open or create the file. A broken one is set aside and logged. Raises OSError when there can be none."""
        await self._in_thread(self._open)

    async def close(self) -> None:
        """Write what is queued and close. Idempotent."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                await self.flush()
            await self._in_thread(self._close)
        self._thread.shutdown()

    def decided(self, outcome: Outcome) -> None:
        """Queue a decision; it takes the place of an earlier one of the request. Never waits, never raises."""
        kept = outcome.embedding if self._limits.keep_embeddings else None
        self._put(
            _DECISION,
            lambda: (
                outcome.tenant_id,
                outcome.request_id,
                outcome.user_id,
                outcome.decide_time,
                decision_text(outcome),
                vector_bytes(kept) if kept is not None else None,
                kept.version if kept is not None else "",
            ),
        )

    def completed(self, tenant_id: str, request_id: str, user_id: str, completion: Completion) -> None:
        """Queue what became of a request; a second record takes the place of the first."""
        time = self._now()
        self._put(_COMPLETION, lambda: (tenant_id, request_id, user_id, time, completion_text(completion)))

    def judged(self, tenant_id: str, request_id: str, user_id: str, feedback: Feedback) -> None:
        """Queue feedback. The last word stands, but a judge's never over a caller's."""
        time, source = self._now(), feedback.source.value
        self._put(_FEEDBACK, lambda: (tenant_id, request_id, user_id, time, feedback.score, source))

    async def flush(self) -> None:
        """Write what is queued now. Raises sqlite3.Error; what could not be written stays queued."""
        batch, self._queue = self._queue, deque()
        self._waiting.clear()
        if not batch and self._now() - self._tidied < _TIDY_SECONDS:
            return
        try:
            await self._in_thread(lambda: self._write(batch))
        except sqlite3.Error:
            self._queue = batch + self._queue
            while len(self._queue) > self._limits.queue_entries:
                self._queue.pop()
                self.dropped_count += 1
            raise

    async def write_for_ever(self, gather_seconds: float) -> None:
        """Write queued parts in batches until cancelled; a full disk is tried again."""
        while True:
            await self._waiting.wait()
            await asyncio.sleep(gather_seconds)
            try:
                await self.flush()
            except sqlite3.Error as error:
                log.warning("outcomes cannot be written: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._waiting.set()

    async def page(
        self, tenant_id: str, *, after: int, limit: int, start_time: float = 0.0, with_embeddings: bool = False
    ) -> list[tuple[int, Outcome]]:
        """A tenant's outcomes by sequence number, in the order in which they were first heard of.

        Rows that come later have higher numbers, so pages neither skip nor repeat. Raises sqlite3.Error.
        """
        await self.flush()
        start = max(start_time, self._now() - self._limits.age_seconds)
        vector = "vector" if with_embeddings else "NULL"
        query = (
            f"SELECT {_COLUMNS}, {vector} FROM outcomes "  # noqa: S608  (constants)
            "WHERE tenant_id = ? AND seq > ? AND decide_time >= ? ORDER BY seq LIMIT ?"
        )
        return await self._in_thread(lambda: list(self._read(query, (tenant_id, after, start, limit))))

    async def newest(self, tenant_id: str, limit: int, start_time: float = 0.0) -> list[Outcome]:
        """A tenant's newest outcomes, newest first, without embeddings. Raises sqlite3.Error."""
        await self.flush()
        start = max(start_time, self._now() - self._limits.age_seconds)
        query = (
            f"SELECT {_COLUMNS}, NULL FROM outcomes "  # noqa: S608  (constants)
            "WHERE tenant_id = ? AND decide_time >= ? ORDER BY seq DESC LIMIT ?"
        )
        rows = await self._in_thread(lambda: list(self._read(query, (tenant_id, start, limit))))
        return [outcome for _, outcome in rows]

    async def delete_user(self, tenant_id: str, user_id: str) -> int:
        """Forget a user's outcomes; how many there were. Raises sqlite3.Error."""
        await self.flush()
        query = "DELETE FROM outcomes WHERE tenant_id = ? AND user_id = ?"
        return await self._in_thread(lambda: self._file().execute(query, (tenant_id, user_id)).rowcount)

    async def count(self) -> int:
        """Requests that are kept, of all tenants. Raises sqlite3.Error."""
        await self.flush()
        return await self._in_thread(self._count)

    def _put(self, statement: str, values: Callable[[], Sequence[object]]) -> None:
        if not self._limits.entries:
            return
        if len(self._queue) >= self._limits.queue_entries:
            self.dropped_count += 1
            return
        self._queue.append(_Part(statement, values))
        self._waiting.set()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Shielded: a caller that leaves must not take back what others wait for.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    # What follows runs in the thread.

    def _file(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.ProgrammingError("the outcome log is not open")
        return self._database

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _connect(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self._path}: {error}") from error
            aside = self._path.with_name(f"{self._path.name}.broken-{int(self._now())}")
            log.error("%s is broken (%s); it is set aside as %s", self._path, error, aside.name)
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._database = _connect(self._path)
        self._tidy()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write(self, batch: Sequence[_Part]) -> None:
        database = self._file()
        database.execute("BEGIN IMMEDIATE")
        try:
            for part in batch:
                database.execute(part.statement, part.values())
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
        self._written += len(batch)
        often = min(_TIDY_ROWS, max(1, self._limits.entries // 20))
        if self._written >= often or self._now() - self._tidied >= _TIDY_SECONDS:
            self._tidy()

    def _tidy(self) -> None:
        """Delete what is too old or too much."""
        database = self._file()
        database.execute("DELETE FROM outcomes WHERE decide_time < ?", (self._now() - self._limits.age_seconds,))
        excess = self._count() - self._limits.entries
        if excess > 0:
            database.execute(
                "DELETE FROM outcomes WHERE seq IN (SELECT seq FROM outcomes ORDER BY seq LIMIT ?)", (excess,)
            )
        self._written, self._tidied = 0, self._now()

    def _count(self) -> int:
        return int(self._file().execute("SELECT count(*) FROM outcomes").fetchone()[0])

    def _read(self, query: str, arguments: Sequence[object]) -> Iterator[tuple[int, Outcome]]:
        for row in self._file().execute(query, arguments):
            seq, tenant_id, request_id, user_id, time, decision, completion, score, source, embedder, vector = row
            yield (
                seq,
                Outcome(
                    tenant_id=tenant_id,
                    request_id=request_id,
                    decide_time=time,
                    user_id=user_id,
                    embedding=embedding_of(vector, embedder),
                    completion=completion_of(completion),
                    feedback=Feedback(score, ScoreSource(source)) if score is not None else None,
                    **decision_fields(decision),
                ),
            )


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA secure_delete = ON")  # A forgotten user is to be gone from the file as well.
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
