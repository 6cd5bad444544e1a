"""The embedded store: Qdrant's own engine inside this process, over a SQLite file in the data directory.

An entry is a row of the file, committed before ``put`` returns, so entries survive kill -9. The engine searches: its
index is built by another process, whenever a tenth of the rows is new, and what came since is compared in memory. A
search takes candidates from both and compares them exactly with the vectors in their rows: an index that is old,
damaged or gone costs hits or time and never serves a wrong row. Lookups have a thread of their own, so that they wait
for no write.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from mesh.errors import TenthError
from services.cache.embedding import Vector
from services.cache.errors import dimension_mismatch, store_in_use, store_unavailable
from services.cache.qdrant_index import IndexBroken, VectorIndex, remove
from services.cache.recent import RecentVectors
from services.cache.sqlite import EntryReader, EntryTable
from services.cache.store import Conditions, Entry, Found

T = TypeVar("T")
log = logging.getLogger("tenth.cache")

INDEX_LEAST_COUNT = 2000
"""Fewer new rows than this are compared in memory; more are indexed once they are a tenth of all."""
_NEW_SHARE = 0.1
_GONE_SHARE = 0.2
_SPARE_COUNT = 16
"""Candidates beyond those asked for: the index may know rows that are gone, and its cosines are rounded."""
_MOST_COUNT = 4096
_ROUNDING = 0.03
"""No cosine of the index is further off than this."""
_NONE = -2.0
"""Below every cosine."""
_PAGE_ROWS = 2000
_BULK_SECONDS = 30.0
"""Longest wait for deletions and sums, which touch any number of rows."""
_RETRY_SECONDS = 60.0
"""After an index could not be built (a full disk, for one)."""


class QdrantEdgeStore:
    """VectorStore over SQLite and ``qdrant-edge-py``. One process per directory."""

    name = "qdrant_edge"

    def __init__(
        self, folder: Path, dimension: int, timeout_seconds: float, index_least_count: int = INDEX_LEAST_COUNT
    ) -> None:
        self._folder = folder
        self._dimension = dimension
        self._timeout_seconds = timeout_seconds
        self._index_least_count = index_least_count
        self._lock: IO[bytes] | None = None
        self._table: EntryTable | None = None
        self._reader: EntryReader | None = None
        self._index: VectorIndex | None = None
        self._recent = RecentVectors(dimension)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="cache-write")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="cache-read")
        self._building: asyncio.Task[None] | None = None
        self._build_after = 0.0
        self._lost = False
        """The index broke while it was open: its rows are found by id alone until there is another."""

    async def open(self) -> None:
        """Open or create. Raises STORE_DIMENSION_MISMATCH, STORE_IN_USE, STORE_UNAVAILABLE."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writing, self._open)
        except BaseException as error:
            await loop.run_in_executor(self._writing, self._close)
            if isinstance(error, Exception) and not isinstance(error, TenthError):
                raise store_unavailable(f"{self._folder}: {error}") from error
            raise
        self._build_when_due()

    async def close(self) -> None:
        """Release the directory. An index in the making is given up."""
        if self._building is not None:
            self._building.cancel()
            await asyncio.gather(self._building, return_exceptions=True)
        loop = asyncio.get_running_loop()
        if self._table is not None:
            await loop.run_in_executor(self._reading, lambda: None)  # What was asked before is answered.
            await loop.run_in_executor(self._writing, self._close)
        self._reading.shutdown()
        self._writing.shutdown()

    async def ping(self) -> None:
        """Raise when the store is not open or cannot be read."""
        await self._read(lambda reader: reader.get(""))

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Insert or replace."""
        await self._put([(entry, _unit(vector))], self._timeout_seconds)

    async def put_all(self, entries: Iterable[tuple[Entry, Sequence[float]]]) -> None:
        """Insert or replace many in one transaction, which all other writing waits for."""
        await self._put([(entry, _unit(vector)) for entry, vector in entries], _BULK_SECONDS)

    async def get(self, entry_id: str) -> Entry | None:
        """By id."""
        return await self._read(lambda reader: reader.get(entry_id))

    async def search(
        self, vector: Sequence[float], conditions: Conditions, limit: int, least: float = -1.0
    ) -> list[Found]:
        """Candidates from the index (approximate) and the recent rows (exact), compared exactly."""
        unit = _unit(vector)
        return await self._read(lambda reader: self._search(reader, unit, conditions, limit, least))

    async def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Exact count."""
        return await self._write(lambda table: table.rows.count(conditions, entry_ids))

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """In one transaction. The index learns of it when it is built the next time."""
        return await self._write(lambda table: table.delete(conditions, entry_ids), _BULK_SECONDS)

    async def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """In one transaction."""
        await self._write(lambda table: table.touch(used), _BULK_SECONDS)

    async def set_counts(self, entry_id: str, right_count: int, wrong_count: int) -> None:
        """In one transaction."""
        await self._write(lambda table: table.set_counts(entry_id, right_count, wrong_count))

    async def scroll(
        self, conditions: Conditions, limit: int, after: str = ""
    ) -> tuple[list[tuple[Entry, list[float]]], str]:
        """In the order of writing."""
        begin = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
        entries, last = await self._write(lambda table: table.rows.page(conditions, limit, begin), _BULK_SECONDS)
        return entries, str(last or "")

    async def total_bytes(self, conditions: Conditions) -> int:
        """A sum over an index of the table."""
        return await self._write(lambda table: table.rows.total_bytes(conditions), _BULK_SECONDS)

    async def least_recently_used(self, limit: int, least_bytes: int = 0) -> list[str]:
        """In the order of the index on ``used``."""
        return await self._write(lambda table: table.rows.least_recently_used(limit, least_bytes), _BULK_SECONDS)

    async def flush(self) -> None:
        """Have an index built if enough is new or gone. Returns at once."""
        index = self._index

        def flush(table: EntryTable) -> int:
            table.shrink()
            return 0 if index is None else index.count - table.rows.older_count(index.last_seq)

        gone = await self._write(flush, _BULK_SECONDS)
        self._build_when_due(gone)

    async def settle(self) -> None:
        """Wait for the index in the making, if one is due: for measurements and tests. Raises nothing if it fails."""
        await self.flush()
        if self._building is not None:
            await asyncio.gather(self._building, return_exceptions=True)
        await self._read(lambda _: None)  # The index before is removed after the last search in it.

    @property
    def indexed_count(self) -> int:
        """How many vectors the index holds."""
        return 0 if self._index is None else self._index.count

    def _search(
        self, reader: EntryReader, vector: Vector, conditions: Conditions, limit: int, least: float
    ) -> list[Found]:
        scopes = next((condition.values for condition in conditions if condition.field == "scope"), None) or None
        query = vector.tolist()
        wanted = limit + _SPARE_COUNT
        while True:
            # The recent rows before the index: an exchange in between then shows some rows twice, not none.
            near = self._recent.search(vector, scopes, wanted)
            floor = _floor(near, wanted)
            index = self._index
            if index is not None:
                try:
                    indexed = index.search(query, scopes, wanted)
                except IndexBroken as error:
                    log.error("the vector index is given up: %s", error)
                    self._index, self._lost, indexed = None, True, []
                floor = max(floor, _floor(indexed, wanted))
                near += indexed
            seqs = list({seq for seq, cosine in near if cosine >= least - _ROUNDING})
            ranked = self._compared(reader.vectors(seqs, conditions), vector, least)[:limit] if seqs else []
            # What was not looked at is no nearer than this: enough if nothing of it belongs among the ranked.
            nearer = floor < (ranked[-1][1] if len(ranked) == limit else least - _ROUNDING)
            if nearer or floor == _NONE or wanted >= _MOST_COUNT:
                break
            wanted = min(_MOST_COUNT, wanted * 4)
        if not ranked:
            return []
        entries = reader.described([seq for seq, _ in ranked])
        return [Found(entries[seq], cosine) for seq, cosine in ranked if seq in entries]

    def _compared(self, rows: list[tuple[int, bytes]], vector: Vector, least: float) -> list[tuple[int, float]]:
        """Rows by their exact cosine, best first."""
        if not rows:
            return []
        vectors = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), -1)
        cosines = (vectors @ vector).tolist()
        ranked = [(seq, cosine) for (seq, _), cosine in zip(rows, cosines, strict=True) if cosine >= least]
        return sorted(ranked, key=lambda pair: -pair[1])

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise store_in_use(str(self._folder)) from None
        self._table = table = EntryTable(self._folder / "entries.db")
        stored = table.meta("dimension")
        if stored is not None and int(stored) != self._dimension:
            raise dimension_mismatch(str(self._folder), int(stored), self._dimension)
        if stored is None:
            from services.cache.qdrant_shard import take_over

            take_over(self._folder, table, self._dimension)
            table.set_meta("dimension", str(self._dimension))
        self._reader = table.reader()
        name = table.meta("index")
        if name:
            try:
                self._index = VectorIndex(self._folder / name, check=True)
            except IndexBroken as error:
                log.error("the vector index is built anew: %s", error)
        for folder in self._folder.glob("index-*"):
            if self._index is None or folder != self._index.folder:
                remove(folder)
        last = 0 if self._index is None else self._index.last_seq
        while rows := table.rows.newer(last, _PAGE_ROWS):
            for last, scope, blob in rows:
                self._recent.add(last, scope, np.frombuffer(blob, "<f4"))

    def _close(self) -> None:
        parts = (self._index, self._reader, self._table, self._lock)
        # Gone first: what is asked from now on is refused.
        self._index = self._reader = self._table = self._lock = None
        with ExitStack() as stack:  # The directory is released last, and whatever closing the rest raises.
            for part in reversed(parts):
                if part is not None:
                    stack.callback(part.close)

    def _build_when_due(self, gone: int = 0) -> None:
        loop = asyncio.get_running_loop()
        due = len(self._recent) >= max(self._index_least_count, _NEW_SHARE * self.indexed_count)
        due = due or self._lost or gone >= max(self._index_least_count, _GONE_SHARE * self.indexed_count)
        if due and (self._building is None or self._building.done()) and loop.time() >= self._build_after:
            self._building = loop.create_task(self._build())

    async def _build(self) -> None:
        folder = self._folder / f"index-{uuid.uuid4().hex}"
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        child: asyncio.subprocess.Process | None = None
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.cache.qdrant_index",
                str(self._folder / "entries.db"), str(folder), str(self._dimension),
                env={**os.environ, "PYTHONPATH": paths}, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, words = await child.communicate()
            if child.returncode != 0:
                raise IndexBroken(f"exit {child.returncode}: {words.decode(errors='replace')[-300:]}")
            await self._write(lambda table: self._exchange(table, folder), _BULK_SECONDS)
        except (IndexBroken, OSError, TenthError) as error:
            # Searches go on with what there is; they only get slower.
            log.error("no vector index was built: %s", error)
            self._build_after = asyncio.get_running_loop().time() + _RETRY_SECONDS
            remove(folder)
        finally:
            if child is not None and child.returncode is None:
                child.kill()
                await child.wait()
                remove(folder)

    def _exchange(self, table: EntryTable, folder: Path) -> None:
        index = VectorIndex(folder, check=False)
        try:
            table.set_meta("index", folder.name)
        except BaseException:
            index.close()
            raise
        before, self._index, self._lost = self._index, index, False
        self._recent.drop_through(index.last_seq)
        if before is not None:
            # On the thread that may be searching it right now.
            self._reading.submit(_discard, before)

    async def _put(self, entries: Sequence[tuple[Entry, Vector]], seconds: float) -> None:
        def put(table: EntryTable) -> None:
            for seq, (entry, unit) in zip(table.put(entries), entries, strict=True):
                if entry.scope:
                    self._recent.add(seq, entry.scope, unit)

        await self._write(put, seconds)
        self._build_when_due()

    async def _read(self, work: Callable[[EntryReader], T]) -> T:
        if self._reader is None:
            raise store_unavailable("the embedded store is closed")
        return await self._run(self._reading, work, self._reader, self._timeout_seconds)

    async def _write(self, work: Callable[[EntryTable], T], seconds: float | None = None) -> T:
        if self._table is None:
            raise store_unavailable("the embedded store is closed")
        return await self._run(self._writing, work, self._table, seconds or self._timeout_seconds)

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[Any], T], on: object, seconds: float) -> T:
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(thread, work, on), seconds)
        except TimeoutError:
            raise store_unavailable(f"no answer within {seconds} s") from None
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            # A full disk, a damaged file, a row of another form: callers go on without the cache.
            raise store_unavailable(str(error)) from error


def _floor(near: list[tuple[int, float]], wanted: int) -> float:
    """The cosine that nothing exceeds beyond those given, best first; _NONE where there is nothing beyond."""
    return near[-1][1] if len(near) == wanted else _NONE


def _unit(vector: Sequence[float]) -> Vector:
    values = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(values))
    if not np.isfinite(length):
        # Stored, it would spoil the index for all others.
        raise store_unavailable("a vector with values that are no numbers")
    return values / length if length > 0 else values


def _discard(index: VectorIndex) -> None:
    index.close()
    remove(index.folder)
