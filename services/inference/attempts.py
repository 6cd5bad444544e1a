"""The durable log of attempts, and its delivery to the ledger.

Before a provider is called, STARTED is written with the worst case; at the end FINISHED, FAILED or CANCELLED with what
was used. Records survive ``kill -9`` (SQLite WAL: a committed record is in the kernel's hands) and are delivered in
order, in batches, until the ledger has them; the ledger is idempotent by (request_id, attempt, kind), so a batch whose
answer was lost is simply sent again. An attempt that a dead process left open is closed as FAILED at its worst case,
marked ``estimated``.

On a full disk no attempt begins, and how the running ones end is kept in memory until it can be written. Should the
process die before, they are closed at their worst case like any other: too much is on the books then, never too little.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError
from services.inference.errors import Reason

log = logging.getLogger("tenth.inference.attempts")

BATCH = 500
"""Most records in one RecordAttempts call."""
_CALL_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 5.0

_TABLE = """
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    start_seq INTEGER,
    state INTEGER NOT NULL DEFAULT 0,
    event BLOB NOT NULL
)"""
# start_seq: NULL for STARTED, else the seq of the STARTED that this record ends.
_PENDING, _DELIVERED, _REFUSED = 0, 1, 2
_FULL = "the disk of the attempt log (TENTH_DATA_DIR) is full: free some of it, nothing need be restarted"

Key = tuple[str, int]


class AttemptLog:
    """The SQLite file. One process at a time; used from one thread."""

    def __init__(self, path: Path, now: Callable[[], float], *, sync: bool = False) -> None:
        """Open it and close what a dead process left open. Raises OSError when another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._now = now
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        try:
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            self._database.execute(_TABLE)
            self._open: dict[Key, tuple[int, ledger_pb2.AttemptEvent]] = {}
            self._unwritten: deque[tuple[int, ledger_pb2.AttemptEvent]] = deque()
            self.recovered_count = self._recover()
        except sqlite3.OperationalError as error:
            self._database.close()
            advice = _FULL if _is_full(error) else "does another inference process use this data directory?"
            raise OSError(f"{path}: {error}; {advice}") from error
        self._cursor = 0
        self.changed = asyncio.Event()

    def start(self, event: ledger_pb2.AttemptEvent) -> None:
        """Write STARTED. Raises ATTEMPT_RUNNING, or ATTEMPT_LOG_UNAVAILABLE when it cannot be written."""
        key = (event.request_id, event.attempt)
        if key in self._open:
            raise TenthError(
                Code.ALREADY_EXISTS,
                Reason.ATTEMPT_RUNNING,
                f"attempt {event.attempt} of {event.request_id} is running",
                "generation.attempt",
            )
        try:
            self.write_kept()
            self._open[key] = (self._insert(None, event), event)
        except sqlite3.Error as error:
            log.error("cannot write the attempt log: %s", error)
            why = _FULL if _is_full(error) else "the attempt log cannot be written"
            raise TenthError(Code.UNAVAILABLE, Reason.ATTEMPT_LOG_UNAVAILABLE, f"{why}; nothing was spent") from error
        self.changed.set()

    def end(self, event: ledger_pb2.AttemptEvent) -> None:
        """Write how an attempt ended. On a full disk it is kept in memory: the caller's answer is not at fault."""
        start_seq, _ = self._open.pop((event.request_id, event.attempt))
        self._unwritten.append((start_seq, event))
        try:
            self.write_kept()
        except sqlite3.Error as error:
            log.error("the end of %s/%d is kept in memory: %s", event.request_id, event.attempt, error)
        self.changed.set()

    def write_kept(self) -> None:
        """Write the ends that could not be written when they came. Raises sqlite3.Error while that is still so."""
        while self._unwritten:
            self._insert(*self._unwritten[0])
            self._unwritten.popleft()

    @property
    def kept_count(self) -> int:
        """Ends that are in memory alone."""
        return len(self._unwritten)

    def pending(self, limit: int = BATCH) -> list[tuple[int, bytes]]:
        """The next records to deliver, oldest first, as (seq, event)."""
        rows = self._database.execute(
            "SELECT seq, event FROM records WHERE seq > ? AND state = 0 ORDER BY seq LIMIT ?", (self._cursor, limit)
        )
        return rows.fetchall()

    def delivered(self, seqs: Sequence[int]) -> None:
        """The ledger has these: forget them, except the start of an attempt that still runs."""
        numbers = [(seq,) for seq in seqs]
        execute = self._database.executemany
        with self._database:  # Commits, or rolls back: in a transaction left open later records would not be kept.
            self._database.execute("BEGIN")
            execute(f"UPDATE records SET state = {_DELIVERED} WHERE seq = ?", numbers)  # noqa: S608  (constants)
            execute("DELETE FROM records WHERE seq = (SELECT start_seq FROM records WHERE seq = ?)", numbers)
            execute("DELETE FROM records WHERE seq = ? AND start_seq IS NOT NULL", numbers)
        self._cursor = max(self._cursor, seqs[-1])

    def refused(self, seq: int) -> None:
        """The ledger will never take this one: kept for an operator, out of the way of the others."""
        self._database.execute(f"UPDATE records SET state = {_REFUSED} WHERE seq = ?", (seq,))  # noqa: S608  (constants)
        self._cursor = max(self._cursor, seq)

    def pending_count(self) -> int:
        """Records that the ledger does not have yet."""
        return int(self._database.execute("SELECT count(*) FROM records WHERE state = 0").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        try:
            self.write_kept()
        except sqlite3.Error as error:
            lost = len(self._unwritten)
            log.error("%d ends are lost; the next start closes their attempts at the worst case: %s", lost, error)
        self._database.close()

    def _insert(self, start_seq: int | None, event: ledger_pb2.AttemptEvent) -> int:
        done = self._database.execute(
            "INSERT INTO records (start_seq, event) VALUES (?, ?)", (start_seq, event.SerializeToString())
        )
        return done.lastrowid or 0

    def _recover(self) -> int:
        rows = self._database.execute(
            "SELECT seq, event FROM records s WHERE start_seq IS NULL AND state != ? "
            "AND NOT EXISTS (SELECT 1 FROM records e WHERE e.start_seq = s.seq)",
            (_REFUSED,),
        ).fetchall()
        for seq, blob in rows:
            event = ledger_pb2.AttemptEvent.FromString(blob)
            event.kind = ledger_pb2.ATTEMPT_KIND_FAILED
            event.usage.estimated = True
            event.event_time.CopyFrom(timestamp(self._now()))
            self._insert(seq, event)
        return len(rows)


@dataclass(frozen=True, slots=True)
class DeliveryPace:
    """How long records are collected, and how long to wait after a failure at first, in seconds."""

    interval_seconds: float
    retry_seconds: float = 0.2


class AttemptDelivery:
    """Brings the log to the ledger for as long as the service runs."""

    def __init__(self, log_: AttemptLog, ledger: ledger_pb2_grpc.LedgerServiceAsyncStub, pace: DeliveryPace) -> None:
        self._log = log_
        self._ledger = ledger
        self._pace = pace

    async def run(self) -> None:
        """Deliver until cancelled."""
        # The rows name their tenants; the call itself is made by the service for nobody in particular.
        set_identity(Identity(tenant_id="", caller="inference", service="inference"))
        pause = 0.0
        while True:
            if not pause:
                await self._log.changed.wait()
                await asyncio.sleep(self._pace.interval_seconds)
            else:
                await asyncio.sleep(pause)
            self._log.changed.clear()
            try:
                await self.deliver_all()
            except TenthError as error:
                if not pause:
                    log.warning("attempts are not delivered (%s); they are kept and sent again", error)
                pause = min(max(pause * 2, self._pace.retry_seconds), _LONGEST_PAUSE_SECONDS)
            except Exception:
                # Whatever it is, giving up would strand every later record.
                log.exception("delivery failed")
                pause = _LONGEST_PAUSE_SECONDS
            else:
                if pause:
                    log.info("the ledger takes attempts again")
                pause = 0.0

    async def finish(self) -> None:
        """Deliver what is left, once; what cannot be delivered now is sent after the next start."""
        set_identity(Identity(tenant_id="", caller="inference", service="inference"))
        try:
            await asyncio.wait_for(self.deliver_all(), timeout=3)
        except (TenthError, TimeoutError, sqlite3.Error) as error:
            log.warning("%d attempt records stay in the log: %s", self._log.pending_count(), error)

    async def deliver_all(self) -> None:
        """Deliver everything that is pending now. Raises TenthError when the ledger is down, and while something could
        not be written for delivery.
        """
        with suppress(sqlite3.Error):
            self._log.write_kept()
        while batch := self._log.pending():
            await self._deliver(batch)
        if self._log.kept_count:
            raise TenthError(Code.UNAVAILABLE, Reason.ATTEMPT_LOG_UNAVAILABLE, f"{self._log.kept_count} ends: {_FULL}")

    async def _deliver(self, batch: Sequence[tuple[int, bytes]]) -> None:
        events = [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in batch]
        try:
            await self._ledger.RecordAttempts(ledger_pb2.RecordAttemptsRequest(events=events), timeout=_CALL_SECONDS)
        except TenthError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            if len(batch) == 1:
                log.error("the ledger refuses %s/%d: %s", events[0].request_id, events[0].attempt, error)
                self._log.refused(batch[0][0])
                return
            # One bad record must not block the others.
            middle = len(batch) // 2
            await self._deliver(batch[:middle])
            await self._deliver(batch[middle:])
        else:
            self._log.delivered([seq for seq, _ in batch])


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970 as a message."""
    whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
    return Timestamp(seconds=whole, nanos=part)
