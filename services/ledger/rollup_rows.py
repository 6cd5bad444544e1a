"""Rows of the rollups and how far they are: what is stored, and adding to it without ever leaving whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, select, tuple_, update
from sqlalchemy import bindparam as bound
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.tables import ROLLED, rollup_state, rollups

KEY = ("start_ns", "tenant_id", "model", "tier", "user_id", "project_id", "baseline_model", "cache")
"""What a rollup is unique by, within its level. One whose sums do not fit 64 bits goes on in rows at ``start_ns`` + 1,
+ 2, ..."""
PEOPLE = ("user_id", "project_id")
"""Columns that are empty in half of the levels."""
SUMS = ("requests", "failures", *ROLLED)
"""What a rollup sums."""
_ROW = ("level", *KEY)
_KEYS_AT_ONCE = 500
_LARGEST = 2**63 - 1

Key = tuple[Any, ...]
"""Values of ``KEY``; in front of them the level, where rows of several levels are held."""


@dataclass(frozen=True, slots=True)
class State:
    """How far the rollups are. Each is a row of ``rollup_state``, by its id below."""

    event_id: int = 0
    """The last receipt event that the rollups hold."""
    receipts: int = 0
    """Receipts among those events, each counted once for ever."""
    violations: int = 0
    """Receipts visible as of that event that break the identity."""
    attempt_id: int = 0
    """The last attempt's record that is counted."""
    attempts: int = 0
    """Records of attempts that ended, up to that one."""
    kept_ns: int = 0
    """Receipts created before this hour may be gone (retention); the rollups of these hours stay for ever."""
    rebuilt_id: int = 0
    """While rolling up to this event (a rebuild), receipts created before ``kept_ns`` are in the rollups already."""
    bound: int = 0
    """No sum in any row is larger, either way: each step adds its largest change."""


_IDS = {
    "event_id": 1,
    "receipts": 2,
    "violations": 3,
    "attempt_id": 4,
    "attempts": 5,
    "kept_ns": 6,
    "rebuilt_id": 7,
    "bound": 8,
}


async def read_state(connection: AsyncConnection) -> State:
    """How far the rollups are, in the state that this connection reads."""
    return _state((await connection.execute(select(rollup_state))).all())


def save_state(connection: Connection, state: State) -> None:
    """Write how far the rollups are."""
    connection.execute(delete(rollup_state))
    connection.execute(
        insert(rollup_state), [{"id": row_id, "event_id": getattr(state, name)} for name, row_id in _IDS.items()]
    )


def stored_state(connection: Connection) -> State:
    """How far the rollups are, inside an operation of the writer."""
    return _state(connection.execute(select(rollup_state)).all())


def _state(rows: Sequence[Row[Any]]) -> State:
    values = {row.id: row.event_id for row in rows}
    return State(**{name: values.get(row_id, 0) for name, row_id in _IDS.items()})


def largest(changes: Mapping[Key, Sequence[int]]) -> int:
    """The largest change of any sum, either way."""
    return max((abs(value) for values in changes.values() for value in values), default=0)


def add(connection: Connection, changes: Mapping[Key, Sequence[int]], bound_then: int) -> None:
    """Add to the rows; the level stands in front of each key. ``bound_then`` is ``State.bound`` with these added.

    While no sum can leave 64 bits the database adds. Otherwise Python does, and what does not fit goes on in the next
    row: SQLite's integers would turn into floats.
    """
    rows = [
        {**dict(zip(_ROW, key, strict=True)), **dict(zip(SUMS, values, strict=True))}
        for key, values in changes.items()
        if any(values)
    ]
    if bound_then >= _LARGEST:
        _add_in_python(connection, changes)
    elif rows:
        connection.execute(_UPSERTS[connection.dialect.name], rows)
    # Corrections empty rows.
    taken = [_bound(key) for key, values in changes.items() if values[0] <= 0]
    if taken:
        connection.execute(delete(rollups).where(_THIS, *(rollups.c[name] == 0 for name in SUMS)), taken)


def _upsert(insert_into: Any) -> Any:
    statement = insert_into(rollups)
    sums = {name: rollups.c[name] + statement.excluded[name] for name in SUMS}
    return statement.on_conflict_do_update(index_elements=[rollups.c[name] for name in _ROW], set_=sums)


def _add_in_python(connection: Connection, changes: Mapping[Key, Sequence[int]]) -> None:
    left = {key: list(values) for key, values in changes.items() if any(values)}
    fresh, changed = [], []
    while left:
        there = _stored(connection, list(left))
        carried: dict[Key, list[int]] = {}
        for key, values in left.items():
            old = there.get(key)
            total = [a + b for a, b in zip(old, values, strict=True)] if old is not None else values
            kept = [min(max(each, -_LARGEST), _LARGEST) for each in total]
            if kept != total:
                carried[key[0], key[1] + 1, *key[2:]] = [a - b for a, b in zip(total, kept, strict=True)]
            if old is None:
                fresh.append({**dict(zip(_ROW, key, strict=True)), **dict(zip(SUMS, kept, strict=True))})
            else:
                changed.append(_bound(key) | dict(zip(SUMS, kept, strict=True)))
        left = carried
    if fresh:
        connection.execute(insert(rollups), fresh)
    if changed:
        connection.execute(update(rollups).where(_THIS).values({name: bound(name) for name in SUMS}), changed)


def _stored(connection: Connection, keys: Sequence[Key]) -> dict[Key, list[int]]:
    found: dict[Key, list[int]] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = tuple_(*(rollups.c[name] for name in _ROW)).in_(keys[start : start + _KEYS_AT_ONCE])
        for row in connection.execute(select(rollups).where(some)).mappings():
            found[tuple(row[name] for name in _ROW)] = [row[name] for name in SUMS]
    return found


def _bound(key: Key) -> dict[str, Any]:
    return {f"this_{name}": value for name, value in zip(_ROW, key, strict=True)}


_THIS = and_(*(rollups.c[name] == bound(f"this_{name}") for name in _ROW))
_UPSERTS = {"sqlite": _upsert(sqlite_insert), "postgresql": _upsert(postgres_insert)}
