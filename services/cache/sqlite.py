"""The rows of the embedded store: one SQLite file with every entry, its vector and its answer.

The file is what is true; indexes beside it are derived and may lag, break or be thrown away. Rows carry checksums: a
row that does not match its own is not there. Each connection belongs to one thread.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from services.cache.embedding import Vector
from services.cache.store import Conditions, Entry, description, from_payload

log = logging.getLogger("tenth.cache")

_COLUMNS = (
    "scope", "tenant", "namespace", "user_id", "pool", "sharing", "question_start", "tier", "created", "expires",
    "used", "hits", "right_count", "wrong_count", "size",
)  # fmt: skip
"""Payload fields with a column of their own; conditions on others read the JSON of each row left."""
_LABELS = ("document_ids", "tags")
"""Payload fields of several values, which have a table."""

# A row's sequence number is never used again: it names the row in the vector index. Vectors lie in the rows, since
# every candidate's is read; answers do not, since one candidate's is.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL, tenant TEXT NOT NULL, namespace TEXT NOT NULL, user_id TEXT NOT NULL,
    pool TEXT NOT NULL, sharing TEXT NOT NULL,
    question_start TEXT NOT NULL, tier REAL NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, used REAL NOT NULL,
    hits INTEGER NOT NULL, right_count INTEGER NOT NULL, wrong_count INTEGER NOT NULL, size INTEGER NOT NULL,
    checksum INTEGER NOT NULL, payload TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (seq INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, completion BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS labels (
    field TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (field, value, seq)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS labels_seq ON labels (seq);
CREATE INDEX IF NOT EXISTS entries_tenant ON entries (tenant, namespace, question_start, size);
CREATE INDEX IF NOT EXISTS entries_scope ON entries (scope);
CREATE INDEX IF NOT EXISTS entries_pool ON entries (pool) WHERE pool != '';
CREATE INDEX IF NOT EXISTS entries_user ON entries (user_id, tenant) WHERE user_id != '';
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires);
CREATE INDEX IF NOT EXISTS entries_used ON entries (used, size);
CREATE TRIGGER IF NOT EXISTS entries_gone AFTER DELETE ON entries BEGIN
    DELETE FROM answers WHERE seq = old.seq;
    DELETE FROM labels WHERE seq = old.seq;
END;
"""
_PAGE_BYTES = 8192
_DESCRIBED = "e.id, e.hits, e.used, e.right_count, e.wrong_count, e.checksum, e.payload, e.vector"
"""What an entry without its completion is made of. Counts and last use change, and stand outside the checksum."""
_CACHE_KIBIBYTES = 8000
_MOST_VALUES = 100
"""More than these are given as one list: a statement takes a bounded number of arguments."""


class EntryTable:
    """The entries in one file. Methods raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        """Open or create. The caller sees to it that one process does."""
        self._path = path
        self._connection = _connect(path)
        self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode: what is committed outlives the process at once, and a power cut up to the last checkpoint.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def reader(self) -> EntryReader:
        """A connection for another thread."""
        return EntryReader(_connect(self._path))

    @property
    def rows(self) -> EntryReader:
        """Reading on this connection."""
        return EntryReader(self._connection)

    def meta(self, name: str) -> str | None:
        """A value kept beside the entries."""
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        """Keep a value beside the entries."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def put(self, entries: Iterable[tuple[Entry, Vector]]) -> list[int]:
        """Insert or replace all of them or none. Returns their new sequence numbers."""
        with self._transaction():
            return [self._put(entry, vector) for entry, vector in entries]

    def delete(self, conditions: Conditions, entry_ids: Sequence[str]) -> int:
        """Delete what meets all conditions and is among the ids, when any are given. Returns how many."""
        clause, values = _where(conditions, entry_ids)
        with self._transaction():
            return self._connection.execute(f"DELETE FROM entries WHERE {clause}", values).rowcount  # noqa: S608  (Built of constants.)

    def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """Set hits and last use by id."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE entries SET hits = ?, used = ? WHERE id = ?", [(*values, key) for key, values in used.items()]
            )

    def set_counts(self, entry_id: str, right_count: int, wrong_count: int) -> None:
        """Set the reports of an entry."""
        self._connection.execute(
            "UPDATE entries SET right_count = ?, wrong_count = ? WHERE id = ?", (right_count, wrong_count, entry_id)
        )

    def shrink(self) -> None:
        """Give a little of what deletions freed back to the file system."""
        self._connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()

    def _put(self, entry: Entry, vector: Vector) -> int:
        payload = description(entry)
        text, blob = json.dumps(payload), vector.astype("<f4").tobytes()
        self._connection.execute("DELETE FROM entries WHERE id = ?", (entry.entry_id,))
        # A lone surrogate cannot come over the wire, but must not make an entry that no one can store either.
        columns = [value.encode("utf-8", "replace").decode() if isinstance(value := payload[name], str) else value
                   for name in _COLUMNS]  # fmt: skip
        marks = ", ".join("?" * (len(_COLUMNS) + 4))
        seq = self._connection.execute(
            f"INSERT INTO entries (id, {', '.join(_COLUMNS)}, checksum, payload, vector) VALUES ({marks})",  # noqa: S608  (Built of constants.)
            (entry.entry_id, *columns, _checksum(entry.entry_id, text, blob), text, blob),
        ).lastrowid
        assert seq is not None
        self._connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?)", (seq, zlib.crc32(entry.completion), entry.completion)
        )
        labels = {(field, value, seq) for field in _LABELS for value in payload[field]}
        if labels:
            self._connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", labels)
        return seq

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class EntryReader:
    """Reads the entries. Methods raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def get(self, entry_id: str) -> Entry | None:
        """The whole entry of an id."""
        row = self._connection.execute(
            f"SELECT {_DESCRIBED}, a.checksum, a.completion"  # noqa: S608  (Built of constants.)
            " FROM entries e JOIN answers a USING (seq) WHERE e.id = ?", (entry_id,),
        ).fetchone()  # fmt: skip
        return None if row is None else _whole(row)

    def vectors(self, seqs: Sequence[int], conditions: Conditions) -> list[tuple[int, bytes]]:
        """Sequence number and vector of those rows that are there and meet all conditions."""
        clause, values = _where(conditions, ())
        marks = ",".join("?" * len(seqs))
        return self._connection.execute(
            f"SELECT seq, vector FROM entries WHERE seq IN ({marks}) AND {clause}",  # noqa: S608  (Built of constants.)
            (*seqs, *values),
        ).fetchall()

    def described(self, seqs: Sequence[int]) -> dict[int, Entry]:
        """Entries without completions by sequence number; damaged ones are left out."""
        marks = ",".join("?" * len(seqs))
        rows = self._connection.execute(
            f"SELECT seq, {_DESCRIBED} FROM entries e WHERE seq IN ({marks})",  # noqa: S608  (Built of constants.)
            tuple(seqs),
        )
        found = ((seq, _described(*rest)) for seq, *rest in rows)
        return {seq: entry for seq, entry in found if entry is not None}

    def page(self, conditions: Conditions, limit: int, after: int) -> tuple[list[tuple[Entry, list[float]]], int]:
        """Whole entries with their vectors in the order of writing, and the last sequence number; 0: no more."""
        clause, values = _where(conditions, ())
        rows = self._connection.execute(
            f"SELECT e.seq, {_DESCRIBED}, a.checksum, a.completion"  # noqa: S608  (Built of constants.)
            f" FROM entries e JOIN answers a USING (seq) WHERE e.seq > ? AND e.seq IN"
            f" (SELECT seq FROM entries WHERE {clause}) ORDER BY e.seq LIMIT ?",
            (after, *values, limit),
        ).fetchall()
        entries = [(entry, np.frombuffer(row[8], "<f4").tolist()) for row in rows if (entry := _whole(row[1:]))]
        return entries, int(rows[-1][0]) if len(rows) == limit else 0

    def newer(self, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Sequence number, scope and vector of rows after a sequence number that have a scope."""
        return self._connection.execute(
            "SELECT seq, scope, vector FROM entries WHERE seq > ? AND scope != '' ORDER BY seq LIMIT ?", (after, limit)
        ).fetchall()

    def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """How many meet all conditions and are among the ids, when any are given."""
        return self._number("count(*)", conditions, entry_ids)

    def total_bytes(self, conditions: Conditions) -> int:
        """The sum of their sizes."""
        return self._number("coalesce(sum(size), 0)", conditions, ())

    def older_count(self, seq: int) -> int:
        """How many rows up to a sequence number have a scope."""
        row = self._connection.execute("SELECT count(*) FROM entries WHERE seq <= ? AND scope != ''", (seq,)).fetchone()
        return int(row[0])

    def least_recently_used(self, limit: int, least_bytes: int) -> list[str]:
        """Ids by last use, oldest first, until both limits are met."""
        chosen: list[str] = []
        for entry_id, size in self._connection.execute("SELECT id, size FROM entries ORDER BY used, seq"):
            if len(chosen) >= limit and least_bytes <= 0:
                break
            chosen.append(entry_id)
            least_bytes -= size
        return chosen

    def _number(self, what: str, conditions: Conditions, entry_ids: Sequence[str]) -> int:
        clause, values = _where(conditions, entry_ids)
        row = self._connection.execute(f"SELECT {what} FROM entries WHERE {clause}", values).fetchone()  # noqa: S608  (Built of constants.)
        return int(row[0])


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
    return connection


def _checksum(entry_id: str, payload: str, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(payload.encode(), zlib.crc32(entry_id.encode())))


def _described(
    entry_id: str, hits: int, used: float, right: int, wrong: int, checksum: int, payload: str, vector: bytes
) -> Entry | None:
    if checksum != _checksum(entry_id, payload, vector):
        log.warning("entry %s is damaged and not used", entry_id)
        return None
    return from_payload(
        entry_id, {**json.loads(payload), "hits": hits, "used": used, "right_count": right, "wrong_count": wrong}
    )


def _whole(row: Sequence[Any]) -> Entry | None:
    *described, checksum, completion = row
    entry = _described(*described)
    if entry is not None and checksum != zlib.crc32(completion):
        log.warning("the answer of entry %s is damaged and not used", entry.entry_id)
        return None
    return None if entry is None else replace(entry, completion=completion)


def _where(conditions: Conditions, entry_ids: Sequence[str]) -> tuple[str, list[Any]]:
    clauses, values = ["1"], list[Any]()
    for condition in conditions:
        tests, arguments = list[str](), list[Any]()
        if condition.values:
            if len(condition.values) > _MOST_VALUES:
                tests.append("{0} IN (SELECT value FROM json_each(?))")
                arguments.append(json.dumps(condition.values))
            else:
                tests.append(f"{{0}} IN ({','.join('?' * len(condition.values))})")
                arguments.extend(condition.values)
        if condition.prefix:
            # Texts compare by their UTF-8, in which what begins so lies between these two.
            tests.append("({0} >= ? AND {0} < ?)")
            arguments.extend((condition.prefix, condition.prefix + "\U0010ffff"))
        for sign, bound in ((">=", condition.at_least), (">", condition.above), ("<=", condition.at_most)):
            if bound is not None:
                tests.append(f"{{0}} {sign} ?")
                arguments.append(bound)
        test = " AND ".join(tests) or "1"
        if condition.field in _COLUMNS:
            clauses.append(test.format(condition.field))
        elif condition.field in _LABELS:
            clauses.append(f"seq IN (SELECT seq FROM labels WHERE field = ? AND {test.format('value')})")  # noqa: S608
            values.append(condition.field)
        else:
            # Of a list any value, of anything else itself.
            clauses.append(f"EXISTS (SELECT 1 FROM json_each(entries.payload, ?) WHERE {test.format('value')})")  # noqa: S608
            values.append(f'$."{condition.field}"')
        values.extend(arguments)
    if entry_ids:
        clauses.append("id IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(list(entry_ids)))
    return " AND ".join(clauses), values
