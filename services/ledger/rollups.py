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

from sqlalchemy import Connection, Row, Select, and_, delete, func, or_, select
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.money import MAX_NANO_USD
from mesh.settings import MeshSettings, load
from services.ledger.grains import Grain
from services.ledger.policy import ENDS
from services.ledger.receipts import flatten
from services.ledger.rollup_rows import (
    KEY,
    SUMS,
    Key,
    State,
    add,
    largest,
    read_state,
    save_state,
    stored_state,
)
from services.ledger.settings import LedgerSettings
from services.ledger.store import Store, open_store
from services.ledger.tables import ROLLED, SAVINGS, attempts, receipt_events, rollups

log = logging.getLogger("tenth.ledger")

BATCH = 1_000
"""Most events of one step: bounds how long the writer is held."""
Request = tuple[str, str]


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


def counted_at(event: Row[Any], receipt: receipt_pb2.Receipt) -> int:
    """The instant at which an event's receipt counts."""
    return int(receipt.facts.create_time.ToNanoseconds() if event.counted_ns is None else event.counted_ns)


def rolled(event: Row[Any]) -> Rolled:
    """A receipt event's receipt, at the instant at which it counts."""
    receipt = receipt_pb2.Receipt.FromString(event.receipt)
    create_ns = counted_at(event, receipt)
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


def step_of(events: Sequence[Row[Any]], before: Mapping[Request, Row[Any]], state: State) -> Step:
    """What events (in their order) change, given what the requests that they correct showed before them."""
    shown: dict[Request, Rolled] = {key: rolled(event) for key, event in before.items()}
    step = Step({})
    for event in events:
        request = (event.tenant_id, event.request_id)
        new, old = rolled(event), shown.get(request)
        shown[request] = new
        # Every request has one event that is no correction; retention may have dropped it before the others.
        step.receipts += event.kind != "corrected"
        for each, sign in ((new, 1), *(((old, -1),) if old is not None else ())):
            step.violations += sign * each.broken
            if event.id <= state.rebuilt_id and each.create_ns < state.kept_ns:
                continue
            sums = step.deltas.setdefault(each.key, [0] * len(SUMS))
            for index, value in enumerate(each.sums):
                sums[index] += sign * value
    return step


def shown_before(event_id: int, up_to: int | None = None, *, since: int | None = None) -> Select[Any]:
    """The receipts (as of one event) of requests that a later event corrects: one after ``since``, up to ``up_to``."""
    after = event_id if since is None else since
    later = (receipt_events.c.kind == "corrected") & (receipt_events.c.id > after)
    if up_to is not None:
        later &= receipt_events.c.id <= up_to
    # Expressions, so that no index offers itself for the DISTINCT: SQLite would read it from end to end.
    names = (receipt_events.c.tenant_id + "", receipt_events.c.request_id + "")
    corrected = select(names[0].label("tenant_id"), names[1].label("request_id")).where(later).distinct().subquery()
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
    columns = (receipt_events.c[name] for name in ("tenant_id", "request_id", "receipt", "counted_ns"))
    return select(*columns).join(last, receipt_events.c.id == last.c.id)


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
            before: dict[Request, Row[Any]] = {}
            if events:
                query = shown_before(state.event_id, events[-1].id)
                for row in await connection.execute(query):
                    before[row.tenant_id, row.request_id] = row
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
        bound = min(state.bound + largest(changes), MAX_NANO_USD)
        after = State(
            event_id=events[-1].id if events else state.event_id,
            receipts=state.receipts + step.receipts,
            violations=state.violations + step.violations,
            attempt_id=ended[-1].id if ended else state.attempt_id,
            attempts=state.attempts + sum(row.kind in ENDS for row in ended),
            kept_ns=state.kept_ns,
            rebuilt_id=state.rebuilt_id,
            bound=bound,
        )

        def operation(connection: Connection) -> bool:
            if stored_state(connection) != state:
                return False
            add(connection, changes, bound)
            save_state(connection, after)
            return True

        await self._store.write(operation)
        return len(events) + len(ended)


async def rebuild(store: Store) -> int:
    """Make the rollups anew from the events, those of hours whose receipts may be gone apart; returns the events."""
    await restart(store)
    return await Roller(store).catch_up()


async def restart(store: Store) -> None:
    """Empty the rollups, for rollers to fill them again; reports stay right meanwhile, only slower."""

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
        coarse = {key: sums for key, sums in leveled(kept).items() if key[0] > 0}
        bound = min(state.bound + largest(coarse), MAX_NANO_USD)
        add(connection, coarse, bound)
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
                bound=bound,
            ),
        )

    await store.write(operation)


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
