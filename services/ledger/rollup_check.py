"""Are the rollups the receipts? Compared hour by hour in one consistent state, to the nano-dollar."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sqlalchemy import case, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.grains import HOUR, Grain
from services.ledger.reading import summed
from services.ledger.rollup_rows import KEY, PEOPLE, SUMS, Key, read_state
from services.ledger.rollup_steps import level_of, rolled, shown_before
from services.ledger.store import Store
from services.ledger.tables import ROLLED, receipts, rollups

_COMPARED = tuple(name for name in SUMS if name != "latency_ns")
"""Money, counts and tokens. Latency is left out: receipts of before its column was there show none."""
_AT_ONCE = 24 * HOUR
_MONTHS = level_of(Grain.MONTH, people=False)
_NAMES = tuple(name for name in KEY if name not in ("start_ns", *PEOPLE))
MOST = 100
"""Most differences that are told."""


async def check_rollups(store: Store, start_ns: int | None = None, end_ns: int | None = None) -> list[str]:
    """What differs between the rollups and the receipts that they hold, in words; empty: nothing.

    Hours whose receipts retention may have deleted are left out. ``start_ns`` and ``end_ns`` narrow, whole hours.
    """
    found: list[str] = []
    async with store.read() as connection:
        state = await read_state(connection)
        if not state.event_id:
            return []
        before: dict[Key, dict[str, int]] = {}
        for row in await connection.execute(shown_before(state.event_id)):
            old = rolled(row)
            _add(before, old.key, dict(zip(SUMS, old.sums, strict=True)))
        start = max(state.kept_ns, start_ns if start_ns is not None else 0)
        async for first in _days(connection, start, end_ns):
            end = first + _AT_ONCE if end_ns is None else min(first + _AT_ONCE, end_ns)
            expected = {key: sums for key, sums in before.items() if first <= key[0] < end}
            at = receipts.c.create_ns
            groups = [(at - at % HOUR if name == "start_ns" else receipts.c[name]).label(f"g_{name}") for name in KEY]
            values = [
                ("requests", literal(1)),
                ("failures", case((receipts.c.failed, 1), else_=0)),
                *((name, receipts.c[name]) for name in ROLLED if name in _COMPARED),
            ]
            query = select(receipts).where(at >= first, at < end, receipts.c.event_id <= state.event_id)
            for group, sums in await summed(connection, groups, values, query):
                _add(expected, tuple(group[f"g_{name}"] for name in KEY), sums)
            actual: dict[Key, dict[str, int]] = {}
            query = select(rollups).where(rollups.c.level == 0, rollups.c.start_ns >= first, rollups.c.start_ns < end)
            for line in (await connection.execute(query)).mappings():
                key = tuple(line[name] - line[name] % HOUR if name == "start_ns" else line[name] for name in KEY)
                _add(actual, key, {name: line[name] for name in SUMS})
            for key in sorted(expected.keys() | actual.keys()):
                for name in _COMPARED:
                    ours, theirs = actual.get(key, {}).get(name, 0), expected.get(key, {}).get(name, 0)
                    if ours != theirs and len(found) < MOST:
                        where = ", ".join(f"{part}={value!r}" for part, value in zip(KEY, key, strict=True))
                        found.append(f"{name} is {ours} in the rollups and {theirs} in the receipts: {where}")
        if start_ns is None and end_ns is None:
            found += await _between_levels(connection)
    return found


async def _between_levels(connection: AsyncConnection) -> list[str]:
    """Where a level's sums of a month differ from those of its hours, by names and by user and project."""
    found: list[str] = []
    months = select(rollups.c.start_ns).where(rollups.c.level == _MONTHS).distinct()
    starts = {Grain.MONTH.start(start) for start in (await connection.execute(months)).scalars()}
    for start in sorted(starts):
        end = Grain.MONTH.next(start + 1)
        for most, names in ((2 * len(Grain), _NAMES), (len(Grain), PEOPLE)):
            groups = [rollups.c[name] for name in ("level", *names)]
            query = select(rollups).where(rollups.c.level < most, rollups.c.start_ns >= start, rollups.c.start_ns < end)
            levels: list[dict[Key, dict[str, int]]] = [{} for _ in range(most)]
            for row, sums in await summed(connection, groups, [(name, rollups.c[name]) for name in SUMS], query):
                levels[row["level"]][tuple(row[name] for name in names)] = sums
            found += [
                f"level {level} differs from level 0 in the month from {start}: {key}"
                for level in range(1, most)
                for key in sorted(levels[0].keys() | levels[level].keys())
                if _nonzero(levels[0].get(key, {})) != _nonzero(levels[level].get(key, {}))
            ]
    return found[:MOST]


def _nonzero(sums: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in sums.items() if value}


async def _days(connection: AsyncConnection, start_ns: int, end_ns: int | None) -> AsyncIterator[int]:
    """Starts of stretches of 24 hours that hold anything."""
    at = start_ns
    while True:
        times = []
        for column in (rollups.c.start_ns, receipts.c.create_ns):
            query = select(func.min(column)).where(column >= at)
            if column is rollups.c.start_ns:
                query = query.where(rollups.c.level == 0)
            times.append((await connection.execute(query)).scalar_one())
        there = [each for each in times if each is not None]
        if not there or (end_ns is not None and min(there) >= end_ns):
            return
        at = min(there) // HOUR * HOUR
        yield at
        at += _AT_ONCE


def _add(sums: dict[Key, dict[str, int]], key: Key, values: dict[str, int]) -> None:
    into = sums.setdefault(key, {})
    for name, value in values.items():
        into[name] = into.get(name, 0) + value
