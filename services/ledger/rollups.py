"""Rollups: the visible receipts summed by UTC hour, day and month and everything that reports group by, tags apart.

Each of the three is kept twice: with users and projects, and with these together, which is far fewer rows.

Receipt events are rolled in, in their order: what an event shows is added, and what its request showed before is
taken off again, both read from the events themselves. So the rollups are exactly the receipts as of the last event
rolled in, whatever was corrected and when.

    python -m services.ledger.rollups check       compares them with the receipts, to the nano-dollar
    python -m services.ledger.rollups rebuild     makes them anew from the events
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, tuple_, update
from sqlalchemy import bindparam as bound
from sqlalchemy.ext.asyncio import AsyncConnection
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.settings import MeshSettings, load
from services.ledger.grains import Grain
from services.ledger.receipts import flatten
from services.ledger.settings import LedgerSettings
from services.ledger.store import Store, open_store
from services.ledger.tables import ROLLED, SAVINGS, attempts, receipt_events, rollup_state, rollups

log = logging.getLogger("tenth.ledger")

KEY = ("start_ns", "tenant_id", "model", "tier", "user_id", "project_id", "baseline_model", "cache")
"""What a rollup is unique by, within its level. One whose sums do not fit 64 bits goes on in rows at ``start_ns`` + 1,
+ 2, ..."""
PEOPLE = ("user_id", "project_id")
"""Columns that are empty in half of the levels."""
SUMS = ("requests", "failures", *ROLLED)
"""What a rollup sums."""
BATCH = 2_000
"""Most events of one step: bounds how long the writer is held."""
_ROW = ("level", *KEY)
_KEYS_AT_ONCE = 500
_LARGEST = 2**63 - 1

Key = tuple[Any, ...]
"""Values of ``KEY``; in front of them the level, where rows of several levels are held."""
Request = tuple[str, str]


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


_IDS = {
    "event_id": 1,
    "receipts": 2,
    "violations": 3,
    "attempt_id": 4,
    "attempts": 5,
    "kept_ns": 6,
    "rebuilt_id": 7,
}


@dataclass(frozen=True, slots=True)
class Rolled:
    """One receipt as the rollups take it."""

    key: Key
    sums: tuple[int, ...]
    create_ns: int
    broken: bool
    """True when it breaks the identity."""


@dataclass(slots=True)
class Step:
    """What some events change."""

    deltas: dict[Key, list[int]]
    receipts: int = 0
    violations: int = 0


def rolled(blob: bytes) -> Rolled:
    """A receipt event's receipt."""
    receipt = receipt_pb2.Receipt.FromString(blob)
    create_ns = receipt.facts.create_time.ToNanoseconds()
    columns = flatten(receipt, create_ns).columns
    values = {**columns, "start_ns": Grain.HOUR.start(create_ns)}
    saved = columns["baseline"] - sum(columns[name] for name in SAVINGS)
    return Rolled(
        key=tuple(values[name] for name in KEY),
        sums=(1, int(columns["failed"]), *(columns.get(name) or 0 for name in ROLLED)),
        create_ns=create_ns,
        broken=saved + columns["overhead"] != columns["actual"],
    )


def level_of(grain: Grain, *, people: bool) -> int:
    """The level of rollups of a grain, with users and projects or without."""
    return grain + (0 if people else len(Grain))


def leveled(hours: Mapping[Key, Sequence[int]]) -> dict[Key, list[int]]:
    """Sums of hours with users and projects, as every level has them; the level stands in front of the key."""
    found: dict[Key, list[int]] = {}
    for (start, tenant, model, tier, user, project, baseline, cache), sums in hours.items():
        for grain in Grain:
            at = grain.start(start)
            for people, who in ((True, (user, project)), (False, ("", ""))):
                key = (level_of(grain, people=people), at, tenant, model, tier, *who, baseline, cache)
                into = found.setdefault(key, [0] * len(SUMS))
                for index, value in enumerate(sums):
                    into[index] += value
    return found


def step_of(events: Sequence[Row[Any]], before: Mapping[Request, bytes], state: State) -> Step:
    """What events (in their order) change, given what the requests that they correct showed before them."""
    shown: dict[Request, Rolled] = {key: rolled(blob) for key, blob in before.items()}
    step = Step({})
    for event in events:
        request = (event.tenant_id, event.request_id)
        new, old = rolled(event.receipt), shown.get(request)
        shown[request] = new
        step.receipts += old is None
        for each, sign in ((new, 1), *(((old, -1),) if old is not None else ())):
            step.violations += sign * each.broken
            if event.id <= state.rebuilt_id and each.create_ns < state.kept_ns:
                continue
            sums = step.deltas.setdefault(each.key, [0] * len(SUMS))
            for index, value in enumerate(each.sums):
                sums[index] += sign * value
    return step


async def read_state(connection: AsyncConnection) -> State:
    """How far the rollups are, in the state that this connection reads."""
    return _state((await connection.execute(select(rollup_state))).all())


def shown_before(event_id: int, up_to: int | None = None, *, since: int | None = None) -> Select[Any]:
    """The receipts (as of one event) of requests that a later event corrects: one after ``since``, up to ``up_to``."""
    after = event_id if since is None else since
    later = (receipt_events.c.kind == "corrected") & (receipt_events.c.id > after)
    if up_to is not None:
        later &= receipt_events.c.id <= up_to
    corrected = select(receipt_events.c.tenant_id, receipt_events.c.request_id).where(later).distinct().subquery()
    other = receipt_events.alias("other")
    last = (
        select(func.max(other.c.id).label("id"))
        .join(
            corrected,
            (other.c.request_id == corrected.c.request_id) & (other.c.tenant_id == corrected.c.tenant_id),
        )
        .where(other.c.id <= event_id)
        .group_by(other.c.tenant_id, other.c.request_id)
        .subquery()
    )
    return select(receipt_events.c.tenant_id, receipt_events.c.request_id, receipt_events.c.receipt).join(
        last, receipt_events.c.id == last.c.id
    )


class Roller:
    """Rolls new receipt events in. Replicas may all run one: a step whose start another took is dropped."""

    def __init__(self, store: Store, *, batch: int = BATCH) -> None:
        self._store = store
        self._batch = batch

    async def run(self, interval_seconds: float) -> None:
        """Roll for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.catch_up()
            except TenthError as error:
                log.warning("rollups put off: %s", error)
            except Exception:
                # Reports stay right without: they read what is not rolled in from the receipts, only slower.
                log.exception("rollups failed")

    async def catch_up(self) -> int:
        """Roll everything in; returns how many events that were."""
        count = 0
        while rolled_in := await self.step():
            count += rolled_in
        return count

    async def step(self) -> int:
        """Roll in one batch; returns how many events and attempts' records it held."""
        async with self._store.read() as connection:
            state = await read_state(connection)
            new = (
                select(receipt_events)
                .where(receipt_events.c.id > state.event_id)
                .order_by(receipt_events.c.id)
                .limit(self._batch)
            )
            events = (await connection.execute(new)).all()
            before: dict[Request, bytes] = {}
            if events:
                query = shown_before(state.event_id, events[-1].id)
                for row in await connection.execute(query):
                    before[row.tenant_id, row.request_id] = row.receipt
            ended = (
                await connection.execute(
                    select(attempts.c.id, attempts.c.kind)
                    .where(attempts.c.id > state.attempt_id)
                    .order_by(attempts.c.id)
                    .limit(self._batch)
                )
            ).all()
        if not events and not ended:
            return 0
        # Events never change, so they are computed outside of the writer, and off the event loop.
        step = await asyncio.to_thread(step_of, events, before, state)
        changes = await asyncio.to_thread(leveled, step.deltas)
        after = State(
            event_id=events[-1].id if events else state.event_id,
            receipts=state.receipts + step.receipts,
            violations=state.violations + step.violations,
            attempt_id=ended[-1].id if ended else state.attempt_id,
            attempts=state.attempts + sum(row.kind != "started" for row in ended),
            kept_ns=state.kept_ns,
            rebuilt_id=state.rebuilt_id,
        )

        def operation(connection: Connection) -> bool:
            if stored_state(connection) != state:
                return False
            _add(connection, changes)
            save_state(connection, after)
            return True

        await self._store.write(operation)
        return len(events) + len(ended)


async def rebuild(store: Store) -> int:
    """Make the rollups anew from the events, those of hours whose receipts may be gone apart; returns the events."""

    def operation(connection: Connection) -> None:
        state = stored_state(connection)
        if state.event_id < state.rebuilt_id:
            return  # An earlier rebuild goes on.
        # The month that the mark lies in is summed again from its hours before the mark.
        month = Grain.MONTH.start(state.kept_ns)
        connection.execute(
            delete(rollups).where(
                or_(rollups.c.start_ns >= state.kept_ns, and_(rollups.c.level > 0, rollups.c.start_ns >= month))
            )
        )
        kept = {
            tuple(row[name] for name in KEY): [row[name] for name in SUMS]
            for row in connection.execute(
                select(rollups).where(rollups.c.level == 0, rollups.c.start_ns >= month)
            ).mappings()
        }
        _add(connection, {key: sums for key, sums in leveled(kept).items() if key[0] > 0})
        # Every request has one event that is no correction. Receipts whose events are gone stay counted.
        there = select(func.count()).where(receipt_events.c.id <= state.event_id, receipt_events.c.kind != "corrected")
        gone = state.receipts - connection.execute(there).scalar_one()
        save_state(
            connection,
            State(
                receipts=gone,
                attempt_id=state.attempt_id,
                attempts=state.attempts,
                kept_ns=state.kept_ns,
                rebuilt_id=state.event_id,
            ),
        )

    await store.write(operation)
    return await Roller(store).catch_up()


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


def _add(connection: Connection, deltas: Mapping[Key, Sequence[int]]) -> None:
    """Add to the rollups, in Python's integers: what does not fit 64 bits goes on in the next row of its hour."""
    there: dict[Key, list[int]] = {}
    fresh, changed, emptied = [], [], []
    left = {key: list(values) for key, values in deltas.items() if any(values)}
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
            elif any(kept):
                changed.append(_bound(key) | dict(zip(SUMS, kept, strict=True)))
            else:
                emptied.append(_bound(key))
        left = carried
    if fresh:
        connection.execute(insert(rollups), fresh)
    if changed:
        connection.execute(update(rollups).where(_THIS).values({name: bound(name) for name in SUMS}), changed)
    if emptied:
        connection.execute(delete(rollups).where(_THIS), emptied)


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


def main() -> None:
    """The command line; ends with 1 when rollups and receipts differ."""
    parser = argparse.ArgumentParser(prog="services.ledger.rollups", description="Checks or makes anew the rollups.")
    parser.add_argument("what", choices=["check", "rebuild"])
    sys.exit(asyncio.run(_main(parser.parse_args().what)))


async def _main(what: str) -> int:
    from services.ledger.migrate import database_password
    from services.ledger.rollup_check import check_rollups

    settings = load(LedgerSettings)
    url = settings.url(load(MeshSettings).data_dir)
    async with open_store(url, password=database_password(settings)) as store:
        if what == "rebuild":
            print(f"rolled in {await rebuild(store)} events and attempts")
        differences = await check_rollups(store)
    for line in differences:
        print(line)
    print("the rollups are the receipts" if not differences else f"{len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    main()
