"""The evidence on disk: one append-only file of JSON lines per replica, written and synced in a thread of its own.

Survives kill -9: a line counts when it is whole, a torn last one is left out at the next start. The file is rewritten
as a snapshot at start, when it has grown far beyond its last snapshot, and after a write that failed (a full disk).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.cache.errors import journal_unavailable
from services.cache.feedback import Event, Evidence

log = logging.getLogger("tenth.cache.feedback")

T = TypeVar("T")

_GROWTH_BYTES = 4_194_304
"""Bytes beyond the last snapshot after which the file is rewritten."""
_MAX_REPLICAS = 64
"""Replicas over one Qdrant server may share a data directory; each takes the first free file of so many."""


class FeedbackJournal:
    """Keeps an Evidence in TENTH_DATA_DIR. Used from the event loop; the file is its own while it is open."""

    def __init__(self, folder: Path, evidence: Evidence, growth_bytes: int = _GROWTH_BYTES) -> None:
        self._folder = folder
        self._evidence = evidence
        self._growth_bytes = growth_bytes
        self._thread = ThreadPoolExecutor(1, "feedback-journal")
        self._pending: list[Event] = []
        self._rewrite = True
        """Nothing can be appended: the whole must be written first. Set by the thread too."""
        self._closed = False
        self._path = folder
        self._lock = -1
        self._file = -1
        self._bytes = self._snapshot_bytes = 0

    async def open(self) -> None:
        """Replay the file into the evidence and rewrite it. Raises UNAVAILABLE when it cannot be read.

        A disk that is full now may have room later: ``flush`` tries again.
        """
        try:
            lines = await self._in_thread(self._read)
        except OSError as error:
            raise journal_unavailable(str(error)) from error
        for number, line in enumerate(lines, 1):
            try:
                self._evidence.apply(json.loads(line))
            except (ValueError, KeyError, TypeError):
                # The last one may be torn; no other should be, and none may keep the cache from starting.
                log.warning("%s: line %d is no event and is left out", self._path, number)
        try:
            await self._write()
        except OSError as error:
            log.warning("feedback cannot be written: %s", error)

    async def append(self, events: Iterable[Event]) -> None:
        """Write events down. Durable when it returns. Raises UNAVAILABLE when it cannot; ``flush`` tries again."""
        self._pending.extend(events)
        await self.flush()

    async def flush(self) -> None:
        """Write down what is not yet, and the lookups since the last time. Raises UNAVAILABLE."""
        try:
            await self._write()
        except OSError as error:
            raise journal_unavailable(str(error)) from error

    async def flush_for_ever(self, seconds: float) -> None:
        """Flush until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._write()
            except OSError as error:
                log.warning("feedback cannot be written: %s", error)

    async def close(self) -> None:
        """Write what is pending and let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            await self._write()
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _write(self) -> None:
        events, self._pending = [*self._evidence.take_looked(), *self._pending], []
        # Also without events: what an earlier call gave to the thread is on disk, or known not to be, when this is.
        if not self._rewrite and self._bytes - self._snapshot_bytes <= self._growth_bytes:
            await self._in_thread(lambda: self._append(_lines(events)))
            if not self._rewrite:
                return
        # The evidence holds every event; those that come while this is written are appended after it.
        snapshot = _lines(self._evidence.snapshot())
        self._rewrite = False
        await self._in_thread(lambda: self._replace(snapshot))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Shielded: a caller that leaves must not take back what others already count.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    # What follows runs in the thread.

    def _read(self) -> list[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(_MAX_REPLICAS):
            self._path = self._folder / f"cache_feedback{number or ''}.jsonl"
            self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = -1
                continue
            return self._path.read_bytes().splitlines() if self._path.exists() else []
        raise OSError(f"{self._folder}: {_MAX_REPLICAS} processes keep their feedback here already")

    def _append(self, data: bytes) -> None:
        if self._rewrite or not data:
            return
        try:
            _write_whole(self._file, data)
            self._bytes += len(data)
        except OSError:
            # Half a line may be there now: nothing may be written behind it.
            self._rewrite = True
            raise

    def _replace(self, data: bytes) -> None:
        temporary = self._path.with_suffix(".new")
        file = -1
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            _write_whole(file, data)
            temporary.replace(self._path)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            self._rewrite = True
            if file >= 0:
                os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._bytes = self._snapshot_bytes = len(data)

    def _close(self) -> None:
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event, ensure_ascii=True, separators=(",", ":")).encode() + b"\n" for event in events)


def _write_whole(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)
